"""Read and write the members of a checkpoint or an archive, as NumPy arrays; no code is run."""

import io
import json
import pickletools
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from reprlib import repr
from typing import Any, NamedTuple

import numpy as np

from mlff_student.model.architecture import Arrays

MAX_FILE_BYTES = 2**30  # the largest shipped model has 2 MB
MAX_CODE_BYTES = 2**24  # uncompressed, in addition to the size of the file
MAX_PICKLE_BYTES = 2**20
MAX_OBJECTS = 100_000
STORAGES = {
    "torch BoolStorage": "?",
    "torch IntStorage": "<i4",
    "torch LongStorage": "<i8",
    "torch HalfStorage": "<f2",
    "torch FloatStorage": "<f4",
    "torch DoubleStorage": "<f8",
}
SAFETENSORS = {"F32": "<f4", "F64": "<f8", "I64": "<i8"}
MAX_HEADER_BYTES = 2**20  # of safetensors
MAX_DIMENSIONS = 8
ALIGNMENT = 8  # bytes, of the numbers behind the header
REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
REBUILD_PARAMETER = "torch._utils _rebuild_parameter"
RESTORE_TYPE = "torch.jit._pickle restore_type_tag"
ORDERED_DICT = "collections OrderedDict"
VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"
}  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass
class ScriptObject:
    """An object of a class of TorchScript, with its attributes.

    Attributes
    ----------
    type : str
        Qualified name of the class.
    attributes : Any
        Attributes by name, or what the class's own `__getstate__` returned.
    """

    type: str
    attributes: Any = None


class Global(str):
    """Name of a class or function in a pickle; it is never looked up."""


class Storage(NamedTuple):
    """Numbers of one or more tensors."""

    dtype: np.dtype
    content: bytes


# --- Zip file -------------------------------------------------------------------------------------


def read_members(path: Path) -> dict[str, bytes]:
    """Read a zip file of torch and verify the checksum of every member.

    Parameters
    ----------
    path : Path
        Checkpoint or archive.

    Returns
    -------
    dict[str, bytes]
        Content of each member by its name without the folder that torch puts all members into.

    Raises
    ------
    ValueError
        The file cannot be read, is damaged or is not a zip file.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                raise ValueError("it is no zip file")
            if (size := path.stat().st_size) > MAX_FILE_BYTES:
                raise ValueError(f"it has {size} bytes")
            file.seek(0)
            content = file.read()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    return members_of(content)


def members_of(content: bytes) -> dict[str, bytes]:
    """Return the members of a zip file of torch, as `read_members` does.

    Parameters
    ----------
    content : bytes
        Content of the file.

    Raises
    ------
    ValueError
        The file is damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            entries = file.infolist()
            claimed = sum(entry.file_size for entry in entries)
            if claimed > len(content) + MAX_CODE_BYTES:
                raise ValueError(f"its {len(content)} bytes claim to contain {claimed}")
            names = [entry.filename.partition("/")[2] for entry in entries]
            if len(set(names)) < len(names):
                raise ValueError("two members have the same name")
            return {name: file.read(entry) for name, entry in zip(names, entries, strict=True)}
    except Exception as error:  # zipfile raises errors of any kind for a damaged file
        raise ValueError(str(error) or type(error).__name__) from error


