"""The distance of patches: its closed form, its places, and what it sees."""

import torch
from torch import Tensor
from torch.nn import functional

from qdm_pipeline.evaluation.frechet import distance
from qdm_pipeline.evaluation.observe import Observation
from qdm_pipeline.evaluation.patches import patches


def apart(a: Tensor, b: Tensor) -> float:
    nothing = torch.zeros(0)
    seen = [Observation(*[nothing] * 4, patches(each), *[nothing] * 4, 10, 1) for each in (a, b)]
    return distance(seen[0].close_up, seen[1].close_up)


def clips(seed: int, count: int = 40) -> Tensor:
    """Smooth random pictures that stand still."""
    coarse = torch.rand(count, 3, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    fine = functional.interpolate(coarse, (5, 24, 24), mode="trilinear")
    return (255 * fine).to(torch.uint8)


def test_of_even_clips_it_is_the_square_of_their_difference() -> None:
    dark, bright = (torch.full((4, 3, 5, 16, 20), value, dtype=torch.uint8) for value in (51, 102))
    assert apart(dark, dark) < 1e-20
    torch.testing.assert_close(apart(dark, bright), 64 * 0.2**2)


def test_the_places_are_those_of_the_size_whatever_the_batch() -> None:
    video = clips(0)
    found = patches(video)
    assert found.shape == (40, 64, 64) and found.dtype == torch.uint8
    assert torch.equal(torch.cat([patches(some) for some in video.split(7)]), found)
    assert patches(clips(0)[..., :5, :7]).shape == (40, 64, 25)


def test_blur_and_speckles_are_seen_the_more_the_stronger_they_are() -> None:
    real, others = clips(0, 400), clips(1, 400)
    draw = torch.Generator().manual_seed(2)
    noise = torch.randn(others.shape, generator=draw)
    speckled = [(others + strength * noise).clamp(0, 255).to(torch.uint8) for strength in (10, 20, 40)]
    flat = others.flatten(1, 2).float()
    blurred = [
        functional.avg_pool2d(flat, side, 1, side // 2, count_include_pad=False)
        .view_as(others)
        .to(torch.uint8)
        for side in (5, 9, 13)
    ]
    for spoilt in (speckled, blurred):
        distances = [apart(real, each) for each in (others, *spoilt)]
        assert distances == sorted(distances) and distances[-1] > 3 * distances[0]
