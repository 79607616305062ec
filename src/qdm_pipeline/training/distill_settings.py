"""What a distillation can be asked for."""

from qdm_pipeline.configuration import require, require_whole, settings
from qdm_pipeline.distillation.settings import DmdSettings
from qdm_pipeline.models.precision import Precision
from qdm_pipeline.models.predictor import Recompute
from qdm_pipeline.retention import Retention
from qdm_pipeline.training.guard import GuardSettings
from qdm_pipeline.training.optimizer import OptimizerSettings
from qdm_pipeline.training.parallelize import ParallelSettings
from qdm_pipeline.training.start import StartSettings
from qdm_pipeline.training.validation import ValidationSettings


@settings
class DistillSettings:
    """How a student is distilled; a step is one update of the student."""

    start: StartSettings
    dmd: DmdSettings
    critic_updates: int  # updates of the fake score before each update of the student
    critic_warmup: int  # more of them before the first
    student_optimizer: OptimizerSettings
    critic_optimizer: OptimizerSettings
    validation: ValidationSettings | None
    guard: GuardSettings
    batch: int  # samples an update, on all ranks together
    micro_batch: int  # samples a forward pass
    steps: int
    ema: float
    precision: Precision
    parallel: ParallelSettings
    recompute: Recompute
    seed: int
    log_every: int
    checkpoint: Retention

    def __post_init__(self) -> None:
        for name in ("critic_updates", "micro_batch", "steps", "log_every"):
            require(getattr(self, name) >= 1, f"{name}: found {getattr(self, name)}, must be at least 1")
        require(self.critic_warmup >= 0, f"critic_warmup: found {self.critic_warmup}, must be at least 0")
        require_whole(self.batch, self.micro_batch)
        every = self.validation.every if self.validation else self.log_every
        require(
            every % self.log_every == 0,
            f"validation.every: found {every}, must be a multiple of log_every ({self.log_every})",
        )
        require(
            self.guard.then == "stop" or self.validation is not None,
            "guard.then: found 'best', but without validation no student is known to be the best",
        )

    def critic_range(self, step: int) -> range:
        """The updates of the fake score that belong to a step; those of all steps follow on one another."""
        first = 0 if step == 0 else self.critic_warmup + step * self.critic_updates
        return range(first, self.critic_warmup + (step + 1) * self.critic_updates)
