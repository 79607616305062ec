"""Where one shot ends and the next begins, seen from pictures in order; NumPy only."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qdm_pipeline.video.picture import Picture

GRID = 16  # blocks a side that a picture is compared in
AROUND = 3  # neighbours on either side of a step that say how much usually changes
RATIO = 2.5  # how many times as much changes at a cut, at the least


def shots(pictures: Iterator[Picture], least: float) -> Iterator[tuple[bool, Picture]]:
    """``pictures`` with whether each begins a new shot; `AROUND` of them are read ahead.

    The change from one picture to the next is the median over blocks of the mean's difference, so half of
    the picture has to change: a moving object does not do that. It is a cut if it is at least ``least`` (of
    255 levels) and `RATIO` times the median change around it: in a fast pan, all changes are large. The
    idea of comparing with a window is PySceneDetect's adaptive detector's. Fades and dissolves, which are
    spread over many pictures, are not found; a flash is two cuts.
    """
    read: list[Picture] = []  # from the one to be told next on
    changes: list[float] = []  # into each picture, from `AROUND` before that one on
    last: NDArray[np.float32] | None = None
    for picture in pictures:
        blocks = _blocks(picture)
        changes.append(0.0 if last is None else float(np.median(np.abs(blocks - last))))
        last = blocks
        read.append(picture)
        if len(read) > AROUND:
            yield _is_cut(changes, len(changes) - len(read), least), read.pop(0)
            del changes[: max(0, len(changes) - len(read) - AROUND)]
    while read:
        yield _is_cut(changes, len(changes) - len(read), least), read.pop(0)


def _is_cut(changes: list[float], at: int, least: float) -> bool:
    around = [*changes[max(0, at - AROUND) : at], *changes[at + 1 : at + 1 + AROUND]]
    return changes[at] >= max(least, RATIO * float(np.median(around)) if around else 0.0)


def _blocks(picture: Picture) -> NDArray[np.float32]:
    """Means of `GRID` x `GRID` blocks (or pixels, of a smaller picture) in each colour."""
    side = len(picture)
    edges = np.linspace(0, side, min(GRID, side), endpoint=False).astype(int)
    sums = np.add.reduceat(np.add.reduceat(picture, edges, 0, dtype=np.float32), edges, 1)
    sizes = np.diff(np.append(edges, side)).astype(np.float32)
    return sums / (sizes[:, None] * sizes[None, :])[..., None]
