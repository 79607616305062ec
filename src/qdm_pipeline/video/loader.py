"""Batches of shards for training: which rows a step reads is a function of (seed, step, rank, world)."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from qdm_pipeline.randomness import batch_indices
from qdm_pipeline.video.shard_files import DTYPES, view_of
from qdm_pipeline.video.shard_set import ShardSet


class Batches(Dataset[dict[str, Tensor]]):
    """Item ``step`` is rank's share of global batch ``step``: ``rows`` (int64 [batch]) and the fields.

    So the order is that of `batch_indices` whatever the number of workers, and a resume at any step is a
    matter of asking for that step.
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
    ) -> None:
        """Batches of ``fields`` of the samples of ``shards`` at ``rows`` (int64 [n], say of one split)."""
        self.shards, self.fields, self.rows = shards, list(fields), rows
        self.batch, self.seed, self.rank, self.world = batch, seed, rank, world

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        count = len(self.rows)
        chosen = self.rows[batch_indices(count, self.batch, self.seed, step, self.rank, self.world)]
        return {"rows": chosen} | {name: self._gather(name, chosen) for name in self.fields}

    def _gather(self, field: str, rows: Tensor) -> Tensor:
        """In a worker straight into the shared memory that the batch is handed over in."""
        if get_worker_info() is None:
            return self.shards.gather(field, rows)
        form = self.shards.manifest["fields"][field]
        shape, dtype = torch.Size([len(rows), *form["shape"]]), DTYPES[form["dtype"]]
        memory = torch.UntypedStorage._new_shared(shape.numel() * dtype.itemsize)
        return self.shards.gather(field, rows, view_of(memory, 0, dtype, shape))


def load_batches(
    batches: Batches, steps: Sequence[int], workers: int, pin: bool = False
) -> Iterable[dict[str, Tensor]]:
    """The batches of ``steps`` in order, read ahead by ``workers`` processes, in pinned memory if asked."""
    return DataLoader(batches, batch_size=None, sampler=steps, num_workers=workers, pin_memory=pin)
