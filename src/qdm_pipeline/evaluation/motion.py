"""How much clips move and flicker, without a network."""

import torch
from torch import Tensor


def motion(clips: Tensor) -> Tensor:
    """Of clips uint8 [B, 3, T, H, W], T >= 3, per clip [B, 2]: motion and flicker, intensities in [0, 1].

    Motion is the mean absolute difference of neighbouring frames. Flicker is that of neighbouring
    differences, which steady motion of smooth pictures leaves small. Both are NaN for shorter clips.
    """
    if clips.shape[2] < 3:
        return torch.full((len(clips), 2), torch.nan)
    first = clips.float().diff(dim=2) / 255
    return torch.stack([first.abs().mean((1, 2, 3, 4)), first.diff(dim=2).abs().mean((1, 2, 3, 4))], 1)


def wasserstein(a: Tensor, b: Tensor) -> float:
    """Distance between the distributions of a [N] and b [M]: the area between their step functions."""
    a, b = a.double().sort().values, b.double().sort().values
    places = torch.cat([a, b]).sort().values
    below_a, below_b = (torch.searchsorted(side, places[:-1], right=True) / len(side) for side in (a, b))
    return float(((below_a - below_b).abs() * places.diff()).sum())
