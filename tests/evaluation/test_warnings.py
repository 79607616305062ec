"""Which rows are warned of, and in what words."""

from typing import Any

from qdm_pipeline.evaluation.warnings import warnings


def row(name: str, frechet: float, without: float, count: int = 1000) -> dict[str, Any]:
    return {"name": name, "count": count, "frechet": frechet, "furthest": 140, "frechet_without": without}


def test_a_row_that_owes_its_distance_to_one_sample_names_it() -> None:
    rows = [row("teacher", 58.15, 34.06), row("student", 47.1, 42.2), row("real", 0.0, 0.0)]
    assert warnings(rows, 1000, 64) == [
        "teacher: sample 140 (counted from 0) alone makes 41% of the Fréchet distance "
        "(58.15; 34.06 without it): look at it"
    ]


def test_small_sets_are_named_the_test_split_among_them() -> None:
    said = warnings([row("student", 5.0, 5.0, count=95), row("teacher", 5.0, 5.5, count=96)], 50, 64)
    assert [line.split(":")[0] for line in said] == ["student", "the test split"]
