"""Read the members of a checkpoint or an archive, and compare its code; nothing in it is run."""

import io
import pickletools
import re
import sys
import zipfile
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from reprlib import repr
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_FILE_BYTES = 2**30  # the largest shipped model has 2 MB
MAX_CODE_BYTES = 2**24  # uncompressed, in addition to the size of the file
MAX_PICKLE_BYTES = 2**20
MAX_OBJECTS = 100_000
STORAGES = {
    "torch BoolStorage": torch.bool,
    "torch IntStorage": torch.int32,
    "torch LongStorage": torch.int64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
}
REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
REBUILD_PARAMETER = "torch._utils _rebuild_parameter"
RESTORE_TYPE = "torch.jit._pickle restore_type_tag"
ORDERED_DICT = "collections OrderedDict"
VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"
}  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# torch numbers classes of the same name in the order in which a process compiled them.
MANGLE = re.compile(r"[./]___torch_mangle_\d+")
DEFINITION = re.compile(r"^(?=class |def )", re.MULTILINE)
VARIABLE = re.compile(r"(?<![\w.])([A-Za-z_]\w*?)\d+\b")
# Sizes of a layer, which torch writes in any order. Other values could be calls, which torch runs.
FINAL = re.compile(
    r"^  \w+ : Final\[(int|float|bool|NoneType)\] = (-?[\d.]+(e[+-]?\d+)?|True|False|None)\n",
    re.MULTILINE,
)
# SHA-256 of torch.nn.functional.embedding, in which releases of torch differ.
CODE_OF_TORCH = {
    "ba4667428a2516d0e1f177ef8df9bd25e5c207f6e4752480e105cc65258506aa",  # torch 2.9
    "6ad510446c16e01f037fb99995d930e5a8219758fcf75a9edf05f4228d8da721",  # torch 2.13, 2.14
}


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

    dtype: torch.dtype
    content: bytes


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


