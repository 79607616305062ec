"""Batches of shards for training: which rows a step reads is a function of (seed, step, rank, world)."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from qdm_pipeline.randomness import epoch_rows
from qdm_pipeline.video.shard_files import DTYPES
from qdm_pipeline.video.shard_set import ShardSet

T = TypeVar("T")


def batch_indices(count: int, batch: int, seed: int, step: int, rank: int, world: int) -> Tensor:
    """Rows of rank's share of global batch ``step``, of ``batch`` samples a rank: int64 [batch]."""
    return epoch_rows(count, (step * world + rank) * batch, batch, seed)


class ShardBatches:
    """Item ``step`` is rank's share of global batch ``step``: ``rows`` (int64 [batch]) and the fields.

    So the order is that of `batch_indices` whoever reads, and a resume at any step is a matter of asking for
    that step.
    """

    def __init__(
        self,
        shards: ShardSet,
        fields: Sequence[str],
        rows: Tensor,
        batch: int,
        seed: int,
        rank: int,
        world: int,
        pin: bool = False,
    ) -> None:
        """Batches of ``fields`` of the samples of ``shards`` at ``rows`` (int64 [n], say of one split).

        ``pin``: in page-locked memory, from which a GPU copies while it computes.
        """
        self.shards, self.fields, self.rows = shards, list(fields), rows
        self.batch, self.seed, self.rank, self.world, self.pin = batch, seed, rank, world, pin

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        count = len(self.rows)
        chosen = self.rows[batch_indices(count, self.batch, self.seed, step, self.rank, self.world)]
        return {"rows": chosen} | {name: self._gather(name, chosen) for name in self.fields}

    def _gather(self, field: str, rows: Tensor) -> Tensor:
        if not self.pin:
            return self.shards.gather(field, rows)
        form = self.shards.manifest["fields"][field]
        space = torch.empty(len(rows), *form["shape"], dtype=DTYPES[form["dtype"]], pin_memory=True)
        return self.shards.gather(field, rows, space)


def read_ahead(read: Callable[[int], T], steps: Iterable[int], workers: int) -> Iterator[T]:
    """``read(step)`` for every step, in order, ``workers`` of them at work while the reader computes.

    Workers are threads: gathering rows is copying, which leaves the interpreter to others, while a worker
    process would have to copy every batch a second time to hand it over. With 0 the reader does it itself.
    """
    if not workers:
        yield from map(read, steps)
        return
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for step in steps:
                pending.append(pool.submit(read, step))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
