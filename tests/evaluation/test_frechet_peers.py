"""The Fréchet distance against the public formulas, and against 40 digits where those are wrong."""

from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.datasets import load_digits
from torch import Tensor

from qdm_pipeline.evaluation.frechet import Gaussian, Moments, distance, frechet_distance


def of_features(x: Tensor, y: Tensor, ddof: int = 1) -> float:
    return distance(Gaussian.of_features(x, ddof), Gaussian.of_features(y, ddof))


def of_moments(x: Tensor, y: Tensor, ddof: int = 1) -> float:
    a, b = (Moments.empty(part.shape[1]).add(part) for part in (x, y))
    return frechet_distance(a, b, ddof)


def trace_of_root(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.trace(sqrtm(a @ b).real))


def pytorch_fid(x: Tensor, y: Tensor) -> float:
    """numpy's covariances, scipy's root of their product (its package needs torchvision)."""
    a, b = (np.cov(part.numpy(), rowvar=False) for part in (x, y))
    shift = (x.mean(0) - y.mean(0)).square().sum()
    return float(shift) + np.trace(a) + np.trace(b) - 2 * trace_of_root(a, b)


def cd_fvd(x: Tensor, y: Tensor) -> float:
    """Covariances as E[xxᵀ] − E[x] E[x]ᵀ, so ddof 0, then the same root."""
    a, b = ((part.T @ part / len(part) - torch.outer(part.mean(0), part.mean(0))).numpy() for part in (x, y))
    shift = (x.mean(0) - y.mean(0)).square().sum()
    return float(shift) + np.trace(a + b) - 2 * trace_of_root(a, b)


def exact(x: Tensor, y: Tensor, ddof: int = 1) -> float:
    """By mpmath, 40 digits: the trace of the root is the nuclear norm of the centred features' product."""
    with mpmath.workdps(40):
        a, b = (mpmath.matrix(part.tolist()) for part in (x, y))
        means = [[mpmath.fsum(part[:, j]) / part.rows for j in range(part.cols)] for part in (a, b)]
        for part, mean in zip((a, b), means, strict=True):
            for i in range(part.rows):
                for j in range(part.cols):
                    part[i, j] = (part[i, j] - mean[j]) / mpmath.sqrt(part.rows - ddof)
        traces = mpmath.fsum(value**2 for part in (a, b) for value in part)
        nuclear = mpmath.fsum(mpmath.svd_r(a * b.T, compute_uv=False))
        shift = mpmath.fsum((p - q) ** 2 for p, q in zip(*means, strict=True))
        return float(shift + traces - 2 * nuclear)


def random_sets(count: int, dimension: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, count, dimension, generator=draw, dtype=torch.float64)
    return x, 1.2 * y + 0.1


def digits() -> tuple[Tensor, Tensor]:
    """Scans of digits, pixels that ever change much: two halves."""
    pixels = torch.from_numpy(load_digits().data)
    pixels = pixels[:, pixels.var(0) > 1]
    return pixels[:900], pixels[900:]


@pytest.mark.parametrize("sets", [random_sets(400, 48), digits()], ids=["random", "digits"])
@pytest.mark.parametrize("ours", [of_features, of_moments])
def test_agrees_with_the_published_formulas(ours: Callable[..., float], sets: tuple[Tensor, Tensor]) -> None:
    assert ours(*sets) == pytest.approx(pytorch_fid(*sets), rel=1e-6)
    assert ours(*sets, ddof=0) == pytest.approx(cd_fvd(*sets), rel=1e-6)


def spread(x: Tensor) -> Tensor:
    """Columns that span eight decades: a covariance of them is singular to rounding."""
    return x * torch.logspace(0, -8, x.shape[1], dtype=torch.float64)


FEW = random_sets(10, 24)
NARROW = tuple(map(spread, random_sets(40, 9)))
NEAR = (FEW[0], FEW[0] + 1e-6 * FEW[1])
SHIFTED = tuple(part + 1e6 for part in random_sets(40, 8))
UNEVEN = (FEW[0], random_sets(30, 24, 1)[0])


@pytest.mark.parametrize(
    ("sets", "peer", "off"),
    [
        (FEW, pytorch_fid, 1e-9),
        (UNEVEN, pytorch_fid, 1e-9),
        (NEAR, pytorch_fid, 0.1),
        (SHIFTED, cd_fvd, 1e-5),
    ],
    ids=["10 samples of 24 numbers", "10 against 30", "near-identical", "far from 0"],
)
def test_holds_where_the_peers_do_not(
    sets: tuple[Tensor, Tensor], peer: Callable[..., float], off: float
) -> None:
    ddof = 0 if peer is cd_fvd else 1
    truth = exact(*sets, ddof)
    assert of_features(*sets, ddof) == pytest.approx(truth, rel=1e-8)
    assert peer(*sets) != pytest.approx(truth, rel=off)


def test_a_singular_spectrum() -> None:
    truth = exact(*NARROW)
    assert of_features(*NARROW) == pytest.approx(truth, rel=1e-12)
    assert of_moments(*NARROW) == pytest.approx(truth, rel=1e-7)
    assert of_moments(*FEW) == pytest.approx(exact(*FEW), rel=1e-9)


def test_sets_that_differ_by_a_rotation_of_ranks() -> None:
    """One set of rank 3, the other the same moved into more directions: ranks of factors differ."""
    x = torch.zeros(4, 7, dtype=torch.float64)
    x[:, :3] = random_sets(4, 3)[0]
    y = torch.cat([x, x]) + 1e-7 * random_sets(8, 7)[0]
    assert of_features(x, y, ddof=0) == pytest.approx(exact(x, y, 0), rel=1e-7)
