"""Every random draw is a function of (seed, step, rank, purpose), so a resume needs no generator state."""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from qdm_pipeline.errors import InputError


def generator(
    seed: int, step: int, rank: int, purpose: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator whose stream depends on all four arguments and on nothing else."""
    key = hashlib.sha256(f"{seed}/{step}/{rank}/{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(key[:8], "little") >> 1)


@lru_cache(maxsize=4)
def _epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, epoch, 0, "epoch order"))


def epoch_rows(count: int, first: int, length: int, seed: int) -> Tensor:
    """Rows at positions ``first`` … of an endless sequence of shuffled epochs: int64 [length].

    Every epoch visits each of ``count`` rows exactly once.
    """
    last = first + length
    epochs = range(first // count, (last - 1) // count + 1)
    parts = [
        _epoch_order(count, seed, e)[max(first - e * count, 0) : min(last - e * count, count)] for e in epochs
    ]
    return torch.cat(parts)


def size_at(number: int, counts: tuple[int, ...], micro_batch: int, seed: int) -> tuple[int, int]:
    """The size of micro-batch ``number`` of an endless sequence, and how many of that size came before it.

    A size of ``count`` of N rows has ``count`` / N of the micro-batches, within an epoch in random order, so
    that all sizes pass their epochs alike.
    """
    if len(counts) == 1:
        return 0, number
    epoch = number * micro_batch // sum(counts)
    while sum(_before(epoch + 1, counts, micro_batch)) <= number:
        epoch += 1
    first = sum(_before(epoch, counts, micro_batch))
    return _epoch_sizes(epoch, counts, micro_batch, seed)[number - first]


def _before(epoch: int, counts: tuple[int, ...], micro_batch: int) -> list[int]:
    """How many micro-batches of every size come before an epoch."""
    return [epoch * count // micro_batch for count in counts]


@lru_cache(maxsize=2)
def _epoch_sizes(epoch: int, counts: tuple[int, ...], micro_batch: int, seed: int) -> list[tuple[int, int]]:
    before, after = (_before(each, counts, micro_batch) for each in (epoch, epoch + 1))
    sizes = [size for size in range(len(counts)) for _ in range(before[size], after[size])]
    order = torch.randperm(len(sizes), generator=generator(seed, epoch, 0, "order of sizes")).tolist()
    numbers = [count(begin) for begin in before]
    return [(sizes[place], next(numbers[sizes[place]])) for place in order]


class MicroBatch(NamedTuple):
    """What one forward pass of one optimizer step looks at."""

    number: int  # among the micro-batches of this step on all ranks: what its random draws are seeded by
    rows: Tensor  # int64


class Batches:
    """The batches of a training, cut into micro-batches that are dealt out to ranks.

    What a step looks at does not depend on the number of ranks, only who does which part: one rank, two, or
    two after one make the same steps. The rows of a micro-batch are of one size; every row of a size comes
    once before any of them comes again.
    """

    def __init__(
        self, size_of: Tensor, batch: int, micro_batch: int, seed: int, rank: int, world: int
    ) -> None:
        """Batches of rows whose sizes are ``size_of`` (int64 [N]).

        `InputError` if ranks cannot share the micro-batches equally.
        """
        self.batch, self.micro_batch, self.seed = batch, micro_batch, seed
        self.members = [(size_of == size).nonzero().flatten() for size in size_of.unique().tolist()]
        self.counts = tuple(len(rows) for rows in self.members)
        total = batch // micro_batch
        if total % world:
            fitting = ", ".join(str(n) for n in range(1, total + 1) if total % n == 0)
            raise InputError(
                f"world_size: found {world}, but a batch of {batch} is {total} micro-batches of "
                f"{micro_batch}, which ranks must share equally; allowed are {fitting}"
            )
        self.share = range(rank * total // world, (rank + 1) * total // world)

    def of(self, step: int) -> list[MicroBatch]:
        """What this rank looks at in an optimizer step."""
        return [MicroBatch(number, self._rows(step, number)) for number in self.share]

    def _rows(self, step: int, number: int) -> Tensor:
        place = self.first(step, number) // self.micro_batch
        size, before = size_at(place, self.counts, self.micro_batch, self.seed)
        rows = self.members[size]
        return rows[epoch_rows(len(rows), before * self.micro_batch, self.micro_batch, self.seed)]

    def first(self, step: int, number: int) -> int:
        """The position of a micro-batch in the endless sequence of samples."""
        return step * self.batch + number * self.micro_batch

    def rows(self, steps: Iterable[int]) -> Tensor:
        """All rows that this rank looks at in some steps, in that order."""
        return torch.cat([micro.rows for step in steps for micro in self.of(step)])
