"""What a code stands for: the real clips that use it most, lit up where they do."""

import torch
import torch.nn.functional as F
from torch import Tensor

from qdm_pipeline.evaluation.readers import Reader

CODES = 4  # of each kind, each of another group: the most used, and rare ones
SHOWN = 6  # clips of a code; a rare one is used by at least as many
WINDOW = 4  # latent positions that a crop is high and wide
DIMMED, GREY = 0.35, 88.0  # what is left of a picture where another code stands


def clips_of_codes(codes: Tensor, usage: Tensor, videos: Reader) -> dict[str, Tensor]:
    """Clips, cropped, that use a code most: uint8 [1, n, 3, T, h, w] by ``used/GROUP-CODE`` or ``rare/...``.

    ``codes`` [N, G, T', H', W'] of the clips that ``videos`` reads, ``usage`` [G, K] of these codes.
    """
    users = torch.stack([_clips_using(group, usage.shape[1]) for group in codes.unbind(1)])
    known = users >= min(SHOWN, len(codes))
    most, least = usage.max(1), usage.where(known, usage.max() + 1).min(1)
    order = {"used": most.values.argsort(descending=True), "rare": least.values.argsort()}
    code = {"used": most.indices, "rare": least.indices}
    return {
        f"{kind}/{group}-{code[kind][group]}": _clips_of(codes[:, group] == code[kind][group], videos)[None]
        for kind, groups in order.items()
        for group in groups[:CODES].tolist()
        if known[group, code[kind][group]]
    }


def _clips_using(codes: Tensor, size: int) -> Tensor:
    """In how many of N clips each code of a group is used: int64 [K] from codes [N, T', H', W']."""
    own = codes.flatten(1).long() + size * torch.arange(len(codes))[:, None]
    return torch.bincount(own.unique() % size, minlength=size)


def _clips_of(used: Tensor, videos: Reader) -> Tensor:
    """The clips with the most places in ``used`` [N, T', H', W'], lit up there: uint8 [n, 3, T, h, w]."""
    most = used.flatten(1).sum(1).argsort(descending=True, stable=True)[:SHOWN]
    return torch.stack(
        [_crop(spotlight(*pair), pair[1]) for pair in zip(videos(most), used[most], strict=True)]
    )


def spotlight(video: Tensor, used: Tensor) -> Tensor:
    """``video`` uint8 [3, T, H, W], greyed but for the places ``used`` bool [T', H', W']."""
    lit = enlarged(used, *video.shape[1:])
    return torch.where(lit, video, (video * DIMMED + GREY).to(torch.uint8))


def _crop(video: Tensor, used: Tensor) -> Tensor:
    """The part of ``video`` [3, T, H, W] whose latent positions hold the most of ``used`` [T', H', W']."""
    (_, _, height, width), (_, rows, columns) = video.shape, used.shape
    high, wide = min(WINDOW, rows), min(WINDOW, columns)
    held = F.avg_pool2d(used.sum(0).float()[None, None], (high, wide), stride=1)[0, 0]
    top, left = divmod(int(held.argmax()), held.shape[1])
    down, right = height // rows, width // columns
    return video[..., top * down : (top + high) * down, left * right : (left + wide) * right]


def enlarged(cells: Tensor, frames: int, height: int, width: int) -> Tensor:
    """``cells`` [..., T', H', W'] as large as the video behind them: [..., T, H, W].

    Frames of a latent frame are as the causal autoencoder makes them: one for the first, as many for each
    other.
    """
    times, rows, columns = cells.shape[-3:]
    patch = (frames - 1) // max(1, times - 1) or 1
    time = ((torch.arange(frames) + patch - 1) // patch).clamp(max=times - 1)
    row, column = torch.arange(height) * rows // height, torch.arange(width) * columns // width
    return cells[..., time[:, None, None], row[:, None], column]
