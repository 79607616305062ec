"""What is said about rows whose Fréchet distance should not be believed as it stands."""

from collections.abc import Mapping, Sequence
from typing import Any

ENOUGH = 1.5  # clips over features: with as many as features the extrapolation is still far off
ONE = 0.2  # of a distance; a single sample that makes more of it is named


def warnings(rows: Sequence[Mapping[str, Any]], clips: int, dimension: int) -> list[str]:
    """A line for every set that is too small, and for every row that owes its distance to one sample.

    ``clips`` of the test split were seen in ``dimension`` features.
    """
    counts = {row["name"]: row["count"] for row in rows} | {"the test split": clips}
    small = [
        f"{name}: {count} clips for {dimension} features: its Fréchet distance is far above its limit, and "
        f"the extrapolated one not to be relied on"
        for name, count in counts.items()
        if count < ENOUGH * dimension
    ]
    alone = [
        f"{row['name']}: sample {row['furthest']} (counted from 0) alone makes {share:.0%} of the Fréchet "
        f"distance ({row['frechet']:.4g}; {row['frechet_without']:.4g} without it): look at it"
        for row in rows
        if row["frechet"] > 0 and (share := 1 - row["frechet_without"] / row["frechet"]) > ONE
    ]
    return small + alone
