"""What a training log says about the codebook, over all ranks since the last line of the log."""

import torch
from torch import Tensor

from qdm_pipeline.models.codebook_use import codebook_use
from qdm_pipeline.models.quantizer import Quantizer
from qdm_pipeline.ranks import Ranks

BINS = 5  # of the time: at high noise a prediction is a mean, and its codes are others than at low noise


class CodebookLog:
    """Counts the codes of every training step, by the time they were predicted at."""

    def __init__(self, quantizer: Quantizer, ranks: Ranks) -> None:
        self.quantizer, self.ranks = quantizer, ranks
        groups, size, _ = quantizer.codebook.shape
        self.counts = torch.zeros(BINS, groups, size, device=ranks.device)

    def add(self, codes: Tensor, t: Tensor) -> None:
        """Take in codes [B, G, T, H, W] predicted at times t [B]."""
        bins, groups, size = self.counts.shape
        row = (t * bins).long().clamp(max=bins - 1)[:, None] * groups + torch.arange(groups, device=t.device)
        place = (row[..., None] * size + codes.flatten(2)).flatten()
        self.counts.view(-1).index_add_(0, place, torch.ones_like(place, dtype=torch.float32))

    def take(self) -> dict[str, float]:
        """Metrics of everything since the last call; every rank calls it, one collective."""
        use = codebook_use(self.quantizer.take_usage().cpu())
        by_time = {
            f"codebook/utilization_t{(index + 0.5) / BINS:.1f}": float((part > 0).double().mean())
            for index, part in enumerate(self.ranks.sum(self.counts))
        }
        self.counts.zero_()
        return {
            "codebook/utilization": use.utilization,
            "codebook/utilization_ceiling": use.ceiling,
            "codebook/perplexity": use.perplexity,
            "codebook/tokens": float(use.tokens),
            **by_time,
        }
