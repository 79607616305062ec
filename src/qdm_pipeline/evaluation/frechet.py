"""Fréchet distance between two sets of features, from moments that stream and merge, with an interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from qdm_pipeline.errors import InputError


@dataclass(frozen=True)
class Moments:
    """Count, mean [D] and scatter [D, D] (sum of outer products of deviations) of features, in float64."""

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, dimension: int) -> "Moments":
        """Moments of no sample."""
        return cls(
            0,
            torch.zeros(dimension, dtype=torch.float64),
            torch.zeros(dimension, dimension, dtype=torch.float64),
        )

    def add(self, features: Tensor) -> "Moments":
        """These moments with ``features`` [B, D] taken in."""
        if len(features) == 0:
            return self
        features = features.detach().cpu().double()
        mean = features.mean(0)
        deviations = features - mean
        return self.merge(Moments(len(features), mean, deviations.T @ deviations))

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets together (Chan, Golub and LeVeque 1983)."""
        count = self.count + other.count
        if count == 0:
            return self
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        between = torch.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    def covariance(self) -> Tensor:
        """Unbiased covariance [D, D] (divided by count - 1); fewer than two samples is an `InputError`."""
        if self.count < 2:
            raise InputError(f"a Fréchet distance needs at least 2 samples on each side, found {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """``|μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½)`` (Dowson and Landau 1982), never below zero.

    With Σ = F Fᵀ on both sides the trace of the root is the nuclear norm of Faᵀ Fb. Its singular values
    are exact to rounding; roots of the eigenvalues of a product would keep half of the digits only.
    """
    root = torch.linalg.matrix_norm(_factor(a).T @ _factor(b), "nuc")
    spread = a.covariance().trace() + b.covariance().trace()
    return max(0.0, float((a.mean - b.mean).square().sum() + spread - 2 * root))


def _factor(moments: Moments) -> Tensor:
    """F [D, rank] with F Fᵀ the covariance: only its numerical range, so few samples make it small."""
    values, vectors = torch.linalg.eigh(moments.covariance())
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def random_blocks(count: int, blocks: int, generator: torch.Generator) -> Tensor:
    """A block number for each of ``count`` samples: random, of equal sizes up to one, int64 [count]."""
    return torch.randperm(count, generator=generator) % blocks


def frechet_with_interval(a: Sequence[Moments], b: Sequence[Moments]) -> Estimate:
    """Distance between two sets that were split into equally many random blocks, with a jack-knife interval.

    Leaving out the k-th block of both sets in turn gives the spread (Künsch 1989). Resampling with
    replacement would not do: repeated samples lower the rank of the covariance and push every
    resampled distance up. The interval says how far another draw of as many samples may fall; the
    bias of a finite sample, which only more samples lower, is not in it.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"need as many blocks on both sides, and at least 2: found {len(a)} and {len(b)}")
    value = frechet_distance(reduce(Moments.merge, a), reduce(Moments.merge, b))
    left_out = torch.tensor(
        [frechet_distance(_without(a, k), _without(b, k)) for k in range(len(a))], dtype=torch.float64
    )
    freedom = len(a) - 1
    error = math.sqrt(freedom * float(left_out.var(correction=0)))
    margin = _student_t_975(freedom) * error
    return Estimate(value, max(0.0, value - margin), value + margin)


def _without(blocks: Sequence[Moments], k: int) -> Moments:
    return reduce(Moments.merge, (block for index, block in enumerate(blocks) if index != k))


def _student_t_975(freedom: int) -> float:
    """97.5 % quantile of Student's t by its expansion about the normal's (Abramowitz and Stegun 26.7.5)."""
    z = 1.959963984540054
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
