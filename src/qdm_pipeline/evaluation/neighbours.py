"""What nearest neighbours in feature space say: fidelity, variety, and copies of training clips."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qdm_pipeline.errors import InputError

CHUNK = 1024  # rows of a matrix of distances at a time


@dataclass(frozen=True)
class Manifolds:
    """Shares, except density, which may exceed 1; all depend on the numbers of samples on both sides.

    precision: samples inside the ball of a real clip; recall: real clips inside the ball of a sample
    (Kynkäänniemi et al. 2019, arXiv:1904.06991). density: balls of real clips around a sample, over k;
    coverage: real clips with a sample in their ball (Naeem et al. 2020, arXiv:2002.09797).
    A ball reaches to the k-th nearest neighbour within its own set.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifolds(real: Tensor, samples: Tensor, k: int) -> Manifolds:
    """Compare features ``real`` [N, D] and ``samples`` [M, D]; `InputError` if a set has no k neighbours."""
    if min(len(real), len(samples)) <= k:
        raise InputError(f"{k} neighbours need more than {k} samples, found {len(real)} and {len(samples)}")
    real, samples = real.double(), samples.double()
    reach_real, reach_samples = radii(real, k), radii(samples, k)
    balls_around = torch.zeros(len(samples), dtype=torch.float64)
    covered, recalled = [], []
    for part, reach in zip(real.split(CHUNK), reach_real.split(CHUNK), strict=True):
        away = torch.cdist(part, samples)
        inside = away <= reach[:, None]
        balls_around += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((away <= reach_samples).any(1))
    return Manifolds(
        precision=float((balls_around > 0).double().mean()),
        recall=float(torch.cat(recalled).double().mean()),
        density=float(balls_around.mean() / k),
        coverage=float(torch.cat(covered).double().mean()),
    )


def radii(features: Tensor, k: int) -> Tensor:
    """Distance of every sample of ``features`` [N, D] to its k-th nearest other: [N]."""
    parts = [torch.cdist(part, features).topk(k + 1, largest=False).values[:, -1]
             for part in features.split(CHUNK)]  # fmt: skip
    return torch.cat(parts)


def nearest(samples: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """Distance [M] to, and position [M] of, the nearest of ``bank`` [N, D] for each of ``samples`` [M, D]."""
    bank = bank.double()
    found = [torch.cdist(part.double(), bank).min(1) for part in samples.split(CHUNK)]
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])
