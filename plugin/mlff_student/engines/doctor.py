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

from mlff_student.archive.native import library_path, obstacle, with_backend
from mlff_student.archive.registry import archive_of, available_models
from mlff_student.core.errors import StudentError
from mlff_student.core.installation import build_command, install_command, why_missing
from mlff_student.core.paths import built_library
from mlff_student.engines.lammps.plugin import (
    PLUGIN,
    lammps_executable,
    mpi_executable,
    plugin_command,
)
from mlff_student.engines.lammps.run import run_lmp

# What pip installs for each package.
PACKAGES = {
    "torch": "torch",
    "ase": "ase",
    "vesin": "vesin",
    "mdtraj": "mdtraj",
    "openmm": "mlff-student[openmm]",
    "openmmml": "mlff-student[openmm]",
    "openmmtorch": "",  # PythonForce does the same with any torch
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
    findings = {name: _package(name, requirement) for name, requirement in PACKAGES.items()}
    for name in ("rdkit", "tblite"):  # for SMILES and for making students
        findings[name] = findings[name]._replace(optional=True)
    # Without native kernels the portable backend works.
    kernels = _attempt("native kernels", _native, build_command())._replace(optional=True)
    torch_force = findings["openmmtorch"]._replace(what="OpenMM TorchForce")
    if torch_force.works:
        torch_force = _attempt("OpenMM TorchForce", partial(_openmm, "TorchForce"), "")
    openmm = install_command(PACKAGES["openmm"])
    python_force = _attempt("OpenMM PythonForce", partial(_openmm, "PythonForce"), openmm)
    findings["openmmtorch"] = _not_needed(findings["openmmtorch"], "PythonForce gives the same")
    lammps = install_command(PACKAGES["lammps"])
    lmp = _attempt("LAMMPS lmp", _lmp, lammps)
    if lmp.works:
        findings["lammps"] = _not_needed(findings["lammps"], "another LAMMPS works")
    return [
        *findings.values(),
        _models(),
        kernels,
        _not_needed(torch_force, "PythonForce gives the same"),
        python_force,
        lmp,
        _attempt("LAMMPS plugin", _plugin, plugin_command()),
        _attempt("mpiexec", _mpiexec, lammps),
        _gpu(),
    ]


def _package(name: str, requirement: str) -> Finding:
    try:
        return Finding(name, True, version(name), "")
    except PackageNotFoundError:
        command = install_command(requirement) if requirement else ""
        return Finding(name, False, "not installed", command)


def _not_needed(finding: Finding, instead: str) -> Finding:
    """Return a finding that asks for nothing where it fails, because another part does the same."""
    if finding.works:
        return finding
    return finding._replace(found=f"{finding.found}; not needed: {instead}", mend="", optional=True)


def _models() -> Finding:
    models = available_models()
    return Finding(
        "models", bool(models), ", ".join(models) or "none", "" if models else build_command()
    )


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

    if reason := obstacle():
        raise StudentError(reason)
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


def _mpiexec() -> str:
    return mpi_executable()


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("GPU", True, torch.cuda.get_device_name(), "", optional=True)
    return Finding("GPU", False, "torch finds none; everything runs on the CPU", "", True)
