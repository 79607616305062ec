"""Kernel distance: unbiased squared maximum mean discrepancy of features, with an interval."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qdm_pipeline.evaluation.intervals import Estimate, jackknife

CHUNK = 1024  # rows of a kernel matrix at a time


@dataclass(frozen=True)
class _Pairs:
    """Sums [blocks, blocks] of the kernel over pairs of samples, and samples [blocks] on both sides."""

    sums: Tensor
    first: Tensor
    second: Tensor

    def means(self) -> Tensor:
        """Mean over all pairs, then over those without each block: [1 + blocks]."""
        left_out = self.sums.sum() - self.sums.sum(0) - self.sums.sum(1) + self.sums.diagonal()
        sums = torch.cat([self.sums.sum()[None], left_out])
        return sums / (_counts(self.first) * _counts(self.second))


def kernel_distance(x: Tensor, y: Tensor, block_x: Tensor, block_y: Tensor, blocks: int) -> Estimate:
    """Unbiased MMD² of features x [N, D], y [M, D] with the kernel (x·y / D + 1)³, and its 95 % interval.

    Bińkowski et al. 2018 (arXiv:1801.01401), over all pairs of samples instead of random subsets. Its mean
    is the true distance whatever N and M, so the value may be negative. ``block_x`` [N] and ``block_y`` [M]
    say which of the ``blocks`` of the jack-knife a sample is in.
    """
    cross = _pairs(x, y, block_x, block_y, blocks).means()
    values = _within(x, block_x, blocks) + _within(y, block_y, blocks) - 2 * cross
    return jackknife(float(values[0]), values[1:])


def _within(x: Tensor, block: Tensor, blocks: int) -> Tensor:
    """Mean of the kernel over pairs of different samples: of all, then without each block."""
    pairs = _pairs(x, x, block, block, blocks)
    diagonal = (x.double().square().mean(1) + 1) ** 3
    alone = torch.zeros(len(pairs.first), dtype=torch.float64).index_add(0, block, diagonal)
    count = _counts(pairs.first)
    different = pairs.means() * count**2 - torch.cat([alone.sum()[None], alone.sum() - alone])
    return different / (count * (count - 1))


def _counts(counts: Tensor) -> Tensor:
    return torch.cat([counts.sum()[None], counts.sum() - counts])


def _pairs(x: Tensor, y: Tensor, block_x: Tensor, block_y: Tensor, blocks: int) -> _Pairs:
    x, y = x.double(), y.double()
    in_x, in_y = (F.one_hot(block, blocks).double() for block in (block_x, block_y))
    sums = torch.zeros(blocks, blocks, dtype=torch.float64)
    for part, member in zip(x.split(CHUNK), in_x.split(CHUNK), strict=True):
        sums += member.T @ ((part @ y.T / x.shape[1] + 1) ** 3) @ in_y
    return _Pairs(sums, in_x.sum(0), in_y.sum(0))
