"""Shards: many samples in a few safetensors files, read by rows through a memory map.

A directory of shards holds ``shard-NNNNN.safetensors`` (every field stacked over its samples),
``samples.jsonl`` (one line of columns a sample) and ``manifest.json``, which is written last and carries
size and SHA-256 of all the others: no manifest, no shards.
"""

import hashlib
import json
import mmap
from collections.abc import Iterable
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from qdm_pipeline.errors import InputError
from qdm_pipeline.files import digest_file, digest_json, read_json, write_atomic, write_json

FORMAT = 1
DTYPES = {"U8": torch.uint8, "I32": torch.int32, "I64": torch.int64, "F16": torch.float16,
          "BF16": torch.bfloat16, "F32": torch.float32}  # fmt: skip
Sample = tuple[dict[str, Tensor], dict[str, Any]]


class ShardSet:
    """Read-only, memory-mapped view of a finished directory of shards."""

    def __init__(self, directory: Path) -> None:
        """Open ``directory``; `InputError` if it is missing, unfinished or a file has a wrong size."""
        if not (directory / "manifest.json").exists():
            raise InputError(f"{directory}: no manifest.json, so no (finished) shards")
        self.directory = directory
        self.manifest: dict[str, Any] = read_json(directory / "manifest.json")
        if self.manifest.get("format") != FORMAT:
            raise InputError(f"{directory}/manifest.json: format {self.manifest.get('format')}, not {FORMAT}")
        for entry in self.manifest["files"]:
            path = directory / entry["file"]
            found = path.stat().st_size if path.exists() else None
            if found != entry["bytes"]:
                raise InputError(f"{path}: damaged, {found} bytes where the manifest says {entry['bytes']}")
        self.digest = digest_json(self.manifest)
        shards = [entry for entry in self.manifest["files"] if "count" in entry]
        self._ends = torch.tensor([entry["count"] for entry in shards]).cumsum(0)
        self._shards = [_map_tensors(directory / entry["file"]) for entry in shards]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def verify(self) -> None:
        """Read every byte; `InputError` naming the first file whose SHA-256 is not the manifest's."""
        for entry in self.manifest["files"]:
            if digest_file(self.directory / entry["file"]) != entry["sha256"]:
                raise InputError(
                    f"{self.directory / entry['file']}: damaged, its SHA-256 is not the manifest's"
                )

    @cached_property
    def _samples(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "samples.jsonl").read_text().splitlines()]

    def column(self, name: str) -> list[Any]:
        """The value of column ``name`` of every sample."""
        return [sample[name] for sample in self._samples]

    def rows(self, split: str) -> Tensor:
        """Positions of the samples of ``split``: int64 [n]."""
        return torch.tensor(
            [i for i, value in enumerate(self.column("split")) if value == split], dtype=torch.long
        )

    def gather(self, field: str, rows: Tensor) -> Tensor:
        """``field`` of the samples at ``rows`` (int64 [n], any order): a copy, [n, ...]."""
        shard_of = torch.searchsorted(self._ends, rows, right=True)
        shape = self.manifest["fields"][field]["shape"]
        out = torch.empty(len(rows), *shape, dtype=DTYPES[self.manifest["fields"][field]["dtype"]])
        for shard in shard_of.unique().tolist():
            here = (shard_of == shard).nonzero().flatten()
            first = int(self._ends[shard - 1]) if shard else 0
            out[here] = self._shards[shard][field][rows[here] - first]
        return out


def write_shards(
    directory: Path, samples: Iterable[Sample], manifest_extra: dict[str, Any], shard_size: int
) -> ShardSet:
    """Write ``samples``, pairs of (tensors, columns), as shards of ``shard_size`` samples into ``directory``.

    All samples have the same fields, shapes and dtypes. `InputError` if there is no sample. Other files in
    the directory stay as they are.
    """
    (directory / "manifest.json").unlink(missing_ok=True)
    for stale in directory.glob("shard-*.safetensors"):
        stale.unlink()
    stream = iter(samples)
    files: list[dict[str, Any]] = []
    lines: list[str] = []
    fields: dict[str, Any] = {}
    while part := list(islice(stream, shard_size)):
        stacked = {name: torch.stack([tensors[name] for tensors, _ in part]) for name in part[0][0]}
        content = save(stacked)
        fields = {name: _describe(tensor) for name, tensor in stacked.items()}
        files.append(_write(directory, f"shard-{len(files):05d}.safetensors", content) | {"count": len(part)})
        lines += [json.dumps(columns, sort_keys=True) + "\n" for _, columns in part]
    if not files:
        raise InputError(f"{directory}: there is no sample to write")
    files.append(_write(directory, "samples.jsonl", "".join(lines).encode()))
    manifest = {**manifest_extra, "format": FORMAT, "count": len(lines), "fields": fields, "files": files}
    write_json(directory / "manifest.json", manifest)
    return ShardSet(directory)


def _write(directory: Path, name: str, content: bytes) -> dict[str, Any]:
    write_atomic(directory / name, content)
    return {"file": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _describe(stacked: Tensor) -> dict[str, Any]:
    dtype = next(name for name, dtype in DTYPES.items() if dtype == stacked.dtype)
    return {"shape": list(stacked.shape[1:]), "dtype": dtype}


def _map_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file as views of a private memory map: nothing is read until it is used.

    File format: uint64 length of the header, a JSON header, then the raw tensors at its offsets.
    """
    with path.open("rb") as stream:
        memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    length = int.from_bytes(memory[:8], "little")
    header = json.loads(memory[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: torch.frombuffer(
            memory,
            dtype=DTYPES[entry["dtype"]],
            count=torch.Size(entry["shape"]).numel(),
            offset=8 + length + entry["data_offsets"][0],
        ).view(entry["shape"])
        for name, entry in header.items()
    }
