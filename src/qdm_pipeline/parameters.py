"""Kedro's door: a parameter is validated by the type hint of the node that takes it, before any node runs.

Kedro's own validation neither builds nested dataclasses nor says which file is wrong.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from kedro.framework.context import KedroContext
from kedro.framework.project import pipelines
from kedro.pipeline import Pipeline
from pydantic import TypeAdapter, ValidationError

from qdm_pipeline.errors import InputError

Key = tuple[str, ...]
TAG = re.compile(
    r"int|float|str|bool|(literal|tuple)\[.*\]"
)  # pydantic's name for one of several allowed types


class ProjectContext(KedroContext):
    """Kedro's context, with parameters that are already the settings that the nodes ask for."""

    @property
    def params(self) -> dict[str, Any]:
        """Typed parameters by top-level key; `InputError` for every wrong, missing or unknown one at once."""
        overrides = self.config_loader.runtime_params or {}
        conf = Path(self.config_loader.conf_source)
        folders = [conf / (self.env or "local"), conf / "base"]
        return typed_parameters(
            self.config_loader["parameters"], hints(pipelines), lambda key: _origin(key, overrides, folders)
        )


def hints(pipelines: Mapping[str, Pipeline]) -> dict[str, Any]:
    """The type that nodes expect of every parameter, by its name after ``params:``."""
    found = {}
    for node in {node for pipeline in pipelines.values() for node in pipeline.nodes}:
        types = get_type_hints(node.func)
        for name, argument in zip(node.inputs, inspect.signature(node.func).parameters, strict=False):
            if name.startswith("params:"):
                found[name.removeprefix("params:")] = types[argument]
    return found


def typed_parameters(raw: dict[str, Any], types: dict[str, Any], origin: Any) -> dict[str, Any]:
    """``raw`` with every value made the type that ``types`` asks for.

    ``origin`` says, for messages, where a key (a tuple of names) was written. Raises `InputError`.
    """
    errors = [
        f"{origin((key,))}: {key}: unknown; known are {', '.join(sorted(types))}"
        for key in raw
        if key not in types
    ]
    typed = {}
    for key, hint in types.items():
        if key not in raw:
            errors.append(f"{origin((key,))}: {key}: missing")
            continue
        try:
            typed[key] = TypeAdapter(hint).validate_python(raw[key])
        except ValidationError as error:
            for detail in error.errors():
                location = (key, *(part for part in map(str, detail["loc"]) if not TAG.fullmatch(part)))
                errors.append(f"{origin(location)}: {'.'.join(location)}: {_say(hint, detail)}")
    if errors:
        raise InputError("\n".join(sorted(errors)))
    return typed


def _say(hint: Any, detail: Any) -> str:
    match detail["type"]:
        case "unexpected_keyword_argument":
            return f"unknown; known are {', '.join(_known(hint, detail['loc'][:-1]))}"
        case "missing":
            return "missing"
        case "value_error":
            return str(detail["ctx"]["error"])
    message = detail["msg"]
    return f"found {detail['input']!r}: {message[0].lower()}{message[1:]}"


def _known(hint: Any, location: tuple[str | int, ...]) -> list[str]:
    for name in location:
        hint = next((option for option in (hint, *get_args(hint)) if is_dataclass(option)), hint)
        if is_dataclass(hint) and isinstance(name, str):
            hint = get_type_hints(hint)[name]
    hint = next((option for option in (hint, *get_args(hint)) if is_dataclass(option)), hint)
    return [field.name for field in fields(hint)]


def _origin(key: Key, overrides: dict[str, Any], folders: list[Path]) -> str:
    """Where ``key``, or as much of it as is written anywhere, was written: the command line or a file."""
    for length in range(len(key), 0, -1):
        if _has(overrides, key[:length]):
            return "--params"
        for folder in folders:
            for file in sorted(folder.rglob("parameters*.yml")):
                if _has(yaml.safe_load(file.read_text()) or {}, key[:length]):
                    return f"{folder.parent.name}/{file.relative_to(folder.parent)}"
    return f"{folders[-1].parent.name}/base"


def _has(tree: Any, key: Key) -> bool:
    for name in key:
        if not isinstance(tree, dict) or name not in tree:
            return False
        tree = tree[name]
    return True
