"""Video files to frames of one size at one rate."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
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
            for frame in _at_rate(container, fps):
                yield _resize_crop(frame, size, reformatter)
    except av.error.FFmpegError as error:
        raise BadVideo(f"unreadable ({error.strerror})") from error


def _at_rate(container: InputContainer, fps: float) -> Iterator[av.VideoFrame]:
    """The frame on show at 0, 1/fps, 2/fps, … after the first; frames repeat or drop out as needed.

    A frame may come an eighth of a period late, because containers round their time stamps.
    """
    stream = container.streams.video[0]
    shown, start, end, emitted = None, 0.0, 0.0, 0
    for frame in container.decode(stream):
        if frame.time is None:
            raise BadVideo("a frame has no time stamp")
        if shown is None:
            start = frame.time
        else:
            while (emitted + 1 / 8) / fps < frame.time - start:
                yield shown
                emitted += 1
        shown = frame
        lasting = frame.duration * frame.time_base if frame.duration and frame.time_base else 1 / fps
        end = frame.time - start + float(lasting)
    if shown is None:
        raise BadVideo("no frame")
    promised = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    if end < 0.9 * promised:
        raise BadVideo(f"truncated: frames for {end:.2f} of {promised:.2f} s")
    while (emitted + 1 / 2) / fps < end or emitted == 0:
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
