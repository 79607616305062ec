"""Points of a grid of parameters: what is typed after ``kedro sweep``."""

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

import yaml

from qdm_pipeline.errors import InputError

Point = dict[str, Any]  # values by dotted parameter


def grid(axes: Sequence[str], each: bool = False) -> list[Point]:
    """All points of axes such as ``distill.seed=0,1,2``; with ``each`` one change at a time.

    ``a.seed+b.seed=0,1`` moves both together, and ``a=1 b=2``, as one axis, changes both at once. With
    ``each`` the points are what is configured and, for every value of every axis, what is configured but for
    it; all of them with all seeds. Values are YAML, so lists are written in brackets. `InputError` for what
    is not of that form.
    """
    choices = [_product([_choices(part) for part in re.split(r"\s+(?=[\w.+]+=)", axis)]) for axis in axes]
    if each:
        seeds = [choice for choice in choices if not changes(choice[0])]
        choices = [*seeds, [{}, *(value for choice in choices for value in choice if changes(value))]]
    return _product(choices)


def _choices(axis: str) -> list[Point]:
    names, equals, values = axis.partition("=")
    try:
        parsed = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError:
        parsed = None
    if not names or not equals or not parsed:
        raise InputError(f"sweep: found {axis!r}, wanted PARAMETER=VALUE,VALUE with at least one value")
    return [dict.fromkeys(names.split("+"), value) for value in parsed]


def _product(choices: Sequence[Sequence[Point]]) -> list[Point]:
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


def say(point: Point) -> str:
    """A point as it is typed."""
    return " ".join(f"{name}={json.dumps(value)}" for name, value in point.items())


def changes(point: Point) -> Point:
    """The point without its seeds."""
    return {name: value for name, value in point.items() if not name.endswith("seed")}


def without_seeds(point: Point) -> str:
    """What distinguishes a point from others, seeds aside."""
    return say(changes(point)) or "as configured"
