"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598), stated once for the whole project."""

from torch import Tensor


def guide(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """u + s (c - u): s = 0 ignores the condition, s = 1 is the plain conditional model, s > 1 exaggerates.

    Callers skip the unconditional pass where s = 1.
    """
    return unconditional + scale * (conditional - unconditional)
