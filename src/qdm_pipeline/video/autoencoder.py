"""A small causal video autoencoder: linear, started as the PCA of space-time patches, plus a residual."""

from pathlib import Path

import torch
from einops import rearrange
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from qdm_pipeline.configuration import build, plain, require, settings
from qdm_pipeline.errors import InputError
from qdm_pipeline.files import read_json, write_atomic, write_json
from qdm_pipeline.video.diffusers_autoencoder import load_diffusers
from qdm_pipeline.video.latents import VideoAutoencoder

CHUNK = 16  # latent frames that one pass computes


@settings
class AutoencoderConfig:
    """Sizes. A latent stands for ``time_patch`` frames of ``space_patch`` x ``space_patch`` pixels."""

    channels: int
    latent_channels: int
    time_patch: int
    space_patch: int
    width: int
    encoder_blocks: int
    decoder_blocks: int

    def __post_init__(self) -> None:
        pixels = self.channels * self.time_patch * self.space_patch**2
        require(
            1 <= self.latent_channels <= pixels,
            f"autoencoder: latent_channels must lie in [1, {pixels}], the values of a patch",
        )
        require(
            min(self.width, self.time_patch, self.space_patch) >= 1, "autoencoder: sizes must be at least 1"
        )
        require(
            min(self.encoder_blocks, self.decoder_blocks) >= 0, "autoencoder: blocks: must not be negative"
        )


class Norm(nn.RMSNorm):
    """RMSNorm over the last dimension in the dtype of its input; torch's own warns about mixed ones."""

    def forward(self, x: Tensor) -> Tensor:
        """``x`` and result: [..., width]."""
        return functional.rms_norm(x, self.normalized_shape) * self.weight.to(x.dtype)


class Block(nn.Module):
    """(2+1)-D residual convolution: 3 x 3 in space, then 3 in time, looking back only; identity at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = Norm(width)
        self.space = nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Linear(3 * width, width)  # a convolution over time as one matrix product
        nn.init.zeros_(self.time.weight)
        nn.init.zeros_(self.time.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` and result: [B, T, H, W, width]."""
        batch, frames = x.shape[:2]
        h = functional.silu(self.norm(x))
        h = self.space(h.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).unflatten(0, (batch, frames))
        h = functional.pad(functional.silu(h), (0, 0) * 3 + (2, 0))
        return x + self.time(torch.cat([h[:, :-2], h[:, 1:-1], h[:, 2:]], dim=-1))


