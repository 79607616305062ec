"""95 % intervals of statistics of random blocks of samples, by the jack-knife."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def random_blocks(count: int, blocks: int, generator: torch.Generator) -> Tensor:
    """A block number for each of ``count`` samples: random, of equal sizes up to one, int64 [count]."""
    return torch.randperm(count, generator=generator) % blocks


def jackknife(value: float, left_out: Tensor) -> Estimate:
    """``value`` of all samples with an interval from ``left_out`` [blocks], its values without each block.

    Künsch 1989. Resampling with replacement would not do for a distance: repeated samples lower the rank of
    a covariance and push every resampled distance up. The interval says how far another draw of as many
    samples may fall; the bias of a finite sample is not in it (`extrapolated` takes that out).
    """
    freedom = len(left_out) - 1
    error = math.sqrt(freedom * float(left_out.double().var(correction=0)))
    margin = _student_t_975(freedom) * error
    return Estimate(value, value - margin, value + margin)


def extrapolated(value: float, left_out: Tensor) -> Estimate:
    """What ``value`` would be with infinitely many samples: the straight line in 1 / count, at 0.

    The line of Chong and Forsyth 2020 (arXiv:1911.07023) through the two counts that the jack-knife has
    anyway, all samples and all but one block; that is Quenouille's estimate, free of the bias in 1 / count.
    Its interval is the jack-knife's (Tukey), too wide rather than too narrow near a distance of 0. An
    estimate of 0 falls below it half of the time.
    """
    blocks = len(left_out)
    limit = blocks * value - (blocks - 1) * float(left_out.double().mean())
    spread = jackknife(value, left_out)
    return Estimate(limit, limit + spread.low - value, limit + spread.high - value)


def _student_t_975(freedom: int) -> float:
    """97.5 % quantile of Student's t by its expansion about the normal's (Abramowitz and Stegun 26.7.5)."""
    z = 1.959963984540054
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
