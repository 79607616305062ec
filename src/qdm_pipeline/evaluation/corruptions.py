"""Nine ways to spoil a clip, each with a strength: what does an extractor see, and what is it blind to?"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from qdm_pipeline.evaluation.readers import Reader, each
from qdm_pipeline.randomness import generator

Corruption = Callable[[Tensor, float, torch.Generator], Tensor]  # float [3, T, H, W] in [0, 255]


def _noise(clip: Tensor, strength: float, draw: torch.Generator) -> Tensor:
    return clip + 64 * strength * torch.randn(clip.shape, generator=draw)


def _blur(clip: Tensor, strength: float, draw: torch.Generator) -> Tensor:
    """Gaussian, of a deviation of up to a sixteenth of the height."""
    deviation = strength * clip.shape[2] / 16
    reach = torch.arange(-int(3 * deviation) - 1, int(3 * deviation) + 2)
    kernel = torch.exp(-0.5 * (reach / deviation).square())
    kernel, margin = kernel / kernel.sum(), len(reach) // 2
    frames = F.pad(clip.transpose(0, 1), (margin,) * 4, mode="replicate").flatten(0, 1)[:, None]
    frames = F.conv2d(F.conv2d(frames, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return frames.view(clip.shape[1], 3, *clip.shape[2:]).transpose(0, 1)


def _pixelation(clip: Tensor, strength: float, draw: torch.Generator) -> Tensor:
    """Down to a quarter of the height and width, and up again."""
    size = [max(1, round(side * (1 - 0.75 * strength))) for side in clip.shape[2:]]
    small = F.interpolate(clip, size, mode="bilinear", antialias=True)
    return F.interpolate(small, clip.shape[2:], mode="nearest")


def _colour(clip: Tensor, strength: float, draw: torch.Generator) -> Tensor:
    """More red, less blue."""
    return clip + 64 * strength * torch.tensor([1.0, 0, -1]).view(3, 1, 1, 1)


def _contrast(clip: Tensor, strength: float, draw: torch.Generator) -> Tensor:
    return clip.mean() + (1 - 0.6 * strength) * (clip - clip.mean())


def _occlusion(clip: Tensor, strength: float, draw: torch.Generator) -> Tensor:
    """A grey square, half as high as the clip, in one place of all frames."""
    height, width = clip.shape[2:]
    side = max(1, round(strength * min(height, width) / 2))
    top, left = (int(torch.randint(n - side + 1, (), generator=draw)) for n in (height, width))
    covered = clip.clone()
    covered[..., top : top + side, left : left + side] = 128
    return covered


def _shuffle(clip: Tensor, strength: float, draw: torch.Generator) -> Tensor:
    """Frames come late by random times of up to the clip's length, and so out of order."""
    frames = clip.shape[1]
    late = strength * frames * torch.rand(frames, generator=draw)
    return clip[:, (torch.arange(frames) + late).argsort()]


def _drop(clip: Tensor, strength: float, draw: torch.Generator) -> Tensor:
    """Up to three quarters of the frames are lost; the one before stands still in their place."""
    frames = clip.shape[1]
    lost = 1 + torch.randperm(frames - 1, generator=draw)[: round(0.75 * strength * frames)]
    order = torch.arange(frames)
    order[lost] = 0
    return clip[:, order.cummax(0).values]


def _jitter(clip: Tensor, strength: float, draw: torch.Generator) -> Tensor:
    """Every frame moves by up to an eighth of the height, edges repeated."""
    reach = max(1, round(strength * clip.shape[2] / 8))
    padded = F.pad(clip.transpose(0, 1), (reach,) * 4, mode="replicate")
    height, width = clip.shape[2:]
    places = torch.randint(2 * reach + 1, (clip.shape[1], 2), generator=draw).tolist()
    moved = [frame[:, i : i + height, j : j + width] for frame, (i, j) in zip(padded, places, strict=True)]
    return torch.stack(moved, 1)


CORRUPTIONS: dict[str, Corruption] = {
    "noise": _noise,
    "blur": _blur,
    "pixelation": _pixelation,
    "colour": _colour,
    "contrast": _contrast,
    "occlusion": _occlusion,
    "frame shuffle": _shuffle,
    "frame drop": _drop,
    "jitter": _jitter,
}


def corrupted_reader(original: Reader, name: str, strength: float, seed: int) -> Reader:
    """The videos of another reader after the corruption ``name`` with a strength in (0, 1]."""

    def change(video: Tensor, position: int) -> Tensor:
        draw = generator(seed, position, 0, f"corruption {name}")
        changed = CORRUPTIONS[name](video.float(), strength, draw)
        return changed.round().clamp(0, 255).to(torch.uint8)

    return each(original, change)
