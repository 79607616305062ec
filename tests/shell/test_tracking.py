"""What MLflow is told about a run, on a tiny pipeline in memory."""

import atexit
import logging
import os
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import node, pipeline
from kedro.runner import SequentialRunner
from kedro_datasets.json import JSONDataset
from mlflow import MlflowClient
from mlflow.entities import Run as MLflowRun

from qdm_pipeline import tracking
from qdm_pipeline.configuration import settings
from qdm_pipeline.datasets import AnimationDataset, HandleDataset
from qdm_pipeline.errors import InputError
from qdm_pipeline.handle import Handle
from qdm_pipeline.mlflow_runs import PARENT
from qdm_pipeline.ranks import Ranks
from qdm_pipeline.run import Run
from qdm_pipeline.tracking import BoardsHook, MLflowHook, commit_tags, flatten, run_name
from qdm_pipeline.training.trackers import open_tracker

RUN_PARAMS = {"pipeline_names": ["train"], "env": "small", "runtime_params": {"teacher": {"seed": 3}}}


@settings
class Teacher:
    rate: float
    sizes: tuple[int, ...]


def learn(
    teacher: Teacher, folder: Path, world_size: int, latents: Handle
) -> tuple[dict[str, Any], bytes, Handle]:
    if teacher.rate == 0:
        raise KeyboardInterrupt
    if teacher.rate < 0:
        raise ValueError("rate went [/down]")
    tracker = open_tracker(Run("teacher", {}, {}, folder), Ranks())
    for step in (1, 2):
        tracker.log(step, {"loss": 1 / step})
    tracker.close()
    model = Handle("teacher", folder, "d", {"parameters": 12, "name": "x", "exact": True})
    return {"rows": [{"name": "teacher", "frechet": 2.5, "accuracy": None, "note": "x"}]}, b"RIFF", model


WIRING = pipeline(
    [
        node(
            learn,
            ["params:teacher", "folder", "params:world_size", "latents"],
            ["metrics", "grid", "model"],
            name="learn",
        )
    ]
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One project for all tests of this file: making MLflow's tables takes seconds."""
    folder = tmp_path_factory.mktemp("project")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *author, "commit", "-q", "--allow-empty", "-m", "a"], cwd=folder, check=True)
    return folder


def run(project: Path, rate: float, folder: Path, watched: bool = False) -> MLflowRun:
    hook = MLflowHook()
    config = {
        "tracking_uri": "sqlite:///mlflow.db",
        "experiment": "e",
        "artifacts": "mlartifacts",
        "system_metrics": watched,
    }
    hook.after_context_created(SimpleNamespace(project_path=project, config_loader={"mlflow": config}))
    catalog = DataCatalog(
        {
            "params:teacher": MemoryDataset(Teacher(rate=rate, sizes=(1, 2))),
            "params:world_size": MemoryDataset(2),
            "params:other": MemoryDataset(7),
            "folder": MemoryDataset(folder),
            "metrics": JSONDataset(filepath=str(project / "m.json"), metadata={"mlflow": "metrics"}),
            "grid": AnimationDataset(filepath=str(project / "g.webp"), metadata={"mlflow": "samples"}),
            "model": HandleDataset(
                filepath=str(project / "h.json"), kind="teacher", metadata={"mlflow": "facts"}
            ),
            "latents": HandleDataset(
                filepath=str(project / "latents.json"), kind="latents", metadata={"mlflow": "dataset"}
            ),
        }
    )
    catalog["latents"].save(Handle("latents", project, "0123456789abcdef", {}))
    manager = _create_hook_manager()
    manager.register(hook)
    hook.before_pipeline_run(RUN_PARAMS, WIRING, catalog)
    run_id = os.environ["MLFLOW_RUN_ID"]
    try:
        SequentialRunner().run(WIRING, catalog, manager)
        time.sleep(2.0 * watched)
        hook.after_pipeline_run()
    except ValueError as error:
        hook.on_pipeline_error(error)
    except KeyboardInterrupt:
        at_exit = cast(Mock, atexit.register).call_args.args
        at_exit[0](*at_exit[1:])
    assert "MLFLOW_RUN_ID" not in os.environ
    return MlflowClient(f"sqlite:///{project}/mlflow.db").get_run(run_id)


