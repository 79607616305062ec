"""The losses of distribution matching distillation as pure functions of x0 predictions."""

import torch
from torch import Tensor


def matching_gradient(sample: Tensor, fake: Tensor, real: Tensor) -> Tensor:
    """Direction in which KL(student || teacher) grows, for each sample [B, ...]; float32.

    (fake - real) / mean |sample - real|, where fake and real are the two scores' x0 predictions for the
    sample noised to one t (Yin et al. 2024, DMD, arXiv:2311.18828, eq. 7 and 8, written in x0). The
    difference is taken in float64: early on fake is nearly real and bf16 would lose most of it.
    """
    difference = fake.double() - real.double()
    normaliser = (sample.double() - real.double()).abs().flatten(1).mean(1).clamp(min=1e-6)
    return (difference / normaliser.view(-1, *(1,) * (sample.dim() - 1))).float()


def matching_loss(sample: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient with respect to ``sample`` is ``gradient`` / its number of elements."""
    sample = sample.float()
    target = (sample - gradient).detach()
    return 0.5 * torch.nn.functional.mse_loss(sample, target)
