"""Intervals hold the truth as often as they say."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from qdm_pipeline.evaluation.frechet import frechet_estimates, leave_out
from qdm_pipeline.evaluation.intervals import Estimate, extrapolated, jackknife, random_blocks

SCALE, SHIFT = torch.linspace(0.7, 1.4, 16, dtype=torch.float64), 0.3
TRUTH = 16 * SHIFT**2 + float((SCALE - 1).square().sum())  # between Gaussians with commuting covariances


def limit(x: Tensor, y: Tensor, seed: int, blocks: int = 10) -> Estimate:
    sides = []
    for features in (x, y):
        numbers = random_blocks(len(features), blocks, torch.Generator().manual_seed(seed))
        sides.append(leave_out(features, numbers, blocks))
    return frechet_estimates(*sides)[1]


def held(truth: float, estimates: list[Estimate]) -> float:
    return sum(one.low <= truth <= one.high for one in estimates) / len(estimates)


def gaussians(seed: int, count: int = 300) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, count, 16, generator=draw, dtype=torch.float64)
    return x, y * SCALE + SHIFT


PIXELS = torch.from_numpy(load_digits().data)


def real(seed: int) -> tuple[Tensor, Tensor]:
    """Two disjoint draws of 512 real scans, 64 numbers each."""
    order = torch.randperm(len(PIXELS), generator=torch.Generator().manual_seed(seed))
    return PIXELS[order[:512]], PIXELS[order[512:1024]]


def test_the_interval_of_the_limit_holds_the_truth() -> None:
    assert 0.9 <= held(TRUTH, [limit(*gaussians(seed), seed) for seed in range(200)]) <= 0.98


def test_real_against_real_is_0_within_the_interval() -> None:
    assert held(0, [limit(*real(seed), seed) for seed in range(100)]) >= 0.9


def test_the_limit_is_free_of_the_bias_in_one_over_count() -> None:
    """A statistic that is 3 + 7 / count exactly, of 40 samples and of 36."""
    left_out = torch.full((10,), 3 + 7 / 36, dtype=torch.float64)
    assert extrapolated(3 + 7 / 40, left_out).value == pytest.approx(3)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left_out = (values.sum() - values) / 29
    found = jackknife(float(values.mean()), left_out)
    error = float(values.std()) / 30**0.5
    assert found.high - found.value == pytest.approx(2.04523 * error, rel=1e-5)  # t, 29 degrees of freedom
    assert extrapolated(found.value, left_out).value == pytest.approx(found.value)  # a mean has no bias
