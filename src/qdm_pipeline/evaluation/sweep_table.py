"""What became of the points of a grid, as JSON, table and figure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from qdm_pipeline.evaluation.figures import plane_figure, sweep_figure
from qdm_pipeline.files import write_atomic, write_json
from qdm_pipeline.grid import Point, changes, say, without_seeds

COLUMNS = (
    "nfe",
    "frechet",
    "patches",
    "accuracy",
    "recall",
    "identity",
    "utilization",
    "perplexity",
    "latent_std",
    "seconds_per_clip",
)


@dataclass(frozen=True)
class Result:
    """What became of one point of the grid; ``rows`` as in ``metrics.json``, empty if it failed."""

    point: Point
    error: str | None
    rows: list[dict[str, Any]]


def write(folder: Path, results: Sequence[Result]) -> list[Path]:
    """``sweep.json``, ``sweep.md`` and ``sweep.png`` in ``folder``; returns their paths."""
    files = [folder / f"sweep.{kind}" for kind in ("json", "md", "png")]
    write_json(files[0], [vars(result) for result in results])
    write_atomic(files[1], table(results))
    figure(results).savefig(files[2], dpi=150)
    return files


def summary(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row for each point and set of samples: mean, least and most of every column over the seeds."""
    return sorted(_once(_averages(results)), key=lambda row: str(row["name"]))


def _averages(results: Sequence[Result]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        for row in result.rows:
            groups.setdefault((row["name"], without_seeds(result.point)), []).append(row)
    made = []
    for (name, point), rows in groups.items():
        values = {column: [row[column] for row in rows if row.get(column) is not None] for column in COLUMNS}
        found = {column: (mean(each), min(each), max(each)) for column, each in values.items() if each}
        made.append({"name": name, "point": point, "runs": len(rows), **found})
    return made


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
    """Distance and accuracy of every set of samples that was made by a model, over the points of the grid.

    Where two parameters were changed, lines over the one with more values.
    """
    points = {without_seeds(result.point): changes(result.point) for result in results if result.rows}
    names = list(dict.fromkeys(name for point in points.values() for name in point))
    if len(names) == 2 and all(len(point) == 2 for point in points.values()):
        said = {name: [say({name: point[name]}) for point in points.values()] for name in names}
        across, lines = sorted(names, key=lambda name: -len(set(said[name])))
        place = dict(zip(points, zip(said[across], said[lines], strict=True), strict=True))
        placed = [(row, *place[row["point"]]) for row in _averages(results) if row.get("nfe")]
        return plane_figure(placed, ("frechet", "accuracy"))
    return sweep_figure([row for row in summary(results) if row.get("nfe")], ("frechet", "accuracy"))
