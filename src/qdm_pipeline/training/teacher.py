"""The teacher: a many-step diffusion model that predicts clean latents directly and through a codebook."""

import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from qdm_pipeline.configuration import require, require_whole, settings
from qdm_pipeline.diffusion.schedule import CURVES, Density, Schedule
from qdm_pipeline.distillation.denoising import Denoising
from qdm_pipeline.models.cost import cost
from qdm_pipeline.models.precision import Precision, autocast
from qdm_pipeline.models.predictor import (
    PredictorConfig,
    PredictorSettings,
    QuantizedDiffusionPredictor,
    Recompute,
)
from qdm_pipeline.randomness import Batches, generator
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.retention import Retention
from qdm_pipeline.training import conditions
from qdm_pipeline.training.codebook_log import CodebookLog
from qdm_pipeline.training.loop import add_share
from qdm_pipeline.training.model_files import latents_like, save_predictor
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
from qdm_pipeline.training.watch import not_finite
from qdm_pipeline.video.shards import ShardSet


@settings
class ScheduleSettings:
    """A noise schedule and the range of times that training draws from."""

    name: Literal["linear", "cosine", "flow"]
    shift: float
    low: float
    high: float
    density: Density  # of the times that training draws

    def __post_init__(self) -> None:
        require(self.name in CURVES, f"name: found {self.name!r}, allowed are {sorted(CURVES)}")
        require(self.shift > 0, f"shift: found {self.shift}, must be above 0")
        require(
            0 <= self.low < self.high <= 1,
            f"low, high: found {self.low}, {self.high}; need 0 <= low < high <= 1",
        )


@settings
class TeacherSettings:
    """How a teacher is trained."""

    model: PredictorSettings
    schedule: ScheduleSettings
    optimizer: OptimizerSettings
    condition: conditions.Kind  # caption: words of its own; text: the token states of encode.text
    condition_dropout: float  # share of samples trained without their condition, for guidance
    quantization_weight: float
    commitment_weight: float
    weight_limit: float  # largest weight of a time step in the loss, see Schedule.velocity_weight
    batch: int  # samples an optimizer step, on all ranks together
    micro_batch: int  # samples a forward pass; the rest of the batch is accumulated
    steps: int
    ema: float
    precision: Precision
    parallel: ParallelSettings
    recompute: Recompute  # in backward, for memory: see QuantizedDiffusionPredictor.recompute
    seed: int
    log_every: int
    checkpoint: Retention

    def __post_init__(self) -> None:
        for name in ("micro_batch", "steps", "log_every"):
            require(getattr(self, name) >= 1, f"{name}: found {getattr(self, name)}, must be at least 1")
        require_whole(self.batch, self.micro_batch)
        for name in ("condition_dropout", "quantization_weight", "ema"):
            require(0 <= getattr(self, name) <= 1, f"{name}: found {getattr(self, name)}, must be in [0, 1]")


