from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from qdm_pipeline.errors import InputError
from qdm_pipeline.video.shards import Sample, ShardSet, write_shards


def samples(count: int = 10) -> Iterator[Sample]:
    for i in range(count):
        tensors = {"latent": torch.full((2, 3), i / 2), "codes": torch.tensor([i], dtype=torch.uint8)}
        yield tensors, {"id": i, "split": "train" if i % 3 else "test"}


def test_round_trip_in_any_order_and_over_shards(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, samples(), {"kind": "latents"}, shard_size=4)
    assert len(list(tmp_path.glob("shard-*"))) == 3 and len(shards) == 10
    rows = torch.tensor([9, 0, 4, 4, 3])
    assert torch.equal(shards.gather("codes", rows).flatten().long(), rows)
    assert torch.equal(shards.gather("latent", rows), (rows / 2).view(-1, 1, 1).expand(-1, 2, 3))
    assert shards.gather("latent", rows[:0]).shape == (0, 2, 3)
    assert shards.rows("test").tolist() == [0, 3, 6, 9]
    assert shards.manifest["kind"] == "latents"
    assert ShardSet(tmp_path).digest == shards.digest
    shards.verify()


def test_what_is_gathered_is_a_copy(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, samples(), {}, shard_size=4)
    shards.gather("latent", torch.arange(10)).zero_()
    assert shards.gather("latent", torch.tensor([8])).mean() == 4
    shards.verify()


def test_an_interrupted_write_leaves_nothing_to_open(tmp_path: Path) -> None:
    write_shards(tmp_path, samples(), {}, shard_size=2)

    def interrupted() -> Iterator[Sample]:
        yield from samples(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, interrupted(), {}, shard_size=2)
    with pytest.raises(InputError, match="no manifest.json"):
        ShardSet(tmp_path)
    assert len(write_shards(tmp_path, samples(3), {}, shard_size=2)) == 3


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, samples(), {}, shard_size=4)
    path = tmp_path / "shard-00001.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="shard-00001.safetensors: damaged"):
        shards.verify()
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match="shard-00001.safetensors: damaged"):
        ShardSet(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="shard-00001.safetensors: damaged"):
        ShardSet(tmp_path)


def test_no_samples_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sample"):
        write_shards(tmp_path, samples(0), {}, shard_size=4)
