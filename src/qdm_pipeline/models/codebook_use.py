"""How much of a codebook a set of token ids uses."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qdm_pipeline.errors import InputError


@dataclass(frozen=True)
class CodebookUse:
    """Use of a codebook of ``size`` codes in each of G groups by ``tokens`` tokens a group.

    utilization: used codes over all codes, mean over groups. It grows with ``tokens``, so beside it
    stands ``ceiling``: what a perfectly uniform choice of as many tokens would reach.
    perplexity: exp(entropy) of the choice in codes, mean over groups; at most ``size``.
    """

    size: int
    tokens: int
    utilization: float
    ceiling: float
    perplexity: float


def usage_histogram(codes: Tensor, size: int) -> Tensor:
    """How often each code is chosen: int64 [G, size] from codes [N, G, T, H, W].

    Histograms of parts of a set add up to that of the whole. A code outside [0, size) is an `InputError`.
    """
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
        found = f"{int(codes.min())} to {int(codes.max())}"
        raise InputError(f"token ids run from {found}, but the codebook has codes 0 to {size - 1}")
    groups = codes.transpose(0, 1).flatten(1).long()
    return torch.stack([torch.bincount(group, minlength=size) for group in groups])


def codebook_use(histogram: Tensor) -> CodebookUse:
    """Summary of a usage histogram [G, K]."""
    size = histogram.shape[1]
    tokens = int(histogram[0].sum())
    share = histogram.double() / max(tokens, 1)
    entropy = -torch.special.xlogy(share, share).sum(1)
    return CodebookUse(
        size=size,
        tokens=tokens,
        utilization=float((histogram > 0).double().mean()),
        ceiling=uniform_ceiling(size, tokens),
        perplexity=float(entropy.exp().mean()),
    )


def uniform_ceiling(size: int, tokens: int) -> float:
    """Expected utilization of ``tokens`` independent uniform draws: ``1 − (1 − 1/size)^tokens``."""
    return 1 - (1 - 1 / size) ** tokens