class Residual(nn.Module):
    """Linear map of every position plus what a stack of blocks adds to it, at first nothing."""

    def __init__(self, inputs: int, outputs: int, width: int, blocks: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.lift = nn.Linear(inputs, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.norm = Norm(width)
        self.head = nn.Linear(width, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H, W, inputs] -> [B, T, H, W, outputs]."""
        return self.linear(x) + self.head(functional.silu(self.norm(self.blocks(self.lift(x)))))

    def in_chunks(self, x: Tensor) -> Tensor:
        """The same in pieces of `CHUNK` steps of time, each with all that it looks back at: exact."""
        back = 2 * len(self.blocks)
        starts = range(0, x.shape[1], CHUNK)
        return torch.cat([self(x[:, max(0, s - back) : s + CHUNK])[:, min(s, back) :] for s in starts], dim=1)


class CausalVideoAutoencoder(VideoAutoencoder):
    """Video [B, 3, T, H, W] in [-1, 1] to latents [B, C, T', H', W'] and back.

    T = time_patch · k + 1 frames become T' = k + 1 latent frames: the first frame is repeated to fill a
    patch of its own, and no latent sees a later frame. H and W are multiples of ``space_patch``.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.channels, self.space = config.latent_channels, config.space_patch
        self.time = self.step = config.time_patch
        pixels = config.channels * config.time_patch * config.space_patch**2
        self.encoder = Residual(pixels, config.latent_channels, config.width, config.encoder_blocks)
        self.decoder = Residual(config.latent_channels, pixels, config.width, config.decoder_blocks)
        self.register_buffer("mean", torch.zeros(config.latent_channels))
        self.register_buffer("std", torch.ones(config.latent_channels))

    def encode(self, video: Tensor) -> Tensor:
        """Latents with mean 0 and standard deviation 1 per channel over the train split."""
        latents = self.encoder.in_chunks(self.patchify(video))
        return rearrange((latents - self.mean) / self.std, "b t h w c -> b c t h w")

    def decode(self, latents: Tensor) -> Tensor:
        """Inverse of `encode` as far as it was learned; not clamped to [-1, 1]."""
        raw = rearrange(latents, "b c t h w -> b t h w c") * self.std + self.mean
        return self.unpatchify(self.decoder.in_chunks(raw))

    def forward(self, video: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """For training: the video rebuilt from latents plus ``noise`` [B, T', H', W', C], and the latents."""
        latents = self.encoder(self.patchify(video))
        return self.unpatchify(self.decoder(latents + noise)), latents

    def patchify(self, video: Tensor) -> Tensor:
        """[B, 3, T, H, W] -> [B, T', H', W', values of a patch]."""
        _, time, height, width = self.latent_shape(*video.shape[2:])
        first = video[:, :, :1].expand(-1, -1, self.config.time_patch - 1, -1, -1)
        full = torch.cat([first, video], dim=2)
        return rearrange(full, "b c (t i) (h j) (w k) -> b t h w (c i j k)", t=time, h=height, w=width)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Inverse of `patchify`."""
        sizes = {"i": self.config.time_patch, "j": self.config.space_patch, "k": self.config.space_patch}
        full = rearrange(patches, "b t h w (c i j k) -> b c (t i) (h j) (w k)", **sizes)
        return full[:, :, self.config.time_patch - 1 :]

    @torch.no_grad()
    def start_as_pca(self, video: Tensor) -> None:
        """Set the linear maps to the whitened principal components of the patches of ``video``."""
        patches = self.patchify(video).flatten(0, 3).double()
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        values, vectors = values[-self.config.latent_channels :], vectors[:, -self.config.latent_channels :]
        scale = values.clamp(min=1e-8).sqrt()
        self.encoder.linear.weight.copy_((vectors / scale).T)
        self.encoder.linear.bias.copy_(-mean @ (vectors / scale))
        self.decoder.linear.weight.copy_(vectors * scale)
        self.decoder.linear.bias.copy_(mean)

    def save(self, directory: Path) -> None:
        """Write ``model.safetensors`` and ``config.json``."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_atomic(directory / "model.safetensors", save(tensors))
        write_json(directory / "config.json", plain(self.config))


def load_autoencoder(path: Path) -> VideoAutoencoder:
    """The autoencoder in directory ``path``, in eval mode; `InputError` if it is not there.

    One of ours, or one that diffusers saved.
    """
    config = read_json(path / "config.json")
    if "_class_name" in config:
        return load_diffusers(path)
    model = CausalVideoAutoencoder(build(AutoencoderConfig, config))
    if not (path / "model.safetensors").exists():
        raise InputError(f"{path / 'model.safetensors'}: no such file")
    model.load_state_dict(load_file(path / "model.safetensors"))
    return model.eval()


def to_float(video: Tensor) -> Tensor:
    """uint8 in [0, 255] to float in [-1, 1]."""
    return video.float() / 127.5 - 1


def to_uint8(video: Tensor) -> Tensor:
    """Float in [-1, 1], clamped, to uint8."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


@torch.inference_mode()
def to_videos(autoencoder: VideoAutoencoder, latents: Tensor) -> Tensor:
    """Videos uint8 [B, 3, T, H, W] of latents [B, C, T', H', W'], on the CPU.

    One after the other: products of matrices round as the size of their batch says, and a sample decoded
    among others must be the sample decoded alone.
    """
    return torch.cat(
        [to_uint8(autoencoder.decode(z.to(autoencoder.mean.device))).cpu() for z in latents.split(1)]
    )
