"""What learns about the student while it learns: the fake score and, with a GAN, the discriminator."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from qdm_pipeline.distillation.denoising import Denoising
from qdm_pipeline.distillation.discriminator import Discriminator
from qdm_pipeline.distillation.losses import discriminator_loss
from qdm_pipeline.distillation.settings import GanSettings
from qdm_pipeline.models.predictor import Condition


class CriticLoss(NamedTuple):
    """The loss to descend and what explains it, scalars; None without a discriminator."""

    total: Tensor
    denoising: Tensor
    discriminator: Tensor | None = None
    r1: Tensor | None = None
    accuracy: Tensor | None = None  # share of positions that the discriminator judges right


class Critic(nn.Module):
    """Fake score and discriminator in one forward pass, as averaging gradients over ranks wants it."""

    def __init__(self, denoising: Denoising, discriminator: Discriminator | None, gan: GanSettings) -> None:
        super().__init__()
        self.denoising, self.discriminator, self.gan = denoising, discriminator, gan

    def forward(
        self,
        made: Tensor,
        step: int,
        noise: Tensor,
        t: Tensor,
        condition: Condition,
        real: Tensor | None = None,
    ) -> CriticLoss:
        """Losses for answers ``made`` at a step and real latents [B, C, T, H, W] of the same condition.

        ``noise`` is [1, B, C, T, H, W]; with a discriminator [3, ...]: for made, for real, for R1.
        """
        features = self.denoising.features(made, noise[0], t, condition)
        denoising = self.denoising.losses(features, made, t).total
        if self.discriminator is None:
            return CriticLoss(denoising, denoising)
        assert real is not None
        made_logits = self.discriminator(features, step)
        real_logits = self.discriminator(self.denoising.features(real, noise[1], t, condition), step)
        loss = discriminator_loss(real_logits, made_logits)
        total, r1 = denoising + self.gan.critic_weight * loss, None
        if self.gan.r1_weight > 0:
            # R1 without a second derivative: how much noise on a real latent moves its logits
            # (Lin et al. 2025, arXiv:2501.08316, eq. 3).
            shaken = real + self.gan.r1_deviation * noise[2]
            shaken_logits = self.discriminator(self.denoising.features(shaken, noise[1], t, condition), step)
            r1 = (shaken_logits - real_logits).square().mean()
            total = total + self.gan.critic_weight * self.gan.r1_weight * r1
        with torch.no_grad():
            accuracy = ((real_logits > 0).float().mean() + (made_logits < 0).float().mean()) / 2
        return CriticLoss(total, denoising, loss, r1, accuracy)
