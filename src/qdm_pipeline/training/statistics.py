"""What a set of latents is like, from sums that add up over batches and ranks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qdm_pipeline.models.codebook_use import usage_histogram
from qdm_pipeline.models.predictor import PredictorConfig
from qdm_pipeline.randomness import generator
from qdm_pipeline.ranks import Ranks

FEWEST = 8  # samples beyond one a label that a deviation is worth naming from
DIRECTIONS = 64  # random ones, in which samples are told apart: distances keep their mean


class Statistics(NamedTuple):
    """Of all numbers: mean and deviation; of the samples of one label: deviation; of codes: their use.

    Perplexity in codes, mean over groups; without codes it and utilization are None.
    """

    mean: float
    std: float
    diversity: float | None  # None where too few share a label
    perplexity: float | None
    utilization: float | None


class LatentSums:
    """Sums over latents [B, C, T, H, W], their labels and their codes.

    Samples are of some ``shapes`` [C, T, H, W]; those of two shapes never share a label.
    """

    def __init__(self, config: PredictorConfig, shapes: Sequence[Sequence[int]], ranks: Ranks) -> None:
        quantizer, self.classes = config.size.quantizer, max(1, len(config.classes))
        self.groups, self.size, self.ranks = quantizer.groups, quantizer.codebook_size, ranks
        self.shapes = [torch.Size(shape) for shape in shapes]
        self.labels = self.classes * len(self.shapes)
        self.directions = [_directions(shape.numel()).to(ranks.device) for shape in self.shapes]
        self.state = torch.zeros(
            4 + self.labels * (1 + DIRECTIONS) + self.groups * self.size,
            dtype=torch.float64,
            device=ranks.device,
        )

    def add(self, latents: Tensor, labels: Tensor | None, codes: Tensor | None) -> None:
        """Take in latents, their labels [B] and codes [B, G, T, H, W]; without labels all are alike."""
        x, shape = latents.detach().double(), self.shapes.index(latents.shape[1:])
        projected = latents.detach().float().flatten(1) @ self.directions[shape]
        numbers = torch.stack(
            [x.sum(), x.square().sum(), x.new_tensor(x.numel()), projected.double().square().sum()]
        )
        self.state[:4] += numbers
        row = torch.zeros(len(x), dtype=torch.int64, device=x.device) if labels is None else labels
        marked = torch.cat([torch.ones_like(projected[:, :1]), projected], 1).double()
        self._by_label.index_add_(0, shape * self.classes + row.clamp(min=0), marked)
        if codes is not None:
            self._usage.add_(usage_histogram(codes, self.size))

    def take(self) -> Statistics:
        """The statistics of everything on all ranks since the last call; one collective."""
        state = self.ranks.sum(self.state.clone())
        self.state, state = state, self.state
        total, squares, numbers, projected = self.state[:4].tolist()
        count, sums = self._by_label[:, 0], self._by_label[:, 1:]
        within = projected - float((sums.square().sum(1) / count.clamp(min=1)).sum())
        freedom = float(count.sum() - (count > 0).sum())
        share = self._usage / self._usage.sum(1, keepdim=True)
        used = bool(self._usage.any())
        found = Statistics(
            mean=total / numbers,
            std=max(0.0, squares / numbers - (total / numbers) ** 2) ** 0.5,
            diversity=(max(0.0, within) / freedom / DIRECTIONS) ** 0.5 if freedom >= FEWEST else None,
            perplexity=float((-torch.special.xlogy(share, share).sum(1)).exp().mean()) if used else None,
            utilization=float((share > 0).double().mean()) if used else None,
        )
        self.state = state.zero_()
        return found

    @property
    def _by_label(self) -> Tensor:  # [L, 1 + DIRECTIONS]: count, sum of projections
        end = 4 + self.labels * (1 + DIRECTIONS)
        return self.state[4:end].view(self.labels, 1 + DIRECTIONS)

    @property
    def _usage(self) -> Tensor:  # [G, K]
        return self.state[4 + self.labels * (1 + DIRECTIONS) :].view(self.groups, self.size)


def _directions(count: int) -> Tensor:
    return torch.randn(count, DIRECTIONS, generator=generator(0, 0, 0, "directions")) / count**0.5
