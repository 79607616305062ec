"""Checkpoints on a disk that lies, fills up and is pulled away: none that is half is ever taken for whole."""

import json
import shutil
import threading

import pytest
import torch

from qdm_pipeline.errors import InputError
from qdm_pipeline.files import directory_atomic
from qdm_pipeline.retention import Retention
from qdm_pipeline.training import checkpoint


def retention(**changes):
    return Retention(**{"every": 1, "keep_last": 2, "keep_every": None} | changes)


def save(directory, states, **changes):
    writer = checkpoint.Writer(directory, retention(**changes))
    for step, state in states.items():
        writer.save(step, state)
    writer.wait()


def steps(directory):
    return sorted(int(path.name[5:]) for path in (directory / "checkpoints").glob("step-*"))


def test_what_is_written_is_the_state_at_the_call(tmp_path, monkeypatch):
    # The thread is held until the training has gone on: a step waits for the copy, not for the disk.
    gate, whole = threading.Event(), torch.save
    monkeypatch.setattr(torch, "save", lambda *arguments: gate.wait(30) and whole(*arguments))
    weights = torch.ones(3)
    writer = checkpoint.Writer(tmp_path, retention())
    writer.save(1, {"weights": weights})
    weights.zero_()
    assert checkpoint.latest(tmp_path) is None
    gate.set()
    writer.wait()
    assert checkpoint.load(checkpoint.latest(tmp_path))["weights"].tolist() == [1.0] * 3


def test_the_memory_of_a_copy_serves_the_next_one_whatever_has_changed(tmp_path):
    states = [
        {"weights": torch.ones(3), "step": 1},
        {"weights": torch.arange(3.0), "step": 2},
        {"weights": torch.arange(3), "step": 3},
        {"weights": torch.arange(6.0).view(3, 2).T, "step": 4},
        {"step": 5, "more": torch.ones(1), "weights": torch.zeros(2)},
    ]
    writer = checkpoint.Writer(tmp_path, retention())
    places = []
    for state in states:
        writer.save(state["step"], state)
        writer.wait()
        found = checkpoint.load(checkpoint.latest(tmp_path))
        assert found.keys() == state.keys() and found["step"] == state["step"]
        assert all(torch.equal(found[name], state[name]) for name in state.keys() - {"step"})
        assert found["weights"].dtype == state["weights"].dtype
        places.append(writer._copy[0])
    assert places[0] is places[1]


@pytest.mark.parametrize(
    ("keep", "left"), [({}, [6, 7]), ({"keep_last": 3}, [5, 6, 7]), ({"keep_every": 3}, [3, 6, 7])], ids=str
)
def test_retention(tmp_path, keep, left):
    save(tmp_path, {step: {} for step in range(1, 8)}, **keep)
    assert steps(tmp_path) == left


def test_a_damaged_checkpoint_does_not_count_as_kept(tmp_path):
    save(tmp_path, {1: {}, 2: {}})
    (tmp_path / "checkpoints/step-00000002/state.pt").write_bytes(b"")
    save(tmp_path, {3: {}})  # another process: it trusts nothing that it has not verified
    assert {1, 3} <= set(steps(tmp_path))
    assert checkpoint.latest(tmp_path).step == 3


DAMAGES = {
    "flipped": lambda file, place: file.write_bytes(flipped(file.read_bytes(), place)),
    "cut": lambda file, place: file.write_bytes(file.read_bytes()[: int(place * file.stat().st_size)]),
    "gone": lambda file, place: file.unlink(),
}


def flipped(content, place):
    damaged = bytearray(content)
    damaged[int(place * len(damaged))] ^= 1
    return bytes(damaged)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("file", ["state.pt", "manifest.json"])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 0.99])
def test_any_damage_is_named_and_passed_over(tmp_path, caplog, how, file, place):
    save(tmp_path, {step: {"weights": torch.arange(50.0) * step} for step in (2, 4)})
    DAMAGES[how](tmp_path / "checkpoints/step-00000004" / file, place)
    assert checkpoint.latest(tmp_path).step == 2
    assert f"step-00000004/{file}" in caplog.text


def test_a_renamed_checkpoint_is_not_taken_for_another_step(tmp_path):
    save(tmp_path, {2: {}})
    (tmp_path / "checkpoints/step-00000002").rename(tmp_path / "checkpoints/step-00000009")
    with pytest.raises(
        InputError, match="all 1 checkpoints are damaged.*remove this folder to start at step 0"
    ):
        checkpoint.latest(tmp_path)


def test_it_never_starts_over_in_silence(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    save(tmp_path, {2: {}, 4: {}})
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="all 2 checkpoints are damaged"):
        checkpoint.latest(tmp_path)


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    save(tmp_path, {2: {}})
    root = tmp_path / "checkpoints"
    (root / ".step-00000004.17.part").mkdir()
    (root / ".step-00000004.17.part" / "state.pt").write_bytes(b"half")
    checkpoint.Writer(tmp_path, retention())
    assert [path.name for path in root.iterdir()] == ["step-00000002"]


def test_a_full_disk_is_said_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    writer = checkpoint.Writer(tmp_path, retention())
    writer.save(2, {"weights": torch.ones(3)})
    writer.wait()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    writer.save(4, {})
    with pytest.raises(
        InputError, match="No space left on device; the checkpoint of step 2 stands: free some"
    ):
        writer.save(6, {})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert checkpoint.latest(tmp_path).step == 2


def test_a_directory_is_whole_or_absent(tmp_path):
    with pytest.raises(ZeroDivisionError), directory_atomic(tmp_path / "made") as aside:
        (aside / "file").write_text("half")
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_has_all_that_verification_needs(tmp_path):
    save(tmp_path, {2: {}})
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "elsewhere" / "checkpoints")
    assert checkpoint.latest(tmp_path / "elsewhere").step == 2
    manifest = json.loads((tmp_path / "checkpoints/step-00000002/manifest.json").read_text())
    assert manifest.keys() == {"step", "files", "digest"} and manifest["files"].keys() == {"state.pt"}
