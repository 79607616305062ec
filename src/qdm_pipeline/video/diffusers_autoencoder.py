"""Autoencoders of diffusers, from a local directory, behind the project's interface."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdm_pipeline.errors import InputError
from qdm_pipeline.files import digest_file, digest_json, read_json
from qdm_pipeline.handle import Handle
from qdm_pipeline.video.latents import VideoAutoencoder

FRAMES_AT_ONCE = 16  # of an autoencoder of single pictures
CLASSES = (
    "AutoencoderKL",
    "AutoencoderKLWan",
    "AutoencoderKLCogVideoX",
    "AutoencoderKLLTXVideo",
    "AutoencoderKLHunyuanVideo",
)


class DiffusersAutoencoder(VideoAutoencoder):
    """One of `CLASSES`, with the scaling, shift or per-channel statistics that its configuration names.

    Latents are the posterior's mode. AutoencoderKL sees every frame for itself.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, config = model, model.config
        self.pictures = type(model).__name__ == "AutoencoderKL"
        self.channels = config["z_dim"] if "z_dim" in config else config["latent_channels"]
        ratio = 2 ** (len(config["block_out_channels"]) - 1) if "block_out_channels" in config else 0
        self.space = int(getattr(model, "spatial_compression_ratio", ratio))
        self.time = 1 if self.pictures else int(
            getattr(model, "temporal_compression_ratio", 0)
            or config.get("temporal_compression_ratio")
            or config["scale_factor_temporal"]
        )  # fmt: skip
        # CogVideoX decodes two latent frames at once, and makes 8 frames of the 2 latents that 5 frames gave.
        self.step = 2 * self.time if type(model).__name__ == "AutoencoderKLCogVideoX" else self.time
        mean, std = (_statistic(model, name) for name in ("latents_mean", "latents_std"))
        scale = config.get("scaling_factor") or 1.0
        if config.get("invert_scale_latents"):
            scale = 1 / scale
        shift = torch.full((self.channels,), float(config.get("shift_factor") or 0.0))
        deviation = torch.ones(self.channels) if std is None else std
        self.register_buffer("mean", shift if mean is None else mean)
        self.register_buffer("std", deviation / scale)

    def encode(self, video: Tensor) -> Tensor:
        """Normalised latents; `InputError` if the video's size does not fit the model."""
        shape = (len(video), *self.latent_shape(*video.shape[2:]))
        if self.pictures:
            frames = video.transpose(1, 2).flatten(0, 1).split(FRAMES_AT_ONCE)
            modes = torch.cat([self.model.encode(part).latent_dist.mode() for part in frames])
            raw = modes.unflatten(0, (shape[0], shape[2])).transpose(1, 2)
        else:
            raw = self.model.encode(video).latent_dist.mode()
        return (_require(raw, shape) - self._wide(self.mean)) / self._wide(self.std)

    def decode(self, latents: Tensor) -> Tensor:
        """The video of normalised latents; some models clamp it to [-1, 1] themselves."""
        batch, _, frames, height, width = latents.shape
        shape = (batch, 3, (frames - 1) * self.time + 1, height * self.space, width * self.space)
        raw = latents * self._wide(self.std) + self._wide(self.mean)
        if not self.pictures:
            return _require(self.model.decode(raw).sample, shape)
        parts = raw.transpose(1, 2).flatten(0, 1).split(FRAMES_AT_ONCE)
        decoded = torch.cat([self.model.decode(part).sample for part in parts])
        return _require(decoded.unflatten(0, (batch, frames)).transpose(1, 2), shape)

    def save(self, directory: Path) -> None:
        """As diffusers does."""
        self.model.save_pretrained(directory)

    @staticmethod
    def _wide(statistic: Tensor) -> Tensor:
        return statistic.view(-1, 1, 1, 1)


def load_diffusers(path: Path) -> DiffusersAutoencoder:
    """The autoencoder that diffusers saved in directory ``path``, in eval mode and float32; no network.

    `InputError` if its class is not one of `CLASSES`, it needs a time step, or diffusers is not installed.
    """
    config = read_json(path / "config.json")
    name = config.get("_class_name")
    if name not in CLASSES:
        raise InputError(f"{path}/config.json: _class_name is {name!r}, allowed are {', '.join(CLASSES)}")
    if config.get("timestep_conditioning"):
        raise InputError(f"{path}/config.json: a decoder with timestep_conditioning is not supported")
    try:
        import diffusers
    except ImportError:
        raise InputError(f"{path}: {name} needs diffusers: pip install 'qdm-pipeline[diffusers]'") from None
    try:
        model = getattr(diffusers, name).from_pretrained(
            path, local_files_only=True, torch_dtype=torch.float32
        )
    except OSError as error:
        raise InputError(f"{path}: {error}") from None
    return DiffusersAutoencoder(model.requires_grad_(False)).eval()


def diffusers_handle(path: Path) -> Handle:
    """The autoencoder in directory ``path`` as an input of runs; its digest is that of all its bytes."""
    model = load_diffusers(path)
    files = [*path.glob("*.json"), *path.glob("*.safetensors"), *path.glob("*.bin")]
    digest = digest_json({file.name: digest_file(file) for file in files})
    return Handle("autoencoder", path.resolve(), digest, {"latent_channels": model.channels})


def _statistic(model: Any, name: str) -> Tensor | None:
    """Of a buffer if the model has one, else of its configuration."""
    values = getattr(model, name, None) if isinstance(getattr(model, name, None), Tensor) else None
    listed = model.config.get(name)
    if values is not None:
        return values.detach().float().clone()
    return None if listed is None else torch.tensor(listed, dtype=torch.float32)


def _require(found: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``found``, if no frame or pixel got lost; `InputError` otherwise."""
    if tuple(found.shape) != shape:
        raise InputError(f"autoencoder: gave {tuple(found.shape)} where {shape} was due: its config is wrong")
    return found
