"""A predictor on disk: ``model.safetensors`` and ``config.json``."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from qdm_pipeline.configuration import build, plain
from qdm_pipeline.diffusion.schedule import Schedule
from qdm_pipeline.errors import InputError
from qdm_pipeline.files import read_json, write_json
from qdm_pipeline.models.predictor import PredictorConfig, QuantizedDiffusionPredictor
from qdm_pipeline.video.shard_set import ShardSet


def save_predictor(
    directory: Path, config: PredictorConfig, weights: dict[str, torch.Tensor], schedule: Any, **extra: Any
) -> None:
    """Write weights and configuration; ``schedule`` is a settings dataclass, ``extra`` is JSON-like."""
    write_predictor(directory, {"predictor": plain(config), "schedule": plain(schedule), **extra}, weights)


def latents_like(latents: ShardSet) -> dict[str, Any]:
    """What ``config.json`` says of the latents that a model makes.

    ``latent_shape`` [C, T, H, W], that of most train clips; ``space``: pixels a side of one position.
    """
    shape = list(latents.of_main_size().shape("latent"))
    return {"latent_shape": shape, "space": latents.manifest.get("space")}


def write_predictor(directory: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """Write weights and the ``config.json`` that `load_predictor` gives; its inverse."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(contiguous, directory / "model.safetensors")
    write_json(directory / "config.json", config)


def load_schedule(directory: Path) -> Schedule:
    """The noise schedule of the predictor in a directory."""
    return schedule_of(read_json(directory / "config.json"))


def schedule_of(config: dict[str, Any]) -> Schedule:
    """The noise schedule that the ``config.json`` of a predictor names."""
    return Schedule(config["schedule"]["name"], config["schedule"]["shift"])


def load_predictor(directory: Path) -> tuple[QuantizedDiffusionPredictor, dict[str, Any]]:
    """The predictor in evaluation mode on the CPU, and the whole of its ``config.json``.

    Raises `InputError` if the files are missing or do not fit each other.
    """
    file = directory / "model.safetensors"
    if not file.exists():
        raise InputError(
            f"{file}: no such checkpoint; train the model first or mend the catalog entry that names it"
        )
    config = read_json(directory / "config.json")
    predictor = QuantizedDiffusionPredictor(build(PredictorConfig, config["predictor"]))
    try:
        predictor.load_state_dict(load_file(file))
    except RuntimeError as error:
        raise InputError(f"{file}: does not fit the config.json beside it: {error}") from None
    return predictor.eval().requires_grad_(False), config
