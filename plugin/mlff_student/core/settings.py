"""Read settings from YAML files into dataclasses, and check them key by key."""

import os
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from mlff_student.core.errors import InputError, check_key

T = TypeVar("T")


def read_settings(path: Path, kind: type[T]) -> T:
    """Read a YAML file into the dataclass `kind`.

    The fields of the dataclass may be text, numbers, other dataclasses, `dict[str, ...]`,
    `list[...]`, `tuple[..., ...]` (never empty; a single value stands for a tuple of length 1),
    `... | None`, and unions of dataclasses. Of a union the member that has most of the keys in the
    file is used.

    Parameters
    ----------
    path : Path
        YAML file.
    kind : type[T]
        Dataclass to make.

    Returns
    -------
    T
        The dataclass with the values of the file.

    Raises
    ------
    InputError
        The file is missing or not YAML; a key is misspelt (the message gives the nearest right
        key) or missing; a value has the wrong type; or the dataclass refuses a value.
    """
    import yaml  # here, because a bundle for training has its settings in JSON

    name = kind.__name__.lower()
    if not os.path.isfile(path):
        raise InputError(f"there is no {name} file {path}")
    try:
        values = yaml.safe_load(path.read_bytes())  # the file says its encoding, else UTF-8
        return _parse(kind, values, "")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also dates such as 2020-99-99
        raise InputError(f"{path} is not YAML: {error}") from error


def parse_settings(kind: type[T], values: Any) -> T:
    """Make the dataclass `kind` of values that are read already; see `read_settings`.

    Parameters
    ----------
    kind : type[T]
        Dataclass to make.
    values : Any
        Mapping of keys to values, such as JSON gives it.
    """
    return _parse(kind, values, "")


def _parse(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, UnionType):
        if value is None and NoneType in arguments:
            return None
        keys = value if isinstance(value, dict) else ()
        members = [member for member in arguments if member is not NoneType]
        return _parse(max(members, key=lambda member: _known(member, keys)), value, where)
    if is_dataclass(kind):
        return _parse_dataclass(kind, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{where} must be a mapping, got {value!r}")
        return {key: _parse(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple:
        if value == []:
            raise InputError(f"{where} is empty, expected at least one value")
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
    try:
        return kind(value)
    except OverflowError:
        raise InputError(f"{where} is too large for a number") from None


def _known(kind: Any, keys: Any) -> int:
    return sum(field.name in keys for field in fields(kind)) if is_dataclass(kind) else 0


def _entries(kind: Any, values: list[Any], where: str) -> list[Any]:
    plain = isinstance(kind, type) and not is_dataclass(kind)
    return [
        _parse(kind, value, where if plain else f"{where}.{index}")
        for index, value in enumerate(values, 1)
    ]


def _parse_dataclass(kind: Any, value: Any, where: str) -> Any:
    name = where or kind.__name__.lower()
    known = {field.name: field for field in fields(kind)}
    if not isinstance(value, dict):
        raise InputError(f"{name} must be a mapping with the keys {', '.join(known)}")
    check_key(value, known, name)
    needed = [
        key
        for key, field in known.items()
        if field.default is MISSING and field.default_factory is MISSING and key not in value
    ]
    if needed:
        raise InputError(f"{name}: missing {', '.join(needed)}")
    hints = get_type_hints(kind)
    prefix = f"{where}." if where else ""
    return kind(**{key: _parse(hints[key], item, prefix + key) for key, item in value.items()})
