"""Trouble with MLflow or the disk is said, loses nothing that can be kept, and ends no training."""

import os

import pytest

from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.training import trackers


class Client:
    """Takes metrics while ``up``."""

    def __init__(self):
        self.up, self.taken = True, []

    def log_batch(self, run_id, metrics):
        if not self.up:
            raise ConnectionError("nobody listens")
        self.taken += [(metric.key, metric.step) for metric in metrics]


@pytest.fixture
def run(tmp_path):
    made = Run("teacher", {}, {}, tmp_path)
    return made


@pytest.fixture
def tracker(run, monkeypatch):
    client = Client()
    opened = trackers.open_tracker(run, Ranks())
    opened._mlflow, opened.client = trackers._MLflow(client, "id", run), client
    return opened


def test_what_mlflow_missed_is_sent_when_it_is_back(tracker, caplog, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(trackers.time, "monotonic", lambda: clock[0])
    tracker._mlflow._next = 0.0
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
