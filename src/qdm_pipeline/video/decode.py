"""Video files to clips of one length, size and rate; needs PyAV and NumPy only, to run in a small process."""

import errno
import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import NamedTuple, cast

import av
import numpy as np
from av.filter import Graph
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from qdm_pipeline.video.cuts import shots
from qdm_pipeline.video.picture import BadVideo, Picture, fitted, nearest

# What may be behind a name: containers that hold their own data. Playlists and scripts, which make FFmpeg
# open other files or the network, are refused whatever they are called.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,gif,flv,ogg,asf,mxf,nut,ivf,m4v"
LONGEST_GAP = 60.0  # seconds that one frame may stand; more is a broken clock, not a still picture


@dataclass(frozen=True)
class Plan:
    """Clips of ``frames`` pictures, ``fps`` a second of the file's own clock.

    All of a file have that one of ``sizes`` (height, width) which is most like the file's first picture.
    ``choice``: the ``first`` clip, the one in the ``centre``, ``all`` one after the other without overlap, or
    ``uniform``: ``count`` of them (fewer if the file is short) from the first to the last, evenly spaced.
    ``cut``: the least change that is a cut between shots, see `cuts.shots`, which no clip then contains: one
    that would begins behind the cut instead, if it fits before the next place. None: cuts are not looked for.
    """

    frames: int
    sizes: Sequence[tuple[int, int]]
    fps: float
    choice: str
    count: int
    cut: float | None


class Clip(NamedTuple):
    """Pixels uint8 [T, H, W, 3] and where they begin: seconds after the file's first frame."""

    start: float
    pixels: Picture


def decode_clips(path: Path, plan: Plan) -> Iterator[Clip]:
    """The clips of ``path`` that ``plan`` asks for, one in memory at a time.

    `BadVideo`, after the clips before the damage, if the file is no video, damaged, truncated or too short.
    """
    longest, found = 0, False
    with _opened(path) as source:
        for first, most, end in _spans(source, plan):
            taken = 0
            for begin, part in _parts(islice(source.pictures(plan.sizes, plan.fps, first), end), plan):
                if len(part) < plan.frames:
                    longest = max(longest, len(part))
                    continue
                yield Clip((first + begin) / plan.fps, np.stack(part))
                taken, found = taken + 1, True
                if taken == most:
                    break
            if not taken and plan.cut is None:
                raise _too_short(longest, plan)
        if not found:
            raise _too_short(longest, plan)
        source.require_whole()


def _parts(pictures: Iterator[Picture], plan: Plan) -> Iterator[tuple[int, list[Picture]]]:
    """Clips with where they begin and, where a shot or the pictures end, what is left, which is shorter."""
    uncut = ((False, picture) for picture in pictures)
    marked = uncut if plan.cut is None else shots(pictures, plan.cut)
    part: list[Picture] = []
    place = 0
    for place, (begins, picture) in enumerate(marked, 1):
        if begins and part:
            yield place - 1 - len(part), part
            part = []
        part.append(picture)
        if len(part) == plan.frames:
            yield place - plan.frames, part
            part = []
    yield place - len(part), part


def _too_short(longest: int, plan: Plan) -> BadVideo:
    shot = "" if plan.cut is None else "its longest shot has "
    return BadVideo(f"too short: {shot}{longest} frames at {plan.fps:g} per second, a clip has {plan.frames}")


def decode_pictures(path: Path, size: tuple[int, int], fps: float) -> Iterator[Picture]:
    """All pictures of ``path`` at a constant rate: uint8 [H, W, 3]. Raises as `decode_clips` does."""
    with _opened(path) as source:
        yield from source.pictures((size,), fps, 0)
        source.require_whole()


