"""What every student is, however it was trained: its steps, its path, its sampler, and its files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from qdm_pipeline.diffusion.sampler import Sampler, ddim, renoise
from qdm_pipeline.distillation.settings import Renoising
from qdm_pipeline.models import predictor
from qdm_pipeline.models.predictor import PredictorConfig
from qdm_pipeline.training.model_files import save_predictor

SampledPath = Literal["continuous", "quantized"]


def few_step_sampler(renoising: Renoising) -> Sampler:
    """The sampler whose inputs the student was trained on; without eta, DDIM keeps the noise it finds."""
    return ddim if renoising == "kept" else renoise


def sampler_name(renoising: Renoising) -> Literal["ddim", "renoise"]:
    """What `few_step_sampler` is called in a student's ``config.json``."""
    return "ddim" if renoising == "kept" else "renoise"


def sampled_path(path: predictor.Path) -> SampledPath:
    """The path that the student is sampled through: a soft choice of codes ends as a choice."""
    return "continuous" if path == "continuous" else "quantized"


def save_student(
    directory: Path,
    config: PredictorConfig,
    weights: dict[str, Tensor],
    schedule: Any,
    made: dict[str, Any],
    times: Sequence[float],
    path: SampledPath,
    renoising: Renoising,
) -> None:
    """Write a student with all that sampling it needs; ``made``: see `latents_like`."""
    directory.mkdir(exist_ok=True)
    own = {"times": list(times), "path": path, "sampler": sampler_name(renoising)}
    save_predictor(directory, config, weights, schedule, **own, **made)
