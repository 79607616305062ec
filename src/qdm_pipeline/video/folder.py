"""A folder of videos, with or without a table: what is in it, checked before anything is decoded."""

import csv
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from qdm_pipeline.errors import InputError
from qdm_pipeline.files import digest_json, read_json
from qdm_pipeline.handle import Handle

SUFFIXES = frozenset(
    f".{name}" for name in "mp4 m4v mov 3gp mkv webm avi mpg mpeg ts mts flv wmv ogv mxf gif".split()
)
SPLITS = ("train", "validation", "test")
TABLE = "metadata.csv"
SAID = ("caption", "label")
ENDS = 65536  # bytes of head and tail of a file that stand for its content


@dataclass(frozen=True)
class Video:
    """One file of the folder and what its table says about it; None where it says nothing."""

    file: str  # relative to the folder, with forward slashes
    label: str | None
    caption: str | None
    split: str | None


def videos_handle(folder: Path) -> Handle:
    """The folder as the input of a run; its digest changes when a video, its caption or the table does.

    A file counts by its name, size, first and last 64 KiB, so terabytes need not be read.
    """
    videos = list_videos(folder)
    names = [video.file for video in videos] + [TABLE] * (folder / TABLE).exists()
    prints = {name: _fingerprint(folder / name) for name in names}
    said = {video.file: [video.label, video.caption] for video in videos if video.label or video.caption}
    return Handle("videos", folder, digest_json({"files": prints, "said": said} if said else prints))


def list_videos(folder: Path) -> list[Video]:
    """All videos under ``folder``, or those of its metadata.csv (file; optional: label, caption, split).

    What the table does not say of a video's caption and label stands in ``NAME.txt`` (the caption) or
    ``NAME.json`` ({"caption", "label"}) beside it, if there is one. `InputError` if there is no video, a row
    has no file, names one twice, its split is unknown, or a ``.json`` is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of videos")
    if (folder / TABLE).exists():
        return [_with_sidecar(folder, video) for video in _read_table(folder)]
    found = sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.suffix.lower() in SUFFIXES and (p.is_file() or p.is_symlink())  # neither folders nor pipes
    )
    if not found:
        raise InputError(f"{folder}: no videos in it ({', '.join(sorted(SUFFIXES))})")
    return [_with_sidecar(folder, Video(file, None, None, None)) for file in found]


def _with_sidecar(folder: Path, video: Video) -> Video:
    text, table = ((folder / video.file).with_suffix(suffix) for suffix in (".txt", ".json"))
    if video.caption is not None and video.label is not None:
        return video
    said = read_json(table) if table.is_file() else {}
    if not isinstance(said, dict) or not all(isinstance(said.get(key, ""), str) for key in SAID):
        raise InputError(f"{table}: must be an object, whose 'caption' and 'label' are text")
    if "caption" not in said and text.is_file():
        said["caption"] = text.read_text(encoding="utf-8-sig").strip()
    caption, label = (said.get(key) or None for key in SAID)
    return replace(video, caption=video.caption or caption, label=video.label or label)


def _read_table(folder: Path) -> list[Video]:
    table = folder / TABLE
    with table.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        columns = set(reader.fieldnames or [])
        rows = list(reader)
    if "file" not in columns:
        raise InputError(f"{table}: no column 'file', found {sorted(columns)}")
    if not rows:
        raise InputError(f"{table}: no rows, so no videos")
    videos = []
    seen: set[str] = set()
    for number, row in enumerate(rows, start=2):
        where = f"{table}, line {number}"
        file = row["file"]
        if not file or not (folder / file).is_file():
            raise InputError(f"{where}: file {file!r} does not exist in {folder}")
        if file in seen:
            raise InputError(f"{where}: file {file!r} is listed twice")
        seen.add(file)
        if "split" in columns and row["split"] not in SPLITS:
            raise InputError(f"{where}: split {row['split']!r}, allowed are {', '.join(SPLITS)}")
        videos.append(Video(file, row.get("label") or None, row.get("caption") or None, row.get("split")))
    return videos


def _fingerprint(path: Path) -> str:
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with path.open("rb") as stream:
            digest.update(stream.read(ENDS))
            stream.seek(max(0, size - ENDS))
            digest.update(stream.read(ENDS))
    except OSError as error:
        return f"unreadable ({error.strerror})"  # decoding will name it
    return digest.hexdigest()
