"""One decoded frame to an upright RGB picture of one size: pixel shape, orientation, transparency, colour."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import av
import numpy as np
from av.video.reformatter import ColorTrc, Interpolation, VideoReformatter
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

LEAST_SIDE = 8  # pixels; there is nothing to learn from less
MOST_ASPECT = 16  # long side over short side, as shown
HD = 720  # lines; from here on an untagged file is taken for BT.709, below for BT.601, as players do
BT709, UNTAGGED = 1, 2
HDR = {int(ColorTrc.SMPTE2084): "PQ", int(ColorTrc.ARIB_STD_B67): "HLG"}

# The fast path of the scaler is exact for 8-bit 4:2:0 of unchanged size; elsewhere it turns white to 253.
FAST = Interpolation.BICUBIC
ACCURATE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


class BadVideo(Exception):
    """One video cannot be used; the message is the reason, for the table of skipped files."""


def nearest(sizes: Sequence[tuple[int, int]], frame: av.VideoFrame, pixel_aspect: float) -> tuple[int, int]:
    """The one of ``sizes`` (height, width) whose shape is most like that of ``frame`` as shown.

    By the ratio of their aspects; the first of those that are equally near. Raises as `fitted` does.
    """
    if len(sizes) == 1:
        return sizes[0]
    width, height = frame.width * pixel_aspect, frame.height
    if _orientation(frame)[0]:
        width, height = height, width
    shown = math.log(max(width, 1) / max(height, 1))
    return min(sizes, key=lambda size: abs(math.log(size[1] / size[0]) - shown))


def fitted(
    frame: av.VideoFrame, size: tuple[int, int], pixel_aspect: float, reformatter: VideoReformatter
) -> Picture:
    """``frame`` as uint8 [height, width, 3] RGB in full range, as a player would show it, for a ``size``.

    Resized until it covers (height, width), then cropped about its centre; pixels that are ``pixel_aspect``
    times as wide as high become square; transparency is laid over black. Colours follow the file's tags.
    `BadVideo` for a tiny, very long or HDR picture, or one turned by no multiple of 90 degrees.
    """
    if frame.color_trc in HDR:
        raise BadVideo(f"HDR ({HDR[frame.color_trc]}), which needs tone mapping first")
    shown = frame.width * pixel_aspect
    if min(frame.width, frame.height) < LEAST_SIDE or not shown:
        raise BadVideo(f"too small: {frame.width}x{frame.height} pixels, a side must have {LEAST_SIDE}")
    if max(shown / frame.height, frame.height / shown) > MOST_ASPECT:
        raise BadVideo(f"too long: {shown:.0f}x{frame.height} as shown, at most {MOST_ASPECT}:1")
    turned, down, right = _orientation(frame)
    high, wide = reversed(size) if turned else size
    scale = max(wide / shown, high / frame.height)
    width, height = max(wide, round(shown * scale)), max(high, round(frame.height * scale))
    image = _rgb(frame, width, height, reformatter)
    top, left = (height - high) // 2, (width - wide) // 2
    image = image[top : top + high, left : left + wide]
    return np.ascontiguousarray((image.swapaxes(0, 1) if turned else image)[::down, ::right])


def _rgb(frame: av.VideoFrame, width: int, height: int, reformatter: VideoReformatter) -> Picture:
    plain = frame.format.name == "yuv420p" and (width, height) == (frame.width, frame.height)
    untagged_hd = frame.colorspace == UNTAGGED and frame.height >= HD
    scaled = reformatter.reformat(
        frame,
        width,
        height,
        "rgba" if _has_alpha(frame.format.name) else "rgb24",
        src_colorspace=BT709 if untagged_hd else None,
        interpolation=FAST if plain else ACCURATE,
        threads=1,
    )
    image = cast(Picture, scaled.to_ndarray())
    if image.shape[2] == 3:
        return image
    colour, opacity = image[..., :3].astype(np.uint16), image[..., 3:].astype(np.uint16)
    return ((colour * opacity + 127) // 255).astype(np.uint8)


@cache
def _has_alpha(pixel_format: str) -> bool:
    return any(part.is_alpha for part in av.VideoFormat(pixel_format).components)


def _orientation(frame: av.VideoFrame) -> tuple[bool, int, int]:
    """Whether rows become columns, and the directions, 1 or -1, in which the rows and columns then run.

    As the display matrix [[a, b], [c, d]] of ``frame`` says, which sends the point (x, y) to
    (a·x + c·y, b·x + d·y), x to the right and y downwards.
    """
    side_data = cast(dict[str, Any], frame.side_data)
    if "DISPLAYMATRIX" not in side_data:
        return False, 1, 1
    matrix = np.frombuffer(side_data["DISPLAYMATRIX"], "<i4", 5).astype(float)
    a, b, c, d = matrix[[0, 1, 3, 4]]
    if abs(b) + abs(c) < 0.01 * (abs(a) + abs(d)):
        turned, across, down = False, a, d
    elif abs(a) + abs(d) < 0.01 * (abs(b) + abs(c)):
        turned, across, down = True, c, b
    else:
        raise BadVideo(f"turned by {frame.rotation} degrees, allowed are multiples of 90")
    return turned, -1 if down < 0 else 1, -1 if across < 0 else 1
