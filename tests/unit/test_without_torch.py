"""The native path where torch is not installed: calculator, batches, processes and threads."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

from mlff_student import StudentForceFieldCalculator
from mlff_student.archive.backends import unavailable
from mlff_student.archive.export import export
from mlff_student.archive.registry import checkpoint_path

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"{unavailable()}")

# Python runs this file at its start, also in processes that are spawned.
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Blocker())
"""
PROGRAM = """
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
from ase.build import molecule

from mlff_student import StudentForceFieldCalculator
from mlff_student.core.errors import MissingDependencyError

water = molecule("H2O", cell=[3.1, 3.2, 3.3], pbc=True).repeat(2)

def forces(calculator):
    return calculator.get_property("forces", water).tobytes()

def made(model):
    return forces(StudentForceFieldCalculator(model, threads=2))

if __name__ == "__main__":
    models = sys.argv[2:]
    calculator = StudentForceFieldCalculator("tiny", dtype="float32", threads=2)
    assert calculator.backend == "native"
    expected = [made(model) for model in models]
    assert set(expected) == {forces(calculator)}
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(made, models * 4)) == expected * 4
    for kind in ("fork", "spawn"):
        with ProcessPoolExecutor(2, mp_context=get_context(kind)) as pool:
            assert list(pool.map(forces, [calculator] * 4)) == expected[:1] * 4
    copy = pickle.loads(pickle.dumps(calculator))
    batch = copy.calculate_batch([molecule("CH3CH2OH"), water])
    for options in ({"backend": "portable"}, {"dtype": "float64"}, {"device": "cuda"}):
        try:
            StudentForceFieldCalculator("tiny", **options)
        except MissingDependencyError as error:
            assert "needs torch" in str(error) and "install torch" in str(error), error
        else:
            raise AssertionError(options)
    assert "torch" not in sys.modules
    np.savez(
        sys.argv[1],
        energies=[result["energy"] for result in batch],
        forces=batch[1]["forces"],
        stress=calculator.get_property("stress", water),
        stresses=calculator.get_property("stresses", water),
    )
"""


def test_calculator_needs_no_torch(tmp_path: Path):
    """A checkpoint and an archive, from threads and from forked and spawned processes."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCKER)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    archive = tmp_path / "tiny.pt"
    export(checkpoint_path("tiny"), archive, verify=False)
    command = [sys.executable, str(program), str(tmp_path / "results.npz"), "tiny", str(archive)]
    options: dict = {"env": os.environ | {"PYTHONPATH": path}, "capture_output": True, "text": True}
    run = subprocess.run(command, check=False, timeout=300, **options)
    assert run.returncode == 0, run.stderr
    export_command = [sys.executable, "-m", "mlff_student", "export", "--model", "tiny"]
    run = subprocess.run(export_command, check=False, cwd=tmp_path, timeout=300, **options)
    assert run.returncode == 3
    assert "this command needs torch, which is not installed" in run.stderr
    portable = StudentForceFieldCalculator("tiny", backend="portable")
    water = molecule("H2O", cell=[3.1, 3.2, 3.3], pbc=True).repeat(2)
    with np.load(tmp_path / "results.npz") as found:
        for atoms, energy in zip((molecule("CH3CH2OH"), water), found["energies"], strict=True):
            assert energy == pytest.approx(portable.get_property("energy", atoms), abs=2e-4)
        for name in ("forces", "stress", "stresses"):
            expected = portable.get_property(name, water)
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=5e-5)
