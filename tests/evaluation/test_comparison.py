"""Evaluations side by side, and those that cannot be."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qdm_pipeline.cli import cli
from qdm_pipeline.errors import InputError
from qdm_pipeline.evaluation.comparison import comparison
from qdm_pipeline.evaluation.rows import COLUMNS
from qdm_pipeline.files import write_json


def write(folder: Path, frechet: float, **changes: Any) -> Path:
    row = dict.fromkeys(COLUMNS) | {"name": "student", "nfe": 4, "frechet": frechet}
    row |= {"frechet_low": frechet - 1, "frechet_high": frechet + 1}
    real = dict.fromkeys(COLUMNS) | {"name": "real", "frechet": 2.0}
    metrics = {"metric": "frechet[x,9f,32,50]", "extractor": {"digest": "a" * 64}, "rows": [row, real]}
    write_json(folder / "metrics.json", metrics | changes)
    return folder


def test_rows_of_one_name_stand_together(tmp_path: Path) -> None:
    paths = [write(tmp_path / "first", 74.6), write(tmp_path / "second", 51.7) / "metrics.json"]
    table = comparison(paths).splitlines()
    assert table[0] == "`frechet[x,9f,32,50]`"
    assert [line.split(" | ")[:2] for line in table[4:]] == [
        ["| student", "first"],
        ["| student", "second"],
        ["| real", "first"],
        ["| real", "second"],
    ]
    assert "74.6 (73.6 – 75.6)" in table[4]
    shown = CliRunner().invoke(cli, ["compare", *map(str, paths)])
    assert (shown.exit_code, shown.output.splitlines()) == (0, table)


def test_an_evaluation_of_before_lacks_a_column(tmp_path: Path) -> None:
    old = {"name": "student", "nfe": 4, "frechet": 3.0}
    table = comparison([write(tmp_path / "new", 2), write(tmp_path / "old", 3, rows=[old])]).splitlines()
    assert next(line for line in table if "| old |" in line).endswith(" – |")


@pytest.mark.parametrize(
    "changes", [{"metric": "fvd[i3d-ts,16f,224,50]"}, {"extractor": {"digest": "b" * 64}}]
)
def test_what_was_not_measured_alike_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    paths = [write(tmp_path / "first", 1), write(tmp_path / "second", 2, **changes)]
    with pytest.raises(InputError, match="cannot be compared: .*first: frechet"):
        comparison(paths)
    assert "cannot be compared" in CliRunner().invoke(cli, ["compare", *map(str, paths)]).output
    with pytest.raises(InputError, match="found 1 evaluation, needs at least 2"):
        comparison(paths[:1])
