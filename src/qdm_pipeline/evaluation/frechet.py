"""Fréchet distance between two sets of features, from moments that stream and merge, with an interval."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

from qdm_pipeline.errors import InputError
from qdm_pipeline.evaluation.intervals import Estimate, extrapolated, jackknife

# Below this share of the traces the difference of traces has lost digits, and the distance is summed instead.
CANCELLED = 1e-5
CONDITION = 1e-10  # least over largest eigenvalue of a Gram matrix whose roots are singular values


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
        part = Moments(len(features), mean, _gram(deviations))
        return self.merge(part) if self.count else part

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets together (Chan, Golub and LeVeque 1983)."""
        count = self.count + other.count
        if count == 0:
            return self
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        between = torch.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    def covariance(self, ddof: int = 1) -> Tensor:
        """Covariance [D, D], divided by count - ``ddof``; fewer than two samples is an `InputError`."""
        return self.scatter / (_enough(self.count) - ddof)


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and any factor F [D, rank] of a covariance F Fᵀ, in float64."""

    mean: Tensor
    factor: Tensor

    @classmethod
    def of_moments(cls, moments: Moments, ddof: int = 1) -> "Gaussian":
        """F by Cholesky; of a singular covariance by its numerical range, so few samples make it small.

        A covariance holds squares: directions below 1e-8 of the widest are lost in it, whatever follows.
        """
        covariance = moments.covariance(ddof)
        if moments.count > len(covariance):
            factor, failed = torch.linalg.cholesky_ex(covariance)
            if not failed:
                return cls(moments.mean, factor)
        values, vectors = torch.linalg.eigh(covariance)
        kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
        return cls(moments.mean, vectors[:, kept] * values[kept].sqrt())

    @classmethod
    def of_features(cls, features: Tensor, ddof: int = 1) -> "Gaussian":
        """F without a covariance: the centred ``features`` [N, D] themselves, or the R of their QR if N > D.

        Exact to rounding for any rank and any spread of the spectrum.
        """
        features = features.detach().cpu().double()
        mean = features.mean(0)
        centred = (features - mean) / (_enough(len(features)) - ddof) ** 0.5
        if len(centred) > centred.shape[1]:
            centred = torch.linalg.qr(centred, mode="r").R
        return cls(mean, centred.T)


def _gram(x: Tensor) -> Tensor:
    """``xᵀ x``: numpy sees that both are the same matrix and does half of the work (syrk), torch does not."""
    array = x.numpy()
    return torch.from_numpy(array.T @ array)


def _enough(count: int) -> int:
    if count < 2:
        raise InputError(f"a Fréchet distance needs at least 2 samples on each side, found {count}")
    return count


def distance(a: Gaussian, b: Gaussian) -> float:
    """``|μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½)`` (Dowson and Landau 1982), never below zero.

    The trace of the root is the nuclear norm of Faᵀ Fb, whatever the factors. Where the traces cancel, what
    is left is summed as ``min |Fa U − Fb V|²`` over orthogonal U, V (Bhatia et al. 2019, arXiv:1712.01504).
    """
    product = a.factor.T @ b.factor
    traces = float(a.factor.square().sum() + b.factor.square().sum())
    between = traces - 2 * nuclear_norm(product)
    if between < CANCELLED * traces:
        left, _, right = torch.linalg.svd(product)
        turned = [a.factor @ left, b.factor @ right.T]
        rank = max(factor.shape[1] for factor in turned)
        ours, theirs = (functional.pad(factor, (0, rank - factor.shape[1])) for factor in turned)
        between = float((ours - theirs).square().sum())
    return float((a.mean - b.mean).square().sum()) + between


def nuclear_norm(matrix: Tensor) -> float:
    """Sum of the singular values of ``matrix`` [M, N].

    Roots of the eigenvalues of the Gram matrix cost a third, and err by eps · largest / (2 · smallest) of
    the largest singular value: they are taken where that is below 1e-11, the SVD elsewhere.
    """
    if matrix.numel() == 0:  # a covariance of zeros
        return 0.0
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    values = torch.linalg.eigvalsh(_gram(tall))
    if values[0] > CONDITION * values[-1]:
        return float(values.sqrt().sum())
    return float(torch.linalg.svdvals(matrix).sum())


def frechet_distance(a: Moments, b: Moments, ddof: int = 1) -> float:
    """`distance` of the Gaussians with these moments."""
    return distance(Gaussian.of_moments(a, ddof), Gaussian.of_moments(b, ddof))


def frechet_with_interval(a: Sequence[Moments], b: Sequence[Moments], ddof: int = 1) -> Estimate:
    """Distance between two sets that were split into equally many random blocks, with a jack-knife interval.

    Leaving out the k-th block of both sets in turn gives the spread.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"need as many blocks on both sides, and at least 2: found {len(a)} and {len(b)}")
    value = frechet_distance(reduce(Moments.merge, a), reduce(Moments.merge, b), ddof)
    left_out = [frechet_distance(_without(a, k), _without(b, k), ddof) for k in range(len(a))]
    return _not_negative(jackknife(value, torch.tensor(left_out, dtype=torch.float64)))


def frechet_trimmed(a: Sequence[Moments], b: Sequence[Moments], ddof: int = 1) -> float:
    """Least distance from all of ``b`` with a block of ``a`` left out, so that one sample cannot raise it."""
    whole = reduce(Moments.merge, b)
    return min(frechet_distance(_without(a, k), whole, ddof) for k in range(len(a)))


def frechet_estimates(a: Sequence[Gaussian], b: Sequence[Gaussian]) -> tuple[Estimate, Estimate]:
    """Distance as it is and extrapolated to infinitely many samples.

    ``a`` and ``b`` hold the Gaussian of all samples, then those without each of as many random blocks.
    """
    value, *left_out = (distance(*pair) for pair in zip(a, b, strict=True))
    without = torch.tensor(left_out, dtype=torch.float64)
    return _not_negative(jackknife(value, without)), extrapolated(value, without)


def leave_out(features: Tensor, block_of: Tensor, blocks: int, ddof: int = 1) -> list[Gaussian]:
    """The Gaussian of all ``features`` [N, D], then those without each block; ``block_of`` [N] names it."""
    parts = [features, *(features[block_of != block] for block in range(blocks))]
    return [Gaussian.of_features(part, ddof) for part in parts]


def furthest(features: Tensor, reference: Gaussian, ddof: int = 1) -> tuple[int, float]:
    """Which of ``features`` [N, D] is furthest from the mean of ``reference``, and the distance without it.

    Covariances are means of squares: one sample that is far out can make half of a distance.
    """
    position = int((features.detach().cpu().double() - reference.mean).square().sum(1).argmax())
    others = torch.cat([features[:position], features[position + 1 :]])
    return position, distance(Gaussian.of_features(others, ddof), reference)


def _not_negative(estimate: Estimate) -> Estimate:
    return replace(estimate, low=max(0.0, estimate.low))


def _without(blocks: Sequence[Moments], k: int) -> Moments:
    return reduce(Moments.merge, (block for index, block in enumerate(blocks) if index != k))
