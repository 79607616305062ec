"""One pipeline over a grid of parameters: child runs under one MLflow run, a table and a figure of all."""

import itertools
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from kedro.framework.session import KedroSession
from matplotlib.figure import Figure

from qdm_pipeline.errors import DivergenceError, InputError, WorkerError
from qdm_pipeline.evaluation.figures import sweep_figure
from qdm_pipeline.files import read_json, write_atomic, write_json
from qdm_pipeline.mlflow_runs import PARENT, comparison_page, finish, log_files, start

logger = logging.getLogger(__name__)

COLUMNS = (
    "nfe",
    "frechet",
    "accuracy",
    "recall",
    "utilization",
    "perplexity",
    "latent_std",
    "seconds_per_clip",
)
Point = dict[str, Any]  # values by dotted parameter


@dataclass(frozen=True)
class Result:
    """What became of one point of the grid; ``rows`` as in ``metrics.json``, empty if it failed."""

    point: Point
    error: str | None
    rows: list[dict[str, Any]]


def grid(axes: Sequence[str], each: bool = False) -> list[Point]:
    """All points of axes such as ``distill.seed=0,1,2``; with ``each`` one change at a time.

    ``a.seed+b.seed=0,1`` moves both together. With ``each`` the points are what is configured and, for every
    value of every axis, what is configured but for it; all of them with all seeds. Values are YAML, so lists
    are written in brackets. `InputError` for what is not of that form.
    """
    choices = []
    for axis in axes:
        names, equals, values = axis.partition("=")
        try:
            parsed = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError:
            parsed = None
        if not names or not equals or not parsed:
            raise InputError(f"sweep: found {axis!r}, wanted PARAMETER=VALUE,VALUE with at least one value")
        choices.append([dict.fromkeys(names.split("+"), value) for value in parsed])
    if each:
        seeds = [choice for choice in choices if not _changes(choice[0])]
        choices = [*seeds, [{}, *(value for choice in choices for value in choice if _changes(value))]]
    return [
        {name: value for part in parts for name, value in part.items()}
        for parts in itertools.product(*choices)
    ]


def nested(point: Point) -> dict[str, Any]:
    """The point as the tree of parameters that Kedro takes."""
    tree: dict[str, Any] = {}
    for name, value in point.items():
        *path, last = name.split(".")
        branch = tree
        for key in path:
            branch = branch.setdefault(key, {})
        branch[last] = value
    return tree


def sweep(
    project: Path, axes: Sequence[str], pipelines: Sequence[str], env: str | None, each: bool = False
) -> list[Result]:
    """Run every point; one that fails is recorded and the others go on. Writes ``sweep.*`` to the report."""
    points, reporting = grid(axes, each), project / "data/08_reporting"
    session: Any = KedroSession.create(project, env=env)
    with session:  # a wrong environment is said before any run
        config = session.load_context().config_loader["mlflow"]
    asked = " ".join([*(["--each"] if each else []), *axes])
    parent = start(project, config, f"sweep {asked}", {"sweep": asked})
    results: list[Result] = []
    os.environ[PARENT] = parent
    try:
        for number, point in enumerate(points, 1):
            logger.info("sweep: %d of %d: %s", number, len(points), say(point))
            results.append(_run(project, point, pipelines, env, reporting / "metrics.json"))
            files = write(reporting, results)
            log_files(project, config, parent, files)
    finally:
        del os.environ[PARENT]
        failed = len(results) < len(points) or any(result.error for result in results)
        finish(project, config, parent, "FAILED" if failed else "FINISHED")
    logger.info("MLflow, its runs compared: %s", comparison_page(project, config, parent))
    return results


def _run(project: Path, point: Point, pipelines: Sequence[str], env: str | None, metrics: Path) -> Result:
    before = metrics.stat().st_mtime_ns if metrics.exists() else None
    try:
        session: Any = KedroSession.create(project, env=env, runtime_params=nested(point))
        with session:
            session.run(pipeline_names=list(pipelines) or ["__default__"])
    except (InputError, DivergenceError, WorkerError) as error:
        message = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        logger.error("sweep: %s failed: %s", say(point), message)
        return Result(point, message, [])
    judged = metrics.exists() and metrics.stat().st_mtime_ns != before
    return Result(point, None, read_json(metrics)["rows"] if judged else [])


def write(folder: Path, results: Sequence[Result]) -> list[Path]:
    """``sweep.json``, ``sweep.md`` and ``sweep.png`` in ``folder``; returns their paths."""
    files = [folder / f"sweep.{kind}" for kind in ("json", "md", "png")]
    write_json(files[0], [vars(result) for result in results])
    write_atomic(files[1], table(results))
    figure(results).savefig(files[2], dpi=150)
    return files


def say(point: Point) -> str:
    """A point as it is typed."""
    return " ".join(f"{name}={json.dumps(value)}" for name, value in point.items())


def _changes(point: Point) -> Point:
    return {name: value for name, value in point.items() if not name.endswith("seed")}


def without_seeds(point: Point) -> str:
    """What distinguishes a point from others, seeds aside."""
    return say(_changes(point)) or "as configured"


def summary(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row for each point and set of samples: mean, least and most of every column over the seeds."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        for row in result.rows:
            groups.setdefault((row["name"], without_seeds(result.point)), []).append(row)
    made = []
    for (name, point), rows in groups.items():
        values = {column: [row[column] for row in rows if row.get(column) is not None] for column in COLUMNS}
        found = {column: (mean(each), min(each), max(each)) for column, each in values.items() if each}
        made.append({"name": name, "point": point, "runs": len(rows), **found})
    return sorted(_once(made), key=lambda row: str(row["name"]))


def _once(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of samples that no parameter of the grid changed, only once."""
    kept: dict[str, dict[str, Any]] = {}
    for row in rows:
        figures = {key: value for key, value in row.items() if key not in ("point", "runs")}
        if (same := kept.get(json.dumps(figures))) is None:
            kept[json.dumps(figures)] = row
        else:
            same["point"], same["runs"] = "all", same["runs"] + row["runs"]
    return list(kept.values())


def table(results: Sequence[Result]) -> str:
    """The summary in Markdown, and below it what failed."""
    lines = [
        "| samples | parameters | runs | " + " | ".join(COLUMNS) + " |",
        "|---" * (3 + len(COLUMNS)) + "|",
    ]
    for row in summary(results):
        cells = [_cell(row.get(column)) for column in COLUMNS]
        lines.append(f"| {row['name']} | {row['point']} | {row['runs']} | " + " | ".join(cells) + " |")
    failed = [f"* failed: {say(result.point)}: {result.error}" for result in results if result.error]
    return "\n".join(lines + ([""] + failed if failed else [])) + "\n"


def _cell(value: tuple[float, float, float] | None) -> str:
    if value is None:
        return "–"
    middle, low, high = (f"{number:.4g}" for number in value)
    return middle if low == high else f"**{middle}** ({low} – {high})"


def figure(results: Sequence[Result]) -> Figure:
    """Distance and accuracy of every set of samples that was made by a model, over the points of the grid."""
    rows = [row for row in summary(results) if row.get("nfe")]
    return sweep_figure(rows, ("frechet", "accuracy"))
