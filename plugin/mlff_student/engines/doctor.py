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

from mlff_student.archive.backends import core_library, evaluator, library_path, obstacle
from mlff_student.archive.registry import archive_of, available_models
from mlff_student.core.errors import StudentError
from mlff_student.core.installation import (
    build_command,
    install_command,
    install_origin,
    why_missing,
)
from mlff_student.core.paths import built_library
from mlff_student.engines.lammps.plugin import (
    PLUGIN,
    lammps_executable,
    mpi_executable,
    plugin_command,
)
from mlff_student.engines.lammps.run import run_lmp

# What pip installs for each package. Every installation has the packages of the first group.
REQUIRED = {"ase": "ase", "vesin": "vesin", "mdtraj": "mdtraj"}
OPTIONAL = {
    "torch": "mlff-student[torch]",
    "openmm": "mlff-student[openmm]",
    "openmmml": "mlff-student[openmm]",
    "openmmtorch": "mlff-student[torchforce]",
    "lammps": "mlff-student[lammps]",
    "rdkit": "mlff-student[distill]",
    "tblite": "mlff-student[distill]",
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
from mlff_student.archive.backends import obstacle
if INTERFACE == "TorchForce":
    from mlff_student.archive.operator import operators_unavailable as obstacle
backend = "portable" if obstacle() else "native"
print(INTERFACE, "runs, backend", f"{backend}; platforms", ", ".join(names))
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
    fix : str
        Command that installs or fixes it; empty if it works or another part does the same.
    optional : bool
        Whether the installation is complete without it, if it does not work.
    """

    what: str
    works: bool
    found: str
    fix: str
    optional: bool = False


def examine() -> list[Finding]:
    """Check every package and every part that this package uses."""
    packages = {name: _package(name, requirement) for name, requirement in REQUIRED.items()}
    packages |= {name: _optional(_package(name, what)) for name, what in OPTIONAL.items()}
    kernels = _attempt("native kernels", _native, build_command())
    portable = _attempt("backend portable", _portable, install_command(OPTIONAL["torch"]))
    if kernels.works or portable.works:
        kernels, portable = _optional(kernels), _optional(portable)
    openmm, openmmtorch, lammps = (
        install_command(OPTIONAL[name]) for name in ("openmm", "openmmtorch", "lammps")
    )
    python_force = _trial(
        "OpenMM PythonForce", partial(_openmm, "PythonForce"), packages["openmm"], openmm
    )
    torch_force = _trial(
        "OpenMM TorchForce", partial(_openmm, "TorchForce"), packages["openmmtorch"], openmmtorch
    )
    lmp = _attempt("LAMMPS lmp", _lmp, lammps)
    if lmp.works:
        packages["lammps"] = _replaced(packages["lammps"], "another LAMMPS works")
    elif not packages["lammps"].works:
        lmp = _optional(lmp)
    if python_force.works:
        torch_force = _replaced(torch_force, "PythonForce gives the same")
        packages["openmmtorch"] = _replaced(packages["openmmtorch"], "PythonForce gives the same")
    return [
        Finding("mlff-student", True, f"{_version()}, {install_origin()}", ""),
        *packages.values(),
        _models(),
        kernels,
        portable,
        torch_force,
        python_force,
        lmp,
        _trial("LAMMPS plugin", _plugin, lmp, plugin_command()),
        _trial("mpiexec", mpi_executable, lmp, lammps),
        _gpu(),
    ]


def _version() -> str:
    try:
        return version("mlff-student")
    except PackageNotFoundError:
        return "not installed"


def _package(name: str, requirement: str) -> Finding:
    try:
        return Finding(name, True, version(name), "")
    except PackageNotFoundError:
        return Finding(name, False, "not installed", install_command(requirement))


def _attempt(what: str, trial: Callable[[], str], command: str) -> Finding:
    try:
        return Finding(what, True, trial(), "")
    except (StudentError, OSError, subprocess.SubprocessError) as error:
        return Finding(what, False, str(error).strip().splitlines()[-1], command)


def _trial(what: str, trial: Callable[[], str], needed: Finding, command: str) -> Finding:
    """Try a part of an engine; nothing is wrong if the user has not installed that engine."""
    if needed.works:
        return _attempt(what, trial, command)
    return Finding(what, False, f"needs {needed.what}", needed.fix, needed.optional)


def _optional(finding: Finding) -> Finding:
    return finding if finding.works else finding._replace(optional=True)


def _replaced(finding: Finding, reason: str) -> Finding:
    """Return a finding that asks for nothing where it fails, because another part does the same."""
    if finding.works:
        return finding
    return finding._replace(found=f"{finding.found}; not needed: {reason}", fix="", optional=True)


def _models() -> Finding:
    models = available_models()
    return Finding(
        "models", bool(models), ", ".join(models) or "none", "" if models else build_command()
    )


def _smallest_model() -> str:
    models = available_models()
    if not models:
        raise StudentError("there is no model to try it with")
    return min(models, key=lambda model: (models[model] / "model.pt").stat().st_size)


def _native() -> str:
    if reason := obstacle():
        raise StudentError(reason)
    name, path = _smallest_model(), library_path()
    evaluator(archive_of(name), "native")
    instructions = core_library(path).mlff_student_instruction_set().decode()
    return f"{instructions}, self-check of {name} passed: {path}"


def _portable() -> str:
    name = _smallest_model()
    evaluator(archive_of(name), "portable")
    return f"self-check of {name} passed"


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
    executable = lammps_executable()
    help_text = subprocess.run(
        [executable, "-help"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    if "PLUGIN" not in help_text:
        raise StudentError(f"{executable} was built without the PLUGIN package")
    release = re.search(r"Simulator - (.*)", help_text)
    return f"{release.group(1) if release else 'unknown release'}: {executable}"


def _plugin() -> str:
    path = built_library(PLUGIN)
    if not path.is_file():
        raise StudentError(f"{why_missing('LAMMPS plugin')} ({path} does not exist)")
    with tempfile.TemporaryDirectory() as folder:
        run_lmp("units metal\npair_style mlff_student\n", Path(folder), "doctor")
    return f"pair_style mlff_student loads: {path}"


def _gpu() -> Finding:
    try:
        import torch
    except ImportError:
        return Finding("GPU", False, "needs torch", install_command(OPTIONAL["torch"]), True)
    if torch.cuda.is_available():
        return Finding("GPU", True, torch.cuda.get_device_name(), "")
    return Finding("GPU", False, "torch finds none; everything runs on the CPU", "", True)
