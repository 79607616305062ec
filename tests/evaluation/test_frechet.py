"""The Fréchet distance against closed forms, scipy and the nuclear norm of the centred features."""

from functools import reduce

import pytest
import torch
from scipy.linalg import sqrtm

from qdm_pipeline.errors import InputError
from qdm_pipeline.evaluation.frechet import (
    Gaussian,
    Moments,
    frechet_distance,
    frechet_trimmed,
    frechet_with_interval,
    furthest,
)
from qdm_pipeline.evaluation.intervals import random_blocks


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moments(features: torch.Tensor) -> Moments:
    return Moments.empty(features.shape[1]).add(features)


def gaussian(mean: torch.Tensor, covariance: torch.Tensor) -> Moments:
    """Moments whose mean and covariance are exactly these."""
    return Moments(101, mean.double(), covariance.double() * 100)


def test_moments_of_parts_merge_into_those_of_the_whole() -> None:
    features = torch.randn(257, 12, generator=seeded(0)) * 3 + 1000
    whole = moments(features)
    merged = reduce(Moments.merge, [moments(part) for part in features.split([1, 100, 0, 156])])
    assert merged.count == 257
    torch.testing.assert_close(merged.mean, features.double().mean(0), rtol=1e-13, atol=0)
    torch.testing.assert_close(merged.covariance(), features.double().T.cov(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(merged.scatter, whole.scatter, rtol=1e-9, atol=1e-9)


def test_commuting_covariances_have_a_closed_form() -> None:
    basis = torch.linalg.qr(torch.randn(20, 20, generator=seeded(1), dtype=torch.float64)).Q
    first, second = torch.rand(2, 20, generator=seeded(2), dtype=torch.float64) * 5
    a = gaussian(torch.zeros(20), basis @ first.diag() @ basis.T)
    b = gaussian(torch.full((20,), 0.5), basis @ second.diag() @ basis.T)
    expected = 20 * 0.25 + (first.sqrt() - second.sqrt()).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-12)


def test_agrees_with_the_matrix_root_of_scipy() -> None:
    x = torch.randn(300, 24, generator=seeded(3)) @ torch.randn(24, 24, generator=seeded(4))
    y = torch.randn(200, 24, generator=seeded(5)) @ torch.randn(24, 24, generator=seeded(6)) + 1
    a, b = moments(x), moments(y)
    root = torch.from_numpy(sqrtm((a.covariance() @ b.covariance()).numpy()).real)
    expected = (a.mean - b.mean).square().sum() + (a.covariance() + b.covariance() - 2 * root).trace()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("count", [2, 10, 63])
def test_fewer_samples_than_dimensions(count: int) -> None:
    """tr (Σa Σb)^½ is the nuclear norm of Xc Ycᵀ over √((n−1)(m−1)), whatever the ranks."""
    x = torch.randn(count, 64, generator=seeded(7), dtype=torch.float64)
    y = torch.randn(40, 64, generator=seeded(8), dtype=torch.float64)
    a, b = moments(x), moments(y)
    product = (x - x.mean(0)) @ (y - y.mean(0)).T
    root = torch.linalg.matrix_norm(product, "nuc") / ((count - 1) * 39) ** 0.5
    expected = (a.mean - b.mean).square().sum() + a.covariance().trace() + b.covariance().trace() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)


def test_the_order_of_merging_leaves_all_but_the_last_digits() -> None:
    """Also where the spectrum spans seven decades, as that of trained features does."""
    scale = torch.logspace(-3.5, 0, 64, dtype=torch.float64)
    x, y = (torch.randn(250, 64, generator=seeded(seed), dtype=torch.float64) * scale for seed in (20, 21))
    parts = [moments(part) for part in y.split(10)]
    whole = frechet_distance(moments(x), moments(y))
    assert frechet_distance(moments(x), reduce(Moments.merge, parts)) == pytest.approx(whole, rel=1e-11)
    assert frechet_distance(moments(x), reduce(Moments.merge, parts[::-1])) == pytest.approx(whole, rel=1e-11)


def test_a_set_is_at_no_distance_from_itself() -> None:
    a = moments(torch.randn(10, 64, generator=seeded(9)))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_one_sample_has_no_covariance() -> None:
    two, one = moments(torch.randn(2, 3)), moments(torch.randn(1, 3))
    with pytest.raises(InputError, match="at least 2 samples on each side, found 1"):
        frechet_distance(two, one)


def split(features: torch.Tensor, blocks: int, seed: int) -> list[Moments]:
    numbers = random_blocks(len(features), blocks, seeded(seed))
    return [moments(features[numbers == k]) for k in range(blocks)]


def test_random_blocks_are_equal_in_size_and_do_not_follow_the_order() -> None:
    numbers = random_blocks(103, 10, seeded(0))
    assert sorted(numbers.bincount().tolist()) == [10] * 7 + [11] * 3
    assert not torch.equal(numbers, torch.arange(103) % 10)


def test_the_interval_covers_another_draw_of_the_same_size() -> None:
    """95 % of intervals hold the mean over many draws; 60 draws tell that from a wrong formula."""
    scale = torch.linspace(0.5, 1.5, 6)
    estimates = []
    for seed in range(60):
        x = torch.randn(200, 6, generator=seeded(100 + seed))
        y = torch.randn(200, 6, generator=seeded(900 + seed)) * scale + 0.3
        estimates.append(frechet_with_interval(split(x, 20, seed), split(y, 20, seed + 1)))
    truth = sum(estimate.value for estimate in estimates) / 60
    held = sum(estimate.low <= truth <= estimate.high for estimate in estimates)
    assert 51 <= held <= 60
    assert all(estimate.low < estimate.value < estimate.high for estimate in estimates)


def test_the_furthest_sample_is_found_and_its_share_of_the_distance_known() -> None:
    real = torch.randn(200, 8, generator=seeded(1), dtype=torch.float64)
    samples = torch.cat([real, real.mean(0, keepdim=True)])
    samples[77] = real.mean(0) + torch.tensor([60.0] + [0] * 7)
    position, without = furthest(samples, Gaussian.of_features(real))
    assert position == 77
    others = moments(samples[torch.arange(201) != 77])
    assert without == pytest.approx(frechet_distance(others, moments(real)), rel=1e-9)
    assert frechet_distance(moments(samples), moments(real)) > 10 and without < 0.1


def test_trimmed_one_sample_far_out_raises_no_distance() -> None:
    real, samples = (torch.randn(200, 8, generator=seeded(seed), dtype=torch.float64) for seed in (2, 3))
    spoilt = samples.clone()
    spoilt[77, 0] = 60
    reference, clean, with_it = ([moments(part) for part in x.split(20)] for x in (real, samples, spoilt))
    without = moments(torch.cat([samples[:60], samples[80:]]))
    assert frechet_trimmed(with_it, reference) == pytest.approx(
        frechet_distance(without, moments(real)), rel=1e-9
    )
    assert frechet_trimmed(clean, reference) <= frechet_trimmed(with_it, reference)
    assert frechet_distance(moments(spoilt), moments(real)) > 10 > frechet_trimmed(with_it, reference)
