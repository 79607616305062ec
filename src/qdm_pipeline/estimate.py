"""What a run needs, from its settings alone, so that it can be said before anything is computed."""

from collections.abc import Mapping
from typing import Any

from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.errors import InputError
from qdm_pipeline.launch.place import find_place
from qdm_pipeline.launch.world import processes
from qdm_pipeline.models.cost import build_on_meta
from qdm_pipeline.models.predictor import PredictorConfig
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.training.few_step import sampler_name
from qdm_pipeline.training.generate import sampling_times
from qdm_pipeline.training.memory import total_bytes
from qdm_pipeline.training.optimizer import Optimizer, OptimizerSettings

MOMENTS = {"AdamW": 2, "Muon": 1}  # tensors of a parameter's size that an optimizer keeps
NEEDED = (
    "clips",
    "autoencoder",
    "pretrained_autoencoder",
    "encode",
    "teacher",
    "distill",
    "launch",
    "world_size",
)

Latents = tuple[int, int, int, int]  # [C, T, H, W]
Settings = Mapping[str, Any]  # validated parameters by their top-level names


def shapes(settings: Settings) -> tuple[PredictorConfig, Latents]:
    """The predictor with ten classes, and its latents, of the largest clips."""
    clips, autoencoder = settings["clips"], settings["autoencoder"].model
    frames = (clips.frames - 1) // autoencoder.time_patch + 1
    height, width = (side // autoencoder.space_patch for side in clips.largest)
    size, channels = settings["teacher"].model, autoencoder.latent_channels
    classes = tuple(map(str, range(10)))
    config = PredictorConfig(
        size=size, latent_channels=channels, classes=classes, vocabulary=(), caption_length=0
    )
    return config, (channels, frames, height, width)


def check_shapes(settings: Settings) -> None:
    """Raise `InputError` if clips do not divide into the autoencoder's patches, or latents into tokens."""
    if settings["pretrained_autoencoder"] is not None:
        return  # what it takes is known once it is loaded
    clips, autoencoder, patch = (
        settings["clips"],
        settings["autoencoder"].model,
        settings["teacher"].model.patch,
    )
    for key, found, step, extra in (
        ("frames", clips.frames, autoencoder.time_patch, 1),
        *(("size", side, autoencoder.space_patch, 0) for size in clips.sizes for side in size),
    ):
        if (found - extra) % step or found - extra <= 0:
            near = max(1, round((found - extra) / step)) * step + extra
            rule = f"{step} k{' + 1' * extra}"
            raise InputError(f"clips.{key}: found {found}, the autoencoder takes {rule}, for example {near}")
    frames = shapes(settings)[1][1]
    for size in clips.sizes:
        latents = [frames, *(side // autoencoder.space_patch for side in size)]
        if any(length % step for length, step in zip(latents, patch, strict=True)):
            raise InputError(
                f"teacher.model.patch: found {list(patch)}, which does not divide latents of {latents} "
                "(time, height, width)"
            )


def check_text(settings: Settings) -> None:
    """Raise `InputError` if a teacher is to hear token states that the latents made for it will not have."""
    if settings["teacher"].condition == "text" and settings["encode"].text is None:
        raise InputError(
            "teacher.condition: found 'text', which needs encode.text, for example "
            "{encoder: minilm, length: 32}; found null"
        )


def check_calls(settings: Settings) -> None:
    """Raise `InputError` if samples are asked for as the student that is to be distilled cannot make them."""
    dmd, samples = settings["distill"].dmd, settings["student_samples"]
    if samples.times is not None:
        sampling_times(
            samples, Schedule("flow"), {"times": dmd.times, "sampler": sampler_name(dmd.renoising)}
        )


def states(settings: Settings) -> dict[str, int]:
    """Bytes of ``teacher`` and ``distillation``: weights, gradients, moments, averages; no activations."""
    config, _ = shapes(settings)
    teacher, distill = settings["teacher"], settings["distill"]
    weights = 4 * sum(p.numel() for p in build_on_meta(config).parameters())
    student = _trained(config, distill.student_optimizer, True)
    critic = _trained(config, distill.critic_optimizer, False)
    return {"teacher": _trained(config, teacher.optimizer, True), "distillation": student + critic + weights}


def _trained(config: PredictorConfig, optimizer: OptimizerSettings, ema: bool) -> int:
    made = Optimizer("model", build_on_meta(config), optimizer, 1, "fp32", Ranks())
    return 4 * sum(
        p.numel() * (2 + MOMENTS[type(each).__name__] + ema)
        for each in made.optimizers
        for group in each.param_groups
        for p in group["params"]
    )


def check_memory(settings: Settings, jobs: set[str]) -> None:
    """Raise `InputError` if the state alone of one of ``jobs`` (keys of `states`) cannot fit this machine."""
    place = find_place(settings["launch"])
    here = processes(settings["world_size"], place.nodes)
    room = total_bytes()
    for job, state in states(settings).items():
        role = "teacher" if job == "teacher" else "distill"
        sharded = settings[role].parallel.strategy == "fsdp"
        need = state / place.nodes if sharded else state * here
        if job in jobs and room is not None and need > room:
            raise InputError(
                f"{role}: weights, gradients and moments alone take {need / 2**30:.1f} GiB on this machine "
                f"(world_size {here}, parallel.strategy {settings[role].parallel.strategy}), which has "
                f"{room / 2**30:.1f} GiB; take a smaller model (teacher.model), fewer processes, or fsdp on "
                "more machines"
            )
