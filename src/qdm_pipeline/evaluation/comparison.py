"""Several evaluations side by side, where their numbers can be compared at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdm_pipeline.errors import InputError
from qdm_pipeline.files import read_json

COLUMNS = (
    "nfe", "frechet", "frechet_limit", "kernel", "patches",
    "accuracy", "precision", "recall", "motion_distance", "drift", "identity",
)  # fmt: skip


def comparison(files: Sequence[Path]) -> str:
    """A Markdown table of the rows of these ``metrics.json`` (or folders that hold one), by row, then file.

    `InputError` if there are fewer than two, or if they were not measured alike: another full name of the
    metric, another digest of the extractor.
    """
    if len(files) < 2:
        raise InputError(f"compare: found {len(files)} evaluation, needs at least 2")
    found = {file: read_json(file / "metrics.json" if file.is_dir() else file) for file in files}
    names = {file: f"{each['metric']} ({each['extractor']['digest'][:12]})" for file, each in found.items()}
    if len(set(names.values())) > 1:
        said = "; ".join(f"{file}: {name}" for file, name in names.items())
        raise InputError(f"compare: distances of different metrics cannot be compared: {said}")
    labels = dict(zip(files, _shortest(files), strict=True))
    rows = [(row["name"], labels[file], row) for file, each in found.items() for row in each["rows"]]
    order = list(dict.fromkeys(name for name, _, _ in rows))
    lines = [f"`{found[files[0]]['metric']}`", "", "| row | run | " + " | ".join(COLUMNS) + " |"]
    lines.append("|---" * (2 + len(COLUMNS)) + "|")
    for name, label, row in sorted(rows, key=lambda one: order.index(one[0])):
        cells = " | ".join(_cell(row, column) for column in COLUMNS)
        lines.append(f"| {name} | {label} | {cells} |")
    return "\n".join(lines) + "\n"


def _shortest(files: Sequence[Path]) -> list[str]:
    """The parts of the paths in which they differ."""
    parts = [file.resolve().parts for file in files]
    differing = [len(set(level)) > 1 for level in zip(*parts, strict=False)]
    first = differing.index(True) if True in differing else 0
    return ["/".join(part for part in each[first:] if part != "metrics.json") for each in parts]


def _cell(row: dict[str, Any], column: str) -> str:
    if row.get(column) is None:  # an evaluation of before may lack a column
        return "–"
    interval = [row.get(f"{column}_{end}") for end in ("low", "high")]
    value = f"{row[column]:.4g}"
    return value if None in interval else f"{value} ({interval[0]:.3g} – {interval[1]:.3g})"
