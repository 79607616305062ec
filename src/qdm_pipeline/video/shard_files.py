"""Files of a directory of shards: written with their digest, verified before use, mapped into memory."""

import ctypes
import hashlib
import json
import logging
import mmap
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from qdm_pipeline.errors import InputError
from qdm_pipeline.files import digest_file, read_json, write_atomic, write_json

logger = logging.getLogger(__name__)

DTYPES = {"U8": torch.uint8, "I32": torch.int32, "I64": torch.int64, "F16": torch.float16,
          "BF16": torch.bfloat16, "F32": torch.float32}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
VERIFIED = ".verified.json"  # size and time of every file whose bytes were found right
SHORT = 16  # digits of a digest that are shown

_madvise = ctypes.CDLL(None).madvise if sys.platform == "linux" else None
if _madvise is not None:
    _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

Entry = dict[str, Any]  # file, bytes, sha256; of a shard also count


def write_bytes(directory: Path, name: str, content: bytes) -> Entry:
    """Write a file; returns its entry for the manifest."""
    write_atomic(directory / name, content)
    return {"file": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def write_tensors(directory: Path, name: str, stacked: dict[str, Tensor]) -> Entry:
    """Write ``stacked`` as a safetensors file; returns its entry for the manifest."""
    return write_bytes(directory, name, save({key: tensor.contiguous() for key, tensor in stacked.items()}))


def verify(directory: Path, entries: Iterable[Entry], again: bool = False) -> None:
    """`InputError` naming the first file that is missing or has not the bytes of its entry.

    A file whose SHA-256 was right once is not read again while its size and time of change stay the same
    (kept in ``.verified.json``, if the directory can be written), unless ``again``.
    """
    record = directory / VERIFIED
    known: dict[str, Any] = read_json(record) if record.exists() else {}
    stamps, unread = {}, []
    for entry in entries:
        path = directory / entry["file"]
        if not path.exists():
            raise InputError(f"{path}: missing, expected {entry['bytes']} bytes")
        found = path.stat()
        if found.st_size != entry["bytes"]:
            raise InputError(f"{path}: damaged, found {found.st_size} bytes, expected {entry['bytes']}")
        stamps[entry["file"]] = [found.st_size, found.st_mtime_ns, entry["sha256"]]
        if again or known.get(entry["file"]) != stamps[entry["file"]]:
            unread.append(entry)
    if (size := sum(entry["bytes"] for entry in unread)) > 1 << 30:
        logger.info("%s: verifying %d files, %.1f GiB, once", directory, len(unread), size / 2**30)
    for entry in unread:
        if (digest := digest_file(directory / entry["file"])) != entry["sha256"]:
            raise InputError(
                f"{directory / entry['file']}: damaged, found SHA-256 {digest[:SHORT]}…, "
                f"expected {entry['sha256'][:SHORT]}…"
            )
    if unread:
        _remember(record, known | stamps)


def trust(directory: Path, entries: Iterable[Entry]) -> None:
    """Take the files of ``entries``, just written by this process, for verified."""
    stats = {entry["file"]: (directory / entry["file"]).stat() for entry in entries}
    stamps = {e["file"]: [e["bytes"], stats[e["file"]].st_mtime_ns, e["sha256"]] for e in entries}
    _remember(directory / VERIFIED, stamps)


def _remember(record: Path, stamps: dict[str, Any]) -> None:
    try:
        write_json(record, stamps)
    except OSError as error:
        logger.info("%s: cannot be written (%s), so shards are verified at every start", record, error)


def describe(stacked: dict[str, Tensor]) -> dict[str, Any]:
    """Shape and dtype of one sample of every field."""
    return {
        name: {"shape": list(tensor.shape[1:]), "dtype": NAMES[tensor.dtype]}
        for name, tensor in stacked.items()
    }


def map_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file as views of a private memory map: nothing is read until it is used.

    No file stays open. Format: uint64 length of the header, a JSON header, then the raw tensors at offsets.
    """
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    memory = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
    tensors = {}
    for name, entry in header.items():
        dtype: torch.dtype = DTYPES[entry["dtype"]]
        begin = (8 + length + entry["data_offsets"][0]) // dtype.itemsize
        empty: Any = torch.empty(0, dtype=dtype)
        tensors[name] = empty.set_(memory, begin, torch.Size(entry["shape"]))
    return tensors


def as_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """A contiguous ``tensor`` [n, ...] of any dtype (NumPy has no bfloat16) as uint8 [n, bytes of a row]."""
    return (
        tensor.view(len(tensor), -1).view(torch.uint8).numpy()
        if tensor.numel()
        else np.empty((0, 0), np.uint8)
    )


def will_need(rows: Iterable[NDArray[np.uint8]]) -> None:
    """Have the kernel begin to read all of some memory-mapped ``rows``, not page by page as each is touched.

    A hint, on Linux; nothing is changed by it.
    """
    if _madvise is None:
        return
    for row in rows:
        begin = row.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
        _madvise(begin, row.ctypes.data + row.nbytes - begin, mmap.MADV_WILLNEED)