class TeacherTask:
    """One teacher in training; the interface is that of `training.loop.Task`."""

    sound = True
    last_loss: Tensor | None = None

    def __init__(self, settings: TeacherSettings, latents: ShardSet, ranks: Ranks) -> None:
        self.settings, self.latents, self.ranks = settings, latents, ranks
        self.steps, self.log_every = settings.steps, settings.log_every
        self.checkpoint = settings.checkpoint
        self.rows = latents.rows("train")
        sizes = latents.size_of[self.rows]
        self.batches = Batches(
            sizes, settings.batch, settings.micro_batch, settings.seed, ranks.rank, ranks.world
        )
        self.config = PredictorConfig(
            size=settings.model,
            latent_channels=latents.shapes("latent")[0][0],
            **conditions.conditioning(latents, settings.condition),
        )
        self.cost = cost(self.config, max(latents.shapes("latent"), key=math.prod))
        self.condition = conditions.of_clips(latents, self.rows, self.config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = QuantizedDiffusionPredictor(self.config)
        if self.config.text is not None:
            self.model.empty_text.copy_(torch.tensor(latents.manifest["empty_text"]))
        self.model.to(ranks.device)
        self.model.recompute(settings.recompute)
        schedule = settings.schedule
        self.schedule = Schedule(schedule.name, schedule.shift)
        self.loss = Denoising(
            self.model,
            self.schedule,
            settings.weight_limit,
            settings.quantization_weight,
            settings.commitment_weight,
        )
        spread(self.model, settings.parallel, ranks, settings.precision)
        self.wrapped = wrap(self.loss, settings.parallel, ranks)
        self.optimizer = Optimizer(
            "teacher", self.model, settings.optimizer, settings.steps, settings.precision, ranks
        )
        self.ema = Ema(self.model, settings.ema)
        self.codebook_log = CodebookLog(self.model.quantizer, ranks)

    def train_step(self, step: int) -> dict[str, float | Tensor]:
        """One optimizer step on ``batch`` clips."""
        settings, ranks = self.settings, self.ranks
        micros = self.batches.of(step)
        self.latents.ahead("latent", self.rows[self.batches.rows([step + 1])])
        totals: dict[str, Tensor] = {}
        for micro in micros:
            draw = generator(settings.seed, step, micro.number, "teacher")
            with sync(self.wrapped, ranks, micro is micros[-1]):
                losses = self._forward(micro.rows, draw)
                self.optimizer.scale(losses.total / len(micros)).backward()
            add_share(totals, losses._replace(codes=None)._asdict(), len(micros))
        self.last_loss = totals["total"]
        taken, found = self.optimizer.step(step)
        metrics: dict[str, float | Tensor] = {f"loss/{name}": value for name, value in totals.items()}
        metrics |= found
        if not taken:
            self.model.quantizer.forget()
            return metrics
        if settings.quantization_weight > 0:
            metrics |= self.model.quantizer.commit(
                settings.seed, step, ranks.rank, ranks.world, ranks.sum, len(micros)
            )
            if (step + 1) % settings.log_every == 0 or step + 1 == settings.steps:
                metrics |= self.codebook_log.take()
        self.ema.update(self.model, step)
        return metrics

    def suspects(self, step: int) -> list[str]:
        """See `training.watch.Watched`."""
        return not_finite(self.latents, self.rows[self.batches.rows([step])])

    def _forward(self, chunk: Tensor, draw: torch.Generator) -> Any:
        settings, ranks, device = self.settings, self.ranks, self.ranks.device
        x0 = ranks.onto(self.latents.gather("latent", self.rows[chunk]))
        noise = torch.randn(x0.shape, generator=draw).to(device)
        span = settings.schedule
        times = self.schedule.draw_times(len(x0), span.low, span.high, draw, span.density).to(device)
        dropped = torch.rand(len(x0), generator=draw) < settings.condition_dropout
        condition = self.condition.rows(chunk).dropped(dropped).to(device)
        with autocast(device, settings.precision):
            losses = self.wrapped(x0, noise, times, condition)
        if losses.codes is not None:
            self.codebook_log.add(losses.codes, times)
        return losses

    def state_dict(self) -> dict[str, Any]:
        """Weights, codebook, optimizer and EMA: with the step, all that a resume needs."""
        return {
            "model": state_of(self.model),
            "optimizer": self.optimizer.state_dict(),
            "ema": whole(self.ema.shadow),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        load_state(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load(state["ema"])

    def export(self, directory: Path) -> dict[str, Any]:
        """Write the averaged weights and the configuration that sampling needs."""
        weights = self.ema.weights(self.model)
        if self.ranks.is_main:
            made = latents_like(self.latents)
            save_predictor(directory, self.config, weights, self.settings.schedule, **made)
        return {
            "parameters": self.cost.parameters, "flops_per_clip": self.cost.flops, "steps": self.steps,
        }  # fmt: skip
