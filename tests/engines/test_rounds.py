"""A round of active learning with SO3LR and two shipped students: boxes, molecules and ions."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from frames import atoms_of
from typer.testing import CliRunner

import mlff_student.distill.label as labelling
import mlff_student.distill.rounds as looping
from mlff_student import cli
from mlff_student.core.errors import ArchiveError, InputError
from mlff_student.distill.dataset import read_frames, read_summary
from mlff_student.distill.recipe import Recipe, read_recipe
from mlff_student.distill.rounds import RoundSummary, run_rounds
from mlff_student.distill.sources import list_sources
from mlff_student.teachers import make_teacher

STUDENTS = ("tiny", "ultra_tiny")
STARTED_S = 150.0  # the longest time until a process has done the first MD on a busy machine
RECIPE: dict[str, Any] = {
    "teacher": "so3lr-float32",
    "seed": 5,
    "structures": {
        "smiles": "few.smi",
        "library": 3,
        "largest": 6,
        "charged": True,
        "held_out": {"validation": 0, "test": 0},
        "mixtures": [
            {
                "name": "water_liquid",
                "count": 3,
                "atoms": [12, 12],
                "solvents": ["water"],
                "periodic": True,
            },
            {
                "name": "ion_droplet",
                "count": 1,
                "atoms": [7, 7],
                "solvents": ["water"],
                "solutes": ["hydronium"],
            },
        ],
    },
    "sampling": {
        "molecule": {
            "md": {"temperatures_K": [300], "frames": 1, "interval": 2, "equilibration": 0}
        }
    },
    "training": {},
    "rounds": {
        "count": 2,
        "model": "tiny",
        "committee": 2,
        "steps": 1,
        "structures": 7,
        "ps": 0.04,
        "temperatures_K": [300, 400],
        "frames": 2,
        "disagreement": 0.05,
    },
}


class Case(NamedTuple):
    """A recipe, a dataset before any round, and the same after a round that nothing stopped."""

    file: Path
    recipe: Recipe
    before: Path
    after: Path
    summary: RoundSummary


@pytest.fixture(autouse=True, scope="module")
def in_this_process() -> Iterator[None]:
    """Work in this process, because starting workers takes longer than their work."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (labelling, looping):
            patch.setattr(module, "on_cores", lambda _, work, jobs: (work(job) for job in jobs))
        yield


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("rounds")
    smiles = folder / "few.smi"
    smiles.write_text("O\twater\tsmall\nCO\tmethanol\tsmall\n[OH3+]\thydronium\tion\n")
    file = folder / "recipe.yaml"
    structures = RECIPE["structures"] | {"smiles": str(smiles)}
    file.write_text(yaml.safe_dump(RECIPE | {"structures": structures}))
    recipe = read_recipe(file)
    water = [s for s in list_sources(recipe.structures, recipe.seed) if s.name == "water"]
    for name in ("before", "after"):
        labelling.label_sources(water, recipe, folder / name / "dataset.h5", 1)
    (summary,) = run_rounds(recipe, folder / "after", 1, students=STUDENTS)
    return Case(file, recipe, folder / "before", folder / "after", summary)


def copied(data: Path, copy: Path) -> Path:
    copy.mkdir()
    (copy / "dataset.h5").write_bytes((data / "dataset.h5").read_bytes())
    return copy


def proposals(data: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (data / "rounds").rglob("*.extxyz")}


def test_frames_of_all_groups_are_labelled(case: Case):
    """SO3LR refuses an odd number of electrons, so that the ion's charge has reached it."""
    summary, frames = (
        read_summary(case.after / "dataset.h5"),
        read_frames(case.after / "dataset.h5"),
    )
    groups = {name.removeprefix("round1_").rpartition("_train")[0] for name in summary.names}
    assert {"water_liquid", "ion_droplet"} <= groups
    assert "round1_methanol" in summary.names
    assert not any(summary.failures)
    assert set(summary.splits) == {"train"}
    assert case.summary.simulated == 7
    assert case.summary.broken == 0
    assert case.summary.disagreement > 0.05
    assert case.summary.frames == len(frames.energies) - len(
        read_frames(case.before / "dataset.h5").energies
    )
    teacher = make_teacher(case.recipe.teacher)
    for name in ("round1_ion_droplet_train_00000", "round1_water_liquid_train_00000"):
        k = int((frames.molecule == frames.names.index(name)).nonzero()[0])
        atoms = atoms_of(frames, k)
        if "ion" in name:
            atoms.info["charge"] = 1
        (label,) = teacher.label([atoms])
        # Batches of other structures round differently in float32.
        assert label.energy == pytest.approx(float(frames.energies[k]), abs=1e-3)
        assert bool(torch.isfinite(frames.stresses[k]).all()) == atoms.pbc.all()


