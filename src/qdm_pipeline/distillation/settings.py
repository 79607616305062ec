"""What distribution matching distillation can be asked for; every option can be changed alone."""

from typing import Literal

from qdm_pipeline.configuration import require, settings
from qdm_pipeline.distillation.losses import Divergence
from qdm_pipeline.models.predictor import Path

Renoising = Literal["fresh", "kept"]


@settings
class GanSettings:
    """Weights of the adversarial losses; ``student_weight`` 0: no discriminator at all."""

    student_weight: float
    critic_weight: float  # of the discriminator's loss beside the fake score's
    width: int  # of the discriminator
    r1_weight: float
    r1_deviation: float  # of the noise whose effect on the logits r1 holds down

    def __post_init__(self) -> None:
        for name in ("student_weight", "critic_weight", "r1_weight", "r1_deviation"):
            require(getattr(self, name) >= 0, f"{name}: found {getattr(self, name)}, must not be negative")
        require(self.width >= 1, f"width: found {self.width}, must be at least 1")
        require(
            self.student_weight == 0 or self.critic_weight > 0,
            "critic_weight: found 0, but a student_weight above 0 needs a discriminator that learns",
        )


@settings
class DmdSettings:
    """The student, and what it is drawn by."""

    times: tuple[float, ...]  # the student's steps, for training and sampling
    path: Path  # that the student answers through; soft ends as quantized when it samples
    renoising: Renoising  # between steps: new noise (SDE), or what the answer just given explains (ODE)
    inputs: Literal["simulated", "noised"]  # of a step: what sampling would give it, or real latents, noised
    codebook: Literal["still", "ema", "trained"]
    matching: Literal["latents"] | Divergence  # what of the scores is compared: answers, or choices of codes
    temperature: float  # of choices of codes, in squared distance; for codes and the soft path
    guidance: float  # of the teacher, see diffusion.guidance
    guidance_rescale: float  # 0: plain guidance, 1: with the contrast of the unguided prediction
    normalise: bool  # the gradient, by the teacher's distance from the student
    low: float  # times at which the scores are compared
    high: float
    shift: float  # of these times and the fake score's, as Schedule.shift; sampling keeps the teacher's
    weight_limit: float  # of the fake score's loss, see Schedule.velocity_weight
    denoising_weight: float  # of the student's squared error on real latents, noised to its own times
    regression_weight: float  # of its squared error on trajectories of its teacher, at the trained step
    gan: GanSettings

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in zip(self.times, self.times[1:], strict=False))
        inside = bool(self.times) and 0 < self.times[-1] and self.times[0] <= 1
        require(
            falling and inside, f"times: found {list(self.times)}, must fall from at most 1 and stay above 0"
        )
        require(
            0 < self.low < self.high < 1, f"low, high: found {self.low}, {self.high}; need 0 < low < high < 1"
        )
        require(self.shift > 0, f"shift: found {self.shift}, must be above 0")
        rescale = self.guidance_rescale
        require(0 <= rescale <= 1, f"guidance_rescale: found {rescale}, must be in [0, 1]")
        require(self.temperature > 0, f"temperature: found {self.temperature}, must be above 0")
        for name in ("denoising_weight", "regression_weight"):
            require(getattr(self, name) >= 0, f"{name}: found {getattr(self, name)}, must not be negative")
        require(
            self.matching == "latents" or self.path == "quantized",
            f"matching: found {self.matching!r} with path {self.path!r}; codes need path 'quantized'",
        )
        require(
            self.codebook == "still" or self.path == "quantized",
            f"codebook: found {self.codebook!r} with path {self.path!r}; only 'quantized' moves one",
        )

    @property
    def wants_real(self) -> bool:
        """Whether real latents are looked at."""
        return self.inputs == "noised" or self.denoising_weight > 0 or self.gan.student_weight > 0
