"""Videos to clips: uint8 tensors of one length, size and rate, in shards."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from qdm_pipeline.configuration import require, settings
from qdm_pipeline.errors import InputError
from qdm_pipeline.handle import Handle
from qdm_pipeline.run import Run
from qdm_pipeline.video.decode import BadVideo, decode_frames
from qdm_pipeline.video.folder import SPLITS, Video, list_videos
from qdm_pipeline.video.shards import Sample, write_shards

logger = logging.getLogger(__name__)


@settings
class ClipSettings:
    """What a clip is. ``size`` in pixels (square); the fractions serve folders whose table has no split."""

    frames: int
    size: int
    fps: float
    clips_per_video: Literal["first", "all"]  # all: one after the other, without overlap
    max_bad_fraction: float
    validation_fraction: float
    test_fraction: float
    shard_size: int
    seed: int

    def __post_init__(self) -> None:
        require(self.frames >= 1 and self.size >= 1, "clips: frames and size must be at least 1")
        require(self.fps > 0, f"clips: fps must be positive, found {self.fps}")
        require(self.clips_per_video in ("first", "all"), "clips: clips_per_video must be 'first' or 'all'")
        require(0 <= self.max_bad_fraction < 1, "clips: max_bad_fraction must lie in [0, 1)")
        held_out = self.validation_fraction + self.test_fraction
        require(
            0 < held_out < 1, f"clips: the fractions of validation and test sum to {held_out}, not in (0, 1)"
        )
        require(self.shard_size >= 1, "clips: shard_size must be at least 1")


def make_clips(settings: ClipSettings, folder: Path, run: Run) -> Handle:
    """Decode the videos of ``folder`` into clip shards in the run's directory.

    Bad and too short videos are named, with the reason, in a warning and in the manifest's ``skipped``; of a
    long one the clips before its damage stay. `InputError` if the table is wrong, a split is empty, or more
    than ``max_bad_fraction`` of the videos are bad.
    """
    videos = _with_splits(list_videos(folder), settings)
    _require_splits({video.split for video in videos}, folder)
    classes = sorted({video.label for video in videos if video.label is not None})
    skipped: list[dict[str, Any]] = []
    extra: dict[str, Any] = {
        "kind": "clips",
        "fps": settings.fps,
        "classes": classes or None,
        "skipped": skipped,  # filled while the samples are written, and so before the manifest is
    }
    samples = _samples(settings, folder, videos, classes, skipped)
    shards = write_shards(run.directory, samples, extra, settings.shard_size)
    counts = Counter(shards.column("split"))
    _require_splits(set(counts), folder)
    return run.finish(
        shards.digest, {"clips": dict(counts), "classes": classes or None, "skipped": len(skipped)}
    )


def _samples(
    settings: ClipSettings,
    folder: Path,
    videos: list[Video],
    classes: list[str],
    skipped: list[dict[str, Any]],
) -> Iterator[Sample]:
    ids = count()
    for video in tqdm(videos, desc="clips", unit="video"):
        kept = 0
        try:
            for clip in _cut(decode_frames(folder / video.file, settings.size, settings.fps), settings):
                columns = {
                    "id": next(ids),
                    "file": video.file,
                    "start": kept * settings.frames / settings.fps,
                    "split": video.split,
                    "label": None if video.label is None else classes.index(video.label),
                    "caption": video.caption,
                }
                yield {"video": clip}, columns
                kept += 1
        except BadVideo as error:
            logger.warning("skipped %s: %s", video.file, error)
            skipped.append({"file": video.file, "reason": str(error), "clips_kept": kept})
            if len(skipped) > settings.max_bad_fraction * len(videos):
                raise InputError(
                    f"{folder}: more than {settings.max_bad_fraction:.0%} of {len(videos)} videos are bad, "
                    f"the last one {video.file}: {error}"
                ) from None


def _cut(frames: Iterator[Tensor], settings: ClipSettings) -> Iterator[Tensor]:
    """Clips uint8 [3, T, H, W] from consecutive frames; a rest shorter than a clip is left out."""
    for number in count():
        part = list(islice(frames, settings.frames))
        if len(part) == settings.frames:
            yield torch.stack(part, dim=1)
        elif number == 0:
            rate = f"{len(part)} frames at {settings.fps} per second"
            raise BadVideo(f"too short: {rate}, a clip has {settings.frames}")
        if len(part) < settings.frames or settings.clips_per_video == "first":
            return


def _require_splits(found: set[str | None], folder: Path) -> None:
    if missing := [split for split in SPLITS if split not in found]:
        raise InputError(
            f"{folder}: no clip in split {', '.join(missing)}; add videos or mend column 'split'"
        )


def _with_splits(videos: list[Video], settings: ClipSettings) -> list[Video]:
    """The videos with their splits: those of the table or, without, by a hash of seed and file name."""
    if videos[0].split is not None:
        return videos
    order = sorted(videos, key=lambda v: hashlib.sha256(f"{settings.seed}/{v.file}".encode()).digest())
    validation = max(1, round(settings.validation_fraction * len(videos)))
    test = max(1, round(settings.test_fraction * len(videos)))
    split_of = {video.file: "train" for video in videos}
    split_of |= {video.file: "validation" for video in order[:validation]}
    split_of |= {video.file: "test" for video in order[validation : validation + test]}
    return [Video(video.file, video.label, video.caption, split_of[video.file]) for video in videos]
