import json
import math
from dataclasses import replace

import pytest
import torch

from qdm_pipeline.errors import DivergenceError, InputError
from qdm_pipeline.files import digest_file
from qdm_pipeline.handle import Handle
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.retention import Retention
from qdm_pipeline.run import Run
from qdm_pipeline.training import checkpoint
from qdm_pipeline.training.loop import train
from qdm_pipeline.training.model_files import load_predictor


@pytest.fixture
def run(tmp_path):
    return Run.create(
        "teacher", {"seed": 3}, {"latents": Handle("latents", tmp_path, "digest")}, tmp_path / "runs"
    )


def save(run, states, **retention):
    settings = {"every": 1, "keep_last": 2, "keep_every": None} | retention
    writer = checkpoint.Writer(run.directory, Retention(**settings))
    for step, state in states.items():
        writer.save(step, state)
    writer.wait()


class Interrupted(Exception):
    pass


def stop_at(task, last):
    train_step = task.train_step

    def step(number):
        if number == last:
            raise Interrupted
        return train_step(number)

    task.train_step = step
    return task


def test_an_interrupted_run_ends_with_the_same_bytes(make_teacher, run, tmp_path):
    straight = Run.create("teacher", {"seed": 4}, {}, tmp_path / "runs")
    train(make_teacher(), straight, Ranks())
    with pytest.raises(Interrupted):
        train(stop_at(make_teacher(), 5), run, Ranks())
    assert run.result() is None and checkpoint.latest(run.directory).step == 4
    train(make_teacher(), run, Ranks())
    assert run.result().digest == straight.result().digest
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 5, 6]
    assert not (run.directory / "checkpoints").exists()


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(run, caplog):
    save(run, {step: {"weights": torch.full((3,), float(step))} for step in (2, 4)})
    newest = checkpoint.latest(run.directory)
    state = bytearray((newest.path / "state.pt").read_bytes())
    state[len(state) // 2] ^= 1
    (newest.path / "state.pt").write_bytes(state)
    found = checkpoint.latest(run.directory)
    assert found.step == 2 and "step-00000004" in caplog.text
    assert checkpoint.load(found)["weights"].tolist() == [2.0] * 3


def test_an_unfinished_checkpoint_is_not_seen_and_old_ones_go(run):
    save(run, {step: {} for step in (1, 2, 3)})
    (run.directory / "checkpoints" / "step-00000009").mkdir()
    assert checkpoint.latest(run.directory).step == 3
    assert not (run.directory / "checkpoints" / "step-00000001").exists()


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(make_teacher, run):
    task = make_teacher()
    task.train_step = lambda step: {"loss/total": math.nan}
    with pytest.raises(DivergenceError, match="teacher, step 0.*loss/total nan"):
        train(task, run, Ranks())
    assert run.result() is None


def test_the_same_request_meets_the_same_directory(run, tmp_path):
    again = Run.create("teacher", {"seed": 3}, run.inputs, tmp_path / "runs")
    moved = {"latents": replace(run.inputs["latents"], path=tmp_path / "elsewhere")}
    assert again.directory == run.directory
    assert Run.create("teacher", {"seed": 3}, moved, tmp_path / "runs").directory == run.directory
    assert Run.create("teacher", {"seed": 4}, run.inputs, tmp_path / "runs").directory != run.directory


def test_half_a_line_of_metrics_is_not_read(run):
    run.metrics_file.write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n" + '{"step": 2, "lo')
    assert run.metrics() == [{"step": 1, "loss": 2.0}]


def test_missing_and_misfit_checkpoints_are_named(make_teacher, tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        load_predictor(tmp_path)
    make_teacher().export(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"depth": 1', '"depth": 2'))
    with pytest.raises(InputError, match="does not fit"):
        load_predictor(tmp_path)
    assert digest_file(tmp_path / "model.safetensors")
