"""Drawing samples from a loaded model, for jobs on many ranks and for `QuantizedVideoPipeline`."""

import logging
import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from qdm_pipeline.configuration import require, settings
from qdm_pipeline.diffusion.sampler import Denoiser, Sampler, ddim, dpm_solver, renoise
from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.errors import InputError
from qdm_pipeline.models.precision import Precision, autocast
from qdm_pipeline.models.predictor import PredictorConfig, QuantizedDiffusionPredictor
from qdm_pipeline.randomness import generator
from qdm_pipeline.training.conditions import from_captions, of_samples
from qdm_pipeline.training.denoiser import GuidedDenoiser
from qdm_pipeline.training.int8 import Weights, quantize_weights
from qdm_pipeline.training.memory import free_bytes, samples_at_once
from qdm_pipeline.training.model_files import schedule_of
from qdm_pipeline.video.text_encoder import same_text_encoder

logger = logging.getLogger(__name__)


@settings
class GenerationSettings:
    """What to draw from a model, and how."""

    name: str  # the row's name in the report
    sampler: Literal["ddim", "dpm_solver", "renoise"] | None  # null: what the student was distilled for
    steps: int | None  # evenly spaced steps; null: the step list that the student was distilled on
    times: tuple[float, ...] | None  # of the calls, in place of steps; with renoise one may come again
    low: float  # range of the evenly spaced times
    high: float
    eta: float  # of DDIM: 0 deterministic, 1 ancestral
    guidance: float  # see diffusion.guidance
    path: Literal["continuous", "quantized"] | None  # null: the one that the student answers through
    asked: tuple[str, ...] | None  # class names or captions, taken in turn; null: all classes, or nothing
    size: tuple[int, int] | None  # height and width in pixels; null: that of most train clips
    count: int
    batch: int  # samples that are drawn together: which noise a sample gets depends on it
    at_once: int | Literal["auto"]  # of a batch, that the network sees in one pass; auto: as memory allows
    keep: tuple[float, ...]  # times whose noisy latents are kept beside the samples, as trajectories
    precision: Precision
    weights: Weights  # of the Transformer blocks
    compile: bool  # each Transformer block, with torch.compile
    seed: int

    def __post_init__(self) -> None:
        require(
            self.steps is None or self.steps >= 1, f"steps: found {self.steps}, must be null or at least 1"
        )
        require(
            self.times is None or (self.steps is None and _falls(self.times)),
            f"times: found {self.times} with steps {self.steps}; must fall from at most 1, end above 0, and "
            "come in place of steps (null)",
        )
        require(
            0 <= self.low < self.high <= 1,
            f"low, high: found {self.low}, {self.high}; need 0 <= low < high <= 1",
        )
        require(0 <= self.eta <= 1, f"eta: found {self.eta}, must be in [0, 1]")
        require(
            self.sampler == "ddim" or self.eta == 0,
            f"eta: found {self.eta}, only ddim takes one; set it to 0",
        )
        require(
            not self.keep or (self.steps is not None and self.low < min(self.keep)),
            f"keep: found {list(self.keep)}; it needs a number of steps, and times above low ({self.low})",
        )
        allowed = get_args(Weights)
        require(self.weights in allowed, f"weights: found {self.weights!r}, allowed are {', '.join(allowed)}")
        for name in ("count", "batch", "at_once"):
            found = getattr(self, name)
            require(found == "auto" or found >= 1, f"{name}: found {found}, must be at least 1")


def _falls(times: tuple[float, ...]) -> bool:
    return len(times) > 0 and list(times) == sorted(times, reverse=True) and 0 < times[-1] <= times[0] <= 1