def write_members(members: Mapping[str, bytes]) -> bytes:
    """Return a zip file of torch, uncompressed, whose bytes depend on the members only.

    Parameters
    ----------
    members : Mapping[str, bytes]
        Content of each member by its name.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
    return content.getvalue()


# --- Metadata and weights -------------------------------------------------------------------------


def read_json(text: bytes) -> dict[str, Any]:
    """Return the object of a JSON text.

    Parameters
    ----------
    text : bytes
        UTF-8.

    Raises
    ------
    ValueError
        The text is not JSON or not an object, or an object has two members of one name.
    """

    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        pairs = list(pairs)
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError("an object of JSON has two members of the same name")
        return values

    def refuse(constant: str) -> None:
        raise ValueError(f"it contains {constant}, which is not JSON")

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("it is no object of JSON")
    return value


def write_safetensors(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return arrays in the layout of safetensors: the length of a JSON header, header, numbers.

    Parameters
    ----------
    arrays : Mapping[str, np.ndarray]
        float32, float64 and int64 arrays by their names.
    """
    kinds = {kind: name for name, kind in SAFETENSORS.items()}
    header, parts, at = {}, [], 0
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        little = array.dtype.newbyteorder("<")
        parts.append(array.astype(little).tobytes())
        header[name] = {
            "dtype": kinds[little.str],
            "shape": list(array.shape),
            "data_offsets": [at, at := at + len(parts[-1])],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def read_safetensors(content: bytes) -> Arrays:
    """Return the arrays of a text in the layout of safetensors; they cannot be written to.

    Parameters
    ----------
    content : bytes
        Text as `write_safetensors` returns it.

    Raises
    ------
    ValueError
        The header is damaged, or its arrays do not cover the numbers behind it, each once.
    """
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(len(content) - 8, MAX_HEADER_BYTES):
        raise ValueError(f"the header of its weights claims {size} of {len(content)} bytes")
    arrays, ranges = {}, []
    for name, entry in read_json(content[8 : 8 + size]).items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"the weights contain {repr(name)}, which is no array")
        kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(kind, str) or kind not in SAFETENSORS:
            raise ValueError(f"{name} has numbers of the type {repr(kind)}")
        if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
            raise ValueError(f"the shape or place of {name} is damaged")
        dtype, (begin, end) = np.dtype(SAFETENSORS[kind]), offsets
        if len(shape) > MAX_DIMENSIONS or prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"{name} of the shape {repr(shape)} has {end - begin} bytes")
        ranges.append((begin, end))
        if end > len(content) - 8 - size:
            raise ValueError(f"{name} ends behind the weights")
        flat = np.frombuffer(content, dtype, prod(shape), 8 + size + begin)
        arrays[name] = flat.reshape(shape).astype(dtype.newbyteorder("="), copy=False)
    ends = [0, *(end for _, end in sorted(ranges))]
    if [begin for begin, _ in sorted(ranges)] != ends[:-1] or ends[-1] != len(content) - 8 - size:
        raise ValueError("its weights overlap or leave gaps")
    return arrays


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(count) is int and count >= 0 for count in value)


# --- Pickle ---------------------------------------------------------------------------------------


def read_pickle(members: Mapping[str, bytes], name: str = "data.pkl") -> Any:
    """Return the objects of a pickle of tensors, plain values and TorchScript objects.

    The pickle module is not used, because it imports and calls what a file names. Tensors become
    NumPy arrays.

    Parameters
    ----------
    members : Mapping[str, bytes]
        Members of the file, which contain the numbers of the tensors.
    name : str
        Name of the pickle among the members.

    Raises
    ------
    ValueError
        The pickle is damaged, or contains something else or numbers that NumPy lacks.
    """
    if members.get("byteorder", b"little").decode(errors="replace") != sys.byteorder:
        raise ValueError(f"its numbers are {repr(members['byteorder'])}-endian")
    if len(members.get(name, b"")) > MAX_PICKLE_BYTES or name not in members:
        raise ValueError(f"it contains no {name}, or one of more than {MAX_PICKLE_BYTES} bytes")
    try:
        return _run(members[name], members)
    except (LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{name} is damaged ({error})") from error


def _run(pickle: bytes, members: Mapping[str, bytes]) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def above_mark() -> list[Any]:
        begin = marks.pop()
        taken = stack[begin:]
        del stack[begin:]
        return taken

    for operation, argument, _ in pickletools.genops(pickle):
        code = operation.name
        if code in VALUES:
            stack.append(argument)
        elif code in CONSTANTS:
            stack.append(CONSTANTS[code])
        elif code in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if code == "EMPTY_DICT" else [])
        elif code == "MARK":
            marks.append(len(stack))
        elif code == "TUPLE":
            stack.append(tuple(above_mark()))
        elif code in TUPLES:
            stack[-TUPLES[code] :] = [tuple(stack[-TUPLES[code] :])]
        elif code in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif code == "GLOBAL":
            stack.append(Global(argument))
        elif code in ("APPEND", "APPENDS"):
            items = above_mark() if code == "APPENDS" else [stack.pop()]
            stack[-1].extend(items)
        elif code in ("SETITEM", "SETITEMS"):
            items = above_mark() if code == "SETITEMS" else [stack.pop(-2), stack.pop()]
            if not all(isinstance(key, str | int) for key in items[::2]):
                raise ValueError("it contains a key that is no text or number")
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif code == "BINPERSID":
            stack.append(_storage(stack.pop(), members))
        elif code in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif code == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], dict):  # torch adds the versions of modules to a dict
                stack[-1].attributes = state
        elif code == "STOP":
            (result,) = stack
            return result
        elif code != "PROTO":
            raise ValueError(f"it contains the operation {code}")
    raise ValueError("it does not end")


