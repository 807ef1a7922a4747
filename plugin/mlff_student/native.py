"""The native CPU kernels: loads the compiled library and builds its students from an archive."""

import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .errors import MissingDependencyError

LIBRARY = "libmlff_student.so"
BUFFERS = ("charges", "lengths", "ranges", "weights", "rates")
MEND = "install from a checkout with: pip install --no-build-isolation ."


def load_library() -> None:
    """Register `torch.classes.mlff_student.NativeStudent`.

    Raises
    ------
    MissingDependencyError : the library was not built or does not load; the message says why.
    """
    if reason := unavailable():
        raise MissingDependencyError(f"the native kernels are not available: {reason}")


@cache
def unavailable() -> str | None:
    """Why the native kernels cannot be used, None where they can."""
    if os.environ.get("MLFF_STUDENT_NATIVE") == "off":
        return "MLFF_STUDENT_NATIVE is set to off"
    path = library_path()
    if not path.is_file():
        return f"no file {path}; {MEND}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path} does not load into torch {torch.__version__} ({error}); {MEND}"
    return None


def library_path() -> Path:
    """The library's file, which need not exist.

    The environment variable MLFF_STUDENT_NATIVE names another one than the installation's.
    """
    if wish := os.environ.get("MLFF_STUDENT_NATIVE"):
        return Path(wish)
    # An editable installation has it apart from the sources.
    spec = importlib.util.find_spec("mlff_student")
    folders = (spec.submodule_search_locations or []) if spec else []
    places = [Path(folder) / "lib" / LIBRARY for folder in folders]
    return next(
        (path for path in places if path.is_file()), Path(__file__).parent / "lib" / LIBRARY
    )


def native_student(module: torch.nn.Module | torch.jit.ScriptModule, knots: int = 0) -> Any:
    """Native form of a `Student`, or of an archive's module that holds one.

    Parameters
    ----------
    module : float32 weights.
    knots : of the tabulated radial filters; 0 takes the library's choice.

    Returns
    -------
    `torch.classes.mlff_student.NativeStudent` with the archive's methods `evaluate` and
    `from_edges`. It may be called from several threads, and be an attribute of a module that is
    scripted and saved.

    Raises
    ------
    MissingDependencyError : the library was not built or does not load.
    """
    load_library()
    student = getattr(module, "student", module)
    if student.embedding.weight.dtype != torch.float32:
        raise MissingDependencyError(
            f"the native kernels compute in float32, the weights are "
            f"{student.embedding.weight.dtype}; use the portable module"
        )
    tensors = {name: tensor.detach().cpu() for name, tensor in student.state_dict().items()}
    tensors["species_of"] = student.species_of.cpu()
    for name in BUFFERS:
        tensors[f"repulsion.{name}"] = getattr(student.repulsion, name).cpu()
    return torch.classes.mlff_student.NativeStudent(tensors, student.cutoff, knots)
