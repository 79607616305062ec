"""Files that are either whole or absent: write aside, fsync, rename."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_native_id
from typing import Any

from qdm_pipeline.errors import InputError


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one, never half."""
    with file_atomic(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def file_atomic(path: Path) -> Iterator[Path]:
    """Yield the path of a file to be written, which becomes ``path`` if the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{get_native_id()}.part")
    try:
        yield aside
        _fsync(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    _fsync(path.parent)


@contextmanager
def directory_atomic(path: Path) -> Iterator[Path]:
    """Yield an empty directory beside ``path`` that becomes ``path`` if the block ends without error.

    A directory that already stands at ``path`` is replaced only then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{get_native_id()}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for entry in [*aside.rglob("*"), aside]:
            _fsync(entry)
        if path.exists():
            retired = path.with_name(f".{path.name}.{get_native_id()}.old")
            path.replace(retired)
            aside.replace(path)
            shutil.rmtree(retired)
        else:
            aside.replace(path)
        _fsync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_parts(root: Path) -> None:
    """Remove what killed processes have left half-written in ``root``, while nobody writes there."""
    for pattern in (".*.part", ".*.old"):
        for entry in root.glob(pattern):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a missing or damaged file is an `InputError` that names it."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 of a JSON-like value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
