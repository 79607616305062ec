"""Videos to clips: uint8 tensors of one length, size and rate, in shards."""

import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from tqdm import tqdm

from qdm_pipeline.configuration import require, settings
from qdm_pipeline.errors import InputError
from qdm_pipeline.files import write_json
from qdm_pipeline.handle import Handle
from qdm_pipeline.run import Run
from qdm_pipeline.video.decode import Plan
from qdm_pipeline.video.decoders import Decoders
from qdm_pipeline.video.folder import SPLITS, Video, list_videos
from qdm_pipeline.video.picture import BadVideo
from qdm_pipeline.video.shards import Sample, write_shards

logger = logging.getLogger(__name__)


@settings
class ClipSettings:
    """What a clip is. ``size`` in pixels (square); the fractions serve folders whose table has no split."""

    frames: int
    size: int
    fps: float
    clips_per_video: Literal["first", "centre", "uniform", "all"]
    uniform_clips: int  # of a video, with clips_per_video: uniform
    most_seconds: float  # until a video's next clip
    most_memory: int  # MiB that a decoder may take
    most_skipped: float  # share of the videos
    validation_fraction: float
    test_fraction: float
    shard_size: int
    seed: int

    def __post_init__(self) -> None:
        require(self.frames >= 1 and self.size >= 1, "clips: frames and size must be at least 1")
        require(self.fps > 0, f"clips: fps must be positive, found {self.fps}")
        require(
            self.clips_per_video in ("first", "centre", "uniform", "all"),
            "clips: clips_per_video must be 'first', 'centre', 'uniform' or 'all'",
        )
        for name in ("uniform_clips", "most_memory", "shard_size"):
            require(getattr(self, name) >= 1, f"clips: {name} must be at least 1")
        require(self.most_seconds > 0, f"clips: most_seconds must be positive, found {self.most_seconds}")
        require(0 <= self.most_skipped < 1, "clips: most_skipped must lie in [0, 1)")
        held_out = self.validation_fraction + self.test_fraction
        require(
            0 < held_out < 1, f"clips: the fractions of validation and test sum to {held_out}, not in (0, 1)"
        )

    @property
    def plan(self) -> Plan:
        """What a decoder has to know."""
        return Plan(self.frames, self.size, self.fps, self.clips_per_video, self.uniform_clips)


def make_clips(settings: ClipSettings, folder: Path, run: Run, decoders: int = 1) -> Handle:
    """Decode the videos of ``folder`` into clip shards in the run's directory, in ``decoders`` processes.

    Bad and too short videos are named, with the reason, in a warning and in the manifest's ``skipped``; of a
    long one the clips before its damage stay. `InputError` if the table is wrong, a split is empty, or more
    than ``most_skipped`` of the videos are skipped in whole or part (``skipped.json`` then lists them).
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
    with Decoders(decoders, settings.plan, settings.most_seconds, settings.most_memory) as processes:
        decoded = zip(videos, processes.decode([folder / video.file for video in videos]), strict=True)
        samples = _samples(settings, folder, decoded, len(videos), classes, skipped)
        try:
            shards = write_shards(run.directory, samples, extra, settings.shard_size)
        except InputError:
            write_json(run.directory / "skipped.json", skipped)
            raise
    counts = Counter(shards.column("split"))
    _require_splits(set(counts), folder)
    logger.info("%d clips from %d videos, %d skipped", len(shards), len(videos), len(skipped))
    return run.finish(
        shards.digest, {"clips": dict(counts), "classes": classes or None, "skipped": len(skipped)}
    )


def _samples(
    settings: ClipSettings,
    folder: Path,
    decoded: Iterator[tuple[Video, Iterator[tuple[float, Tensor]]]],
    count: int,
    classes: list[str],
    skipped: list[dict[str, Any]],
) -> Iterator[Sample]:
    ids = itertools.count()
    for video, clips in tqdm(decoded, desc="clips", unit="video", total=count):
        kept = 0
        try:
            for start, pixels in clips:
                columns = {
                    "id": next(ids),
                    "file": video.file,
                    "start": start,
                    "end": start + settings.frames / settings.fps,
                    "split": video.split,
                    "label": None if video.label is None else classes.index(video.label),
                    "caption": video.caption,
                }
                yield {"video": pixels}, columns
                kept += 1
        except BadVideo as error:
            logger.warning("skipped %s: %s", video.file, error)
            skipped.append({"file": video.file, "reason": str(error), "clips_kept": kept})
            if len(skipped) > settings.most_skipped * count:
                raise InputError(
                    f"{folder}: more than {settings.most_skipped:.0%} of {count} videos are bad "
                    f"(most_skipped), the last one {video.file}: {error}"
                ) from None


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
