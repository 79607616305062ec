"""Where videos come from: positions in a set to videos in [-1, 1], so that no set need fit into memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from qdm_pipeline.video.autoencoder import CausalVideoAutoencoder, to_float, to_uint8
from qdm_pipeline.video.shards import ShardSet

Reader = Callable[[Tensor], Tensor]  # positions int64 [B] -> videos uint8 [B, 3, T, H, W]


def clip_reader(clips: ShardSet, rows: Tensor) -> Reader:
    """The clips at ``rows``, as they are."""
    return lambda positions: clips.gather("video", rows[positions])


def latent_reader(latents: Tensor, autoencoder: CausalVideoAutoencoder) -> Reader:
    """``latents`` [N, C, T, H, W], decoded."""
    device = autoencoder.mean.device

    @torch.inference_mode()
    def read(positions: Tensor) -> Tensor:
        return to_uint8(autoencoder.decode(latents[positions].to(device))).cpu()

    return read


def reconstruction_reader(original: Reader, autoencoder: CausalVideoAutoencoder) -> Reader:
    """What the autoencoder makes of the videos of another reader."""
    device = autoencoder.mean.device

    @torch.inference_mode()
    def read(positions: Tensor) -> Tensor:
        video = to_float(original(positions)).to(device)
        return to_uint8(autoencoder.decode(autoencoder.encode(video))).cpu()

    return read