def _storage(description: tuple, members: Mapping[str, bytes]) -> Storage:
    _, kind, key, _, count = description
    if not isinstance(kind, Global) or kind not in STORAGES:
        raise ValueError(f"it contains numbers of the type {repr(kind)}, which cannot be read")
    dtype, content = np.dtype(STORAGES[kind]), members[f"data/{key}"]
    if len(content) != count * dtype.itemsize:
        raise ValueError(f"data/{key} has {len(content)} bytes, expected {count * dtype.itemsize}")
    return Storage(dtype, content)


def _call(function: Any, arguments: tuple) -> Any:
    """Return the result of the few functions that files of this package name."""
    if not isinstance(function, Global):
        raise ValueError("it is damaged")
    if function.startswith(("__torch__.", "__torch__ ")):
        return ScriptObject(function.replace(" ", "."))
    if function == ORDERED_DICT and not arguments:
        return {}
    if function == RESTORE_TYPE:
        return arguments[0]
    if function == REBUILD_PARAMETER and isinstance(arguments[0], np.ndarray):
        return arguments[0]
    if function == REBUILD_TENSOR and isinstance(arguments[0], Storage):
        (dtype, content), offset, shape, strides = arguments[:4]
        if not all(type(number) is int and number >= 0 for number in (offset, *shape, *strides)):
            raise ValueError("the shape of a tensor is damaged")
        if len(shape) > MAX_DIMENSIONS or prod(shape) > len(content) // dtype.itemsize:
            raise ValueError(f"a tensor of shape {repr(shape)} has {len(content)} bytes")
        if not prod(shape):
            return np.empty(shape, dtype)
        flat = np.frombuffer(content, dtype)[offset:]
        if sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) >= len(flat):
            raise ValueError(f"a tensor of shape {repr(shape)} has {len(content)} bytes")
        steps = [stride * dtype.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(flat, shape, steps).copy()
    raise ValueError(f"it contains {function.replace(' ', '.')}")


def tensors_of(value: Any) -> Arrays:
    """Return the tensors of an object and of the objects inside it, named as in a state_dict.

    Parameters
    ----------
    value : Any
        Result of `read_pickle`.

    Raises
    ------
    ValueError
        The object contains itself.
    """
    tensors, waiting, seen = {}, [("", value)], 0
    while waiting:
        prefix, value = waiting.pop()
        if isinstance(value, np.ndarray):
            tensors[prefix] = value
        elif isinstance(value, ScriptObject) and isinstance(value.attributes, dict):
            for name, attribute in value.attributes.items():
                waiting.append((f"{prefix}.{name}" if prefix else str(name), attribute))
        if (seen := seen + 1) > MAX_OBJECTS:
            raise ValueError(f"it contains more than {MAX_OBJECTS} objects")
    return tensors
