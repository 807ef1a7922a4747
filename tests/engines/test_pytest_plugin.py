"""The pytest fixture and decorator by which other projects test that energy is conserved."""

import subprocess
import sys

PYTEST_FILE = """
import numpy as np
from ase import Atoms
import pytest
from ase.calculators.lj import LennardJones
from mlff_student.validation.pytest_plugin import energy_conserved

ARGON = Atoms("Ar4", 2.7 * np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]]))
FIELD = dict(sigma=3.4, epsilon=0.0104, rc=12.0, smooth=True)
RUN = dict(ps=2, timestep_fs=4, temperature_K=15)

class Wind(LennardJones):
    def calculate(self, *arguments, **options):
        super().calculate(*arguments, **options)
        x = self.atoms.positions - self.atoms.positions.mean(0)
        self.results["forces"] = self.results["forces"] + 1e-3 * np.cross([0, 0, 1.0], x)

def test_sound(conserves_energy):
    assert conserves_energy(ARGON, LennardJones(**FIELD), **RUN).record["atoms"] == 4

def test_unsound(conserves_energy):
    conserves_energy(ARGON, LennardJones(**FIELD), **RUN)
    conserves_energy(ARGON, Wind(**FIELD), **RUN)  # another run, not the first one again

@pytest.mark.parametrize("field", [LennardJones, Wind])
@energy_conserved(**RUN)
def test_decorated(field):
    return ARGON, field(**FIELD)
"""


def test_pytest_fixture(tmp_path):
    (tmp_path / "conftest.py").write_text(
        'pytest_plugins = ["mlff_student.validation.pytest_plugin"]\n'
    )
    (tmp_path / "test_argon.py").write_text(PYTEST_FILE)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_argon.py"]
    run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "2 failed, 2 passed" in run.stdout, run.stdout + run.stderr
    assert "energy is not conserved" in run.stdout
    assert "FAILED test_argon.py::test_decorated[Wind]" in run.stdout
