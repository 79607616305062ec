"""``kedro sweep``: a grid is run point by point, under one MLflow run, and summed up."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import pytest
from click.testing import CliRunner
from kedro.framework.startup import bootstrap_project
from mlflow import MlflowClient

from qdm_pipeline import grid as grids
from qdm_pipeline import sweep as sweeps
from qdm_pipeline.cli import cli
from qdm_pipeline.errors import DivergenceError, InputError
from qdm_pipeline.evaluation import sweep_table
from qdm_pipeline.mlflow_runs import PARENT

ROOT = Path(__file__).parents[2]

PARENT_TAG = "mlflow.parentRunId"


def test_a_grid_is_every_combination_and_joined_parameters_move_together() -> None:
    points = grids.grid(["a.seed+b.seed=0,1", "b.times=[1.0],[1.0, 0.5]"])
    assert points == [
        {"a.seed": 0, "b.seed": 0, "b.times": [1.0]},
        {"a.seed": 0, "b.seed": 0, "b.times": [1.0, 0.5]},
        {"a.seed": 1, "b.seed": 1, "b.times": [1.0]},
        {"a.seed": 1, "b.seed": 1, "b.times": [1.0, 0.5]},
    ]
    assert grids.nested(points[0]) == {"a": {"seed": 0}, "b": {"seed": 0, "times": [1.0]}}


def test_an_axis_of_several_parameters_changes_them_at_once() -> None:
    both = {"d.times": [1.0], "d.steps": 120}
    assert grids.grid(["d.times=[1.0] d.steps=120"]) == [both]
    points = grids.grid(["d.seed=0,1", "d.times=[1.0] d.steps=120", "d.steps=2"], each=True)
    assert points == [{"d.seed": s} | change for s in (0, 1) for change in ({}, both, {"d.steps": 2})]
    assert grids.grid([grids.say(both)]) == [both]


def test_one_change_at_a_time_is_none_and_each_alone_with_all_seeds() -> None:
    points = grids.grid(["d.path=soft,continuous", "a.seed+b.seed=0,1", "d.steps=2"], each=True)
    changes = [{}, {"d.path": "soft"}, {"d.path": "continuous"}, {"d.steps": 2}]
    assert points == [{"a.seed": s, "b.seed": s} | change for s in (0, 1) for change in changes]
    assert grids.grid(["a.seed=0"], each=True) == [{"a.seed": 0}]
    assert grids.without_seeds(points[0]) == "as configured"
    assert grids.without_seeds(points[-1]) == "d.steps=2"


@pytest.mark.parametrize("wrong", ["distill.seed", "distill.seed=", "=1", "a=[1", "a b=1", "a= b=1"])
def test_what_is_no_axis_is_named(wrong: str) -> None:
    with pytest.raises(InputError, match=r"sweep: found .*wanted PARAMETER=VALUE"):
        grids.grid([wrong])


def test_runs_that_differ_in_seeds_are_averaged() -> None:
    def result(seed: int, width: int, frechet: float) -> sweep_table.Result:
        row = {"name": "student", "nfe": 4, "frechet": frechet, "accuracy": None}
        return sweep_table.Result({"d.seed": seed, "d.width": width}, None, [row])

    results = [result(0, 8, 10.0), result(1, 8, 14.0), result(0, 16, 7.0)]
    results.append(sweep_table.Result({"d.seed": 1, "d.width": 16}, "DivergenceError: collapse", []))
    teacher = {"name": "teacher", "nfe": 64, "frechet": 50.0}
    for each in results[:3]:
        each.rows.append(teacher)
    first, second, same = sweep_table.summary(results)
    assert same == {"name": "teacher", "point": "all", "runs": 3, "nfe": (64,) * 3, "frechet": (50.0,) * 3}
    assert first["runs"] == 2 and first["frechet"] == (12.0, 10.0, 14.0)
    assert second["point"] == "d.width=16" and second["frechet"] == (7.0, 7.0, 7.0)
    table = sweep_table.table(results)
    assert "| student | d.width=8 | 2 | 4 | **12** (10 – 14) | – |" in table
    assert "failed: d.seed=1 d.width=16: DivergenceError: collapse" in table


def test_two_parameters_are_drawn_as_lines_over_the_one_with_more_values() -> None:
    points = grids.grid(["d.seed=0,1", "a.size=8,16", "a.weight=0,0.5,1"])

    def rows(size: int, weight: float, seed: int) -> list[dict[str, Any]]:
        return [
            {"name": "teacher", "nfe": 64, "frechet": 50.0, "accuracy": 0.9},
            {"name": "student", "nfe": 4, "frechet": size * 100**weight + seed},
            {"name": "real", "frechet": 1.0},
        ]

    results = [
        sweep_table.Result(point, None, rows(point["a.size"], point["a.weight"], point["d.seed"]))
        for point in points
    ]
    results[-1] = sweep_table.Result(points[-1], "DivergenceError: collapse", [])
    results[5] = sweep_table.Result(points[5], "DivergenceError: collapse", [])
    panels = {axis.get_title(loc="left"): axis for axis in sweep_table.figure(results).axes}
    assert list(panels) == ["teacher: frechet", "teacher: accuracy", "student: frechet", "student: accuracy"]
    drawn = panels["student: frechet"]
    assert {line.get_label(): list(map(float, line.get_ydata())) for line in drawn.get_lines()} == {
        "a.size=8": [8.5, 80.5, 800.5], "a.size=16": [16.5, 160.5],
    }  # fmt: skip
    assert [tick.get_text() for tick in drawn.get_xticklabels()] == ["0", "0.5", "1"]
    assert drawn.get_xlabel() == "a.weight" and drawn.get_yscale() == "log"
    assert panels["teacher: frechet"].get_yscale() == "linear"
    one_axis = [sweep_table.Result({"a.size": size}, None, results[0].rows) for size in (8, 16)]
    assert [axis.get_title(loc="left") for axis in sweep_table.figure(one_axis).axes] == [
        "frechet",
        "accuracy",
    ]
    assert sweep_table.figure([results[-1]]).axes


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "conf", tmp_path / "conf", ignore=shutil.ignore_patterns("local"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in ("src", "conf/local"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    bootstrap_project(tmp_path)
    return tmp_path


def test_the_command_runs_every_point_under_one_run_and_tells_failures(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[Any, ...]] = []
    children: list[str] = []

    def run(project: Path, point: Any, pipelines: Any, env: Any, metrics: Path) -> sweep_table.Result:
        seen.append((point, list(pipelines), os.environ[PARENT]))
        child = MlflowClient(f"sqlite:///{project}/mlflow.db").create_run("1", tags={PARENT_TAG: seen[-1][2]})
        children.append(child.info.run_id)
        if point["distill.seed"] == 1:
            return sweep_table.Result(point, "DivergenceError: student, update 3: collapse", [])
        return sweep_table.Result(
            point, None, [{"name": "student", "nfe": 4, "frechet": 3.0, "accuracy": 0.5}]
        )

    monkeypatch.setattr(sweeps, "_run", run)
    with caplog.at_level(logging.INFO, logger="qdm_pipeline"):
        done = CliRunner().invoke(cli, ["sweep", "distill.seed=0,1", "--pipelines", "distill,sample"])
    address = unquote(caplog.messages[-1].rpartition(" ")[2])
    query = parse_qs(address.partition("?")[2])
    assert address.startswith("http://127.0.0.1:5000/#/compare-runs?") and query["experiments"] == ['["1"]']
    assert sorted(json.loads(query["runs"][0])) == sorted(children)
    assert (
        done.exit_code == 1 and "collapse" in done.output and "| student | as configured | 1 |" in done.output
    )
    assert [(point, names) for point, names, _ in seen] == [
        ({"distill.seed": 0}, ["distill", "sample"]), ({"distill.seed": 1}, ["distill", "sample"]),
    ]  # fmt: skip
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    parent = client.get_run(seen[0][2])
    assert parent.info.status == "FAILED" and parent.data.tags["sweep"] == "distill.seed=0,1"
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
        "sweep.json", "sweep.md", "sweep.png",
    }  # fmt: skip
    rows = json.loads((project / "data/08_reporting/sweep.json").read_text())
    assert [row["error"] is None for row in rows] == [True, False]
    assert PARENT not in os.environ


def test_one_failing_point_is_recorded_and_its_stack_is_not_lost_on_others(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Session:
        def __enter__(self) -> "Session":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def run(self, pipeline_names: list[str]) -> None:
            raise DivergenceError("student, update 3: collapse: latent std is 0.1 of the data's")

    monkeypatch.setattr(sweeps.KedroSession, "create", lambda *_, **__: Session())
    found = sweeps._run(project, {"distill.seed": 0}, (), None, project / "metrics.json")
    assert found.error == "DivergenceError: student, update 3: collapse: latent std is 0.1 of the data's"


def test_a_wrong_axis_is_one_line(project: Path) -> None:
    done = CliRunner().invoke(cli, ["sweep", "distill.seed"])
    assert done.exit_code == 1 and done.output.startswith("Error: sweep: found 'distill.seed'")
