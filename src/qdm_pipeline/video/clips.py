"""Videos to clips: uint8 tensors of one length and rate, and of one size or of a few, in shards."""

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from tqdm import tqdm

from qdm_pipeline.configuration import plain, require, settings
from qdm_pipeline.errors import InputError
from qdm_pipeline.files import read_json, write_json
from qdm_pipeline.handle import Handle
from qdm_pipeline.run import Run
from qdm_pipeline.video.decode import Plan
from qdm_pipeline.video.decoders import Decoders
from qdm_pipeline.video.folder import SPLITS, Video, list_videos
from qdm_pipeline.video.picture import BadVideo
from qdm_pipeline.video.shards import Sample, ShardSet, ShardWriter

logger = logging.getLogger(__name__)


@settings
class ClipSettings:
    """What a clip is. ``size`` in pixels; the fractions serve folders whose table has no split."""

    frames: int
    # of both sides; or height and width; or a list of these, of which a video takes the one most like it
    size: int | tuple[int, int] | tuple[tuple[int, int], ...]
    fps: float
    clips_per_video: Literal["first", "centre", "uniform", "all"]
    uniform_clips: int  # of a video, with clips_per_video: uniform
    shot_cut: float | None  # least change, of 255, that is a cut, which no clip may contain; see `cuts.shots`
    most_seconds: float  # until a video's next clip
    most_memory: int  # MiB that a decoder may take
    most_skipped: float  # share of the videos
    validation_fraction: float
    test_fraction: float
    shard_size: int
    seed: int

    def __post_init__(self) -> None:
        require(bool(self.sizes), "clips: size: found an empty list, must be one size or more")
        least = min(self.frames, *chain(*self.sizes))
        require(least >= 1, f"clips: frames and size must be at least 1, found {self.frames}, {self.size}")
        require(len(set(self.sizes)) == len(self.sizes), f"clips: size: found one twice in {self.size}")
        require(self.fps > 0, f"clips: fps must be positive, found {self.fps}")
        require(
            self.clips_per_video in ("first", "centre", "uniform", "all"),
            "clips: clips_per_video must be 'first', 'centre', 'uniform' or 'all'",
        )
        for name in ("uniform_clips", "most_memory", "shard_size"):
            require(getattr(self, name) >= 1, f"clips: {name} must be at least 1")
        require(
            self.shot_cut is None or 0 < self.shot_cut <= 255,
            f"clips: shot_cut: found {self.shot_cut}, must be null or lie in (0, 255]",
        )
        require(self.most_seconds > 0, f"clips: most_seconds must be positive, found {self.most_seconds}")
        require(0 <= self.most_skipped < 1, "clips: most_skipped must lie in [0, 1)")
        held_out = self.validation_fraction + self.test_fraction
        require(
            0 < held_out < 1, f"clips: the fractions of validation and test sum to {held_out}, not in (0, 1)"
        )

    @property
    def plan(self) -> Plan:
        """What a decoder has to know."""
        choice = self.clips_per_video
        return Plan(self.frames, self.sizes, self.fps, choice, self.uniform_clips, self.shot_cut)

    @property
    def largest(self) -> tuple[int, int]:
        """The one of ``sizes`` with the most pixels."""
        return max(self.sizes, key=math.prod)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of clips, in pixels."""
        if isinstance(self.size, int):
            return ((self.size, self.size),)
        listed = self.size if self.size and not isinstance(self.size[0], int) else (self.size,)
        return tuple((height, width) for height, width in cast(tuple[tuple[int, int], ...], listed))


def make_clips(settings: ClipSettings, folder: Path, run: Run, decoders: int = 1) -> Handle:
    """Decode the videos of ``folder`` into clip shards in the run's directory, in ``decoders`` processes.

    Bad and too short videos are named, with the reason, in a warning and in the manifest's ``skipped``; of a
    long one the clips before its damage stay. A run that was killed goes on behind its last whole shard.
    `InputError` if the table is wrong, a split is empty, or more than ``most_skipped`` of the videos are
    skipped in whole or part (``skipped.json`` in the run's directory then lists them).
    """
    videos = _with_splits(list_videos(folder), settings)
    _require_splits({video.split for video in videos}, folder)
    classes = sorted({video.label for video in videos if video.label is not None})
    size = {"frames": settings.frames, "size": plain(settings.size), "fps": settings.fps}
    writer = ShardWriter(run.directory, {"kind": "clips", **size})
    if (shards := writer.finished()) is None:
        if len(settings.sizes) > 1:
            videos = _by_size(videos, settings, folder, run.directory / "sizes.json", decoders)
        cut = _Cut(settings, folder, videos, classes)
        number = cut.resume(writer)
        runs = groupby(cut.samples(decoders), key=lambda sample: sample[0]["video"].shape)
        try:
            for _, samples in runs:
                while part := list(islice(samples, settings.shard_size)):
                    writer.put(number, part, skipped=list(cut.skipped))
                    number += 1
        except InputError:
            write_json(run.directory / "skipped.json", cut.skipped)
            raise
        facts = {"kind": "clips", "fps": settings.fps, "classes": classes or None, "skipped": cut.skipped}
        shards = writer.finish(number, facts, sizes=True)
    counts = Counter(shards.column("split"))
    _require_splits(set(counts), folder)
    skipped = len(shards.manifest["skipped"])
    logger.info("%d clips from %d videos, %d skipped", len(shards), len(videos), skipped)
    metadata = {"clips": dict(counts), "classes": classes or None, "skipped": skipped}
    if len(settings.sizes) > 1:
        metadata["sizes"] = _count_sizes(shards)
        logger.info("clips by height x width: %s", metadata["sizes"])
    return run.finish(shards.digest, metadata)


def _count_sizes(shards: ShardSet) -> dict[str, int]:
    counts = torch.bincount(shards.size_of).tolist()
    return {f"{h}x{w}": n for (*_, h, w), n in zip(shards.shapes("video"), counts, strict=True)}


def _by_size(
    videos: list[Video], settings: ClipSettings, folder: Path, record: Path, decoders: int
) -> list[Video]:
    """The videos ordered by the size that each takes, so that shards are of one; bad ones come last.

    The first picture of each says which; ``record`` keeps it for a run that is started again.
    """
    if not record.exists():
        found = {}
        first = replace(settings.plan, frames=1, choice="first", cut=None)
        with Decoders(decoders, first, settings.most_seconds, settings.most_memory) as processes:
            decoded = processes.decode([folder / video.file for video in videos])
            for video, clips in tqdm(zip(videos, decoded, strict=True), "sizes", len(videos), unit="video"):
                found[video.file] = len(settings.sizes)
                with suppress(BadVideo):  # what is wrong is said when its clips are cut
                    for _, pixels in clips:
                        found[video.file] = settings.sizes.index((pixels.shape[-2], pixels.shape[-1]))
        write_json(record, found)
    size = read_json(record)
    return sorted(videos, key=lambda video: size[video.file])


class _Cut:
    """The samples of a folder in order, and the table of what was ``skipped`` so far."""

    def __init__(self, settings: ClipSettings, folder: Path, videos: list[Video], classes: list[str]) -> None:
        self.settings, self.folder, self.videos, self.classes = settings, folder, videos, classes
        self.skipped: list[dict[str, Any]] = []
        self.first, self.taken, self.done = 0, 0, 0  # video to begin with, its clips and all that are done

    def resume(self, writer: ShardWriter) -> int:
        """Go on behind the whole shards of ``writer``; returns their number."""
        number = 0
        index = {video.file: place for place, video in enumerate(self.videos)}
        while (note := writer.note(number)) is not None:
            for sample in note["samples"]:
                place = index[sample["file"]]
                self.first, self.taken = place, self.taken + 1 if place == self.first else 1
            self.skipped = [row for row in note["skipped"] if index[row["file"]] < self.first]
            self.done += len(note["samples"])
            number += 1
        return number

    def samples(self, decoders: int) -> Iterator[Sample]:
        """Clips with their columns, from where `resume` left off."""
        s, videos = self.settings, self.videos[self.first :]
        with Decoders(decoders, s.plan, s.most_seconds, s.most_memory) as processes:
            decoded = processes.decode([self.folder / video.file for video in videos])
            for video, clips in tqdm(zip(videos, decoded, strict=True), "clips", len(videos), unit="video"):
                yield from self._of_video(video, clips)

    def _of_video(self, video: Video, clips: Iterator[tuple[float, Tensor]]) -> Iterator[Sample]:
        before, self.taken = self.taken, 0
        kept = 0
        try:
            for start, pixels in clips:
                kept += 1
                if kept > before:
                    yield {"video": pixels}, self._columns(video, start)
        except BadVideo as error:
            logger.warning("skipped %s: %s", video.file, error)
            self.skipped.append({"file": video.file, "reason": str(error), "clips_kept": kept})
            most, count = self.settings.most_skipped, len(self.videos)
            if len(self.skipped) > most * count:
                raise InputError(
                    f"{self.folder}: more than {most:.0%} of {count} videos are bad (most_skipped), "
                    f"the last one {video.file}: {error}"
                ) from None

    def _columns(self, video: Video, start: float) -> dict[str, Any]:
        self.done += 1
        return {
            "id": self.done - 1,
            "file": video.file,
            "start": start,  # in seconds after the file's first frame
            "end": start + self.settings.frames / self.settings.fps,
            "split": video.split,
            "label": None if video.label is None else self.classes.index(video.label),
            "caption": video.caption,
        }


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
