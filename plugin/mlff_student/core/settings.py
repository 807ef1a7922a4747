"""Settings in YAML files, read into dataclasses and checked key by key."""

from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from mlff_student.core.errors import InputError, check_key

T = TypeVar("T")


def read_settings(path: Path, kind: type[T]) -> T:
    """The dataclass `kind` of a YAML file.

    Its fields may be text, numbers, other dataclasses, `dict[str, ...]`, `list[...]`,
    `tuple[..., ...]` (never empty; one value may stand for a tuple of one), `... | None`, and
    unions of dataclasses, of which the one that knows the most of the keys is taken.

    Raises
    ------
    InputError : file missing, not YAML, a key misspelt (names the nearest right one) or missing, a
        value of the wrong type; whatever the dataclasses themselves refuse.
    """
    name = kind.__name__.lower()
    if not path.is_file():
        raise InputError(f"no {name} file {path}")
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    return _parse(kind, values, "")


def _parse(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, UnionType):
        if value is None and NoneType in arguments:
            return None
        keys = value if isinstance(value, dict) else ()
        members = [one for one in arguments if one is not NoneType]
        return _parse(max(members, key=lambda one: _known(one, keys)), value, where)
    if is_dataclass(kind):
        return _parse_dataclass(kind, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{where} must be a mapping, got {value!r}")
        return {key: _parse(arguments[1], one, f"{where}.{key}") for key, one in value.items()}
    if origin is tuple:
        if value == []:
            raise InputError(f"{where} is empty")
        return tuple(_entries(arguments[0], value if isinstance(value, list) else [value], where))
    if origin is list:
        if not isinstance(value, list):
            raise InputError(f"{where} must be a list, got {value!r}")
        return _entries(arguments[0], value, where)
    if kind is float and isinstance(value, str):  # YAML takes 1e-3 without a point for text
        with suppress(ValueError):
            value = float(value)
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{where} must be {kind.__name__}, got {value!r}")
    return kind(value)


def _known(kind: Any, keys: Any) -> int:
    return sum(one.name in keys for one in fields(kind)) if is_dataclass(kind) else 0


def _entries(kind: Any, values: list[Any], where: str) -> list[Any]:
    plain = isinstance(kind, type) and not is_dataclass(kind)
    return [
        _parse(kind, one, where if plain else f"{where}.{k}") for k, one in enumerate(values, 1)
    ]


def _parse_dataclass(kind: Any, value: Any, where: str) -> Any:
    name = where or kind.__name__.lower()
    known = {one.name: one for one in fields(kind)}
    if not isinstance(value, dict):
        raise InputError(f"{name} must be a mapping with the keys {', '.join(known)}")
    check_key(value, known, name)
    needed = [
        key
        for key, one in known.items()
        if one.default is MISSING and one.default_factory is MISSING and key not in value
    ]
    if needed:
        raise InputError(f"{name}: missing {', '.join(needed)}")
    hints = get_type_hints(kind)
    prefix = f"{where}." if where else ""
    return kind(**{key: _parse(hints[key], one, prefix + key) for key, one in value.items()})
