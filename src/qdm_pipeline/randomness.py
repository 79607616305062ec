"""Every random draw is a function of (seed, step, rank, purpose), so a resume needs no generator state."""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor


def generator(
    seed: int, step: int, rank: int, purpose: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator whose stream depends on all four arguments and on nothing else."""
    key = hashlib.sha256(f"{seed}/{step}/{rank}/{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(key[:8], "little") >> 1)


@lru_cache(maxsize=4)
def _epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, epoch, 0, "epoch order"))


def batch_indices(count: int, batch: int, seed: int, step: int, rank: int, world: int) -> Tensor:
    """Rows of rank's share of global batch ``step``: int64 [batch].

    The concatenation over ranks depends on ``batch * world`` only, so two ranks of 32 see in one
    step what one rank of 64 sees. Every epoch visits each of ``count`` rows exactly once.
    """
    first = step * batch * world + rank * batch
    last = first + batch
    epochs = range(first // count, (last - 1) // count + 1)
    parts = [
        _epoch_order(count, seed, e)[max(first - e * count, 0) : min(last - e * count, count)] for e in epochs
    ]
    return torch.cat(parts)
