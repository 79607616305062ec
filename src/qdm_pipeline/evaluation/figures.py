"""Figures for the report and for Kedro-Viz."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

# The report replaces these by colours that fit its light and its dark theme.
INK, MUTED, GRID, MAIN, SECOND = "#30363f", "#7d8590", "#dde1e6", "#2f6fde", "#d9730d"
WIDE = 10  # most over least, from where on an axis is logarithmic
REFERENCES = ("real", "shuffled", "noise", "reconstruction")  # rows that no model made


def curves_figure(rows: Sequence[Mapping[str, float]], columns: int = 4) -> Figure:
    """Every metric of a training run over its steps, one small chart each; ``rows`` as in `Run.metrics`.

    Positive metrics that span more than a factor of `WIDE` get a logarithmic axis.
    """
    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    figure, axes = _grid(len(names), columns, width=2.75, height=1.8)
    for name, axis in zip(names, axes, strict=True):
        points = [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
        steps, values = zip(*points, strict=True) if points else ((), ())
        axis.plot(steps, values, color=MAIN, linewidth=1.4)
        axis.set_title(name.replace("_", " "), loc="left", fontsize=9, color=INK)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _logarithmic_if_wide(axis, values)
    return figure


def codebook_figure(usage: Mapping[str, Tensor], columns: int = 4) -> Figure:
    """Use of every code, the most used first, one chart a sample set; ``usage`` holds int64 [G, K] by name.

    1 on the upright axis is what each code would get if all were used alike; one line a group.
    """
    figure, axes = _grid(len(usage), columns, width=2.75, height=2.1)
    for (name, histogram), axis in zip(usage.items(), axes, strict=True):
        share = histogram.double() / histogram.double().mean(1, keepdim=True).clamp(min=1e-12)
        ordered = share.sort(dim=1, descending=True).values
        rank = torch.linspace(0, 100, histogram.shape[1])
        for group in ordered:
            axis.plot(rank, group, color=MAIN, linewidth=1, alpha=max(0.35, 1 / len(ordered)))
        axis.axhline(1, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        axis.set_title(name, loc="left", fontsize=9, color=INK)
        axis.set_xlabel("codes, most used first (%)", fontsize=8, color=MUTED)
        axis.set_ylim(bottom=0)
    if axes:
        axes[0].set_ylabel("use (1 = uniform)", fontsize=8, color=MUTED)
    return figure


def distance_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Fréchet distance of every row with its 95 % interval; shaded below the floor of real clips.

    The axis is logarithmic where the distances span more than a factor of `WIDE`.
    """
    distances = [max(row["frechet"], 1e-9) for row in rows]
    wide = max(distances) > WIDE * min(distances)
    start = min(distances) / 3 if wide else 0
    figure = Figure(figsize=(11, 0.42 * len(rows) + 0.7), layout="constrained")
    axis = figure.add_subplot()
    _style(axis)
    for place, row in enumerate(reversed(rows)):
        color = SECOND if row["name"] in REFERENCES else MAIN
        axis.plot(
            [max(row["frechet_low"], start), row["frechet_high"]],
            [place] * 2,
            color=color,
            linewidth=2,
            alpha=0.45,
        )
        axis.plot(row["frechet"], place, "o", color=color, markersize=6)
        digits = ".3g" if row["frechet"] < 1000 else ",.0f"
        axis.annotate(
            f"{row['frechet']:{digits}}", (row["frechet_high"], place), (7, 0),
            textcoords="offset points", va="center", fontsize=8.5, color=INK,
        )  # fmt: skip
        if row["name"] == "real":
            axis.axvspan(start, row["frechet"], color=SECOND, alpha=0.09, linewidth=0)
    axis.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)], fontsize=9, color=INK)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    if wide:
        axis.set_xscale("log")
    axis.set_xlim(start, (2 if wide else 1.1) * max(row["frechet_high"] for row in rows) + 1e-9)
    axis.grid(False, axis="y")
    axis.set_xlabel("Fréchet distance to the test clips, with 95 % interval", fontsize=8.5, color=MUTED)
    return figure