def write_members(members: dict[str, bytes]) -> bytes:
    """Return a zip file of torch, uncompressed, whose bytes depend on the members only.

    Parameters
    ----------
    members : dict[str, bytes]
        Content of each member by its name.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
    return content.getvalue()


def read_pickle(members: dict[str, bytes], name: str = "data.pkl") -> Any:
    """Return the objects of a pickle of tensors, plain values and TorchScript objects.

    The pickle module is not used, because it imports and calls what a file names.

    Parameters
    ----------
    members : dict[str, bytes]
        Members of the file, which contain the numbers of the tensors.
    name : str
        Name of the pickle among the members.

    Raises
    ------
    ValueError
        The pickle is damaged or contains something else.
    """
    if members.get("byteorder", b"little").decode() != sys.byteorder:
        raise ValueError(f"its numbers are {members['byteorder'].decode()}-endian")
    if len(members.get(name, b"")) > MAX_PICKLE_BYTES or name not in members:
        raise ValueError(f"it contains no {name}, or one of more than {MAX_PICKLE_BYTES} bytes")
    try:
        return _run(members[name], members)
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{name} is damaged ({error})") from error


def _run(pickle: bytes, members: dict[str, bytes]) -> Any:
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


def _storage(description: tuple, members: dict[str, bytes]) -> Storage:
    _, kind, key, _, count = description
    if not isinstance(kind, Global) or kind not in STORAGES:
        raise ValueError(f"it contains numbers of the type {repr(kind)}")
    dtype, content = STORAGES[kind], members[f"data/{key}"]
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
    if function == REBUILD_PARAMETER and isinstance(arguments[0], Tensor):
        return arguments[0]
    if function == REBUILD_TENSOR and isinstance(arguments[0], Storage):
        (dtype, content), offset, shape, strides = arguments[:4]
        if not all(type(number) is int and number >= 0 for number in (offset, *shape, *strides)):
            raise ValueError("the shape of a tensor is damaged")
        if prod(shape) > len(content) // dtype.itemsize:
            raise ValueError(f"a tensor of shape {repr(shape)} has {len(content)} bytes")
        if not content:
            return torch.empty(shape, dtype=dtype)
        flat = torch.frombuffer(bytearray(content), dtype=dtype)
        return flat.as_strided(shape, strides, offset).clone(memory_format=torch.contiguous_format)
    raise ValueError(f"it contains {function.replace(' ', '.')}")


def tensors_of(value: Any) -> dict[str, Tensor]:
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
        if isinstance(value, Tensor):
            tensors[prefix] = value
        elif isinstance(value, ScriptObject) and isinstance(value.attributes, dict):
            for name, attribute in value.attributes.items():
                waiting.append((f"{prefix}.{name}" if prefix else str(name), attribute))
        if (seen := seen + 1) > MAX_OBJECTS:
            raise ValueError(f"it contains more than {MAX_OBJECTS} objects")
    return tensors


def definitions(members: dict[str, bytes]) -> set[str]:
    """Return the classes and functions in the code of an archive, in a form that can be compared.

    What differs between two exports of one model is left out or replaced: the numbers that torch
    gives to classes of the same name, which also decide on the file that a class is in, the numbers
    of local variables, and the sizes of a layer.

    Parameters
    ----------
    members : dict[str, bytes]
        Members of the archive.

    Returns
    -------
    set[str]
        For each class and function a line with its file, and its text.
    """
    blocks = set()
    for name, text in members.items():
        if name.startswith("code/") and not name.endswith(".debug_pkl"):
            for block in filter(
                None, DEFINITION.split(FINAL.sub("", text.decode(errors="backslashreplace")))
            ):
                numbers: dict[str, int] = {}
                numbered = VARIABLE.sub(
                    lambda match, numbers=numbers: (
                        f"{match[1]}#{numbers.setdefault(match[0], len(numbers))}"
                    ),
                    block,
                )
                blocks.add(MANGLE.sub("", f"{name}\n{numbered}"))
    return blocks


def foreign_code(found: set[str], expected: set[str]) -> str:
    """Return the name of a class or function that this version does not write.

    Parameters
    ----------
    found : set[str]
        Definitions in an archive.
    expected : set[str]
        Definitions that this version writes for the same model.

    Returns
    -------
    str
        File and first line of such a definition, or of one that is missing; empty if there is none.
    """
    strange = {
        text for text in found - expected if sha256(text.encode()).hexdigest() not in CODE_OF_TORCH
    }
    heads = [{_head(text) for text in texts} for texts in (strange, expected, found)]
    return min(heads[0] or heads[1] - heads[2], default="")


def _head(definition: str) -> str:
    file, _, text = definition.partition("\n")
    return f"{text.partition(chr(10))[0].partition('(')[0].strip()} in {file}"


def difference(found: Any, expected: Any, where: str = "") -> str:
    """Return the first attribute that differs between two objects, apart from numbers of tensors.

    Parameters
    ----------
    found, expected : Any
        Results of `read_pickle`.
    where : str
        Name of the objects, for the result.

    Returns
    -------
    str
        Name and values of the attribute; empty if there is no difference.
    """
    if isinstance(expected, Tensor):
        if isinstance(found, Tensor):
            found, expected = (f"{t.dtype} {tuple(t.shape)}" for t in (found, expected))
    elif isinstance(expected, ScriptObject) and isinstance(found, ScriptObject):
        names = [MANGLE.sub("", each.type) for each in (found, expected)]
        if names[0] != names[1]:
            return f"{where or 'the module'} is a {names[0]}, expected a {names[1]}"
        return difference(found.attributes, expected.attributes, where)
    elif isinstance(expected, dict) and isinstance(found, dict):
        if set(found) != set(expected):
            return f"{where or 'the module'} has the attributes {', '.join(map(str, found))}"
        for name, value in expected.items():
            if text := difference(found[name], value, f"{where}.{name}" if where else name):
                return text
        return ""
    if type(found) is not type(expected) or found != expected:
        return f"{where} is {repr(found)}, expected {repr(expected)}"
    return ""
