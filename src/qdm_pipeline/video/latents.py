"""What an autoencoder is to the rest of the project, and its use on videos too large for one pass."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from qdm_pipeline.errors import InputError


class VideoAutoencoder(nn.Module):
    """Video [B, 3, T, H, W] in [-1, 1] to latents [B, C, T', H', W'] of mean 0 and deviation 1, and back.

    ``mean`` and ``std`` [C] turn what the network gives into those latents. One latent frame stands for the
    first frame (or every frame, with ``time`` 1) and each further one for ``time`` frames; one position for
    ``space`` x ``space`` pixels. Clips have ``step`` · k + 1 frames.
    """

    mean: Tensor
    std: Tensor
    channels: int
    time: int
    step: int
    space: int

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, T', H', W') of a video; `InputError` if its size does not fit, so that no frame gets lost."""
        time, step, space = self.time, self.step, self.space
        if frames < 1 or (frames - 1) % step:
            fitting = max(0, frames - 1) // step * step + 1
            allowed = f"{step}k + 1, as {fitting} or {fitting + step}"
            raise InputError(f"autoencoder: a clip has {frames} frames, must be {allowed}")
        if height % space or width % space:
            raise InputError(f"autoencoder: a clip is {width}x{height}, both must be multiples of {space}")
        return self.channels, (frames - 1) // time + 1, height // space, width // space

    def encode(self, video: Tensor) -> Tensor:
        """Normalised latents; raises as `latent_shape` does."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """Inverse of `encode` as far as it was learned."""
        raise NotImplementedError

    def save(self, directory: Path) -> None:
        """Write what `load_autoencoder` reads into ``directory``, which is there."""
        raise NotImplementedError

    def encode_tiled(self, video: Tensor, tile: int | None) -> Tensor:
        """`encode` in tiles of at most ``tile`` latent positions a side; at once if that is None."""
        shape = self.latent_shape(*video.shape[2:])
        return in_tiles(self.encode, video, (len(video), *shape), tile, self.space, 1)

    def decode_tiled(self, latents: Tensor, tile: int | None) -> Tensor:
        """`decode` in tiles of at most ``tile`` latent positions a side; at once if that is None."""
        batch, _, frames, height, width = latents.shape
        shape = (batch, 3, (frames - 1) * self.time + 1, height * self.space, width * self.space)
        return in_tiles(self.decode, latents, shape, tile, 1, self.space)

    def encode_padded(self, video: Tensor, tile: int | None = None) -> Tensor:
        """`encode_tiled` of a video of any length, its last frame repeated until their number fits."""
        missing = self._missing(video.shape[2])
        last = video[:, :, -1:].expand(-1, -1, missing, -1, -1)
        return self.encode_tiled(torch.cat([video, last], dim=2), tile)

    def decode_trimmed(self, latents: Tensor, frames: int, tile: int | None = None) -> Tensor:
        """`decode_tiled` of what `encode_padded` made of ``frames`` frames, without those it added.

        `InputError` if the latents are not those of so many frames.
        """
        due, found = frames + self._missing(frames), (latents.shape[2] - 1) * self.time + 1
        if frames < 1 or due != found:
            raise InputError(f"autoencoder: latents of {found} frames, {frames} were padded to {due}")
        return self.decode_tiled(latents, tile)[:, :, :frames]

    def _missing(self, frames: int) -> int:
        return -(frames - 1) % self.step if frames else 0


def in_tiles(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    shape: tuple[int, ...],
    tile: int | None,
    inputs: int,
    outputs: int,
) -> Tensor:
    """``function(x)``, of ``shape``, from overlapping tiles of the last two dimensions.

    A position is ``inputs`` pixels of ``x`` and ``outputs`` of the result. Tiles overlap by half their side:
    the outer half of an overlap is thrown away, since it lacks its neighbourhood, and the inner half blended
    linearly, in the space of the result. Where a result depends on no more than an eighth of a tile around
    it, tiles are exact.
    """
    height, width = x.shape[-2] // inputs, x.shape[-1] // inputs
    if tile is None or max(height, width) <= tile:
        return function(x)
    total = x.new_zeros(shape, dtype=torch.float32)
    weights = x.new_zeros(shape[-2:], dtype=torch.float32)
    for top, bottom in _spans(height, tile):
        for left, right in _spans(width, tile):
            part = function(x[..., top * inputs : bottom * inputs, left * inputs : right * inputs])
            down = _ramp(top, bottom, height, tile // 2, outputs).to(x.device)
            across = _ramp(left, right, width, tile // 2, outputs).to(x.device)
            place = (slice(top * outputs, bottom * outputs), slice(left * outputs, right * outputs))
            total[(..., *place)] += part.float() * torch.outer(down, across)
            weights[place] += torch.outer(down, across)
    return (total / weights).to(x.dtype)


def _spans(length: int, tile: int) -> list[tuple[int, int]]:
    if length <= tile:
        return [(0, length)]
    step = max(1, tile - tile // 2)
    starts = [*range(0, length - tile, step), length - tile]
    return [(start, start + tile) for start in starts]


def _ramp(begin: int, end: int, length: int, overlap: int, scale: int) -> Tensor:
    """Weights of a tile's pixels: 0 over a quarter of the overlap at inner borders, then rising to 1."""
    places = torch.arange((end - begin) * scale, dtype=torch.float32) + 0.5
    dead, rise = overlap * scale / 4, overlap * scale / 2
    weights = torch.ones_like(places)
    if begin > 0:
        weights = weights.minimum(((places - dead) / rise).clamp(0, 1))
    if end < length:
        weights = weights.minimum((((end - begin) * scale - places - dead) / rise).clamp(0, 1))
    return weights
