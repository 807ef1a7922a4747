"""Ten picoseconds at constant energy of molecules that no student has seen: pytest -m slow.

`mlff-student distill stability checkpoints/<name> --runs runs/nve/<name>` runs twenty a model; its
results are the nve.csv in each checkpoint's folder.
"""

from pathlib import Path

import pytest

from mlff_student.archive.registry import available_models
from mlff_student.distill.molecules import Molecule
from mlff_student.distill.stability import held_out_molecules, simulate

MODELS = {name: folder / "model.pt" for name, folder in available_models().items()}
MOLECULES = 3  # of each model's test set: the shortest SMILES, the longest, and one between


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpoint", "molecule"),
    [(path, one) for path in MODELS.values() for one in held_out_molecules(path, MOLECULES)],
    ids=lambda value: value.name if isinstance(value, Molecule) else value.parent.name,
)
def test_energy_is_kept_and_bonds_hold(checkpoint: Path, molecule: Molecule, tmp_path: Path):
    result = simulate(checkpoint, molecule, tmp_path / "run", ps=10.0)
    assert result.passed, result
