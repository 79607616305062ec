"""Trouble with MLflow or the disk is said, loses nothing that can be kept, and ends no training."""

import os
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.training import trackers


class Client:
    """Takes metrics while ``up``."""

    def __init__(self):
        self.up, self.taken, self.files, self.images = True, [], [], []

    def log_batch(self, run_id, metrics):
        if not self.up:
            raise ConnectionError("nobody listens")
        self.taken += [(metric.key, metric.step) for metric in metrics]

    def log_artifact(self, run_id, file, folder):
        self.files.append(f"{folder}/{Path(file).name}")

    def log_image(self, run_id, image, key, step):
        self.images.append((key, step, image.getpixel((0, 0))))


@pytest.fixture
def run(tmp_path):
    made = Run("teacher", {}, {}, tmp_path)
    return made


@pytest.fixture
def tracker(run, monkeypatch):
    client = Client()
    opened = trackers.open_tracker(run, Ranks())
    opened.client, opened.mlflow = client, trackers._MLflow(client, "id", run)
    opened._boards.append(opened.mlflow)
    return opened


@pytest.mark.parametrize(("left", "kept"), [("", ""), ('{"st', '{"st\n'), ('{"step": 1}\n', '{"step": 1}\n')])
def test_a_new_line_is_begun_only_where_a_killed_process_left_half_a_one(run, left, kept):
    run.metrics_file.write_text(left)
    tracker = trackers.open_tracker(run, Ranks())
    tracker.log(2, {"loss": 1.0})
    tracker.close()
    content = run.metrics_file.read_text()
    assert content.startswith(kept + '{"step": 2') and content.count("\n") == kept.count("\n") + 1


def test_what_mlflow_missed_is_sent_when_it_is_back(tracker, caplog, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(trackers.time, "monotonic", lambda: clock[0])
    tracker.mlflow._next = 0.0
    tracker.client.up = False
    for step in (1, 2, 3):
        clock[0] += 20
        tracker.log(step, {"loss": 1.0})
    assert tracker.client.taken == [] and caplog.text.count("does not take metrics now (nobody listens)") == 1
    tracker.client.up = True
    clock[0] += 100
    tracker.log(4, {"loss": 1.0})
    assert tracker.client.taken == [("teacher/loss", step) for step in (1, 2, 3, 4)]


def test_what_mlflow_never_took_goes_to_the_next_run(tracker, run, caplog):
    tracker.client.up = False
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    assert "did not take 1 metrics of teacher: they stand in metrics.jsonl" in caplog.text
    second = Client()
    trackers._MLflow(second, "other", run).close()
    assert second.taken == [("teacher/loss", 1)]


def test_a_full_disk_ends_no_training(tracker, caplog, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        tracker.log(1, {"loss": 1.0})
        tracker.log(2, {"loss": 1.0})
    tracker.log(3, {"loss": 1.0})
    tracker.close()
    assert caplog.text.count("metrics are not written (No space left on device)") == 1
    assert [metric for metric in tracker.client.taken] == [("teacher/loss", step) for step in (1, 2, 3)]


def test_pictures_move_as_files_and_scrub_as_images(tracker, run):
    folder = run.directory / "samples"
    folder.mkdir()
    frames = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (0, 100, 200)]
    for name in ("student-00010.webp", "student-00020.webp", "teacher.webp"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], lossless=True)
    tracker.close()
    tracker.close()
    names = ("student-00010.webp", "student-00020.webp", "teacher.webp")
    assert tracker.client.files == [f"teacher/samples/{name}" for name in names]
    assert tracker.client.images == [("teacher/student", step, (100, 0, 0)) for step in (10, 20)]


def test_tensorboard_has_every_step_once_after_an_interruption(run, tmp_path, monkeypatch):
    monkeypatch.setenv("QDM_TENSORBOARD", str(tmp_path / "boards"))
    for steps in ((1, 2, 3), (3, 4)):  # the second process begins at its checkpoint
        tracker = trackers.open_tracker(run, Ranks())
        for step in steps:
            tracker.log(step, {"loss": 1.0 / step})
        tracker.close()
    events = EventAccumulator(str(tmp_path / "boards" / run.directory.name)).Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(step, pytest.approx(1 / step)) for step in (1, 2, 3, 4)]


def test_weights_and_biases_keeps_a_run_on_this_machine(run, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb comes with the extra trackers")
    monkeypatch.setenv("QDM_WANDB", "tests")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = trackers.open_tracker(run, Ranks())
    tracker.log(1, {"loss": 0.5})
    tracker.close()
    wandb.teardown()  # the service behind it writes its last block when it ends
    (file,) = run.directory.glob("wandb/offline-run-*/*.wandb")
    assert b"loss" in file.read_bytes()


def test_a_broken_board_ends_no_training(run, monkeypatch, caplog):
    class Broken:
        def log(self, step, metrics):
            raise ConnectionError("gone")

    tracker = trackers.open_tracker(run, Ranks())
    tracker._boards.append(Broken())
    tracker.log(1, {"loss": 1.0})
    tracker.log(2, {"loss": 1.0})
    tracker.close()
    assert caplog.text.count("Broken takes no more metrics: gone") == 1
    assert [row["step"] for row in run.metrics()] == [1, 2]
