"""How videos look close up, without a network."""

import torch
from torch import Tensor

from qdm_pipeline.randomness import generator

SIDE = 8  # pixels, or those of a smaller frame
COUNT = 64  # of a clip


def patches(clips: Tensor) -> Tensor:
    """Of clips uint8 [B, 3, T, H, W], the intensity of small squares of single frames: uint8 [B, 64, 64].

    All clips are looked at in the same places, drawn once for their size. Cf. the patches of Karras et al.
    2018 (arXiv:1710.10196).
    """
    frames, height, width = clips.shape[2:]
    side, draw = min(SIDE, height, width), generator(0, 0, 0, "patches")
    ends = (frames, height - side + 1, width - side + 1)
    places = torch.stack([torch.randint(end, (COUNT,), generator=draw) for end in ends], 1)
    intensity = clips.float().mean(1).round().to(torch.uint8)
    cut = [intensity[:, t, y : y + side, x : x + side].flatten(1) for t, y, x in places.tolist()]
    return torch.stack(cut, 1)