def _spans(source: "_Source", plan: Plan) -> list[tuple[int, int, int | None]]:
    """Where to begin, in pictures at the plan's rate, how many clips to take, and from how many pictures.

    Both at most; None: the rest of the file.
    """
    if plan.choice == "first":
        return [(0, 1, None)]
    if plan.choice == "all":
        return [(0, 1 << 62, None)]
    room = source.pictures_at(plan.fps) - plan.frames
    count = 1 if plan.choice == "centre" else min(plan.count, room // plan.frames + 1)
    if room < 0 or count == 1:
        return [(max(0, room // 2), 1, None)]
    places = [number * room // (count - 1) for number in range(count)]
    ends: list[int | None] = [after - place for place, after in pairwise(places)]
    return [(place, 1, end) for place, end in zip(places, [*ends, None], strict=True)]


@contextmanager
def _opened(path: Path) -> Iterator["_Source"]:
    """The video in ``path``; whatever goes wrong with the file is a `BadVideo`."""
    try:
        if path.stat().st_size == 0:
            raise BadVideo("the file is empty")
        with closing(_Source(path)) as source:
            yield source
    except av.error.FFmpegError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError from error
        raise BadVideo(f"unreadable ({error.strerror})") from error
    except OSError as error:
        raise BadVideo(f"unreadable ({error.strerror})") from error


class _Source:
    """The video stream of an open file and its clock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begin: float | None = None  # time stamp of the first frame
        self.size: tuple[int, int] | None = None  # of its pictures, chosen by the first that is looked at
        self.reformatter = VideoReformatter()  # one for the file: it costs more than a small frame
        self._open()

    def _open(self) -> None:
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
        self.container = av.open(str(self.path), container_options=options, metadata_errors="replace")
        streams = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise BadVideo("no video stream")
        self.stream = streams[0]
        self.stream.codec_context.thread_count = 1
        self.stream.codec_context.options = {"err_detect": "explode"}  # else damage is painted over
        aspect = self.stream.sample_aspect_ratio
        self.pixel_aspect = float(aspect) if aspect else 1.0

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    def pictures(self, sizes: Sequence[tuple[int, int]], fps: float, first: int) -> Iterator[Picture]:
        """The picture on show at first/fps, (first + 1)/fps, … seconds after the first frame."""
        shown: av.VideoFrame | None = None
        picture: Picture | None = None
        for frame in self._at_rate(fps, first):
            if frame is not shown or picture is None:
                if frame.is_corrupt:
                    raise BadVideo("a frame is damaged")
                self.size = self.size or nearest(sizes, frame, self.pixel_aspect)
                shown, picture = frame, fitted(frame, self.size, self.pixel_aspect, self.reformatter)
            yield picture

    def pictures_at(self, fps: float) -> int:
        """How many pictures `pictures` gives from the first on, by the header or, without, by all packets."""
        duration, base = self.stream.duration, self.stream.time_base
        if duration and base:
            return max(0, round(float(duration * base) * fps))
        begin, end = math.inf, -math.inf
        for packet in self.container.demux(self.stream):
            if packet.pts is not None:
                time = float(packet.pts * packet.time_base)
                lasting = float(packet.duration * packet.time_base) if packet.duration else 1 / fps
                begin, end = min(begin, time), max(end, time + lasting)
        self._again()
        return max(0, round((end - begin) * fps))

    def require_whole(self) -> None:
        """`BadVideo` if the file ends before what its index promises."""
        if "mp4" in self.container.format.name and len(entries := self.stream.index_entries):
            size, last = self.path.stat().st_size, entries[-1]
            if last.pos + last.size > size:
                raise BadVideo(f"truncated: {size} bytes, its index reaches to {last.pos + last.size}")

    def _again(self) -> None:
        self.close()
        self._open()

    def _decoded(self) -> Iterator[av.VideoFrame]:
        return _progressive(self.container.decode(self.stream), self.stream)

    def _frames(self, time: float) -> Iterator[av.VideoFrame]:
        """Frames in order from one at or before ``time`` on: by seeking, or from the start if that fails."""
        frames = self._decoded()
        if self.begin is None:
            if (head := next(frames, None)) is None:
                raise BadVideo("no frame")
            self.begin, frames = _time(head), chain([head], frames)
        if time > 0:
            frames = self._sought(self.begin + time) or self._decoded()
        yield from frames

    def _sought(self, stamp: float) -> Iterator[av.VideoFrame] | None:
        """Frames from a key frame at or before ``stamp`` on; else None, and the file is at its start."""
        assert self.stream.time_base is not None
        try:
            self.container.seek(int(stamp / self.stream.time_base), stream=self.stream)
            head = next(frames := self._decoded(), None)
            if head is not None and _time(head) <= stamp:
                return chain([head], frames)
        except av.error.FFmpegError:
            pass  # whatever is wrong comes up again on the way from the start
        self._again()
        return None

    def _at_rate(self, fps: float, first: int) -> Iterator[av.VideoFrame]:
        """The frame on show at each point of a constant rate; frames repeat or drop out as needed.

        A frame may come an eighth of a period late, because containers round their time stamps.
        """
        shown, last, emitted = None, 0.0, first
        for frame in self._frames(first / fps):
            assert self.begin is not None
            time = _time(frame) - self.begin
            if shown is not None:
                if time < last or time - last > LONGEST_GAP:
                    raise BadVideo(f"time stamps jump from {last:.2f} to {time:.2f} s")
                while (emitted + 1 / 8) / fps < time:
                    yield shown
                    emitted += 1
            shown, last = frame, time
        if shown is None:
            return
        lasting = shown.duration * shown.time_base if shown.duration and shown.time_base else 1 / fps
        end = last + min(float(lasting), LONGEST_GAP)
        duration, base = self.stream.duration, self.stream.time_base
        promised = float(duration * base) if duration and base else 0.0
        if end < 0.9 * promised:
            raise BadVideo(f"truncated: frames for {end:.2f} of {promised:.2f} s")
        while (emitted + 1 / 2) / fps < end or emitted == 0:
            yield shown
            emitted += 1


def _time(frame: av.VideoFrame) -> float:
    if frame.time is None:
        raise BadVideo("a frame has no time stamp")
    return frame.time


def _progressive(frames: Iterator[av.VideoFrame], stream: VideoStream) -> Iterator[av.VideoFrame]:
    """``frames``, from the first interlaced one on through a deinterlacer that leaves whole frames alone."""
    for frame in frames:
        if frame.interlaced_frame:
            graph = _deinterlacer(stream, frame)
            graph.push(frame)
            for later in frames:
                yield from _ready(graph)
                graph.push(later)
            graph.push(None)
            yield from _ready(graph)
            return
        yield frame


def _deinterlacer(stream: VideoStream, frame: av.VideoFrame) -> Graph:
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=stream.time_base
    )
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
    graph.configure()
    return graph


def _ready(graph: Graph) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield cast(av.VideoFrame, graph.pull())
        except (av.error.BlockingIOError, av.error.EOFError):
            return
