"""The reference of all parameters, from the types that the nodes ask for and the values of ``conf/base``."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml
from kedro.framework.project import pipelines

from qdm_pipeline.configuration import plain
from qdm_pipeline.parameters import hints
from qdm_pipeline.presets import parameters

HEADER = ("parameter", "takes", "`conf/base`", "what it is")


class Row(NamedTuple):
    """One parameter."""

    name: str
    takes: str
    value: str
    what: str


def reference(project: Path) -> str:
    """Markdown: one section a top-level parameter, one row for everything in it."""
    values, types = parameters(project, "base"), hints(pipelines)
    said = dict(_yaml_comments(project / "conf/base"))
    parts = ["# Parameters", "", textwrap.fill(INTRODUCTION, 118), ""]
    for name in sorted(types):
        hint = _without_none(types[name])
        parts += [f"## `{name}`", ""] + ([_doc(hint), ""] if is_dataclass(hint) else [])
        rows = [HEADER, ("---",) * len(HEADER), *_rows(name, types[name], values[name], "", said)]
        parts += [f"| {' | '.join(cells)} |" for cells in rows] + [""]
    return "\n".join(parts)


INTRODUCTION = (
    "Every value lives in `conf/base`; an environment (`--env`) or `--params a.b=1` names only what it "
    "changes. This page is the output of `kedro parameters`; a test compares."
)


def _rows(name: str, hint: Any, value: Any, what: str, said: dict[str, str]) -> Iterator[Row]:
    inner, what = _without_none(hint), what or said.get(name, "")
    if not is_dataclass(inner):
        yield Row(f"`{name}`", _say(hint), f"`{_show(value)}`", what)
        return
    if "." in name:
        takes = "the following" if inner is hint else "null, or the following"
        yield Row(f"`{name}`", takes, "null" if value is None else "", _doc(inner))
    comments, types = _comments(inner), get_type_hints(inner)
    for field in fields(inner):
        item = None if value is None else getattr(value, field.name)
        what = comments.get(field.name, "")
        yield from _rows(f"{name}.{field.name}", types[field.name], item, what, said)


def _doc(cls: Any) -> str:
    return " ".join((inspect.getdoc(cls) or "").replace("``", "`").replace("|", "or").split())


def _comments(cls: Any) -> dict[str, str]:
    """The comment behind every field of a class, or of one that it extends, that has one."""
    found = {}
    for part in cls.__mro__[-2::-1]:  # all but object, the class itself last
        source = textwrap.dedent(inspect.getsource(part))
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                line = source.splitlines()[(node.end_lineno or 1) - 1]
                found[node.target.id] = line.partition("#")[2].strip()
    return found


def _yaml_comments(folder: Path) -> Iterator[tuple[str, str]]:
    """The comment behind every key that has one, by dotted names."""
    for file in sorted(folder.glob("parameters*.yml")):
        lines = file.read_text().splitlines()
        waiting = [("", yaml.compose(file.read_text()))]
        while waiting:
            prefix, mapping = waiting.pop()
            for key, value in mapping.value if isinstance(mapping, yaml.MappingNode) else []:
                name = f"{prefix}{key.value}"
                said = lines[key.start_mark.line].partition(" #")[2].strip()
                yield name, "" if said.startswith("or:") else said  # the type says it
                waiting.append((f"{name}.", value))


def _without_none(hint: Any) -> Any:
    options = [option for option in get_args(hint) if option is not NoneType]
    return options[0] if get_origin(hint) in (Union, UnionType) and len(options) == 1 else hint


def _say(hint: Any) -> str:
    origin, options = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{option}`" for option in options)
    if origin in (Union, UnionType):
        return " or ".join(map(_say, options))
    if origin is tuple:
        count = "" if options[-1] is Ellipsis else f"{len(options)} of "
        return f"list of {count}{_say(options[0])}"
    return "null" if hint is NoneType else getattr(hint, "__name__", str(hint))


def _show(value: Any) -> str:
    if isinstance(value, str):
        return value
    return str(plain(value)).replace("None", "null").replace("True", "true").replace("False", "false")
