"""Reading shards: many samples in a few safetensors files, by rows through a memory map.

A directory of shards holds ``shard-NNNNN.safetensors`` (every field stacked over its samples),
``samples*.jsonl`` (one line of columns a sample) and ``manifest.json``, which is written last and carries
size and SHA-256 of all the others: no manifest, no shards.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from sys import intern
from typing import Any

import torch
from torch import Tensor

from qdm_pipeline.errors import InputError
from qdm_pipeline.files import digest_json, read_json
from qdm_pipeline.video.shard_files import DTYPES, map_tensors, verify

FORMAT = 1


class ShardSet:
    """Read-only, memory-mapped view of a finished directory of shards; pickles as its path."""

    def __init__(self, directory: Path) -> None:
        """Open ``directory``; `InputError` if it is missing, unfinished, or a file is damaged (`verify`)."""
        if not (directory / "manifest.json").exists():
            raise InputError(f"{directory}: no manifest.json, so no (finished) shards")
        self.directory = directory
        self.manifest: dict[str, Any] = read_json(directory / "manifest.json")
        if self.manifest.get("format") != FORMAT:
            raise InputError(f"{directory}/manifest.json: format {self.manifest.get('format')}, not {FORMAT}")
        verify(directory, self.manifest["files"])
        self.digest = digest_json(self.manifest)
        shards = [entry for entry in self.manifest["files"] if "count" in entry]
        self._ends = torch.tensor([entry["count"] for entry in shards]).cumsum(0)
        self._begins = [0, *self._ends.tolist()]
        self._shards = [map_tensors(directory / entry["file"]) for entry in shards]
        self._columns: dict[str, list[Any]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __reduce__(self) -> tuple[type["ShardSet"], tuple[Path]]:
        return ShardSet, (self.directory,)

    def verify(self) -> None:
        """Read every byte again; `InputError` naming the first file whose SHA-256 is not the manifest's."""
        verify(self.directory, self.manifest["files"], again=True)

    def samples(self) -> Iterator[dict[str, Any]]:
        """The columns of every sample, one after the other."""
        for entry in self.manifest["files"]:
            if entry["file"].endswith(".jsonl"):
                with (self.directory / entry["file"]).open() as lines:
                    yield from map(json.loads, lines)

    def column(self, name: str) -> list[Any]:
        """The value of column ``name`` of every sample. Kept, and equal strings only once."""
        if name not in self._columns:
            values = (sample[name] for sample in self.samples())
            self._columns[name] = [intern(value) if isinstance(value, str) else value for value in values]
        return self._columns[name]

    def rows(self, split: str) -> Tensor:
        """Positions of the samples of ``split``: int64 [n]."""
        return torch.tensor(
            [i for i, value in enumerate(self.column("split")) if value == split], dtype=torch.long
        )

    def gather(self, field: str, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """``field`` of the samples at ``rows`` (int64 [n], any order): a copy, [n, ...], in its own dtype."""
        form = self.manifest["fields"][field]
        if out is None:
            out = torch.empty(len(rows), *form["shape"], dtype=DTYPES[form["dtype"]])
        shard_of = torch.searchsorted(self._ends, rows, right=True).tolist()
        begins, shards = self._begins, self._shards
        views = [shards[s][field][r - begins[s]] for s, r in zip(shard_of, rows.tolist(), strict=True)]
        return torch.stack(views, out=out) if views else out
