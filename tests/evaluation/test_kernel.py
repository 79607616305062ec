"""Kernel distance and class score against closed forms and torchmetrics, where that is right."""

from itertools import product

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from qdm_pipeline.evaluation.class_score import class_score
from qdm_pipeline.evaluation.intervals import Estimate, random_blocks
from qdm_pipeline.evaluation.kernel import kernel_distance


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def measured(x: Tensor, y: Tensor, seed: int = 0, blocks: int = 10) -> Estimate:
    parts = [random_blocks(len(each), blocks, seeded(seed)) for each in (x, y)]
    return kernel_distance(x, y, *parts, blocks)


def brute(x: Tensor, y: Tensor) -> float:
    def mean(a: Tensor, b: Tensor, same: bool) -> float:
        pairs = [(i, j) for i, j in product(range(len(a)), range(len(b))) if not same or i != j]
        return sum(float((a[i] @ b[j] / a.shape[1] + 1) ** 3) for i, j in pairs) / len(pairs)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def test_is_the_mean_over_pairs_and_leaves_blocks_out() -> None:
    x, y = (torch.randn(n, 3, generator=seeded(n), dtype=torch.float64) for n in (12, 9))
    block_x, block_y = torch.arange(12) % 3, torch.arange(9) % 3
    found = kernel_distance(x, y, block_x, block_y, 3)
    assert found.value == pytest.approx(brute(x, y), rel=1e-12)
    left_out = torch.tensor([brute(x[block_x != k], y[block_y != k]) for k in range(3)], dtype=torch.float64)
    error = float(left_out.var(correction=0) * 2) ** 0.5
    assert found.high - found.value == pytest.approx(
        4.303 * error, rel=0.05
    )  # t of 2, whose expansion is coarse


def gaussian_truth(shift: Tensor, scale: Tensor) -> float:
    """MMD² of N(0, 1) and N(shift, scale²): squared distances of the raw moments of order 1 to 3."""

    def moments(mean: Tensor, variance: Tensor) -> list[Tensor]:
        covariance = variance.diag()
        second = covariance + torch.outer(mean, mean)
        third = sum(torch.einsum(f"ij,k->{order}", covariance, mean) for order in ("ijk", "ikj", "kij"))
        return [mean, second, torch.einsum("i,j,k->ijk", mean, mean, mean) + third]

    first, second = moments(torch.zeros_like(shift), torch.ones_like(scale)), moments(shift, scale.square())
    weights = [choose / len(shift) ** order for order, choose in enumerate((3, 3, 1), 1)]
    apart = [(a - b).square().sum() for a, b in zip(first, second, strict=True)]
    return float(sum(weight * part for weight, part in zip(weights, apart, strict=True)))


def test_the_interval_holds_the_truth_in_95_percent() -> None:
    scale = torch.tensor([0.8, 1.0, 1.2, 1.3], dtype=torch.float64)
    shift = torch.full((4,), 0.3, dtype=torch.float64)
    truth, held = gaussian_truth(shift, scale), 0
    for seed in range(200):
        x, y = torch.randn(2, 300, 4, generator=seeded(seed), dtype=torch.float64)
        found = measured(x, y * scale + shift, seed)
        held += found.low <= truth <= found.high
    assert 0.90 <= held / 200 <= 0.98


def test_real_against_real_is_0_in_90_of_100() -> None:
    held = 0
    for seed in range(100):
        order = torch.randperm(len(PIXELS), generator=seeded(seed))
        found = measured(PIXELS[order[:512]], PIXELS[order[512:1024]], seed)
        held += found.low <= 0 <= found.high
    assert held >= 90


class Features(torch.nn.Module):
    """What torchmetrics takes for a network."""

    num_features = 64

    def forward(self, x: Tensor) -> Tensor:
        return x


PIXELS = torch.from_numpy(load_digits().data).float() / 16
SETS = {
    "random": (torch.randn(150, 64, generator=seeded(1)), torch.randn(150, 64, generator=seeded(2)) + 0.2),
    "digits": (PIXELS[:150], PIXELS[900:1050]),
}


@pytest.mark.parametrize("name", SETS)
def test_agrees_with_torchmetrics(name: str) -> None:
    x, y = SETS[name]
    peer = KernelInceptionDistance(Features(), subsets=2, subset_size=150).set_dtype(torch.float64)
    peer.update(x.double(), real=True)
    peer.update(y.double(), real=False)
    assert measured(x, y).value == pytest.approx(float(peer.compute()[0]), rel=1e-6)


def test_torchmetrics_loses_near_identical_sets_in_float32() -> None:
    """Features with a large mean: its kernel, cubed, has no digits left for the distance."""
    x = torch.randn(150, 64, generator=seeded(3)) + 30
    y = torch.randn(150, 64, generator=seeded(4)) + 30
    truth = float(poly_mmd(x.double(), y.double()))
    assert measured(x, y).value == pytest.approx(truth, rel=1e-6)
    assert float(poly_mmd(x, y)) != pytest.approx(truth, rel=1e-2)


@pytest.mark.parametrize("splits", [1, 10])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_class_score_is_torchmetrics_inception_score(splits: int, scale: float) -> None:
    logits = scale * torch.randn(200, 7, generator=seeded(5), dtype=torch.float64)
    peer = InceptionScore(Features(), splits=splits).set_dtype(torch.float64)
    peer.update(logits)
    torch.manual_seed(3)
    expected = float(peer.compute()[0])
    torch.manual_seed(3)
    order = torch.randperm(200)
    found = class_score(logits[order], torch.arange(200) // (200 // splits))
    assert found == pytest.approx(expected, rel=1e-6)


def test_ten_splits_are_ten_where_torchmetrics_makes_six() -> None:
    """`torch.chunk(11, 10)` gives six parts; a certain classifier of k classes scores k on each split."""
    logits = 100 * torch.eye(11)[torch.arange(11)]
    peer = InceptionScore(Features(), splits=10)
    peer.update(logits)
    assert class_score(logits) == pytest.approx(11)
    assert class_score(logits, torch.arange(11) % 10) == pytest.approx((9 * 1 + 2) / 10)
    assert float(peer.compute()[0]) == pytest.approx((5 * 2 + 1) / 6)
