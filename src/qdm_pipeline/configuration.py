"""Settings: frozen dataclasses without defaults, so that a value lives in one place, the conf folder."""

from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

from qdm_pipeline.errors import InputError

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen, keyword-only dataclass of which pydantic, at the door, takes no unknown key.

    Training code needs no pydantic: it is handed values that were validated before they were written.
    """
    made = dataclass(frozen=True, kw_only=True)(cls)
    made.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return made


def require(condition: bool, message: str) -> None:
    """Raise `ValueError` with ``message`` unless ``condition``: for checks in ``__post_init__``."""
    if not condition:
        raise ValueError(message)


def require_whole(batch: int, micro_batch: int) -> None:
    """Raise `ValueError` unless a batch divides into micro-batches."""
    require(
        batch >= 1 and batch % micro_batch == 0,
        f"batch: found {batch}, must be a multiple of micro_batch ({micro_batch})",
    )


def build(cls: type[T], value: dict[str, Any]) -> T:
    """A (nested) settings dataclass from the JSON-like values that `plain` wrote.

    Raises `InputError` if they are not those of this version of the class.
    """
    hints = get_type_hints(cls)
    unknown = sorted(value.keys() - hints)
    needed = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}  # type: ignore[arg-type]
    missing = sorted(needed - value.keys())
    if unknown or missing:
        found = [f"{what} {names}" for what, names in (("unknown", unknown), ("missing", missing)) if names]
        raise InputError(
            f"{cls.__name__}: {', '.join(found)}; what is stored was made by another version of this "
            "project, make it again"
        )
    return cls(**{name: _convert(hints[name], item) for name, item in value.items()})


def _convert(hint: Any, value: Any) -> Any:
    if get_origin(hint) in (Union, UnionType):
        if value is None:
            return None
        options = [option for option in get_args(hint) if option is not type(None)]
        listed = [option for option in options if get_origin(option) is tuple]
        hint = (listed if isinstance(value, list) and listed else options)[0]
    if is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value)
    if get_origin(hint) is tuple:
        return tuple(_convert(get_args(hint)[0], item) for item in value)
    # 1 and 1.0 are one setting; YAML reads 5e-5 as text
    return float(value) if hint is float and isinstance(value, (int, str)) else value


def plain(value: Any) -> Any:
    """The JSON-like form of a (nested) settings dataclass: inverse of `build`."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value
