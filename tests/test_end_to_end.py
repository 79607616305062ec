"""From nothing to the report on two ranks, with everything tiny; then the same command again."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.torch import load_file

from qdm_pipeline import QuantizedVideoPipeline

ROOT = Path(__file__).parents[1]


def runs(project: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("qdm-pipeline")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id])  # newest first


def test_the_metrics_have_a_row_for_all_that_is_compared(project: Path) -> None:
    metrics = json.loads((project / "data/08_reporting/metrics.json").read_text())
    rows = {row["name"]: row for row in metrics["rows"]}
    assert set(rows) == {
        "teacher", "teacher-quantized", "teacher-few-step", "student",
        "real", "shuffled", "noise", "reconstruction",
    }  # fmt: skip
    for name in ("teacher", "student"):
        for key in ("nfe", "frechet", "accuracy", "utilization", "perplexity", "seconds_per_clip"):
            assert isinstance(rows[name][key], int | float), (name, key)
    assert rows["student"]["nfe"] == 4
    assert rows["teacher"]["nfe"] == 6  # 3 steps, each with and without the condition
    assert rows["reconstruction"]["psnr"] > 10
    assert "classifier" in metrics["metric"]


def test_there_is_something_to_look_at(project: Path) -> None:
    report = project / "data/08_reporting/report.html"
    assert "student" in report.read_text()
    for name in ("reconstructions.webp", "student_samples.webp", "teacher_curves.png", "codebook_use.png"):
        assert (project / "data/08_reporting" / name).stat().st_size > 1000
    handle = json.loads((project / "data/07_model_output/student_samples.json").read_text())
    samples = project / "data/07_model_output" / handle["path"]
    assert len(list((samples / "videos").glob("*.mp4"))) == 10
    assert {path.name for path in samples.glob("grid.*")} == {"grid.webp", "grid.gif", "grid.png"}


def test_mlflow_has_the_whole_record(project: Path) -> None:
    run = runs(project)[0]
    assert run.info.status == "FINISHED"
    assert run.data.params["teacher.steps"] == "6"
    assert {"classifier/loss", "student/frechet", "real/accuracy"} <= set(run.data.metrics)
    for job in ("autoencoder", "teacher", "student"):
        assert any(name.startswith(f"{job}/") for name in run.data.metrics)
    folders = {
        file.path for file in MlflowClient(f"sqlite:///{project}/mlflow.db").list_artifacts(run.info.run_id)
    }
    assert folders == {"curves", "figures", "images", "report", "samples", "student"}
    assert MlflowClient(f"sqlite:///{project}/mlflow.db").get_model_version("qdm-student", "1").run_id == (
        run.info.run_id
    )


def test_the_exported_student_makes_the_samples_of_the_run(project: Path) -> None:
    def path(handle: str) -> Path:
        file = project / "data" / handle
        return file.parent / str(json.loads(file.read_text())["path"])

    pipe = QuantizedVideoPipeline.from_pretrained(path("06_models/student_export.json"))
    samples = load_file(path("07_model_output/student_samples.json") / "samples.safetensors")
    assert torch.equal(pipe(count=30).codes, samples["codes"])


def test_the_same_command_again_does_nothing_twice(
    project: Path, kedro_run: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    weights = sorted(project.glob("data/*/*/**/*.safetensors"))
    before = [path.stat().st_mtime_ns for path in weights]
    with caplog.at_level(logging.INFO, logger="qdm_pipeline"):
        kedro_run(project, "__default__")
    assert [path.stat().st_mtime_ns for path in weights] == before
    assert sum("already complete, reused" in record.message for record in caplog.records) == 11
    assert not any("starting" in record.message for record in caplog.records)
    curve = MlflowClient(f"sqlite:///{project}/mlflow.db").get_metric_history(
        runs(project)[0].info.run_id, "classifier/loss"
    )
    assert [point.step for point in curve] == [2, 4]


def test_only_missing_outputs_are_made(
    project: Path, kedro_run: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    (project / "data/08_reporting/student_samples.webp").unlink()
    with caplog.at_level(logging.INFO):
        kedro_run(project, "__default__", only_missing_outputs=True)
    ran = [record.message for record in caplog.records if record.message.startswith("Running node")]
    assert ["sample_student" in message for message in ran] == [True]
    assert (project / "data/08_reporting/student_samples.webp").exists()


@pytest.mark.parametrize("page", ["README.md", "docs/inference.md"])
def test_the_code_of_a_page_runs(project: Path, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "of this test")  # the code sets it
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
