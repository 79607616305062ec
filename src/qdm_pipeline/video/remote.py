"""Folders of videos and of shards behind a URL of fsspec (s3://, gs://, memory://, …), kept in a local copy.

Decoders and memory maps want files of this machine, so a folder is copied before it is used. Only this module
needs fsspec, which comes with Kedro; each kind of URL needs a package of its own (s3fs, gcsfs, …).
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from qdm_pipeline.errors import InputError
from qdm_pipeline.files import file_atomic, read_json, write_json
from qdm_pipeline.video.shard_set import ShardSet

logger = logging.getLogger(__name__)

FETCHED = ".fetched.json"  # size and time, or tag, of every remote file that the copy has
TAGS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")
AT_ONCE = 8  # files on their way
NOTED = 64  # files after which a killed process goes on


def fetch(url: str, directory: Path, **options: Any) -> Path:
    """Make ``directory`` a copy of the folder at ``url``; returns it. ``options`` are the file system's.

    A file is copied when it is new or its size, time or tag has changed; what is gone there, of what was
    copied once, goes here too; other files of the directory stay. `InputError` if there are no files.
    """
    system, root = _open(url, options)
    found = system.find(root, detail=True).items()
    infos = {PurePosixPath(path).relative_to(root): info for path, info in found}
    infos = {name: info for name, info in infos.items() if not name.name.startswith(".")}
    if not infos or PurePosixPath() in infos:
        raise InputError(f"{url}: {'no folder' if infos else 'no files there'}")
    if outside := [name for name in infos if ".." in name.parts]:
        raise InputError(f"{url}: {outside[0]}: a name that leads out of the folder")
    stamps = {str(name): [info["size"], *_tags(info)] for name, info in infos.items()}
    record = directory / FETCHED
    known = read_json(record) if record.exists() else {}
    for gone in known.keys() - stamps.keys():
        (directory / gone).unlink(missing_ok=True)
    have = {
        name: stamp
        for name, stamp in stamps.items()
        if known.get(name) == stamp and _is_whole(directory / name, stamp)
    }
    missing = sorted(stamps.keys() - have.keys(), key=lambda name: (name == "manifest.json", name))
    size = sum(stamps[name][0] for name in missing)
    logger.info("%s: %d of %d files to copy, %.1f GiB", url, len(missing), len(stamps), size / 2**30)

    def copy(name: str) -> None:
        with file_atomic(directory / name) as aside:
            system.get_file(f"{root}/{name}", str(aside))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for begin in range(0, len(missing), NOTED):
            part = missing[begin : begin + NOTED]
            list(pool.map(copy, part))
            have |= {name: stamps[name] for name in part}
            write_json(record, have)
    write_json(record, have)
    return directory


def fetch_shards(url: str, directory: Path, **options: Any) -> ShardSet:
    """The shards at ``url``, copied as `fetch` does and verified by their manifest."""
    return ShardSet(fetch(url, directory, **options))


def upload_shards(shards: ShardSet, url: str, **options: Any) -> None:
    """Copy ``shards`` to ``url``; without a manifest, which comes last, there are none to be read there."""
    system, root = _open(url, options)
    names = [entry["file"] for entry in shards.manifest["files"]]
    system.makedirs(root, exist_ok=True)
    if system.exists(f"{root}/manifest.json"):
        system.rm_file(f"{root}/manifest.json")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: system.put_file(str(shards.directory / name), f"{root}/{name}"), names))
    system.put_file(str(shards.directory / "manifest.json"), f"{root}/manifest.json")


def _open(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    """The file system of ``url`` and the folder's path in it."""
    try:
        from fsspec.core import url_to_fs

        system, root = url_to_fs(url, **options)
    except (ImportError, ValueError) as error:  # a package is missing, or nobody knows such a URL
        raise InputError(f"{url}: {error}") from None
    return system, root.rstrip("/")


def _tags(info: dict[str, Any]) -> list[str]:
    return [str(info[tag]) for tag in TAGS if tag in info]


def _is_whole(path: Path, stamp: list[Any]) -> bool:
    return path.is_file() and path.stat().st_size == stamp[0]
