"""Sampling a finished model on all ranks: latents, token ids, videos to look at."""

import math
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from qdm_pipeline.configuration import build, require, settings
from qdm_pipeline.diffusion.sampler import Denoiser, Sampler, ddim, dpm_solver, renoise
from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.errors import InputError
from qdm_pipeline.files import digest_file
from qdm_pipeline.models.precision import Precision, autocast
from qdm_pipeline.models.predictor import PredictorConfig
from qdm_pipeline.randomness import generator
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.training.conditions import from_captions, of_samples
from qdm_pipeline.training.denoiser import GuidedDenoiser
from qdm_pipeline.training.model_files import load_predictor
from qdm_pipeline.training.peak_memory import peak_memory
from qdm_pipeline.training.teacher import ScheduleSettings
from qdm_pipeline.video.autoencoder import load_autoencoder, to_uint8
from qdm_pipeline.video.latents import VideoAutoencoder
from qdm_pipeline.video.media import write_grid, write_mp4
from qdm_pipeline.video.text_encoder import same_text_encoder


@settings
class SamplingSettings:
    """What to sample, and how."""

    name: str  # the row's name in the report
    sampler: Literal["ddim", "dpm_solver", "renoise"] | None  # null: what the student was distilled for
    steps: int | None  # evenly spaced steps; null: the step list that the student was distilled on
    low: float  # range of the evenly spaced times
    high: float
    eta: float  # of DDIM: 0 deterministic, 1 ancestral
    guidance: float  # see diffusion.guidance
    path: Literal["continuous", "quantized"] | None  # null: the one that the student answers through
    asked: tuple[str, ...] | None  # class names or captions, taken in turn; null: all classes, or nothing
    count: int
    batch: int
    videos: int  # how many are written as MP4 and shown in the grid
    columns: int
    scale: int
    fps: int
    keep: tuple[float, ...]  # times whose noisy latents are kept beside the samples, as trajectories
    precision: Precision
    seed: int

    def __post_init__(self) -> None:
        require(
            self.steps is None or self.steps >= 1, f"steps: found {self.steps}, must be null or at least 1"
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
        for name in ("count", "batch", "columns", "scale", "fps"):
            require(getattr(self, name) >= 1, f"{name}: found {getattr(self, name)}, must be at least 1")
        require(
            0 < self.videos <= self.count,
            f"videos: found {self.videos}, must be from 1 to count ({self.count})",
        )


def sampling_times(settings: SamplingSettings, schedule: Schedule, config: dict[str, Any]) -> Sequence[float]:
    """The times at which the model is called; `InputError` if a step list is asked of a model without one."""
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


def chosen_sampler(settings: SamplingSettings, config: dict[str, Any]) -> Sampler:
    """The sampler by name, the model's own if none is named."""
    samplers: dict[str, Sampler] = {
        "ddim": partial(ddim, eta=settings.eta), "dpm_solver": dpm_solver, "renoise": renoise,
    }  # fmt: skip
    return samplers[_own(settings, config, "sampler", samplers)]


def chosen_path(settings: SamplingSettings, config: dict[str, Any]) -> Any:
    """The path by name, the model's own if none is named."""
    return _own(settings, config, "path", ("continuous", "quantized"))


def _own(settings: SamplingSettings, config: dict[str, Any], what: str, allowed: Iterable[str]) -> Any:
    """A setting, or, where it is null, what the student was distilled for; `InputError` if there is none."""
    if getattr(settings, what) is None and what not in config:
        raise InputError(
            f"{settings.name}: {what} is null, but this model has none of its own; name one of "
            f"{list(allowed)}"
        )
    return getattr(settings, what) or config[what]


def asked_for(settings: SamplingSettings, config: PredictorConfig, device: torch.device) -> dict[str, Tensor]:
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


def sample(run: Run, ranks: Ranks) -> None:
    """Sample the model among the run's inputs; ranks share the batches, and draw what one would."""
    settings = build(SamplingSettings, run.settings)
    model, config = load_predictor(run.inputs["model"].path)
    model = model.to(ranks.device)
    autoencoder = load_autoencoder(run.inputs["autoencoder"].path).to(ranks.device)
    schedule_settings = ScheduleSettings(**config["schedule"])
    schedule = Schedule(schedule_settings.name, schedule_settings.shift)
    times = sampling_times(settings, schedule, config)
    sampler, path = chosen_sampler(settings, config), chosen_path(settings, config)
    wanted = asked_for(settings, model.config, ranks.device)
    condition = of_samples(wanted)
    batches = torch.arange(settings.count).split(settings.batch)
    mine = range(ranks.rank, len(batches), ranks.world)

    def solve(index: int, times: Sequence[float], keep: Sequence[float]) -> dict[str, Tensor]:
        asked = condition.rows(batches[index]).to(ranks.device)
        denoiser = GuidedDenoiser(model, asked, settings.guidance, path)
        kept = Kept(denoiser, keep)
        draw = generator(settings.seed, index, 0, "sampling")
        noise = torch.randn(len(batches[index]), *config["latent_shape"], generator=draw).to(ranks.device)
        with torch.inference_mode(), autocast(ranks.device, settings.precision):
            latents = sampler(kept, noise, times, schedule, draw)
            part = {"latents": latents.cpu()} | denoiser.tokens()
        return part | ({"trajectory": kept.trajectory()} if keep else {})

    memory = peak_memory(lambda: solve(0, times[:1], ()), ranks.device) if ranks.is_main else 0
    parts: dict[int, dict[str, Tensor]] = {}
    started = time.perf_counter()
    for index in tqdm(mine, settings.name, unit="batch", disable=not ranks.is_main, dynamic_ncols=True):
        parts[index] = solve(index, times, settings.keep)
    seconds = time.perf_counter() - started
    gathered = {index: part for share in ranks.gather(parts) for index, part in share.items()}
    total = float(ranks.sum(torch.tensor(seconds, dtype=torch.float64, device=ranks.device)))
    if ranks.is_main:
        tensors = {name: torch.cat([gathered[i][name] for i in range(len(batches))]) for name in gathered[0]}
        _write(run.directory, settings, tensors | wanted, autoencoder)
        calls = 1 if settings.guidance == 1 else 2
        metadata = {
            "name": settings.name, "path": path, "guidance": settings.guidance, "steps": len(times),
            "nfe": len(times) * calls, "count": settings.count, "seconds_per_clip": total / settings.count,
            "mebibytes_per_clip": memory / 2**20 / len(batches[0]),
            "codebook_size": model.config.size.quantizer.codebook_size, "classes": list(model.config.classes),
            "parameters": sum(p.numel() for p in model.parameters()),
        }  # fmt: skip
        run.finish(digest_file(run.directory / "samples.safetensors"), metadata)
    ranks.barrier()


def _write(
    directory: Path,
    settings: SamplingSettings,
    tensors: dict[str, Tensor],
    autoencoder: VideoAutoencoder,
) -> None:
    save_file(tensors, directory / "samples.safetensors")
    device = next(autoencoder.parameters()).device
    with torch.inference_mode():
        videos = to_uint8(autoencoder.decode(tensors["latents"][: settings.videos].to(device))).cpu()
    (directory / "videos").mkdir(exist_ok=True)
    for index, video in enumerate(videos):
        write_mp4(directory / "videos" / f"{index:05d}.mp4", video, settings.fps)
    write_grid(directory, "grid", videos, settings.columns, settings.fps, settings.scale)
