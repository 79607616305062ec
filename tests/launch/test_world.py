"""How many processes: as told, or as many as the machine has."""

import os
from pathlib import Path

import pytest
import torch

from qdm_pipeline.errors import InputError
from qdm_pipeline.launch import world


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def make(cores: int, gpus: int = 0, quota: str | None = None) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(world, "QUOTA", tmp_path / "cpu.max")
        if quota is not None:
            (tmp_path / "cpu.max").write_text(quota)

    return make


@pytest.mark.parametrize(
    ("cores", "gpus", "quota", "count"),
    [
        (2, 0, None, 2),
        (2, 4, None, 4),
        (64, 0, None, 8),
        (64, 0, "300000 100000\n", 3),
        (64, 0, "50000 100000\n", 1),
        (4, 0, "max 100000\n", 4),
    ],
)
def test_auto_is_what_the_machine_has(machine, cores, gpus, quota, count) -> None:
    machine(cores, gpus, quota)
    assert world.processes("auto") == count
    assert world.describe("auto").startswith(f"{count} process(es) on this machine (")


def test_videos_are_decoded_by_cores_whatever_gpus_there_are(machine) -> None:
    machine(16, 1, None)
    assert (world.processes("auto"), world.decoders("auto"), world.decoders(3)) == (1, 8, 3)


def test_a_number_is_shared_out_over_nodes() -> None:
    assert world.processes(8) == 8
    assert world.processes(8, 4) == 2
    assert world.describe(8, 4) == "2 process(es) on each of 4 nodes (as world_size says)"
    with pytest.raises(InputError, match="world_size: found 6, must be auto or a multiple of the 4 nodes"):
        world.processes(6, 4)
    with pytest.raises(InputError, match="world_size: found 0, must be auto or at least 1"):
        world.processes(0)
