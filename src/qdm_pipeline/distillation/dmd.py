"""`QuantizedDiffusionDMD`: student, teacher and fake score, and the loss of each phase."""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdm_pipeline.diffusion.guidance import guide, rescale
from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.distillation.critic import Critic, CriticLoss
from qdm_pipeline.distillation.denoising import Denoising
from qdm_pipeline.distillation.discriminator import Discriminator
from qdm_pipeline.distillation.losses import (
    code_gradient,
    code_loss,
    generator_loss,
    matching_gradient,
    matching_loss,
)
from qdm_pipeline.distillation.rollout import Answer, Rollout
from qdm_pipeline.distillation.settings import DmdSettings
from qdm_pipeline.models.predictor import Condition, Prediction, QuantizedDiffusionPredictor
from qdm_pipeline.models.quantizer import VectorQuantizer


class Draw(NamedTuple):
    """The random inputs of one forward pass; ``real`` only where the settings look at real latents."""

    noise: Tensor  # [S, B, C, T, H, W], one for each simulated step
    last: int  # the step that is trained, the same on all ranks
    t: Tensor  # [B]
    renoise: Tensor  # [1 or 3, B, C, T, H, W]: for the student's answer; for real latents; for R1
    condition: Condition
    real: Tensor | None  # [B, C, T, H, W], of the same condition


class StudentLoss(NamedTuple):
    """The loss to descend, and what explains it; scalars unless said otherwise."""

    total: Tensor
    prediction: Prediction
    parts: dict[str, Tensor]  # of the total, before their weights
    gap: Tensor  # root mean square of fake - real
    pulls: dict[str, Tensor]  # root mean square of what each loss asks of an answer's numbers


