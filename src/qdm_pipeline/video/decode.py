"""Video files to frames of one size at one rate."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from torch import Tensor


class BadVideo(Exception):
    """One video cannot be used; the message is the reason, for a list of skipped files."""


def decode_frames(path: Path, size: int, fps: float) -> Iterator[Tensor]:
    """Frames of ``path`` as uint8 [3, size, size] RGB, ``fps`` a second of the file's own clock.

    The shorter side is resized to ``size`` and the longer one cropped about its centre. `BadVideo` if the
    file is empty, not a video, without a video stream, damaged or truncated.
    """
    if path.stat().st_size == 0:
        raise BadVideo("the file is empty")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise BadVideo("no video stream")
            container.streams.video[0].codec_context.thread_count = 1
            reformatter = VideoReformatter()  # one for the file: setting one up costs more than a small frame
            for frame in _at_rate(container, Fraction(fps).limit_denominator(100_000)):
                yield _resize_crop(frame, size, reformatter)
    except av.error.FFmpegError as error:
        raise BadVideo(f"unreadable ({error.strerror})") from error


def _at_rate(container: av.container.InputContainer, fps: Fraction) -> Iterator[av.VideoFrame]:
    """The frame on show at 0, 1/fps, 2/fps, … after the first; frames repeat or drop out as needed.

    A frame may come an eighth of a period late, because containers round their time stamps.
    """
    stream = container.streams.video[0]
    emitted, start, end, shown = 0, Fraction(0), Fraction(0), None
    for frame in container.decode(stream):
        if frame.pts is None:
            raise BadVideo("a frame has no time stamp")
        time = frame.pts * frame.time_base
        if shown is None:
            start = time
        else:
            while (emitted + Fraction(1, 8)) / fps < time - start:
                yield shown
                emitted += 1
        shown, end = frame, time - start + (frame.duration or 0) * frame.time_base
    if shown is None:
        raise BadVideo("no frame")
    promised = (stream.duration or 0) * stream.time_base
    if end < promised * Fraction(9, 10):
        raise BadVideo(f"truncated: frames for {float(end):.2f} of {float(promised):.2f} s")
    while emitted == 0 or (emitted + Fraction(1, 2)) / fps < end:
        yield shown
        emitted += 1


def _resize_crop(frame: av.VideoFrame, size: int, reformatter: VideoReformatter) -> Tensor:
    scale = size / min(frame.width, frame.height)
    width, height = max(size, round(frame.width * scale)), max(size, round(frame.height * scale))
    scaled = reformatter.reformat(frame, width, height, "rgb24", interpolation=Interpolation.BICUBIC)
    image = scaled.to_ndarray()
    top, left = (height - size) // 2, (width - size) // 2
    cropped = np.ascontiguousarray(image[top : top + size, left : left + size].transpose(2, 0, 1))
    return torch.from_numpy(cropped)
