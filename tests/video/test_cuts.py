"""Cuts between shots: found in synthetic films, not mistaken for motion, and in no clip."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qdm_pipeline.handle import Handle
from qdm_pipeline.video.cuts import shots
from qdm_pipeline.video.decode import Plan, decode_clips
from qdm_pipeline.video.media import write_mp4
from qdm_pipeline.video.picture import BadVideo, Picture
from qdm_pipeline.video.shards import ShardSet

LEAST = 12.0
SIDE = 48


def scene(seed: int, size: int = SIDE, cells: int = 4) -> Picture:
    """A smooth random picture, as other seeds give others of the same mean and contrast."""
    coarse = torch.rand(1, 3, cells, cells, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return (fine[0].permute(1, 2, 0) * 255).byte().numpy()


def shown(*lengths: int) -> list[Picture]:
    """A scene each, a little noisy."""
    draw = np.random.default_rng(0)
    films = [(scene(number), length) for number, length in enumerate(lengths)]
    noisy = [picture + draw.normal(0, 3, picture.shape) for picture, length in films for _ in range(length)]
    return [picture.clip(0, 255).astype(np.uint8) for picture in noisy]


def pan(speed: int, frames: int) -> list[Picture]:
    wide = scene(7, 600, 40)
    return [wide[100 : 100 + SIDE, speed * n : speed * n + SIDE] for n in range(frames)]


def zoom(frames: int) -> list[Picture]:
    wide = torch.from_numpy(scene(3, 240, 8)).permute(2, 0, 1)[None].float()
    parts = [wide[..., 10 * n : 240 - 10 * n, 10 * n : 240 - 10 * n] for n in range(frames)]
    small = [torch.nn.functional.interpolate(part, (SIDE, SIDE)) for part in parts]
    return [part[0].permute(1, 2, 0).byte().numpy() for part in small]


def jumping_object(frames: int) -> list[Picture]:
    """A white square of a fifth of the picture that is somewhere else every third time."""
    pictures, draw = [np.full((SIDE, SIDE, 3), 60, np.uint8) for _ in range(frames)], np.random.default_rng(1)
    for number, picture in enumerate(pictures):
        if number % 3 == 0:
            top, left = draw.integers(0, SIDE - 21, 2)
        picture[top : top + 21, left : left + 21] = 255
    return pictures


def fade(frames: int) -> list[Picture]:
    return [(scene(2) * (1 - n / frames)).astype(np.uint8) for n in range(frames)]


def found(pictures: list[Picture]) -> list[int]:
    marked = list(shots(iter(pictures), LEAST))
    assert all(a is b for (_, a), b in zip(marked, pictures, strict=True))  # all of them, in order
    return [place for place, (begins, _) in enumerate(marked) if begins]


@pytest.mark.parametrize(
    "lengths", [(10, 12), (1, 9), (9, 1), (4, 3, 6), (2, 2, 2, 2, 2, 9), (1, 1), (60, 60, 3)], ids=str
)
def test_cuts_are_found_wherever_they_are(lengths: tuple[int, ...]) -> None:
    assert found(shown(*lengths)) == np.cumsum(lengths)[:-1].tolist()


@pytest.mark.parametrize(
    "motion",
    [shown(30), pan(12, 30), zoom(11), jumping_object(30), fade(8), pan(3, 30), shown(1), []],
    ids=["still", "fast pan", "zoom", "jumps", "fade", "pan", "one", "none"],
)
def test_motion_is_no_cut(motion: list[Picture]) -> None:
    assert found(motion) == []


def test_a_fast_pan_changes_enough_to_be_taken_for_cuts_by_a_fixed_threshold() -> None:
    pictures = [picture.astype(float) for picture in pan(12, 30)]
    changes = [np.abs(a - b).mean() for a, b in zip(pictures, pictures[1:], strict=False)]
    assert np.mean([change > LEAST for change in changes]) > 0.5


def test_a_cut_between_two_pans_is_found() -> None:
    other = [255 - picture for picture in pan(3, 12)]
    assert found(pan(3, 12) + other) == [12]


def test_only_a_few_pictures_are_read_ahead() -> None:
    read = 0

    def endless() -> Iterator[Picture]:
        nonlocal read
        while True:
            read += 1
            yield scene(0)

    marked = shots(endless(), LEAST)
    for _ in range(100):
        next(marked)
    assert read <= 104


LENGTHS = (10, 3, 7, 13, 5)  # cuts at 10, 13, 20, 33


@pytest.fixture
def film(tmp_path: Path) -> Path:
    frames: NDArray[np.uint8] = np.stack(shown(*LENGTHS))
    write_mp4(tmp_path / "film.mp4", torch.from_numpy(frames).permute(3, 0, 1, 2).contiguous(), fps=8)
    return tmp_path / "film.mp4"


def starts(film: Path, choice: str, frames: int, cut: float | None = LEAST, count: int = 4) -> list[int]:
    clips = decode_clips(film, Plan(frames, ((SIDE, SIDE),), 8, choice, count, cut))
    return [round(clip.start * 8) for clip in clips]


def test_clips_begin_again_behind_a_cut(film: Path) -> None:
    assert starts(film, "all", 4, cut=None) == list(range(0, 35, 4))
    assert starts(film, "all", 4) == [0, 4, 13, 20, 24, 28, 33]
    assert starts(film, "first", 4) == [0] and starts(film, "first", 11) == [20]
    assert starts(film, "centre", 8, cut=None) == [15] and starts(film, "centre", 8) == [20]
    assert starts(film, "uniform", 6, cut=None) == [0, 10, 21, 32]
    assert starts(film, "uniform", 6) == [0, 13, 21]  # from 32 on no shot is long enough


@pytest.mark.parametrize("choice", ["first", "centre", "uniform", "all"])
@pytest.mark.parametrize("frames", range(1, 14))
def test_no_clip_has_a_cut_in_it_and_none_overlap(choice: str, frames: int, film: Path) -> None:
    try:
        begins = starts(film, choice, frames)
    except BadVideo:
        begins = []
    inside = {place for begin in begins for place in range(begin + 1, begin + frames)}
    assert not inside & {10, 13, 20, 33}
    assert len(inside) + len(begins) == len(begins) * frames
    assert begins or choice in ("centre", "uniform") and frames > 10


def test_a_film_of_short_shots_is_named(film: Path) -> None:
    with pytest.raises(BadVideo, match="its longest shot has 13 frames at 8 per second, a clip has 14"):
        starts(film, "all", 14)


def test_the_setting_reaches_the_decoders(film: Path, cut: Callable[..., Handle]) -> None:
    for number in range(6):
        (film.parent / f"{number}.mp4").write_bytes(film.read_bytes())
    film.unlink()
    shards = ShardSet(cut(film.parent, clips_per_video="all", frames=4, shot_cut=LEAST).path)
    assert [start * 8 for start in shards.column("start")][:7] == [0, 4, 13, 20, 24, 28, 33]
    with pytest.raises(ValueError, match="shot_cut: found 0"):
        cut(film.parent, shot_cut=0)