class QuantizedDiffusionDMD(nn.Module):
    """Distribution matching distillation (DMD2, arXiv:2405.14867) of a student with a codebook.

    All roles start as the teacher, or the student as ``student``. Teacher (real score) and fake score look
    through the continuous path; the student answers through ``settings.path``. Its codebook stays still
    unless ``settings.codebook`` says so.
    """

    def __init__(
        self,
        teacher: QuantizedDiffusionPredictor,
        schedule: Schedule,
        settings: DmdSettings,
        student: QuantizedDiffusionPredictor | None = None,
    ) -> None:
        super().__init__()
        self.teacher = teacher.eval().requires_grad_(False)
        fake = copy.deepcopy(teacher).requires_grad_(True)
        student = (student or copy.deepcopy(teacher)).requires_grad_(True)
        self.student, self.fake_score = student, fake
        self.schedule, self.settings = schedule, settings
        if settings.codebook == "trained":
            assert isinstance(student.quantizer, VectorQuantizer)
            student.quantizer.learn_codebook()
        self._leave_out_what_no_loss_reaches()
        gan = settings.gan
        self.discriminator = None
        if gan.student_weight > 0:
            dim, steps = teacher.config.size.embedding_dim, len(settings.times)
            self.discriminator = Discriminator(dim, gan.width, steps)
        denoising = Denoising(fake, schedule, settings.weight_limit, 0.0, 0.0)
        self.rollout: nn.Module = Rollout(student, schedule, settings)
        self.critic: nn.Module = Critic(denoising, self.discriminator, gan)

    def student_loss(self, draw: Draw) -> StudentLoss:
        """Everything that pulls at the student's answer at step ``draw.last``."""
        settings, simulated = self.settings, self.settings.inputs == "simulated"
        answer: Answer = self.rollout(draw.noise, draw.condition, draw.last, None if simulated else draw.real)
        prediction = answer.prediction
        x_t = self.schedule.add_noise(prediction.x0.detach(), draw.renoise[0], draw.t)
        seen, adversarial, pull = self._look(x_t, draw)
        with torch.no_grad():
            fake = self.fake_score.read(seen, "continuous").x0
            real_features, real = self.real_score(x_t, draw.t, draw.condition)
            gap = (fake - real).square().mean().sqrt()
        if settings.matching == "latents":
            gradient = matching_gradient(prediction.x0.detach(), fake, real, settings.normalise)
            matching = matching_loss(prediction.x0, gradient)
        else:
            with torch.no_grad():
                fake_logits, real_logits = (
                    self.teacher.quantizer.logits(h, settings.temperature) for h in (seen, real_features)
                )
            gradient = code_gradient(fake_logits, real_logits, settings.matching)
            matching = code_loss(
                self.student.quantizer.logits(answer.features, settings.temperature), gradient
            )
        parts, pulls = {"matching": matching}, {"matching": gradient.square().mean().sqrt()}
        total = matching
        if adversarial is not None and pull is not None:
            # A loss whose gradient at the answer is the adversarial one: nothing of the fake score is kept.
            total = total + settings.gan.student_weight * (prediction.x0 * pull).sum()
            parts["adversarial"] = adversarial
            pulls["adversarial"] = (pull * pull.numel()).square().mean().sqrt()
        if settings.denoising_weight > 0:
            parts["denoising"] = self._denoise_real(draw)
            total = total + settings.denoising_weight * parts["denoising"]
        return StudentLoss(total, prediction, parts, gap, pulls)

    def regression_loss(self, x_t: Tensor, target: Tensor, condition: Condition, step: int) -> Tensor:
        """Squared error of a step of the student on its teacher's trajectory (DMD, eq. 9, at each step)."""
        answer: Answer = self.rollout(x_t[None], condition, step, simulated=False)
        return F.mse_loss(answer.prediction.x0, target)

    def critic_loss(self, draw: Draw) -> CriticLoss:
        """Losses of fake score and discriminator on what the student makes at step ``draw.last``."""
        simulated = self.settings.inputs == "simulated"
        with torch.no_grad():
            answer: Answer = self.rollout(
                draw.noise, draw.condition, draw.last, None if simulated else draw.real
            )
        loss: CriticLoss = self.critic(
            answer.prediction.x0, draw.last, draw.renoise, draw.t, draw.condition, draw.real
        )
        return loss

    def real_score(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """The teacher's guided features and prediction of x0; the only place where guidance enters."""
        features = self.teacher.features(x_t, t, condition).float()
        conditional = self.teacher.read(features, "continuous").x0
        if self.settings.guidance == 1:
            return features, conditional
        free = self.teacher.features(x_t, t, condition.unconditional()).float()
        features = guide(free, features, self.settings.guidance)  # as good as that of x0: reading is affine
        guided = self.teacher.read(features, "continuous").x0
        return features, rescale(guided, conditional, self.settings.guidance_rescale)

    def _look(self, x_t: Tensor, draw: Draw) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the fake score sees in x_t; with a GAN also the student's loss and its gradient at x0."""
        if self.discriminator is None:
            with torch.no_grad():
                return self.fake_score.features(x_t, draw.t, draw.condition).float(), None, None
        with torch.enable_grad():
            x_t = x_t.requires_grad_()
            features = self.fake_score.features(x_t, draw.t, draw.condition).float()
            loss = generator_loss(self.discriminator(features, draw.last))
            # That of a mean is small: times a power of two near their number, it is not lost in float16.
            scale = 2.0 ** (x_t.numel().bit_length() - 1)
            (gradient,) = torch.autograd.grad(scale * loss, x_t)
        alpha, _ = self.schedule.coefficients(draw.t, x_t)
        return features.detach(), loss.detach(), (alpha * gradient / scale).float()

    def _denoise_real(self, draw: Draw) -> Tensor:
        answer: Answer = self.rollout(draw.renoise[:1], draw.condition, draw.last, draw.real)
        assert draw.real is not None
        return F.mse_loss(answer.prediction.x0, draw.real)

    def _leave_out_what_no_loss_reaches(self) -> None:
        """Parameters without gradient would keep the ranks waiting for it."""
        settings, student = self.settings, self.student
        student.read_codes(settings.path != "continuous")
        answers = settings.gan.student_weight + settings.denoising_weight + settings.regression_weight
        if settings.matching != "latents" and answers == 0:  # only the choice of codes is looked at
            for part in (student.final_proj, student.quantizer.project_out, student.residual):
                part.requires_grad_(False)
