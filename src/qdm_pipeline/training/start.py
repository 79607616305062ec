"""The student's start: its few steps learn to go where the teacher's many go, before any score is matched.

Progressive distillation (Salimans & Ho 2022, arXiv:2202.00512) in one go, on trajectories that were kept;
regression of this kind is how distribution matching is started elsewhere (Yin et al. 2024,
arXiv:2412.07772, section 4.3). It costs a fraction of an update of DMD, and leaves DMD what regression
cannot do: answers that are not means.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdm_pipeline.configuration import require, require_whole, settings
from qdm_pipeline.distillation.settings import Renoising
from qdm_pipeline.models.precision import Precision, autocast
from qdm_pipeline.models.predictor import Condition, QuantizedDiffusionPredictor, Recompute
from qdm_pipeline.randomness import Batches, generator
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.retention import Retention
from qdm_pipeline.training.few_step import SampledPath, save_student
from qdm_pipeline.training.model_files import load_predictor
from qdm_pipeline.training.optimizer import Ema, Optimizer, OptimizerSettings
from qdm_pipeline.training.parallelize import (
    ParallelSettings,
    load_state,
    spread,
    state_of,
    sync,
    whole,
    wrap,
)
from qdm_pipeline.training.teacher import ScheduleSettings
from qdm_pipeline.training.trajectories import Trajectories

HELD_OUT = 16  # one of so many trajectories is not learnt from


@settings
class StartSettings:
    """How a student learns its teacher's trajectories."""

    optimizer: OptimizerSettings
    commitment_weight: float  # without it features leave a codebook that stays still
    batch: int
    micro_batch: int
    steps: int  # 0: the student starts as its teacher
    ema: float
    log_every: int
    checkpoint: Retention

    def __post_init__(self) -> None:
        for name, least in (("micro_batch", 1), ("steps", 0), ("log_every", 1), ("commitment_weight", 0)):
            found = getattr(self, name)
            require(found >= least, f"{name}: found {found}, must be at least {least}")
        require_whole(self.batch, self.micro_batch)


@settings
class StartJob:
    """A start for one kind of student."""

    start: StartSettings
    times: tuple[float, ...]
    path: SampledPath
    renoising: Renoising
    precision: Precision
    parallel: ParallelSettings
    recompute: Recompute
    seed: int


class Imitation(nn.Module):
    """Squared error of the answers at some times, and how far their features are from the codebook."""

    def __init__(self, student: QuantizedDiffusionPredictor, path: SampledPath) -> None:
        super().__init__()
        self.student, self.path = student, path
        student.read_codes(path == "quantized")

    def forward(self, x_t: Tensor, t: Tensor, target: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Error and commitment, scalars, for inputs and targets [B, C, T, H, W] at times t [B]."""
        features = self.student.features(x_t, t, condition).float()
        prediction = self.student.read(features, self.path)
        error = F.mse_loss(prediction.x0, target)
        commitment = prediction.commitment
        return error, torch.zeros_like(error) if commitment is None else commitment


class StartTask:
    """One start in training; the interface is that of `training.loop.Task`."""

    sound = True
    last_loss: Tensor | None = None

    def __init__(self, job: StartJob, teacher: Path, trajectories: Trajectories, ranks: Ranks) -> None:
        self.job, self.settings, self.trajectories, self.ranks = job, job.start, trajectories, ranks
        self.steps, self.log_every = job.start.steps, job.start.log_every
        self.checkpoint = job.start.checkpoint
        student, self.stored = load_predictor(teacher)
        self.student = student.to(ranks.device).train().requires_grad_(True)
        self.student.recompute(job.recompute)
        learnt = len(trajectories) - len(trajectories) // HELD_OUT
        self.held_out = torch.arange(learnt, len(trajectories))
        one_size = torch.zeros(learnt, dtype=torch.int64)
        self.batches = Batches(
            one_size, job.start.batch, job.start.micro_batch, job.seed, ranks.rank, ranks.world
        )
        imitation = Imitation(self.student, job.path)
        spread(self.student, job.parallel, ranks, job.precision)
        self.wrapped = wrap(imitation, job.parallel, ranks)
        self.optimizer = Optimizer(
            "start", self.student, job.start.optimizer, self.steps, job.precision, ranks
        )
        self.ema = Ema(self.student, job.start.ema)

    def train_step(self, step: int) -> dict[str, float | Tensor]:
        """One optimizer step, every sample at one of the student's steps."""
        job, device, micros = self.job, self.ranks.device, self.batches.of(step)
        totals = torch.zeros(2, device=device)
        for micro in micros:
            draw = generator(job.seed, step, micro.number, "start")
            steps = torch.randint(len(job.times), (len(micro.rows),), generator=draw)
            with sync(self.wrapped, self.ranks, micro is micros[-1]):
                error, commitment = self._imitate(micro.rows, steps)
                loss = error + self.settings.commitment_weight * commitment
                self.optimizer.scale(loss / len(micros)).backward()
            totals += torch.stack([error, commitment]).detach() / len(micros)
        self.last_loss = totals
        taken, found = self.optimizer.step(step)
        if taken:
            self.ema.update(self.student, step)
        told: dict[str, float | Tensor] = {"error": totals[0], "commitment": totals[1]}
        if len(self.held_out) and ((step + 1) % self.log_every == 0 or step + 1 == self.steps):
            told["error_held_out"] = self._held_out_error()
        return told | found

    def _imitate(self, rows: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        device = self.ranks.device
        x_t, target, condition = self.trajectories.at(rows, steps, device)
        t = torch.tensor(self.job.times)[steps].to(device)
        with autocast(device, self.job.precision):
            error, commitment = self.wrapped(x_t, t, target, condition)
        return error, commitment

    @torch.no_grad()
    def _held_out_error(self) -> Tensor:
        """The error of trajectories that are not learnt from, each at one of the steps."""
        total = torch.zeros((), device=self.ranks.device)
        for rows in self.held_out.split(self.settings.micro_batch):  # the same on every rank
            total += self._imitate(rows, rows % len(self.job.times))[0] * len(rows) / len(self.held_out)
        return total

    def suspects(self, step: int) -> list[str]:
        """None: what is learnt is made by the teacher, not read from clips."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs."""
        return {
            "student": state_of(self.student),
            "optimizer": self.optimizer.state_dict(),
            "ema": whole(self.ema.shadow),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        load_state(self.student, state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load(state["ema"])

    def export(self, directory: Path) -> dict[str, Any]:
        """Write the averaged student, which can be sampled as it is."""
        weights, job = self.ema.weights(self.student), self.job
        schedule = ScheduleSettings(**self.stored["schedule"])
        if self.ranks.is_main:
            made = {name: self.stored.get(name) for name in ("latent_shape", "space")}
            save_student(
                directory, self.student.config, weights, schedule, made, job.times, job.path, job.renoising
            )
        return {"steps": self.steps}