def test_a_finished_run_is_recorded(project: Path, tmp_path: Path) -> None:
    record = run(project, 0.1, tmp_path)
    assert record.info.status == "FINISHED"
    assert record.info.run_name == "train small teacher.seed=3"
    assert record.data.params == {"teacher.rate": "0.1", "teacher.sizes": "[1, 2]", "world_size": "2"}
    assert record.data.metrics == {"teacher/frechet": 2.5, "teacher/loss": 0.5, "teacher/parameters": 12}
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True
    )
    assert record.data.tags["mlflow.source.git.commit"] == head.stdout.strip()
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    assert [file.path for file in client.list_artifacts(record.info.run_id, "samples")] == ["samples/g.webp"]
    curve = client.get_metric_history(record.info.run_id, "teacher/loss")
    assert [(point.step, point.value) for point in curve] == [(1, 1.0), (2, 0.5)]
    (used,) = record.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("latents", "0123456789abcdef")
    assert record.data.tags["latents"] == "0123456789ab"


def test_the_machine_is_watched_until_the_run_ends(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    record = run(project, 0.1, tmp_path, watched=True)
    assert record.data.metrics["system/system_memory_usage_percentage"] > 0
    assert not [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"tensorboard": None, "wandb": "x"}, "wandb: the package wandb is missing"),
        ({"tensorbord": "x"}, "tensorbord: unknown; known are tensorboard, wandb"),
    ],
)
def test_a_wrong_board_is_said(config: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda package: None)
    context = SimpleNamespace(project_path=Path("p"), config_loader={"trackers": config})
    with pytest.raises(InputError, match=f"^trackers.yml: {said}"):
        BoardsHook().after_context_created(context)


def test_boards_are_told_to_workers_and_forgotten_by_the_next_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QDM_TENSORBOARD", "QDM_WANDB"):
        monkeypatch.setenv(name, "old")
    config = {"tensorboard": "boards", "wandb": None}
    BoardsHook().after_context_created(
        SimpleNamespace(project_path=Path("p"), config_loader={"trackers": config})
    )
    assert os.environ["QDM_TENSORBOARD"] == "p/boards" and "QDM_WANDB" not in os.environ


def test_a_failed_run_says_why_and_belongs_to_its_sweep(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PARENT, "abc")
    record = run(project, -1.0, tmp_path)
    assert record.data.tags["mlflow.parentRunId"] == "abc"
    assert record.info.status == "FAILED"
    assert record.data.tags["error"] == "ValueError: rate went [/down]"


def test_an_interrupted_run_is_failed_when_the_process_ends(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atexit, "register", Mock())
    record = run(project, 0.0, tmp_path)
    assert record.info.status == "FAILED"
    assert record.data.tags["error"] == "interrupted"


def test_metrics_of_before_an_interruption_come_first(project: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 4.0}\n{"step": 1, "lo')
    record = run(project, 0.1, tmp_path)
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    curve = client.get_metric_history(record.info.run_id, "teacher/loss")
    assert [point.step for point in curve] == [0, 1, 2]
    assert [row["step"] for row in Run("teacher", {}, {}, tmp_path).metrics()] == [0, 1, 2]


def test_trouble_with_mlflow_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("qdm_pipeline.training.trackers.BATCH", 1)
    with caplog.at_level(logging.WARNING, logger="qdm_pipeline"):
        learn(Teacher(rate=1.0, sizes=()), tmp_path, 1, Handle("latents", tmp_path, "d"))
    said = [record.message.split(" (")[0] for record in caplog.records]
    assert said[0] == "MLflow does not take metrics now" and "they stand in metrics.jsonl" in said[1]
    assert len(said) == 2
    assert len(Run("teacher", {}, {}, tmp_path).metrics()) == 2


@pytest.mark.parametrize(("name", "expected"), [("mine", [("mine", Path("export"))]), (None, [])])
def test_an_exported_model_is_registered_if_there_is_a_name_for_it(
    name: str | None, expected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[Any] = []
    monkeypatch.setattr(tracking, "register", lambda *arguments: registered.append(arguments[3:]))
    hook = MLflowHook()
    dataset = SimpleNamespace(metadata={"mlflow": "model"})
    hook._client, hook._experiment, hook._run_id = None, "1", "r"
    hook._config, hook._catalog = {"registered_model": name}, {"student_export": dataset}
    hook.after_dataset_saved("student_export", Handle("export", Path("export"), "d"))
    assert registered == expected


def test_names_and_tags(tmp_path: Path) -> None:
    assert run_name({"pipeline_names": None, "env": None, "runtime_params": {}}) == "all"
    assert flatten({"a": {"b": 1, "c": [2]}, "d": None}) == {"a.b": 1, "a.c": [2], "d": None}
    assert commit_tags(tmp_path) == {}
