"""The JSON file every command writes with --json, for scripts."""

import json
import os
import platform
from pathlib import Path
from typing import Any

from . import __version__
from .files import atomic_write


def write_results(path: Path, command: str, model: str, results: list[dict[str, Any]]) -> None:
    """Write one object {command, version, model, machine, results}.

    Parameters
    ----------
    results : flat records of numbers and strings, units in the keys.
    """
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    content = {
        "command": command,
        "version": __version__,
        "model": model,
        "machine": machine,
        "results": results,
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
