"""Writing shards: any number of processes can share the work, and a killed one loses one shard."""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdm_pipeline.errors import InputError
from qdm_pipeline.files import read_json, write_json
from qdm_pipeline.video.shard_files import describe, trust, verify, write_bytes, write_tensors
from qdm_pipeline.video.shard_set import FORMAT, ShardSet

__all__ = ["Sample", "ShardSet", "ShardWriter", "append_shards", "require_same", "write_shards"]

IDENTITY = "identity.json"
Sample = tuple[dict[str, Tensor], dict[str, Any]]


class ShardWriter:
    """Shards by number, each with a note ``shard-NNNNN.json`` beside it until `finish` makes the manifest.

    A note is written after its shard is whole, so that a second start knows what need not be done again.
    """

    def __init__(self, directory: Path, identity: dict[str, Any], fresh: bool = False) -> None:
        """Go on in ``directory``, or start afresh; `InputError` if what is there has another ``identity``.

        ``identity`` is what all samples have in common: encoder, size, dtype.
        """
        self.directory = directory
        if fresh:
            (directory / "manifest.json").unlink(missing_ok=True)
            self.clear_from(0)
        elif (directory / IDENTITY).exists():
            require_same(directory / IDENTITY, read_json(directory / IDENTITY), identity)
        write_json(directory / IDENTITY, identity)

    def finished(self) -> ShardSet | None:
        """The shards, if `finish` was reached before: a killed process may have got no further."""
        if not (self.directory / "manifest.json").exists():
            return None
        self._sweep()
        return ShardSet(self.directory)

    def note(self, number: int) -> dict[str, Any] | None:
        """What was noted of shard ``number`` (``samples``: its columns), or None if it is still to be made.

        A shard whose bytes are not those of its note is made again.
        """
        path = self._path(number, ".json")
        if not path.exists():
            return None
        note = read_json(path)
        try:
            verify(self.directory, [note["entry"]], again=True)
        except InputError:
            return None
        return note

    def put(self, number: int, samples: list[Sample], **more: Any) -> None:
        """Write shard ``number``; ``more`` goes into its note."""
        stacked = {name: torch.stack([tensors[name] for tensors, _ in samples]) for name in samples[0][0]}
        entry = write_tensors(self.directory, self._path(number, ".safetensors").name, stacked)
        note = {"entry": entry | {"count": len(samples)}, "fields": describe(stacked)}
        write_json(
            self._path(number, ".json"), note | {"samples": [columns for _, columns in samples]} | more
        )

    def finish(self, count: int, extra: dict[str, Any], sizes: bool = False) -> ShardSet:
        """Make the manifest of shards 0 to ``count`` - 1, drop the notes; `InputError` if there are none.

        Or if they are of several sizes, unless ``sizes`` says that they may be.
        """
        if not count:
            raise InputError(f"{self.directory}: there is no sample to write")
        notes = [read_json(self._path(number, ".json")) for number in range(count)]
        fields = notes[0]["fields"]
        known = [note["fields"] for note in notes] if sizes else [fields]
        files = self._complete(notes, "samples.jsonl", known)
        total = sum(note["entry"]["count"] for note in notes)
        manifest = {**extra, "format": FORMAT, "count": total, "fields": fields, "files": files}
        return self._seal(manifest)

    def append(self, shards: ShardSet, count: int) -> ShardSet:
        """Add ``count`` shards, numbered from those of ``shards`` on, to its manifest."""
        old = shards.manifest
        known = sum("count" in entry for entry in old["files"])
        notes = [read_json(self._path(number, ".json")) for number in range(known, known + count)]
        files = self._complete(notes, f"samples-{known:05d}.jsonl", shards.sizes)
        total = old["count"] + sum(note["entry"]["count"] for note in notes)
        return self._seal({**old, "count": total, "files": [*old["files"], *files]})

    def _complete(
        self, notes: list[dict[str, Any]], name: str, known: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The manifest's entries of shards that are each of a ``known`` size; writes their columns."""
        lines = [json.dumps(sample, sort_keys=True) + "\n" for note in notes for sample in note["samples"]]
        entries = []
        for note in notes:
            if note["fields"] not in known:
                require_same(self.directory / note["entry"]["file"], known[0], note["fields"])
            other = {} if note["fields"] == known[0] else {"fields": note["fields"]}
            entries.append(note["entry"] | other)
        return [*entries, write_bytes(self.directory, name, "".join(lines).encode())]

    def _seal(self, manifest: dict[str, Any]) -> ShardSet:
        write_json(self.directory / "manifest.json", manifest)
        trust(self.directory, manifest["files"])
        self._sweep()
        return ShardSet(self.directory)

    def _sweep(self) -> None:
        notes, torn = self.directory.glob("shard-*.json"), self.directory.glob(".*.part")
        for stale in [*notes, *torn, self.directory / IDENTITY]:
            stale.unlink(missing_ok=True)

    def clear_from(self, number: int) -> None:
        """Remove shards and notes from ``number`` on, left by a killed process."""
        for stale in self.directory.glob("shard-*"):
            if int(stale.stem.removeprefix("shard-")) >= number:
                stale.unlink()

    def _path(self, number: int, suffix: str) -> Path:
        return self.directory / f"shard-{number:05d}{suffix}"


def write_shards(
    directory: Path, samples: Iterable[Sample], manifest_extra: dict[str, Any], shard_size: int
) -> ShardSet:
    """Write ``samples``, pairs of (tensors, columns), as shards of ``shard_size`` samples into ``directory``.

    All samples have the same fields, shapes and dtypes. `InputError` if there is no sample. Other files in
    the directory stay as they are; shards in it are replaced.
    """
    writer = ShardWriter(directory, {}, fresh=True)
    stream, number = iter(samples), 0
    while part := list(islice(stream, shard_size)):
        writer.put(number, part)
        number += 1
    return writer.finish(number, manifest_extra)


def append_shards(
    directory: Path, samples: Iterable[Sample], manifest_extra: dict[str, Any], shard_size: int
) -> ShardSet:
    """Add ``samples`` to a finished directory of shards, which stays as it was until all are written.

    `InputError` naming the key if ``manifest_extra`` (encoder, statistics, rate …), fields, sizes or dtypes
    are not those of the samples in it, or if there is no sample.
    """
    shards = ShardSet(directory)
    require_same(
        directory / "manifest.json", {k: shards.manifest.get(k) for k in manifest_extra}, manifest_extra
    )
    known = number = sum("count" in entry for entry in shards.manifest["files"])
    writer = ShardWriter(directory, {})
    writer.clear_from(known)
    stream = iter(samples)
    while part := list(islice(stream, shard_size)):
        writer.put(number, part)
        number += 1
    if number == known:
        raise InputError(f"{directory}: there is no sample to append")
    return writer.append(shards, number - known)


def require_same(where: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """`InputError` naming the first key in which ``expected`` differs from what was ``found``."""
    for key in sorted({*found, *expected}):
        if found.get(key) != expected.get(key):
            raise InputError(
                f"{where}: {key}: found {found.get(key)!r}, these samples have {expected.get(key)!r}; "
                "shards of different encoders or sizes do not mix"
            )