def corruption_figure(corruptions: Sequence[Mapping[str, Any]]) -> Figure:
    """Distance of spoilt clips over the floor, one bar each; what the extractor is blind to is marked."""
    figure = Figure(figsize=(11, 0.3 * len(corruptions) + 0.7), layout="constrained")
    axis = figure.add_subplot()
    _style(axis)
    ordered = sorted(corruptions, key=lambda one: one["ratio"])
    for place, one in enumerate(ordered):
        axis.barh(place, one["ratio"], color=MAIN if one["seen"] else SECOND, height=0.62)
        text = f"{one['ratio']:.3g} ×" + ("" if one["seen"] else "  not seen")
        axis.annotate(
            text, (one["ratio"], place), (6, 0), textcoords="offset points", va="center", fontsize=8.5,
            color=INK,
        )  # fmt: skip
    axis.axvline(1, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    axis.set_yticks(range(len(ordered)), [one["name"] for one in ordered], fontsize=9, color=INK)
    axis.set_xscale("log")
    axis.set_xlim(0.5, 3 * max((one["ratio"] for one in ordered), default=1))
    axis.grid(False, axis="y")
    axis.set_xlabel("distance over that of clean clips", fontsize=8.5, color=MUTED)
    return figure


def code_dropout_figure(losses: Sequence[Mapping[str, Any]]) -> Figure:
    """Fréchet distance and PSNR of clips over the share of their codes that was changed, a line a kind."""
    figure, axes = _grid(2, 2, width=5.5, height=2.6)
    for column, title, axis in zip(("frechet", "psnr"), ("Fréchet distance", "PSNR (dB)"), axes, strict=True):
        for kind, color in zip(
            dict.fromkeys(one["kind"] for one in losses), (MAIN, SECOND, INK), strict=False
        ):
            points = [(100 * one["share"], max(one[column], 1e-9)) for one in losses if one["kind"] == kind]
            axis.plot(
                *zip(*points, strict=True), "o-", color=color, linewidth=1.4, markersize=3.5, label=kind
            )
        axis.set_title(title, loc="left", fontsize=9, color=INK)
        axis.set_xlabel("codes changed (%)", fontsize=8, color=MUTED)
    axes[0].set_yscale("log")
    axes[1].set_ylim(bottom=0)
    if losses:
        axes[1].legend(frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def sweep_figure(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Figure:
    """A panel a column: rows are sets of samples at points of a grid, values (mean, least, most)."""
    figure, axes = _grid(len(columns), len(columns), width=5.5, height=0.34 * max(1, len(rows)) + 0.9)
    for column, axis in zip(columns, axes, strict=True):
        for place, row in enumerate(reversed(rows)):
            if column in row:
                middle, low, high = row[column]
                color = SECOND if "teacher" in row["name"] else MAIN
                axis.plot([low, high], [place] * 2, color=color, linewidth=2, alpha=0.45)
                axis.plot(middle, place, "o", color=color, markersize=5)
        names = [f"{row['name']}  {row['point']}" for row in reversed(rows)]
        shown = names if axis is axes[0] else [""] * len(rows)
        axis.set_yticks(range(len(rows)), shown, fontsize=8, color=INK)
        axis.set_ylim(-0.6, max(1, len(rows)) - 0.4)
        axis.set_title(column, loc="left", fontsize=9, color=INK)
    return figure


def plane_figure(rows: Sequence[tuple[Mapping[str, Any], str, str]], columns: Sequence[str]) -> Figure:
    """A panel a set of samples and column: values (mean, least, most) over a parameter, a line for another's.

    ``rows``: what `sweep_figure` takes, and where it belongs, as in ``("a=1", "b=2")``. An upright axis is
    logarithmic where values span more than a factor of `WIDE`.
    """
    names, across, lines = (
        list(dict.fromkeys(each))
        for each in zip(*((row["name"], *place) for row, *place in rows), strict=True)
    )
    figure, axes = _grid(len(names) * len(columns), len(columns), width=5.5, height=2.4)
    for (name, column), axis in zip(itertools.product(names, columns), axes, strict=True):
        for index, line in enumerate(lines):
            points = [
                (across.index(place), *row[column])
                for row, place, other in rows
                if (row["name"], other) == (name, line) and column in row
            ]
            places, middle, low, high = zip(*sorted(points), strict=True) if points else ((),) * 4
            alpha = (index + 1) / len(lines)
            axis.plot(places, middle, "o-", color=MAIN, alpha=alpha, linewidth=1.4, markersize=4, label=line)
            axis.vlines(places, low, high, color=MAIN, alpha=alpha / 2, linewidth=2)
        values = [row[column][0] for row, *_ in rows if row["name"] == name and column in row]
        _logarithmic_if_wide(axis, values)
        axis.set_xticks(range(len(across)), [place.partition("=")[2] for place in across])
        axis.set_xlabel(across[0].partition("=")[0], fontsize=8, color=MUTED)
        axis.set_title(f"{name}: {column}", loc="left", fontsize=9, color=INK)
    axes[0].legend(frameon=False, fontsize=7.5, labelcolor=INK)
    return figure


def _grid(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    lines = max(1, -(-count // columns))
    columns = min(columns, max(count, 1))
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    axes = [figure.add_subplot(lines, columns, index + 1) for index in range(count)]
    for axis in axes:
        _style(axis)
    return figure, axes


def _logarithmic_if_wide(axis: Axes, values: Sequence[float]) -> None:
    if values and min(values) > 0 and max(values) > WIDE * min(values):
        axis.set_yscale("log")


def _style(axis: Axes) -> None:
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(MUTED)
    axis.grid(True, color=GRID, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(which="both", colors=MUTED, labelsize=8, length=0)
