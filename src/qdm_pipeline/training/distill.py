"""Distillation: a few-step student that answers through the codebook, from a teacher, by DMD."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qdm_pipeline.diffusion.sampler import ddim
from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.distillation.dmd import Draw, QuantizedDiffusionDMD
from qdm_pipeline.errors import DivergenceError, InputError
from qdm_pipeline.models.precision import autocast
from qdm_pipeline.models.predictor import QuantizedDiffusionPredictor
from qdm_pipeline.randomness import Batches, MicroBatch, epoch_rows, generator
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.training import conditions
from qdm_pipeline.training.distill_settings import DistillSettings
from qdm_pipeline.training.few_step import few_step_sampler, sampled_path, save_student
from qdm_pipeline.training.guard import Guard
from qdm_pipeline.training.loop import Ended, add_share
from qdm_pipeline.training.model_files import latents_like, load_predictor
from qdm_pipeline.training.optimizer import Ema, Optimizer
from qdm_pipeline.training.parallelize import (
    load_state,
    shard,
    spread,
    state_of,
    sync,
    whole,
    wrap,
)
from qdm_pipeline.training.statistics import LatentSums, Statistics
from qdm_pipeline.training.teacher import ScheduleSettings
from qdm_pipeline.training.trajectories import Trajectories
from qdm_pipeline.training.validation import How, Validation
from qdm_pipeline.training.watch import not_finite
from qdm_pipeline.video.shards import ShardSet

logger = logging.getLogger(__name__)

SHOWN_STEPS = 16  # of the samples that show teacher and fake score
GUARDED = 1024  # real latents that the student is held against


class Best(NamedTuple):
    """The best averaged student so far."""

    score: float  # the lower the better
    update: int
    weights: dict[str, Tensor]  # on the CPU


class DistillTask:
    """One distillation; the interface is that of `training.loop.Task`."""

    def __init__(
        self,
        settings: DistillSettings,
        teacher: Path,
        latents: ShardSet,
        ranks: Ranks,
        validation: Validation | None = None,
        trajectories: Trajectories | None = None,
        pictures: Path | None = None,
        start: Path | None = None,
    ) -> None:
        """``validation`` and ``trajectories`` where the settings want them; ``pictures``: a folder.

        ``start``: the student at its start; without one it is the teacher.
        """
        self.settings, self.latents, self.ranks = settings, latents, ranks
        self.validation, self.trajectories, self.pictures = validation, trajectories, pictures
        self.steps, self.log_every = settings.steps, settings.log_every
        self.checkpoint = settings.checkpoint
        model, stored = load_predictor(teacher)
        self.config, self.schedule_settings = model.config, ScheduleSettings(**stored["schedule"])
        kind, dmd = self.config.size.quantizer.kind, settings.dmd
        if kind != "vq" and (dmd.codebook != "still" or dmd.matching != "latents" or dmd.path == "soft"):
            found = f"codebook {dmd.codebook!r}, matching {dmd.matching!r}, path {dmd.path!r}"
            raise InputError(
                f"distill.dmd: found {found}, but kind {kind!r} of a quantizer takes 'still', 'latents' and "
                "'quantized' or 'continuous'"
            )
        self.schedule = Schedule(self.schedule_settings.name, self.schedule_settings.shift)
        self.rows = latents.rows("train")
        sizes = latents.size_of[self.rows]
        self.batches = Batches(
            sizes, settings.batch, settings.micro_batch, settings.seed, ranks.rank, ranks.world
        )
        self.condition = conditions.of_clips(latents, self.rows, self.config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)  # of the discriminator; all else starts as the teacher
            student = None if start is None else load_predictor(start)[0]
            self.dmd = QuantizedDiffusionDMD(model, self.schedule, dmd, student).to(ranks.device)
        self.dmd.student.recompute(settings.recompute)
        self.dmd.fake_score.recompute(settings.recompute)
        self.critic = self.dmd.critic
        self._spread()
        self.dmd.rollout = self.wrapped_student = wrap(self.dmd.rollout, settings.parallel, ranks)
        self.dmd.critic = self.wrapped_critic = wrap(self.dmd.critic, settings.parallel, ranks)
        self.student_optimizer = Optimizer(
            "student",
            self.dmd.student,
            settings.student_optimizer,
            settings.steps,
            settings.precision,
            ranks,
        )
        critic_steps = settings.critic_range(settings.steps - 1).stop
        self.critic_optimizer = Optimizer(
            "critic", self.critic, settings.critic_optimizer, critic_steps, settings.precision, ranks
        )
        self.ema = Ema(self.dmd.student, settings.ema)
        self.sums = LatentSums(self.config, latents.shapes("latent"), ranks)
        began = [self._starting_statistics(last) for last in range(len(dmd.times))]
        self.guard = Guard(settings.guard, self._real_statistics(), began)
        self.best: Best | None = None
        self.last_loss: Tensor | None = None

    def _spread(self) -> None:
        parallel, ranks, precision = self.settings.parallel, self.ranks, self.settings.precision
        spread(self.dmd.student, parallel, ranks, precision)
        spread(self.dmd.fake_score, parallel, ranks, precision)
        spread(self.dmd.teacher, parallel, ranks, precision, parallel.offload_teacher)
        if self.dmd.discriminator is not None:
            shard(self.dmd.discriminator, parallel, ranks)

    @property
    def sound(self) -> bool:
        """Not while the guard has doubts: a kept checkpoint is one to go back to."""
        return self.guard.broken == 0

    def train_step(self, step: int) -> dict[str, float | Tensor]:
        """Updates of the fake score, ``critic_updates`` of them or at first more, then one of the student.

        Raises `DivergenceError` before the student's weights take a step from a bad state.
        """
        try:
            for update in self.settings.critic_range(step):
                metrics = self._critic_update(update)
            metrics |= self._student_update(step)
        except DivergenceError as error:
            if self.settings.guard.then == "stop" or self.best is None:
                raise
            raise Ended(f"{error}; it ends with the student of update {self.best.update}") from None
        validation = self.settings.validation
        if self.validation is not None and validation is not None:
            if (step + 1) % validation.every == 0 or step + 1 == self.steps:
                metrics |= self._validate(step + 1, self.validation)
        return metrics

    def _critic_update(self, update: int) -> dict[str, float | Tensor]:
        totals: dict[str, Tensor] = {}
        micros = self.batches.of(update)
        for micro in micros:
            draw, last = self._draw(update, micro, "critic"), micro is micros[-1]
            with sync(self.wrapped_critic, self.ranks, last), self._autocast():
                loss = self.dmd.critic_loss(draw)
                self.critic_optimizer.scale(loss.total / len(micros)).backward()
            self.last_loss = loss.total.detach()
            add_share(totals, loss._asdict(), len(micros))
        _, found = self.critic_optimizer.step(update)
        return {f"critic/{name}": value for name, value in (totals | found).items()}

    def _student_update(self, step: int) -> dict[str, float | Tensor]:
        settings, ranks, micros = self.settings, self.ranks, self.batches.of(step)
        totals: dict[str, Tensor] = {}
        for micro in micros:
            draw = self._draw(step, micro, "student")
            with sync(self.wrapped_student, ranks, micro is micros[-1]), self._autocast():
                loss = self.dmd.student_loss(draw)
                descended = loss.total
                if self.trajectories is not None:
                    first = self.batches.first(step, micro.number)
                    rows = epoch_rows(len(self.trajectories), first, settings.micro_batch, settings.seed)
                    known = self.trajectories.at(rows, draw.last, ranks.device)
                    loss.parts["regression"] = self.dmd.regression_loss(*known, draw.last)
                    descended = descended + settings.dmd.regression_weight * loss.parts["regression"]
                self.student_optimizer.scale(descended / len(micros)).backward()
            parts = {f"loss_{name}": value for name, value in loss.parts.items()}
            parts |= {f"pull_{name}": value for name, value in loss.pulls.items()}
            add_share(totals, {"loss": descended, "score_gap": loss.gap} | parts, len(micros))
            self.last_loss = totals["loss"]
            self.sums.add(loss.prediction.x0, draw.condition.label, loss.prediction.codes)
        found, loss_everywhere = self.sums.take(), float(ranks.mean(totals["loss"].clone()))
        guarded = self.guard.check(step, draw.last, found, loss_everywhere)
        taken, stepped = self.student_optimizer.step(step)
        metrics: dict[str, float | Tensor] = {
            f"student/{name}": value for name, value in (totals | stepped).items()
        }
        metrics |= guarded
        if not taken:
            self.dmd.student.quantizer.forget()
            return metrics
        if settings.dmd.codebook == "ema":
            metrics |= self.dmd.student.quantizer.commit(
                settings.seed, step, ranks.rank, ranks.world, ranks.sum, len(micros)
            )
        self.ema.update(self.dmd.student, step)
        return metrics

    def _autocast(self) -> torch.autocast:
        return autocast(self.ranks.device, self.settings.precision)

    def suspects(self, step: int) -> list[str]:
        """See `training.watch.Watched`."""
        batches = [*self.settings.critic_range(step), step]
        return not_finite(self.latents, self.rows[self.batches.rows(batches)])

    def _draw(self, update: int, micro: MicroBatch, purpose: str) -> Draw:
        """The random inputs of one forward pass."""
        dmd, device, seed, rows = self.settings.dmd, self.ranks.device, self.settings.seed, micro.rows
        shape = self._shape(rows)
        shared = generator(seed, update, 0, f"{purpose} step index")  # one index for all ranks
        own = generator(seed, update, micro.number, purpose)
        last = int(torch.randint(len(dmd.times), (), generator=shared))
        noise = torch.randn(last + 1, *shape, generator=own).to(device)
        low, high = (dmd.low, dmd.high) if purpose == "student" else (0.002, 1.0)
        t = replace(self.schedule, shift=dmd.shift).draw_times(len(rows), low, high, own).to(device)
        copies = 3 if dmd.gan.student_weight > 0 else 1
        noises = torch.randn(copies, *shape, generator=own).to(device)
        real = None
        if dmd.wants_real:
            real = self.ranks.onto(self.latents.gather("latent", self.rows[rows]))
            self.latents.ahead("latent", self.rows[self.batches.rows([update + 1])])
        return Draw(noise, last, t, noises, self.condition.rows(rows).to(device), real)

    def _shape(self, rows: Tensor) -> tuple[int, ...]:
        """[B, C, T, H, W] of the latents at ``rows`` of the train split, which are of one size."""
        size = int(self.latents.size_of[self.rows[rows[0]]])
        return (len(rows), *self.latents.shapes("latent")[size])

    def _real_statistics(self) -> Statistics:
        """Of real latents, those of the first clips."""
        device = self.ranks.device
        for rows in self.latents.parts(self.rows[:GUARDED], GUARDED) if self.ranks.is_main else ():
            places = torch.searchsorted(self.rows, rows)
            label = self.condition.known.rows(places).to(device).label
            self.sums.add(self.latents.gather("latent", rows).to(device), label, None)
        return self.sums.take()

    @torch.no_grad()
    def _starting_statistics(self, last: int) -> Statistics:
        """Of as many answers at step ``last`` as an update has, of a student that is still its teacher."""
        device = self.ranks.device
        for micro in self.batches.of(0):
            draw = generator(self.settings.seed, last, micro.number, "start")
            noise = torch.randn(last + 1, *self._shape(micro.rows), generator=draw).to(device)
            condition = self.condition.rows(micro.rows).to(device)
            with self._autocast():
                prediction = self.dmd.rollout(noise, condition, last).prediction
            self.sums.add(prediction.x0, condition.label, prediction.codes)
        return self.sums.take()

    def _validate(self, update: int, validation: Validation) -> dict[str, float]:
        """Metrics of the averaged student; keeps it if it is the best, and shows what every role makes."""
        averaged = QuantizedDiffusionPredictor(self.config).to(self.ranks.device).eval()
        averaged.load_state_dict(self.ema.weights(self.dmd.student))
        condition = self.condition.rows(validation.positions)
        shape = self.latents.of_main_size().shape("latent")
        metrics = validation(averaged, condition, self._how("student"), shape)
        keep = validation.settings.keep
        if keep != "last":
            score = metrics[f"validation/{keep}"] * (-1 if keep == "accuracy" else 1)
            if self.best is None or score < self.best.score:
                weights = {name: value.cpu().clone() for name, value in averaged.state_dict().items()}
                self.best = Best(score, update, weights)
            metrics["validation/best_update"] = float(self.best.update)
        if self.pictures is not None and self.ranks.is_main:
            models = {"student": averaged, "fake_score": self.dmd.fake_score, "teacher": self.dmd.teacher}
            for role, model in models.items():
                file = self.pictures / (f"{role}.webp" if role == "teacher" else f"{role}-{update:05d}.webp")
                if not file.exists():
                    validation.show(file, model, condition, self._how(role), shape)
        return metrics

    def _how(self, role: str) -> How:
        dmd, schedule, precision = self.settings.dmd, self.schedule, self.settings.precision
        if role == "student":
            return How(
                few_step_sampler(dmd.renoising), dmd.times, sampled_path(dmd.path), 1.0, schedule, precision
            )
        guidance = dmd.guidance if role == "teacher" else 1.0
        return How(ddim, schedule.spaced(SHOWN_STEPS), "continuous", guidance, schedule, precision)

    def state_dict(self) -> dict[str, Any]:
        """Student, critic, their optimizers, EMA, best student; the teacher stands in the run's inputs."""
        return {
            "student": state_of(self.dmd.student),
            "critic": state_of(self.critic),
            "student_optimizer": self.student_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "ema": whole(self.ema.shadow),
            "best": None if self.best is None else self.best._asdict(),
            "broken": self.guard.broken,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        load_state(self.dmd.student, state["student"])
        load_state(self.critic, state["critic"])
        self.student_optimizer.load_state_dict(state["student_optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.ema.load(state["ema"])
        self.best = None if state["best"] is None else Best(**state["best"])
        self.guard.broken = state["broken"]

    def export(self, directory: Path) -> dict[str, Any]:
        """Write the averaged student, its step list, sampler and path.

        Where the best is kept, that of the last update stands beside it in ``last``.
        """
        weights, update = self.ema.weights(self.dmd.student), self.steps
        if self.best is not None:
            self._save(directory / "last", weights)
            weights, update = self.best.weights, self.best.update
            logger.info("student: that of update %d of %d is the best", update, self.steps)
        self._save(directory, weights)
        parameters = sum(p.numel() for p in self.dmd.student.parameters())
        return {"parameters": parameters, "steps": self.steps, "update": update}

    def _save(self, directory: Path, weights: dict[str, Tensor]) -> None:
        if self.ranks.is_main:
            dmd = self.settings.dmd
            save_student(
                directory, self.config, weights, self.schedule_settings, latents_like(self.latents),
                dmd.times, sampled_path(dmd.path), dmd.renoising,
            )  # fmt: skip
