"""Modules that an import loads: few for the package, no reader or engine for the calculator."""

import subprocess
import sys

import pytest

# Packages that are imported somewhere and take time to import or may not be installed.
HEAVY = {
    "ase",
    "h5py",
    "lammps",
    "matplotlib",
    "mdtraj",
    "openmm",
    "rdkit",
    "scipy",
    "tblite",
    "torch",
    "typer",
    "vesin",
}
PROGRAM = "import sys\n{}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import mlff_student", set()),
        ("import openmm_integration", set()),
        ("import mlff_student.engines.lammps.plugin", set()),  # `import lammps` loads it
        (
            "from mlff_student import StudentForceFieldCalculator",
            {"ase", "scipy"},
        ),
        # `--help` and errors in the arguments come at once.
        ("from mlff_student.cli import *", {"typer"}),
    ],
)
def test_imports_load_no_more_than_they_need(statement, allowed):
    words = [sys.executable, "-c", PROGRAM.format(statement)]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    assert HEAVY & set(run.stdout.split()) <= allowed


def test_unknown_attribute_of_the_package():
    with pytest.raises(ImportError, match="nothing"):
        from mlff_student import nothing  # noqa: F401