def sampling_times(
    settings: GenerationSettings, schedule: Schedule, config: dict[str, Any]
) -> Sequence[float]:
    """The times at which the model is called.

    `InputError` if a step list is asked of a model without one, a student is to be called at a time that it
    did not learn, or a time comes again with a sampler that would put the same question again.
    """
    if settings.times is not None:
        if unknown := set(settings.times) - set(config.get("times", settings.times)):
            raise InputError(
                f"{settings.name}: times: found {sorted(unknown, reverse=True)}, where this student did not "
                f"learn to answer; allowed are {config['times']}"
            )
        if len(set(settings.times)) < len(settings.times) and _own_sampler(settings, config) != "renoise":
            raise InputError(
                f"{settings.name}: times: found {list(settings.times)}, one of them twice: only the sampler "
                "renoise, which draws new noise, learns something from that"
            )
        return settings.times
    if settings.steps is not None:
        if settings.keep:
            return times_through(settings.keep, settings.steps, settings.low)
        return schedule.spaced(settings.steps, settings.low, settings.high)
    if "times" not in config:
        raise InputError(
            f"{settings.name}: steps is null, but this model has no step list of its own; set a number"
        )
    return tuple(config["times"])


def times_through(kept: Sequence[float], steps: int, low: float) -> tuple[float, ...]:
    """At least ``steps`` times that fall towards ``low`` (not reached) and pass all of ``kept``."""
    parts = math.ceil(steps / len(kept))
    ends = zip(kept, [*kept[1:], low], strict=True)
    return tuple(start + (end - start) * part / parts for start, end in ends for part in range(parts))


class Kept:
    """A denoiser that remembers what it was called with at some times."""

    def __init__(self, denoiser: Denoiser, times: Sequence[float]) -> None:
        self.denoiser, self.times = denoiser, times
        self.seen: dict[float, Tensor] = {}

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The denoiser's answer."""
        for kept in self.times:
            if float(t[0]) == float(torch.tensor(kept, dtype=t.dtype)):
                self.seen[kept] = x_t
        return self.denoiser(x_t, t)

    def trajectory(self) -> Tensor:
        """[B, S, C, T, H, W] on the CPU, in the order of the times."""
        return torch.stack([self.seen[kept] for kept in self.times], 1).cpu()


