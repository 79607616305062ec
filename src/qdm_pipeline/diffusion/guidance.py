"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598), stated once for the whole project."""

from torch import Tensor


def guide(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """u + s (c - u): s = 0 ignores the condition, s = 1 is the plain conditional model, s > 1 exaggerates.

    Callers skip the unconditional pass where s = 1.
    """
    return unconditional + scale * (conditional - unconditional)


def rescale(guided: Tensor, conditional: Tensor, amount: float) -> Tensor:
    """Take back the contrast that guidance adds (Lin et al. 2023, arXiv:2305.08891, eq. 15 and 16).

    ``amount`` = 1 gives every sample of ``guided`` [B, ...] the deviation of its ``conditional``, 0 nothing.
    """
    ratio = conditional.flatten(1).std(1) / guided.flatten(1).std(1)
    return guided * (1 + amount * (ratio - 1)).view(-1, *(1,) * (guided.dim() - 1))
