import os
import pickle
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from qdm_pipeline.errors import InputError
from qdm_pipeline.files import digest_file
from qdm_pipeline.video import shard_files
from qdm_pipeline.video.shards import Sample, ShardSet, append_shards, write_shards


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


def test_reading_ahead_asks_for_the_pages_of_those_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[tuple[int, int]]()
    monkeypatch.setattr(
        shard_files, "_madvise", lambda begin, length, _: asked.append((begin, begin + length))
    )
    shards = write_shards(tmp_path, samples(), {}, shard_size=4)
    shards.ahead("latent", torch.tensor([9, 4]))
    places = [shards._bytes["latent"][shard][row].ctypes.data for shard, row in ((2, 1), (1, 0))]
    assert [end for _, end in asked] == [place + 2 * 3 * 4 for place in places]
    assert all(
        begin % 4096 == 0 and 0 <= place - begin < 4096
        for (begin, _), place in zip(asked, places, strict=True)
    )
    assert torch.equal(shards.gather("codes", torch.tensor([9, 4])).flatten(), torch.tensor([9, 4]))
    assert len(asked) == 2


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
    with pytest.raises(InputError, match="shard-00001.safetensors: missing, expected"):
        ShardSet(tmp_path)


@pytest.mark.parametrize("name", ["shard-00000.safetensors", "shard-00002.safetensors", "samples.jsonl"])
def test_one_flipped_bit_is_found_when_shards_are_opened(name: str, tmp_path: Path) -> None:
    write_shards(tmp_path, samples(), {}, shard_size=4)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: damaged, found SHA-256 [0-9a-f]+…, expected [0-9a-f]+…"):
        ShardSet(tmp_path)


def test_bytes_are_read_again_only_when_a_file_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def digest(path: Path) -> str:
        read.append(path.name)
        return digest_file(path)

    monkeypatch.setattr(shard_files, "digest_file", digest)
    shards = write_shards(tmp_path / "a", samples(), {}, shard_size=4)
    assert read == []  # what this process wrote is trusted
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    os.utime(tmp_path / "b" / "shard-00001.safetensors", (1, 1))
    ShardSet(tmp_path / "b")
    assert "shard-00001.safetensors" in read
    read.clear()
    ShardSet(tmp_path / "b")
    assert read == []
    shards.verify()
    assert len(read) == 4


def test_appended_samples_come_behind_the_old_ones(tmp_path: Path) -> None:
    facts = {"kind": "latents", "autoencoder": "ab"}
    whole = write_shards(tmp_path / "whole", samples(10), facts, shard_size=4)
    write_shards(tmp_path / "grown", islice(samples(), 8), facts, shard_size=4)
    grown = append_shards(tmp_path / "grown", islice(samples(), 8, None), facts, shard_size=4)
    rows = torch.tensor([9, 1, 8, 3])
    assert len(grown) == 10 and torch.equal(grown.gather("latent", rows), whole.gather("latent", rows))
    assert list(grown.samples()) == list(whole.samples())
    assert {p.name for p in grown.directory.glob("shard*")} == {
        p.name for p in whole.directory.glob("shard*")
    }
    assert ShardSet(tmp_path / "grown").digest == grown.digest != whole.digest


def test_an_interrupted_append_leaves_what_was_there(tmp_path: Path) -> None:
    before = write_shards(tmp_path, samples(), {}, shard_size=4)

    def interrupted() -> Iterator[Sample]:
        yield from samples(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        append_shards(tmp_path, interrupted(), {}, shard_size=4)
    assert ShardSet(tmp_path).digest == before.digest
    assert len(append_shards(tmp_path, samples(1), {}, shard_size=4)) == 11
    assert len(list(tmp_path.glob("shard-*"))) == 4


def test_other_encoders_sizes_and_dtypes_do_not_mix(tmp_path: Path) -> None:
    before = write_shards(tmp_path, samples(), {"autoencoder": "ab"}, shard_size=4)
    with pytest.raises(InputError, match="manifest.json: autoencoder: found 'ab', these samples have 'cd'"):
        append_shards(tmp_path, samples(), {"autoencoder": "cd"}, shard_size=4)
    for change in (lambda t: t[:1], lambda t: t.half()):
        other = (({**tensors, "latent": change(tensors["latent"])}, row) for tensors, row in samples())
        with pytest.raises(InputError, match=r"latent: found .*do not mix"):
            append_shards(tmp_path, other, {"autoencoder": "ab"}, shard_size=4)
    assert ShardSet(tmp_path).digest == before.digest


def test_shards_travel_to_other_processes_as_a_path(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, samples(), {}, shard_size=4)
    wire = pickle.dumps(shards)
    assert len(wire) < 500
    assert torch.equal(
        pickle.loads(wire).gather("latent", torch.arange(10)), shards.gather("latent", torch.arange(10))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_dtypes_are_kept_to_the_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.randn(7, 3, 5).mul(100).to(dtype)
    shards = write_shards(tmp_path, (({"x": value}, {"split": "train"}) for value in values), {}, 3)
    found = shards.gather("x", torch.arange(7))
    assert found.dtype == dtype and torch.equal(found, values)


def test_no_samples_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sample"):
        write_shards(tmp_path, samples(0), {}, shard_size=4)
