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

import numpy as np
import torch
from torch import Tensor

from qdm_pipeline.errors import InputError
from qdm_pipeline.files import digest_json, read_json
from qdm_pipeline.video.shard_files import DTYPES, as_bytes, map_tensors, verify

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
        maps = [map_tensors(directory / entry["file"]) for entry in shards]
        self._bytes = {
            name: [as_bytes(tensors[name]) for tensors in maps] for name in self.manifest["fields"]
        }
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

    def gather(self, field: str, rows: Tensor) -> Tensor:
        """``field`` of the samples at ``rows`` (int64 [n], any order): a copy, [n, ...], in its own dtype."""
        form = self.manifest["fields"][field]
        dtype, shape = DTYPES[form["dtype"]], torch.Size([len(rows), *form["shape"]])
        if not len(rows):
            return torch.empty(shape, dtype=dtype)
        # NumPy asks for huge pages: a batch of megabytes is there four times as fast
        out = torch.from_numpy(np.empty(shape.numel() * dtype.itemsize, np.uint8)).view(dtype).view(shape)
        parts, begins = self._bytes[field], self._begins
        target = as_bytes(out)
        shard_of = torch.searchsorted(self._ends, rows, right=True).tolist()
        for place, (shard, row) in enumerate(zip(shard_of, rows.tolist(), strict=True)):
            target[place] = parts[shard][row - begins[shard]]
        return out
