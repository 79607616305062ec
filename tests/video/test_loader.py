from itertools import islice
from pathlib import Path

import pytest
import torch

from qdm_pipeline.video.loader import ShardBatches, batch_indices, read_ahead
from qdm_pipeline.video.shards import ShardSet, write_shards

COUNT = 23


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    samples = (
        (
            {"latent": torch.full((2, 3), i, dtype=torch.bfloat16), "text": torch.full((4,), i / 2)},
            {"split": "train" if i % 4 else "test"},
        )
        for i in range(COUNT)
    )
    return write_shards(tmp_path, samples, {}, shard_size=5)


def batches(shards: ShardSet, batch: int = 6, rank: int = 0, world: int = 1) -> ShardBatches:
    return ShardBatches(shards, ["latent", "text"], shards.rows("train"), batch, 3, rank, world)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_their_rows_whatever_the_number_of_workers(shards: ShardSet, workers: int) -> None:
    train = shards.rows("train")
    for step, found in enumerate(read_ahead(batches(shards).__getitem__, range(9), workers)):
        assert torch.equal(found["rows"], train[batch_indices(len(train), 6, 3, step, 0, 1)])
        assert found["latent"].dtype == torch.bfloat16 and found["latent"].shape == (6, 2, 3)
        assert torch.equal(found["latent"][:, 0, 0].long(), found["rows"])
        assert torch.equal(found["text"], (found["rows"] / 2).view(-1, 1).expand(-1, 4))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resume_continues_the_order(shards: ShardSet, workers: int) -> None:
    whole = [found["rows"] for found in read_ahead(batches(shards).__getitem__, range(8), workers)]
    resumed = [found["rows"] for found in read_ahead(batches(shards).__getitem__, range(5, 8), workers)]
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], resumed, strict=True))


def test_two_ranks_share_the_batch_of_one(shards: ShardSet) -> None:
    one = batches(shards, batch=6)
    parts = [batches(shards, batch=3, rank=rank, world=2) for rank in range(2)]
    for step in range(8):
        together = torch.cat([part[step]["rows"] for part in parts])
        assert torch.equal(one[step]["rows"], together)


def test_every_epoch_visits_every_row_once() -> None:
    rows = torch.cat([batch_indices(10, 4, 0, step, 0, 1) for step in range(5)])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    assert len(batch_indices(3, 10, 0, 0, 0, 1)) == 10  # a batch of several epochs
    assert torch.equal(
        batch_indices(10, 20, 0, 0, 0, 1), torch.cat([batch_indices(10, 10, 0, s, 0, 1) for s in range(2)])
    )


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_read_a_few_batches_ahead_and_no_more(workers: int) -> None:
    read: list[int] = []

    def note(step: int) -> int:
        read.append(step)
        return step

    stream = read_ahead(note, range(10**9), workers)
    assert list(islice(stream, 5)) == [0, 1, 2, 3, 4]
    assert len(read) <= 5 + workers
    stream.close()  # type: ignore[attr-defined]


def test_an_error_in_a_worker_reaches_the_reader() -> None:
    def fail(step: int) -> int:
        return 1 // (3 - step)

    stream = read_ahead(fail, range(9), 2)
    assert list(islice(stream, 3)) == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(stream)