def test_killed_round_resumes_with_another_number_of_workers(case: Case, tmp_path: Path):
    data = copied(case.before, tmp_path / "data")
    options = [str(case.file), "--data", str(data)]
    options += [word for student in STUDENTS for word in ("--student", student)]
    command = [sys.executable, "-m", "mlff_student", "distill", "rounds", *options]
    process = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.DEVNULL)
    end = time.monotonic() + STARTED_S
    while not proposals(data) and time.monotonic() < end:
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = proposals(data)
    assert done
    assert "summary" not in json.loads((data / "rounds" / "round_1.json").read_text())
    times = {path: path.stat().st_mtime_ns for path in (data / "rounds").rglob("*.extxyz")}

    with pytest.raises(InputError, match="round 1 was begun with other students"):
        run_rounds(case.recipe, data, 1, students=("tiny", "original"))
    records = tmp_path / "records.json"
    resumed = CliRunner().invoke(cli.app, ["distill", "rounds", *options, "--json", str(records)])
    assert resumed.exit_code == 0, resumed.output
    (record,) = json.loads(records.read_text())["results"]
    assert record["frames"] == case.summary.frames
    assert all(path.stat().st_mtime_ns == moment for path, moment in times.items())
    assert proposals(data) == proposals(case.after)
    one, other = (read_frames(folder / "dataset.h5") for folder in (data, case.after))
    assert one.names == other.names
    assert torch.equal(one.positions, other.positions)
    torch.testing.assert_close(one.forces, other.forces, rtol=0, atol=1e-3)


def test_a_call_runs_one_round_with_the_same_students(case: Case, tmp_path: Path):
    """Students learn nothing between rounds; only others start the next round."""
    data = tmp_path / "data"
    shutil.copytree(case.after, data)
    names = read_summary(data / "dataset.h5").names
    assert run_rounds(case.recipe, data, 1, students=STUDENTS) == [case.summary]
    assert read_summary(data / "dataset.h5").names == names
    # No two frames differ by so much that the teacher is asked.
    assert case.recipe.rounds is not None
    calm = replace(case.recipe, rounds=replace(case.recipe.rounds, disagreement=1e6))
    first, second = run_rounds(calm, data, 1, students=("original", "tiny"))
    assert first == case.summary
    assert second.simulated == 7
    assert second.frames == second.structures == 0
    assert np.isfinite(second.disagreement)
    assert read_summary(data / "dataset.h5").names == names


def test_committees_that_cannot_be_used_are_refused(case: Case, tmp_path: Path):
    data = copied(case.before, tmp_path / "data")
    with pytest.raises(InputError, match="two students or more, got only tiny"):
        run_rounds(case.recipe, data, 1, students=["tiny"])
    with pytest.raises(ArchiveError, match=r"no model '.*nothing\.pt'"):
        run_rounds(case.recipe, data, 1, students=["tiny", tmp_path / "nothing.pt"])
    with pytest.raises(InputError, match="distill sample` first"):
        run_rounds(case.recipe, tmp_path / "empty", 1, students=STUDENTS)
    assert case.recipe.rounds is not None
    cold = replace(case.recipe, rounds=replace(case.recipe.rounds, temperatures_K=[]))
    with pytest.raises(InputError, match=r"sampling\.(liquid|cluster) has no MD"):
        run_rounds(cold, data, 1, students=STUDENTS)
    assert not (data / "rounds").exists()
