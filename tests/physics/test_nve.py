"""Ten picoseconds at constant energy of molecules that no student has seen: pytest -m slow."""

from pathlib import Path

import pytest

from mlff_student.analysis import analyze
from mlff_student.checkpoints import available_models, read_card
from mlff_student.distill.molecules import read_library
from mlff_student.md import MDSettings, RunFolder, run_md
from mlff_student.verdict import load_thresholds, verdict

MODELS = available_models()
MOLECULES = 3  # of each model's test set, those with the longest SMILES


def held_out_molecules(model: str) -> list[str]:
    """SMILES of molecules that the model was not trained on."""
    names = set(read_card(MODELS[model] / "model.pt")["held_out"]["test"])
    found = [molecule.smiles for molecule in read_library() if molecule.name in names]
    return sorted(found, key=len)[-MOLECULES:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "smiles"),
    [(model, smiles) for model in MODELS for smiles in held_out_molecules(model)],
)
def test_energy_is_kept_and_bonds_hold(model: str, smiles: str, tmp_path: Path):
    settings = MDSettings(
        engine="openmm",
        model=model,
        structure=smiles,
        steps=20_000,
        timestep_fs=0.5,
        temperature_K=300.0,
        ensemble="nve",
        every=20,
        thermalise_steps=4000,
        friction_per_ps=10.0,
        seed=1,
    )
    folder = RunFolder(tmp_path / "run")
    run_md(settings, folder.path, quiet=True)
    record = analyze(folder.trajectory, folder.topology, folder.thermo).as_record()
    failed = [check for check in verdict(record, load_thresholds()) if not check.passed]
    assert not failed, (smiles, failed)
