"""The losses of distillation as pure functions of predictions and logits."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Divergence = Literal["forward_kl", "reverse_kl", "jeffreys"]


def matching_gradient(sample: Tensor, fake: Tensor, real: Tensor, normalise: bool = True) -> Tensor:
    """Direction in which KL(student || teacher) grows, for each sample [B, ...]; float32.

    (fake - real) / mean |sample - real|, where fake and real are the two scores' x0 predictions for the
    sample noised to one t (Yin et al. 2024, DMD, arXiv:2311.18828, eq. 7 and 8, written in x0). The
    difference is taken in float64: early on fake is nearly real and bf16 would lose most of it. Without
    ``normalise`` the difference alone.
    """
    difference = fake.double() - real.double()
    if normalise:
        normaliser = (sample.double() - real.double()).abs().flatten(1).mean(1).clamp(min=1e-6)
        difference = difference / normaliser.view(-1, *(1,) * (sample.dim() - 1))
    return difference.float()


def matching_loss(sample: Tensor, gradient: Tensor) -> Tensor:
    """Half the mean square of ``gradient``; at ``sample`` its gradient is ``gradient`` / number of elements.

    What 0.5 mean (x - sg(x - g))^2 means, without the rounding of x - (x - g).
    """
    pull = (sample.float() * gradient.detach()).mean()
    return pull - pull.detach() + 0.5 * gradient.detach().square().mean()


def discriminator_loss(real: Tensor, made: Tensor) -> Tensor:
    """Non-saturating loss of a discriminator on its logits (Goodfellow et al. 2014, arXiv:1406.2661)."""
    return F.softplus(-real.float()).mean() + F.softplus(made.float()).mean()


def generator_loss(made: Tensor) -> Tensor:
    """What a generator descends against `discriminator_loss`."""
    return F.softplus(-made.float()).mean()


def code_gradient(fake: Tensor, real: Tensor, divergence: Divergence) -> Tensor:
    """Gradient of a divergence between two choices of codes, from logits [..., K], at the fake's logits.

    Zhu et al. 2025, Di[M]O, arXiv:2503.15457, section 3.2: it stands in for the gradient at the student's
    logits, of whose samples the fake score has learned. ``forward_kl`` is KL(real || fake), ``reverse_kl``
    KL(fake || real), ``jeffreys`` their mean. Float64.
    """
    log_fake, log_real = (logits.double().log_softmax(-1) for logits in (fake, real))
    forward = log_fake.exp() - log_real.exp()
    if divergence == "forward_kl":
        return forward
    ratio = log_fake - log_real
    reverse = log_fake.exp() * (ratio - (log_fake.exp() * ratio).sum(-1, keepdim=True))
    return reverse if divergence == "reverse_kl" else (forward + reverse) / 2


def code_loss(logits: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient at ``logits`` [..., K] is ``gradient`` / their number of choices."""
    return (logits.float() * gradient.detach().float()).sum(-1).mean()
