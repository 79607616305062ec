"""Checkpoints of a run: copied, then written aside by a thread, digested, renamed; verified before use.

A checkpoint ``checkpoints/step-NNNNNNNN`` is ``state.pt`` and ``manifest.json``, which is written last and
has the digest of the other and of itself.
"""

import errno
import logging
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from qdm_pipeline.errors import InputError
from qdm_pipeline.files import digest_file, digest_json, directory_atomic, read_json, remove_parts, write_json
from qdm_pipeline.retention import Retention

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint on disk: the state after ``step`` steps."""

    path: Path
    step: int


class Writer:
    """Writes one checkpoint at a time behind the training's back; a step waits for the copy only."""

    def __init__(self, directory: Path, retention: Retention) -> None:
        """Write under ``directory``; removes what a killed process has left half-written there."""
        self._root, self._retention = directory / "checkpoints", retention
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._copy: list[Any] = []  # of the state's leaves; memory that is new costs more than the copying
        self._good: dict[Path, int] = {}  # verified by this process: not read again at every checkpoint
        remove_parts(self._root)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Let the write that has begun come to its end; its trouble is raised unless there is other."""
        try:
            self.wait()
        except InputError:
            if kind is None:
                raise
            logger.exception("a checkpoint could not be written either")

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy ``state``, which may change from then on, and begin to write it. Raises as `wait` does."""
        self.wait()
        leaves, tree = tree_flatten(state)
        earlier = self._copy if len(self._copy) == len(leaves) else [None] * len(leaves)
        self._copy = [_copied(leaf, into) for leaf, into in zip(leaves, earlier, strict=True)]
        copied = tree_unflatten(self._copy, tree)
        self._thread = threading.Thread(target=self._write, args=(step, copied), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written; `InputError` if the disk did not take it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if isinstance(error, OSError):
            newest = latest(self._root.parent)
            stands = f"the checkpoint of step {newest.step} stands" if newest else "none stands yet"
            remedy = "free some space" if error.errno == errno.ENOSPC else "mend it"
            raise InputError(
                f"{self._root}: a checkpoint could not be written: {error.strerror}; {stands}: {remedy} and "
                "run the same command again"
            ) from error
        if error is not None:
            raise error

    def _write(self, step: int, state: dict[str, Any]) -> None:
        try:
            path = self._root / f"step-{step:08d}"
            shutil.rmtree(path, ignore_errors=True)  # a damaged one, or it would have been resumed from
            with directory_atomic(path) as aside:
                _save(state, aside / "state.pt")
                found = {"step": step, "files": {"state.pt": digest_file(aside / "state.pt")}}
                write_json(aside / "manifest.json", found | {"digest": digest_json(found)})
            self._good[path] = step
            self._drop_old()
        except BaseException as error:  # told to the training at its next call
            self._error = error

    def _drop_old(self) -> None:
        for path in _found(self._root):
            if path not in self._good and (step := _valid(path)) is not None:
                self._good[path] = step
        kept = self._retention.kept(list(self._good.values()))
        for path in [path for path, step in self._good.items() if step not in kept]:
            shutil.rmtree(path)
            del self._good[path]


def latest(directory: Path) -> Checkpoint | None:
    """The newest checkpoint whose digests are right; damaged ones are named in a warning and passed over.

    None if there is no checkpoint at all; `InputError` if there are, but all of them are damaged.
    """
    found = _found(directory / "checkpoints")
    for path in reversed(found):
        if (step := _valid(path)) is not None:
            return Checkpoint(path, step)
    if found:
        raise InputError(
            f"{directory / 'checkpoints'}: all {len(found)} checkpoints are damaged; put an undamaged copy "
            "back, or remove this folder to start at step 0"
        )
    return None


def load(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU."""
    state: dict[str, Any] = torch.load(checkpoint.path / "state.pt", map_location="cpu", weights_only=True)
    return state


def clear(directory: Path) -> None:
    """Remove the checkpoints of a run that has been exported."""
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)


def _save(state: dict[str, Any], file: Path) -> None:
    try:
        with file.open("wb") as stream:
            torch.save(state, stream)
    except RuntimeError as error:  # what torch makes of the disk's own error
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _copied(value: Any, into: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if not isinstance(into, torch.Tensor) or (into.shape, into.dtype) != (value.shape, value.dtype):
        into = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
    return into.copy_(value.detach())


def _found(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("step-*") if path.is_dir())


def _valid(path: Path) -> int | None:
    """The step of a checkpoint, or None, with a warning that names the file, if it is damaged."""
    try:
        manifest = read_json(path / "manifest.json")
        digest = manifest.pop("digest")
        if digest != digest_json(manifest) or path.name != f"step-{manifest['step']:08d}":
            raise InputError(f"{path / 'manifest.json'}: its digest is not its content's")
        for name, expected in manifest["files"].items():
            if not (path / name).exists() or digest_file(path / name) != expected:
                raise InputError(f"{path / name}: missing or damaged (its SHA-256 is not the manifest's)")
    except (InputError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        logger.warning("checkpoint passed over: %s", error)
        return None
    return int(manifest["step"])
