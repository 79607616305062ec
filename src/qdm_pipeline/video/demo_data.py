"""The embedded example: real handwritten digits that move and bounce, as video files with a table.

Nothing after this file knows that these are digits; any other folder of videos takes the same way.
"""

import csv
import io
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from qdm_pipeline.configuration import plain, require, settings
from qdm_pipeline.files import digest_json, directory_atomic, read_json, write_json
from qdm_pipeline.randomness import generator
from qdm_pipeline.video.media import write_mp4

logger = logging.getLogger(__name__)

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = (  # (down, right) in pixels, as it is said
    ((0, 1), "to the right"),
    ((0, -1), "to the left"),
    ((-1, 0), "up"),
    ((1, 0), "down"),
    ((-1, 1), "up and to the right"),
    ((-1, -1), "up and to the left"),
    ((1, 1), "down and to the right"),
    ((1, -1), "down and to the left"),
)


@settings
class DemoSettings:
    """How many clips to make of what: ``size`` and ``digit_size`` in pixels, ``speed`` in pixels a frame."""

    seed: int
    frames: int
    size: int
    fps: int
    digit_size: int
    speed: int
    train_clips: int
    validation_clips: int
    test_clips: int

    def __post_init__(self) -> None:
        require(self.frames >= 1 and self.fps >= 1, "demo: frames and fps must be at least 1")
        require(self.size % 2 == 0, f"demo: size must be even for H.264, found {self.size}")
        require(8 <= self.digit_size < self.size, f"demo: digit_size must lie in [8, {self.size})")
        require(
            0 <= self.speed <= self.size - self.digit_size,
            f"demo: speed must lie in [0, size - digit_size], found {self.speed}",
        )


def write_demo_videos(settings: DemoSettings, directory: Path) -> dict[str, Any]:
    """Write ``videos/NNNNN.mp4``, ``metadata.csv`` and ``manifest.json``, or keep them if they are there.

    The table has the columns file, label, caption, split and source. The scans, and so the clips, are
    split by scan: no handwriting of the train split appears in another. Returns the manifest.
    """
    manifest: dict[str, Any] = {"settings": plain(settings), "digest": digest_json(plain(settings))}
    if (directory / "manifest.json").exists() and read_json(directory / "manifest.json") == manifest:
        logger.info("%s: the demo videos are there already", directory)
        return manifest
    scans, labels = _scans(settings.digit_size)
    rows = plan(settings, labels)
    with directory_atomic(directory) as aside:
        (aside / "videos").mkdir()
        for row in tqdm(rows, desc="demo videos", unit="clip"):
            video = moving(scans[row["source"]], settings, row["direction"], row["start"])
            write_mp4(aside / row["file"], video.expand(3, -1, -1, -1), settings.fps)
        (aside / "metadata.csv").write_text(_table(rows))
        write_json(aside / "manifest.json", manifest)
    return manifest


def plan(settings: DemoSettings, labels: Tensor) -> list[dict[str, Any]]:
    """One row a clip: the columns of the table, and ``direction`` and ``start`` (top, left) of the motion."""
    parts = split_scans(labels, settings.seed)
    counts = {
        "train": settings.train_clips,
        "validation": settings.validation_clips,
        "test": settings.test_clips,
    }
    jobs = [(split, parts[split][i % len(parts[split])]) for split, n in counts.items() for i in range(n)]
    rows = []
    for number, (split, source) in enumerate(jobs):
        draw = generator(settings.seed, number, 0, "demo clip")
        direction = int(torch.randint(len(DIRECTIONS), (), generator=draw))
        start = torch.randint(settings.size - settings.digit_size + 1, (2,), generator=draw).tolist()
        label = int(labels[source])
        caption = f"the digit {NAMES[label]} moving {DIRECTIONS[direction][1]}"
        row = {"file": f"videos/{number:05d}.mp4", "label": str(label), "caption": caption, "split": split}
        rows.append({**row, "source": source, "direction": direction, "start": start})
    return rows


def split_scans(labels: Tensor, seed: int) -> dict[str, list[int]]:
    """Scans of each split, 70 / 10 / 20 % of every class, in an order that mixes the classes."""
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        draw = generator(seed, label, 0, "demo split")
        members = members[torch.randperm(len(members), generator=draw)]
        first, second = round(0.7 * len(members)), round(0.8 * len(members))
        for split, part in zip(parts, members.tensor_split((first, second)), strict=True):
            parts[split] += part.tolist()
    for step, part_list in enumerate(parts.values()):
        order = torch.randperm(len(part_list), generator=generator(seed, step, 0, "demo order"))
        part_list[:] = [part_list[i] for i in order.tolist()]
    return parts


def moving(scan: Tensor, settings: DemoSettings, direction: int, start: list[int]) -> Tensor:
    """``scan`` (uint8 [D, D]) moving over black from ``start`` and bouncing: uint8 [1, T, size, size]."""
    video = torch.zeros(1, settings.frames, settings.size, settings.size, dtype=torch.uint8)
    room = settings.size - settings.digit_size
    for frame in range(settings.frames):
        travelled = (
            first + way * settings.speed * frame
            for first, way in zip(start, DIRECTIONS[direction][0], strict=True)
        )
        top, left = (room - abs(room - x % (2 * room)) for x in travelled)  # a triangle wave: bouncing
        video[0, frame, top : top + settings.digit_size, left : left + settings.digit_size] = scan
    return video


def _scans(size: int) -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 scans of 8x8 in 17 greys, smoothly enlarged: uint8 [N, size, size], int64 [N]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    large = functional.interpolate(scans, size=(size, size), mode="bicubic", align_corners=False)
    return (large.squeeze(1).clamp(0, 1) * 255).round().to(torch.uint8), torch.from_numpy(digits.target)


def _table(rows: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    columns = ["file", "label", "caption", "split", "source"]
    writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
