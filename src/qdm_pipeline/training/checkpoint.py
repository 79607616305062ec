"""Checkpoints of a run: written aside, digested, renamed; verified before use."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qdm_pipeline.files import digest_file, directory_atomic, read_json, write_json

logger = logging.getLogger(__name__)
KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint on disk: the state after ``step`` steps."""

    path: Path
    step: int


def save(directory: Path, step: int, state: dict[str, Any]) -> None:
    """Write ``state`` as ``checkpoints/step-NNNNNNNN`` and drop all but the newest two."""
    root = directory / "checkpoints"
    with directory_atomic(root / f"step-{step:08d}") as aside:
        torch.save(state, aside / "state.pt")
        write_json(aside / "manifest.json", {"step": step, "state.pt": digest_file(aside / "state.pt")})
    for old in _found(root)[:-KEEP]:
        shutil.rmtree(old)


def latest(directory: Path) -> Checkpoint | None:
    """The newest checkpoint whose digest is right; damaged ones are named in a warning and passed over."""
    for path in reversed(_found(directory / "checkpoints")):
        manifest = read_json(path / "manifest.json")
        if digest_file(path / "state.pt") == manifest["state.pt"]:
            return Checkpoint(path, manifest["step"])
        logger.warning("%s: damaged (its SHA-256 is not the manifest's), using an older checkpoint", path)
    return None


def load(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU."""
    state: dict[str, Any] = torch.load(checkpoint.path / "state.pt", map_location="cpu", weights_only=True)
    return state


def clear(directory: Path) -> None:
    """Remove the checkpoints of a run that has been exported."""
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)


def _found(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("step-*") if (path / "manifest.json").exists())