def latent_shape(settings: GenerationSettings, config: dict[str, Any]) -> tuple[int, ...]:
    """[C, T, H, W] of the samples; `InputError` for a size that does not divide into latent positions."""
    shape, size, space = tuple(config["latent_shape"]), settings.size, config.get("space")
    if size is None:
        return shape
    if space is None:
        raise InputError(
            f"{settings.name}: size: this model does not say its pixels a latent; set it to null"
        )
    if any(side < 1 or side % space for side in size):
        raise InputError(f"{settings.name}: size: found {list(size)}, both must be multiples of {space}")
    return (*shape[:2], *(side // space for side in size))


def chosen_sampler(settings: GenerationSettings, config: dict[str, Any]) -> Sampler:
    """The sampler by name, the model's own if none is named."""
    samplers: dict[str, Sampler] = {
        "ddim": partial(ddim, eta=settings.eta), "dpm_solver": dpm_solver, "renoise": renoise,
    }  # fmt: skip
    return samplers[_own_sampler(settings, config)]


def _own_sampler(settings: GenerationSettings, config: dict[str, Any]) -> Any:
    return _own(settings, config, "sampler", ("ddim", "dpm_solver", "renoise"))


def chosen_path(settings: GenerationSettings, config: dict[str, Any]) -> Any:
    """The path by name, the model's own if none is named."""
    return _own(settings, config, "path", ("continuous", "quantized"))


def _own(settings: GenerationSettings, config: dict[str, Any], what: str, allowed: Iterable[str]) -> Any:
    """A setting, or, where it is null, what the student was distilled for; `InputError` if there is none."""
    if getattr(settings, what) is None and what not in config:
        raise InputError(
            f"{settings.name}: {what} is null, but this model has none of its own; name one of "
            f"{list(allowed)}"
        )
    return getattr(settings, what) or config[what]


def asked_for(
    settings: GenerationSettings, config: PredictorConfig, device: torch.device
) -> dict[str, Tensor]:
    """What all ``count`` samples are asked to show, as `of_samples` takes it.

    `InputError` for a class that the model does not know, or captions that it cannot read.
    """
    nothing = {"labels": torch.full((settings.count,), -1)}
    if config.vocabulary or config.text is not None:
        if not settings.asked:
            raise InputError(f"{settings.name}: this model wants captions; list some under 'asked'")
        asked = torch.arange(settings.count) % len(settings.asked)
        if config.text is None:
            return nothing | {"words": from_captions(settings.asked, config)[asked]}
        text, tokens = same_text_encoder(config.text, device)(settings.asked)
        return nothing | {"asked": asked, "text": text, "text_tokens": tokens}
    if not config.classes:
        if settings.asked:
            raise InputError(
                f"{settings.name}: asked for {list(settings.asked)}, but this model is unconditional"
            )
        return nothing
    names = settings.asked or config.classes
    if unknown := sorted(set(names) - set(config.classes)):
        raise InputError(
            f"{settings.name}: unknown classes {unknown}; this model knows {list(config.classes)}"
        )
    return {
        "labels": torch.tensor([config.classes.index(names[i % len(names)]) for i in range(settings.count)])
    }


def prepare(model: QuantizedDiffusionPredictor, settings: GenerationSettings) -> None:
    """Give a loaded model, in place, the weights that the settings ask for, and compile it if they do."""
    quantize_weights(model, settings.weights)
    if settings.compile:
        for block in model.blocks:
            block.compile()


class Generation:
    """One request to a model: ``count`` samples in batches, each a function of (seed, its number)."""

    def __init__(
        self, settings: GenerationSettings, model: QuantizedDiffusionPredictor, config: dict[str, Any]
    ) -> None:
        """``config`` is what `load_predictor` gave; `InputError` for what this model cannot be asked for."""
        self.settings, self.model, self.shape = settings, model, latent_shape(settings, config)
        self.schedule = schedule_of(config)
        self.times = sampling_times(settings, self.schedule, config)
        self.sampler, self.path = chosen_sampler(settings, config), chosen_path(settings, config)
        self.wanted = asked_for(settings, model.config, next(model.parameters()).device)
        self.condition = of_samples(self.wanted)
        self.batches = torch.arange(settings.count).split(settings.batch)
        self.device = next(model.parameters()).device
        self.at_once = self._fitting() if settings.at_once == "auto" else settings.at_once

    @property
    def calls(self) -> int:
        """Of the network, a sample: each time with its condition and, for guidance, without."""
        return len(self.times) * (1 if self.settings.guidance == 1 else 2)

    def batch(self, number: int) -> dict[str, Tensor]:
        """The samples of a batch: `solve` at all times."""
        return self.solve(number, self.times, self.settings.keep)

    @torch.inference_mode()
    def solve(self, number: int, times: Sequence[float], keep: Sequence[float]) -> dict[str, Tensor]:
        """What the sampler makes of a batch, with a call at each of ``times``; on the CPU.

        ``latents`` [B, C, T, H, W]; ``codes`` and ``residual`` as in `GuidedDenoiser.tokens`; ``trajectory``
        [B, S, C, T, H, W], what was seen at the times to ``keep``, if there are any.
        """
        rows, device = self.batches[number], self.device
        asked = self.condition.rows(rows).to(device)
        denoiser = GuidedDenoiser(self.model, asked, self.settings.guidance, self.path, self.at_once)
        kept = Kept(denoiser, keep)
        draw = generator(self.settings.seed, number, 0, "sampling")
        noise = torch.randn(len(rows), *self.shape, generator=draw).to(device)
        with autocast(device, self.settings.precision):
            latents = self.sampler(kept, noise, times, self.schedule, draw)
            made = {"latents": latents.cpu()} | denoiser.tokens()
        return made | ({"trajectory": kept.trajectory()} if keep else {})

    def _fitting(self) -> int:
        free, batch = free_bytes(self.device), len(self.batches[0])
        if free is None:
            logger.info("%s: whole batches in one pass, as free memory is not known", self.settings.name)
            return batch
        found = min(batch, samples_at_once(self.model.config.size, self.shape, free))
        logger.info(
            "%s: %d samples in one pass, as %.1f GiB are free (%s)",
            self.settings.name, found, free / 2**30, self.device,
        )  # fmt: skip
        return found
