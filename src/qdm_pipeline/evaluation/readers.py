"""Where videos come from: positions in a set to videos in [-1, 1], so that no set need fit into memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from qdm_pipeline.randomness import generator
from qdm_pipeline.video.autoencoder import to_float, to_uint8
from qdm_pipeline.video.latents import VideoAutoencoder
from qdm_pipeline.video.shards import ShardSet

Reader = Callable[[Tensor], Tensor]  # positions int64 [B] -> videos uint8 [B, 3, T, H, W]


def clip_reader(clips: ShardSet, rows: Tensor) -> Reader:
    """The clips at ``rows``, as they are."""
    return lambda positions: clips.gather("video", rows[positions])


def each(original: Reader, change: Callable[[Tensor, int], Tensor]) -> Reader:
    """The videos of another reader, each after ``change`` (video [3, T, H, W], position)."""

    def read(positions: Tensor) -> Tensor:
        pairs = zip(original(positions), positions.tolist(), strict=True)
        return torch.stack([change(video, position) for video, position in pairs])

    return read


def shuffled_reader(original: Reader, seed: int) -> Reader:
    """The videos of another reader with the frames of each in random order."""

    def shuffled(video: Tensor, position: int) -> Tensor:
        draw = generator(seed, position, 0, "shuffled frames")
        return video[:, torch.randperm(video.shape[1], generator=draw)]

    return each(original, shuffled)


def noise_reader(original: Reader, seed: int) -> Reader:
    """Gaussian noise with the mean and the deviation of each video of another reader."""

    def noise(video: Tensor, position: int) -> Tensor:
        draw = generator(seed, position, 0, "noise in place of clips")
        deviation, mean = torch.std_mean(video.float())
        values = torch.randn(video.shape, generator=draw) * deviation + mean
        return values.round().clamp(0, 255).to(torch.uint8)

    return each(original, noise)


def latent_reader(latents: Tensor, autoencoder: VideoAutoencoder) -> Reader:
    """``latents`` [N, C, T, H, W], decoded."""
    device = autoencoder.mean.device

    @torch.inference_mode()
    def read(positions: Tensor) -> Tensor:
        return to_uint8(autoencoder.decode(latents[positions].to(device))).cpu()

    return read


def reconstruction_reader(original: Reader, autoencoder: VideoAutoencoder) -> Reader:
    """What the autoencoder makes of the videos of another reader."""
    device = autoencoder.mean.device

    @torch.inference_mode()
    def read(positions: Tensor) -> Tensor:
        video = to_float(original(positions)).to(device)
        return to_uint8(autoencoder.decode(autoencoder.encode(video))).cpu()

    return read
