"""Files that an OpenMM user runs without this package."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read, write

from mlff_student.archive.operator import operators_path
from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.core.units import KJ_PER_MOL, NM
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from openmm_integration.files import FILES, PROGRAM, SCRIPT, write_openmm_files

ROOT = Path(__file__).parents[2]
# The script's own first part, then numbers in place of its run.
NUMBERS = """
import runpy, sys
import torch
if {blocked}:
    sys.modules["mlff_student"] = sys.modules["openmm_integration"] = None
import numpy, openmm
source = open("simulate.py").read().split("start =")[0]
exec(source)
system = globals()["system"]
platform = openmm.Platform.getPlatformByName("Reference")
context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
context.setPositions(numpy.load("positions.npy"))
state = context.getState(energy=True, forces=True)
numpy.savez("found.npz", energy=state.getPotentialEnergy()._value,
            forces=state.getForces(asNumpy=True)._value)
"""


def run_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("backend", "name"), [("portable", "triclinic"), ("native", "ethanol")])
def test_fresh_process_computes_the_students_numbers(backend, name, structures, tmp_path):
    """The portable ones in a process that cannot import this package."""
    atoms: Atoms = structures[name]
    source = tmp_path / "structure.extxyz"
    write(source, atoms)
    folder = tmp_path / "files"
    write_openmm_files("tiny", str(source), folder, backend=backend)
    assert {path.name for path in folder.iterdir()} == set(FILES)
    atoms = read(source)  # rounded as the file rounds them
    np.save(folder / "positions.npy", atoms.positions / NM)
    result = run_in(folder, "-c", NUMBERS.format(blocked=backend == "portable"))
    assert result.returncode == 0, result.stderr
    found = np.load(folder / "found.npz")
    atoms.calc = StudentForceFieldCalculator("tiny", backend=backend)
    assert float(found["energy"]) * KJ_PER_MOL == pytest.approx(
        atoms.get_potential_energy(), abs=1e-6 * len(atoms)
    )
    np.testing.assert_allclose(found["forces"] * KJ_PER_MOL / NM, atoms.get_forces(), atol=2e-5)
    script = run_in(folder, SCRIPT)
    assert script.returncode == 0, script.stderr
    assert script.stdout.strip().endswith("kJ/mol")


@pytest.fixture(scope="module")
def wheels() -> dict[str, str]:
    """Where OpenMM, torch and CUDA's compiler, which TorchForce links to, lie."""
    site = Path(torch.__file__).parents[1]
    openmm = site / "OpenMM.libs"
    if not shutil.which("g++") or not (openmm / "include" / "OpenMM.h").is_file():
        pytest.skip("no C++ compiler, or an OpenMM without its headers")
    folders = (openmm / "lib", site / "torch" / "lib", site / "nvidia" / "cuda_nvrtc" / "lib")
    return {
        "OPENMM": str(openmm),
        "OPENMM_PLUGIN_DIR": str(openmm / "lib" / "plugins"),
        "LD_LIBRARY_PATH": ":".join(map(str, folders)),
    }


@pytest.mark.parametrize(("name", "backend"), [("triclinic", "portable"), ("ethanol", "native")])
def test_compiled_program(name, backend, structures, wheels, tmp_path):
    """The C++ beside the files, compiled by the command in its first lines, has the student's
    numbers: no Python runs, and no file of this package but the native kernels where asked for.
    """
    source = tmp_path / "structure.extxyz"
    write(source, structures[name])
    folder = tmp_path / "files"
    write_openmm_files("tiny", str(source), folder, backend=backend)
    comment = (folder / PROGRAM).read_text().replace("//", "").split("\n\n")[1]
    command = comment.split("export")[0].replace("\\\n", "")
    environment = os.environ | wheels
    if backend == "native":
        environment["MLFF_STUDENT_OPERATORS"] = str(operators_path())
    for line in (command, "./simulate 20"):
        result = subprocess.run(
            line, shell=True, cwd=folder, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
    energy, force = (float(word) for word in re.findall(r"(-?[\d.]+) kJ", result.stdout)[:2])
    atoms = read(source)
    atoms.calc = StudentForceFieldCalculator("tiny", backend=backend)
    assert energy * KJ_PER_MOL == pytest.approx(atoms.get_potential_energy(), abs=1e-6 * len(atoms))
    largest = np.linalg.norm(atoms.get_forces(), axis=1).max()
    assert force * KJ_PER_MOL / NM == pytest.approx(largest, abs=2e-5)
    assert "after 20 steps" in result.stdout


def test_export_script(tmp_path):
    """`python export.py --engine openmm` as users call it."""
    command = [
        ROOT / "export.py", "--model", "tiny", "--engine", "openmm",
        "--topology", ROOT / "examples" / "alanine_dipeptide.pdb", "--json", "export.json",
    ]  # fmt: skip
    result = run_in(tmp_path, *map(str, command))
    assert result.returncode == 0, result.stderr
    assert "cd tiny-openmm && python simulate.py" in result.stdout
    (record,) = json.loads((tmp_path / "export.json").read_text())["results"]
    assert record["folder"] == "tiny-openmm"
    assert record["forces_ev_per_angstrom"] < 1e-9  # the same kernels, in another unit


def test_own_checkpoint(tiny_checkpoint, tmp_path):
    """`random_tiny/model.pt` goes to a folder of its model's name; the files that were there before
    are not said to be written.
    """
    folder = tmp_path / "random_tiny-openmm"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    options = ("--checkpoint", str(tiny_checkpoint), "--engine", "openmm", "--topology", "O")
    result = run_in(tmp_path, str(ROOT / "export.py"), *options)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in folder.iterdir()} == {"notes.txt", *FILES}
    written = " ".join(result.stdout.split("difference")[0].split())
    assert written == f"wrote {', '.join(FILES)} in random_tiny-openmm"


def test_archive_of_another_precision_is_refused(tiny_archive, tiny_archive64, tmp_path):
    folder = tmp_path / "files"
    with pytest.raises(InputError, match="exported in float32, not float64"):
        write_openmm_files(tiny_archive, "O", folder, dtype="float64")
    assert not folder.exists()
    assert write_openmm_files(tiny_archive64, "O", folder).dtype == "float64"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--model", "tiny", "--engine", "openmm"),
        ("--model", "tiny", "--topology", "O"),
        ("--model", "all", "--engine", "openmm", "--topology", "O"),
    ],
)
def test_half_a_command_is_refused(arguments, tmp_path):
    result = run_in(tmp_path, str(ROOT / "export.py"), *arguments)
    assert result.returncode == 2
    assert "--engine openmm and --topology FILE must be given together" in result.stderr
    assert os.listdir(tmp_path) == []


def test_unusable_input_writes_nothing(tmp_path):
    folder = tmp_path / "files"
    with pytest.raises(InputError, match="does not know Si"):
        write_openmm_files("tiny", "C[SiH3]", folder)
    with pytest.raises(MissingDependencyError, match="float32"):
        write_openmm_files("tiny", "O", folder, dtype="float64", backend="native")
    assert not folder.exists()
    folder.write_text("a file")
    with pytest.raises(InputError, match="cannot make the folder"):
        write_openmm_files("tiny", "O", folder)
