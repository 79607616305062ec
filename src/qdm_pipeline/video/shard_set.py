"""Reading shards: many samples in a few safetensors files, by rows through a memory map.

A directory of shards holds ``shard-NNNNN.safetensors`` (every field stacked over its samples),
``samples*.jsonl`` (one line of columns a sample) and ``manifest.json``, which is written last and carries
size and SHA-256 of all the others: no manifest, no shards. The samples of one shard are of one size; shards
of other sizes than the first say so in their entry.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from sys import intern
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdm_pipeline.errors import InputError
from qdm_pipeline.files import digest_json, read_json
from qdm_pipeline.video.shard_files import DTYPES, as_bytes, map_tensors, verify, will_need

FORMAT = 1


class ShardSet:
    """Read-only, memory-mapped view of a finished directory of shards; pickles as its path.

    ``size_of`` [N]: which of its sizes, numbered as they come, each sample has. A view of one of them
    (`of_size`) gives only the rows of that one; positions stay those in the whole.
    """

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
        own = [entry.get("fields", self.manifest["fields"]) for entry in shards]
        self.sizes: list[dict[str, Any]] = []  # shape and dtype of every field
        for fields in own:
            if fields not in self.sizes:
                self.sizes.append(fields)
        counts = torch.tensor([entry["count"] for entry in shards])
        self.size_of = torch.tensor([self.sizes.index(fields) for fields in own]).repeat_interleave(counts)
        self.only: int | None = 0 if len(self.sizes) == 1 else None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (self.directory, self.only)

    def of_size(self, number: int) -> "ShardSet":
        """A view of the samples of one size."""
        view = object.__new__(ShardSet)
        view.__dict__ = self.__dict__ | {"only": number}
        return view

    def of_main_size(self) -> "ShardSet":
        """A view of the size that most samples of the train split have."""
        train = self.size_of[self.rows("train")]
        return self.of_size(int(torch.bincount(train, minlength=len(self.sizes)).argmax()))

    def size_with(self, field: str, shape: Sequence[int]) -> int:
        """The size in which ``field`` has this shape; `InputError` naming all shapes if it is none."""
        if (found := tuple(shape)) not in self.shapes(field):
            allowed = ", ".join(map(str, self.shapes(field)))
            raise InputError(f"{self.directory}: no sample has {field} of {found}, there are {allowed}")
        return self.shapes(field).index(found)

    def shapes(self, field: str) -> list[tuple[int, ...]]:
        """That of one sample, for every size."""
        return [tuple(fields[field]["shape"]) for fields in self.sizes]

    def shape(self, field: str) -> tuple[int, ...]:
        """That of one sample; for a set or a view of one size."""
        if self.only is None:
            raise ValueError(f"{self.directory}: samples of {len(self.sizes)} sizes, take a view of one")
        return self.shapes(field)[self.only]

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
        found = torch.tensor(
            [i for i, value in enumerate(self.column("split")) if value == split], dtype=torch.long
        )
        return found if self.only is None else found[self.size_of[found] == self.only]

    def parts(self, rows: Tensor, most: int) -> list[Tensor]:
        """``rows``, in order, in parts of one size and of at most ``most``."""
        sizes = self.size_of[rows]
        borders = (sizes[1:] != sizes[:-1]).nonzero().flatten() + 1
        return [part for run in rows.tensor_split(borders) for part in run.split(most) if len(part)]

    def gather(self, field: str, rows: Tensor) -> Tensor:
        """``field`` of the samples at ``rows`` (int64 [n], any order): a copy, [n, ...], in its own dtype.

        All of them are of one size.
        """
        known = self.only if self.only is not None else int(self.size_of[rows[0]]) if len(rows) else 0
        form = self.sizes[known][field]
        dtype, shape = DTYPES[form["dtype"]], (len(rows), *form["shape"])
        if not len(rows):
            return torch.empty(shape, dtype=dtype)
        mapped = self._mapped(field, rows)
        # NumPy asks for huge pages: a batch of megabytes is there four times as fast
        out = np.empty((len(rows), mapped[0].nbytes), np.uint8)
        for place, row_bytes in enumerate(mapped):
            out[place] = row_bytes
        return torch.from_numpy(out).view(dtype).view(shape)

    def ahead(self, field: str, rows: Tensor) -> None:
        """Have the kernel read ``field`` of the samples at ``rows``, which `gather` is soon asked for.

        Worth its price, some 10 µs a row, where there is something else to do until then.
        """
        will_need(self._mapped(field, rows))

    def _mapped(self, field: str, rows: Tensor) -> list[NDArray[np.uint8]]:
        parts, begins = self._bytes[field], self._begins
        shard_of = torch.searchsorted(self._ends, rows, right=True).tolist()
        return [parts[shard][row - begins[shard]] for shard, row in zip(shard_of, rows.tolist(), strict=True)]


def _open(directory: Path, only: int | None) -> ShardSet:
    shards = ShardSet(directory)
    return shards if only is None else shards.of_size(only)
