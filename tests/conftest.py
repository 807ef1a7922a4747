"""Students with random weights, archives of them, and structures for all tests."""

import copy
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

# Set before torch is imported. On a busy machine, threads that wait for each other make the small
# graphs of the tests up to 300 times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from scipy.spatial.transform import Rotation

from mlff_student.archive.archive import save_archive
from mlff_student.archive.export import export
from mlff_student.archive.scripting import build_archive
from mlff_student.model.student import PRESETS, Student
from mlff_student.structures.smiles import embed

SEED = 11
CHLORAMPHENICOL = "O=C(N[C@H](CO)[C@H](O)c1ccc([N+](=O)[O-])cc1)C(Cl)Cl"  # 32 atoms, 5 elements
GAIN = 0.5  # of each linear map; with 1 the sums over neighbours grow a thousandfold in two layers
# Brings the random students' forces on the molecules below to a few eV/angstrom.
READOUT_SCALE = {"original": 3.0, "tiny": 5.0, "ultra_tiny": 10.0}


@cache
def _random_student(preset: str, dtype: torch.dtype) -> Student:
    generator = torch.Generator().manual_seed(SEED)
    student = Student(PRESETS[preset], dtype)
    with torch.no_grad():
        for name, weight in student.named_parameters():
            # Drawn in float32, so that students of both precisions are the same function.
            drawn = torch.randn(weight.shape, generator=generator)
            if name.endswith("bias"):
                drawn *= 0.3
            elif "embedding" not in name:
                drawn *= GAIN * weight.shape[1] ** -0.5
            if name == "readout_out.weight":
                drawn *= READOUT_SCALE[preset]
            weight.copy_(drawn)
        species = len(student.references)
        student.references.copy_(torch.randn(species, generator=generator).double() * 10.0)
    return student.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def random_student() -> Callable[..., Student]:
    """Factory `(preset, dtype=torch.float64)` of a student in which every weight and reference
    energy is random and changes the energy. Calls with equal arguments return one object: a test
    must not alter it.
    """

    def make(preset: str, dtype: torch.dtype = torch.float64) -> Student:
        return _random_student(preset, dtype)

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint `random_tiny/model.pt` of random weights, with a card.json beside it."""
    path = tmp_path_factory.mktemp("checkpoints") / "random_tiny" / "model.pt"
    path.parent.mkdir()
    weights = _random_student("tiny", torch.float32).state_dict()
    torch.save({"config": PRESETS["tiny"].as_dict(), "weights": weights}, path)
    card = {
        "teacher": "random numbers",
        "dataset_sha256": "0" * 64,
        "recipe": "none.yaml",
        "accuracy": {"force_rmse_ev_per_angstrom": 1.0},
        "domain": {"elements": list(PRESETS["tiny"].elements), "temperatures_K": [300.0]},
    }
    path.with_name("card.json").write_text(json.dumps(card))
    return path


@pytest.fixture(scope="session")
def tiny_archive(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archive of the random tiny student, float32."""
    path = tmp_path_factory.mktemp("archives") / "tiny.pt"
    export(tiny_checkpoint, path, dtype="float32", verify=False)
    return path


@pytest.fixture(scope="session")
def tiny_archive64(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archive of the random tiny student, float64."""
    path = tmp_path_factory.mktemp("archives") / "tiny64.pt"
    export(tiny_checkpoint, path, dtype="float64", verify=False)
    return path


@pytest.fixture(scope="session")
def random_archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Archives of the random students of all presets, float32: three different functions."""
    folder = tmp_path_factory.mktemp("presets")
    for preset, config in PRESETS.items():
        student = copy.deepcopy(_random_student(preset, torch.float32))
        save_archive(build_archive(student, config, preset, {}), folder / f"{preset}.pt")
    return {preset: folder / f"{preset}.pt" for preset in PRESETS}


def _on_grid(unit: list[Atoms], cell: np.ndarray) -> Atoms:
    """Eight whole molecules, each turned at random, on a 2 x 2 x 2 grid in a periodic cell."""
    rng = np.random.default_rng(SEED)
    corners = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3)
    box = Atoms(cell=cell, pbc=True)
    for index, corner in enumerate(corners):
        turned = unit[index % len(unit)].copy()
        rotation = Rotation.random(rng=rng).as_matrix()
        centred = turned.positions - turned.positions.mean(0)
        turned.positions = centred @ rotation.T + ((corner + 0.25) / 2.0) @ cell
        box += turned
    return box


@cache
def _structures() -> dict[str, Atoms]:
    rng = np.random.default_rng(SEED)
    water, ethanol = molecule("H2O"), molecule("CH3CH2OH")
    structures = {
        "water": water,
        "ethanol": ethanol,
        "molecule32": embed(CHLORAMPHENICOL)[0],
        # 1 g/cm3; the box is shorter than twice the cutoff.
        "water_box": _on_grid([water], np.diag([6.2, 6.3, 6.1])),
        # Lower triangular, tilts below half an edge: the form that OpenMM and LAMMPS take.
        "triclinic": _on_grid(
            [water, molecule("CH3OH")],
            np.array([[8.2, 0.0, 0.0], [2.9, 7.8, 0.0], [-2.3, 3.1, 8.6]]),
        ),
    }
    for atoms in structures.values():
        atoms.positions += 0.03 * rng.standard_normal(atoms.positions.shape)  # no symmetry
    return structures


@pytest.fixture
def structures() -> dict[str, Atoms]:
    """Fresh copies: water, ethanol and molecule32 (open); water_box and triclinic (periodic)."""
    return {name: atoms.copy() for name, atoms in _structures().items()}
