"""`QuantizedDiffusionDMD`: student, teacher and fake score, and the loss of each phase."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qdm_pipeline.diffusion.guidance import guide, rescale
from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.distillation.denoising import Denoising
from qdm_pipeline.distillation.losses import matching_gradient, matching_loss
from qdm_pipeline.distillation.rollout import Rollout
from qdm_pipeline.models.predictor import Condition, Path, Prediction, QuantizedDiffusionPredictor


class StudentLoss(NamedTuple):
    """The loss to descend and what explains it."""

    total: Tensor  # []
    prediction: Prediction
    gradient: Tensor  # [B, C, T, H, W]: the matching gradient at the student's answer
    gap: Tensor  # []: root mean square of fake - real


class QuantizedDiffusionDMD(nn.Module):
    """Distribution matching distillation (DMD2, arXiv:2405.14867) of a student with a codebook.

    All roles start as the teacher. Teacher (real score) and fake score look through the continuous path; the
    student answers through ``path``. Its codebook stays still: nothing here collects statistics.
    """

    def __init__(
        self,
        teacher: QuantizedDiffusionPredictor,
        schedule: Schedule,
        times: Sequence[float],
        path: Path,
        guidance: float,
        guidance_rescale: float,
        weight_limit: float,
    ) -> None:
        super().__init__()
        self.teacher = teacher.eval().requires_grad_(False)
        student, fake = (
            copy.deepcopy(teacher).requires_grad_(True),
            copy.deepcopy(teacher).requires_grad_(True),
        )
        student.quantizer.requires_grad_(path == "quantized")
        self.rollout: nn.Module = Rollout(student, schedule, times, path)
        self.denoising: nn.Module = Denoising(fake, schedule, weight_limit, 0.0, 0.0)
        self.student, self.fake_score = student, fake
        self.schedule = schedule
        self.guidance, self.guidance_rescale = guidance, guidance_rescale

    def student_loss(
        self, noise: Tensor, last: int, t: Tensor, renoise: Tensor, condition: Condition
    ) -> StudentLoss:
        """Distribution matching at the answer of step ``last``, noised to times t [B]."""
        prediction = self.rollout(noise, condition, last)
        with torch.no_grad():
            x_t = self.schedule.add_noise(prediction.x0, renoise, t)
            fake = self.fake_score(x_t, t, condition).x0
            real = self.real_score(x_t, t, condition)
            gradient = matching_gradient(prediction.x0, fake, real)
            gap = (fake - real).square().mean().sqrt()
        return StudentLoss(matching_loss(prediction.x0, gradient), prediction, gradient, gap)

    def critic_loss(
        self, noise: Tensor, last: int, t: Tensor, renoise: Tensor, condition: Condition
    ) -> Tensor:
        """Denoising loss of the fake score on what the student makes at step ``last``."""
        with torch.no_grad():
            sample = self.rollout(noise, condition, last).x0
        loss: Tensor = self.denoising(sample, renoise, t, condition).total
        return loss

    def real_score(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The teacher's guided prediction of x0; the only place where guidance enters."""
        conditional: Tensor = self.teacher(x_t, t, condition).x0
        if self.guidance == 1:
            return conditional
        guided = guide(self.teacher(x_t, t, condition.unconditional()).x0, conditional, self.guidance)
        return rescale(guided, conditional, self.guidance_rescale)
