"""Distillation: a few-step student that answers through the codebook, from a teacher, by DMD."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from qdm_pipeline.configuration import require, settings
from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.distillation.dmd import QuantizedDiffusionDMD
from qdm_pipeline.models.precision import Precision, autocast
from qdm_pipeline.models.predictor import Condition, Recompute
from qdm_pipeline.randomness import batch_indices, generator
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.training import conditions
from qdm_pipeline.training.model_files import load_predictor, save_predictor
from qdm_pipeline.training.optimizer import Ema, Optimizer, OptimizerSettings
from qdm_pipeline.training.teacher import ScheduleSettings
from qdm_pipeline.video.shards import ShardSet


@settings
class DistillSettings:
    """How a student is distilled; a step is one update of the student."""

    times: tuple[float, ...]  # the student's steps, for training and sampling
    path: Literal["continuous", "quantized"]
    guidance: float  # of the teacher, see diffusion.guidance
    guidance_rescale: float  # 0: plain guidance, 1: with the contrast of the unguided prediction
    critic_updates: int  # updates of the fake score before each update of the student
    low: float  # times at which the scores are compared
    high: float
    weight_limit: float
    student_optimizer: OptimizerSettings
    critic_optimizer: OptimizerSettings
    batch: int  # samples a rank and forward pass
    accumulation: int
    steps: int
    ema: float
    precision: Precision
    recompute: Recompute
    seed: int
    log_every: int
    checkpoint_every: int

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in zip(self.times, self.times[1:], strict=False))
        inside = bool(self.times) and 0 < self.times[-1] and self.times[0] <= 1
        require(
            falling and inside, f"times: found {list(self.times)}, must fall from at most 1 and stay above 0"
        )
        require(
            0 < self.low < self.high < 1, f"low, high: found {self.low}, {self.high}; need 0 < low < high < 1"
        )
        rescale = self.guidance_rescale
        require(0 <= rescale <= 1, f"guidance_rescale: found {rescale}, must be in [0, 1]")
        for name in ("critic_updates", "batch", "accumulation", "steps", "log_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, f"{name}: found {getattr(self, name)}, must be at least 1")


class Draw(NamedTuple):
    """The random inputs of one forward pass."""

    noise: Tensor  # [S, B, C, T, H, W]
    last: int
    t: Tensor  # [B]
    renoise: Tensor  # [B, C, T, H, W]
    condition: Condition


class DistillTask:
    """One distillation; the interface is that of `training.loop.Task`."""

    def __init__(self, settings: DistillSettings, teacher: Path, latents: ShardSet, ranks: Ranks) -> None:
        self.settings, self.ranks = settings, ranks
        self.steps, self.log_every = settings.steps, settings.log_every
        self.checkpoint_every = settings.checkpoint_every
        model, stored = load_predictor(teacher)
        self.config, self.schedule_settings = model.config, ScheduleSettings(**stored["schedule"])
        self.schedule = Schedule(self.schedule_settings.name, self.schedule_settings.shift)
        self.shape = latents.manifest["fields"]["latent"]["shape"]
        self.condition = conditions.of_clips(latents, latents.rows("train"), self.config)
        self.count = len(latents.rows("train"))
        self.dmd = QuantizedDiffusionDMD(
            model.to(ranks.device),
            self.schedule,
            settings.times,
            settings.path,
            settings.guidance,
            settings.guidance_rescale,
            settings.weight_limit,
        )
        self.dmd.student.recompute(settings.recompute)
        self.dmd.fake_score.recompute(settings.recompute)
        self.dmd.rollout = self.wrapped_student = ranks.wrap(self.dmd.rollout)
        self.dmd.denoising = self.wrapped_critic = ranks.wrap(self.dmd.denoising)
        self.student_optimizer = Optimizer(self.dmd.student, settings.student_optimizer, settings.steps)
        critic_steps = settings.steps * settings.critic_updates
        self.critic_optimizer = Optimizer(self.dmd.fake_score, settings.critic_optimizer, critic_steps)
        self.ema = Ema(self.dmd.student, settings.ema)

    def train_step(self, step: int) -> dict[str, float | Tensor]:
        """``critic_updates`` updates of the fake score, then one of the student."""
        for index in range(self.settings.critic_updates):
            metrics = self._critic_update(step * self.settings.critic_updates + index)
        return metrics | self._student_update(step)

    def _critic_update(self, update: int) -> dict[str, float | Tensor]:
        total: Tensor | float = 0.0
        for draw, last in self._draws(update, "critic"):
            with nullcontext() if last else self.ranks.no_sync(self.wrapped_critic), self._autocast():
                loss = self.dmd.critic_loss(*draw) / self.settings.accumulation
                loss.backward()
            total = total + loss.detach()
        return {"critic/loss": total, "critic/gradient_norm": self.critic_optimizer.step(update)}

    def _student_update(self, step: int) -> dict[str, float | Tensor]:
        for draw, last in self._draws(step, "student"):
            with nullcontext() if last else self.ranks.no_sync(self.wrapped_student), self._autocast():
                loss = self.dmd.student_loss(*draw)
                (loss.total / self.settings.accumulation).backward()
        norm = self.student_optimizer.step(step)
        self.ema.update(self.dmd.student, step)
        sample = loss.prediction.x0.detach()
        return {
            "student/loss": loss.total.detach(),
            "student/gradient_norm": norm,
            "student/score_gap": loss.gap,
            "student/matching_gradient": loss.gradient.square().mean().sqrt(),
            "student/latent_std": sample.std(),
            "student/latent_mean": sample.mean(),
        }

    def _draws(self, update: int, purpose: str) -> list[tuple[Draw, bool]]:
        """The random inputs of one update, a forward pass each, and whether it is the last."""
        settings, ranks, device = self.settings, self.ranks, self.ranks.device
        shared = generator(settings.seed, update, 0, f"{purpose} step index")  # one index for all ranks
        own = generator(settings.seed, update, ranks.rank, purpose)
        rows = batch_indices(
            self.count, settings.batch * settings.accumulation, settings.seed, update, ranks.rank, ranks.world
        )
        draws = []
        for index, chunk in enumerate(rows.split(settings.batch)):
            last = int(torch.randint(len(settings.times), (), generator=shared))
            noise = torch.randn(last + 1, len(chunk), *self.shape, generator=own).to(device)
            low, high = (settings.low, settings.high) if purpose == "student" else (0.002, 1.0)
            t = self.schedule.draw_times(len(chunk), low, high, own).to(device)
            renoise = torch.randn(len(chunk), *self.shape, generator=own).to(device)
            draw = Draw(noise, last, t, renoise, self.condition.rows(chunk).to(device))
            draws.append((draw, index + 1 == settings.accumulation))
        return draws

    def _autocast(self) -> torch.autocast:
        return autocast(self.ranks.device, self.settings.precision)

    def state_dict(self) -> dict[str, Any]:
        """Student, fake score, their optimizers and the EMA; the teacher stands in the run's inputs."""
        return {
            "student": self.dmd.student.state_dict(),
            "fake_score": self.dmd.fake_score.state_dict(),
            "student_optimizer": self.student_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "ema": self.ema.shadow,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.dmd.student.load_state_dict(state["student"])
        self.dmd.fake_score.load_state_dict(state["fake_score"])
        self.student_optimizer.load_state_dict(state["student_optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.ema.shadow = state["ema"]

    def export(self, directory: Path) -> dict[str, Any]:
        """Write the averaged student, its step list and path."""
        settings = self.settings
        save_predictor(
            directory, self.config, self.ema.weights(self.dmd.student), self.schedule_settings,
            latent_shape=self.shape, times=list(settings.times), path=settings.path,
        )  # fmt: skip
        return {"parameters": sum(p.numel() for p in self.dmd.student.parameters()), "steps": self.steps}
