"""From labels to a checkpoint: training, evaluation, relabelling, rounds, the quick way.

The labels are GFN2-xTB's, of a handful of small structures. Network sizes and steps are as small as
the facts allow.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import molecule
from frames import atoms_of, periodic_water
from typer.testing import CliRunner

import mlff_student.distill.label as labelling
import mlff_student.distill.quick as quickly
import mlff_student.distill.rounds as looping
import mlff_student.distill.step as stepping
import mlff_student.distill.train as training
from mlff_student import cli
from mlff_student.analysis.forces import force_errors
from mlff_student.archive.archive import load_archive
from mlff_student.archive.registry import archive_of, load_student
from mlff_student.core.errors import ArchiveError, InputError
from mlff_student.core.files import sha256
from mlff_student.distill.bundle import write_bundle
from mlff_student.distill.dataset import (
    LabelledFrames,
    LabelledStructure,
    open_dataset,
    read_frames,
    read_summary,
)
from mlff_student.distill.evaluate import (
    card_text,
    write_checkpoint,
)
from mlff_student.distill.graphs import (
    build_graphs,
    make_batch,
    predict_frames,
)
from mlff_student.distill.packed import read_packed
from mlff_student.distill.recipe import Recipe, Rounds, read_recipe
from mlff_student.distill.relabel import relabel
from mlff_student.distill.sample import label_source
from mlff_student.distill.sources import Source
from mlff_student.distill.step import loss_of
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.model.elements import ELEMENTS
from mlff_student.model.student import PRESETS, Student
from mlff_student.teachers import make_teacher

PRESET = "ultra_tiny"
RECIPE = {
    "teacher": "gfn2-xtb",
    "seed": 3,
    "largest_force": 300.0,
    "structures": {
        "smiles": "three.smi",
        "library": 3,
        "largest": 7,
        "held_out": {"validation": 0, "test": 0},
    },
    "sampling": {
        "molecule": {
            "md": {"temperatures_K": [300, 600], "frames": 1, "interval": 3, "equilibration": 2}
        },
        "held_out": {
            "md": {"temperatures_K": [300, 600], "frames": 2, "interval": 3, "equilibration": 2}
        },
        "file": {"starts": True},
    },
    "training": {
        PRESET: {
            **{"steps": 6, "batch": 3, "learning_rate": 1e-3, "warmup": 2, "ema": 0.9},
            "free_molecule_energies": True,
        },
        "tiny": {"steps": 6, "batch": 3, "learning_rate": 1e-3},
    },
    "rounds": {
        "count": 1,
        "model": PRESET,
        "committee": 2,
        "steps": 3,
        "structures": 2,
        "temperatures_K": [300.0],
        "ps": 0.02,
        "frames": 1,
        "disagreement": 0.001,
    },
}
SMILES = {"train": ("O", "C", "N", "CO"), "validation": ("C=O",), "test": ("CCO", "OO")}


def written(values: object, folder: Path) -> Path:
    """A recipe file, with the three molecules that its `structures` name beside it."""
    folder.mkdir(exist_ok=True, parents=True)
    smiles = folder / "three.smi"
    smiles.write_text("O\twater\tsmall\nC\tmethane\tsmall\nCO\tmethanol\tsmall\n")
    values = yaml.safe_load(yaml.safe_dump(values))
    values["structures"]["smiles"] = str(smiles)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def pair_of_waters() -> Atoms:
    moved = molecule("H2O")
    moved.positions += [0.0, 0.0, 3.0]
    return molecule("H2O") + moved


def sources() -> Iterator[Source]:
    for split, several in SMILES.items():
        group = "molecule" if split == "train" else "held_out"
        for smiles in several:
            yield Source(f"{split}_{smiles}", smiles, "small", group, split, (smiles,))
    for name, kind, split, atoms in (
        ("crystal", "crystal", "train", periodic_water()),
        ("atom", "small", "train", Atoms("O")),
        ("pair", "dimer", "test", pair_of_waters()),
    ):
        yield Source(name, name, kind, "file", split, starts=(atoms,))


class Distillation(NamedTuple):
    """A labelled dataset and its recipe on disk."""

    recipe: Recipe
    recipe_file: Path
    dataset: Path


@pytest.fixture(scope="module")
def distillation(tmp_path_factory: pytest.TempPathFactory) -> Distillation:
    folder = tmp_path_factory.mktemp("distillation")
    recipe_file = written(RECIPE, folder)
    recipe = read_recipe(recipe_file)
    attributes = {"teacher": recipe.teacher, "seed": recipe.seed, "split_by": "molecule"}
    with open_dataset(folder / "dataset.h5", **attributes) as writer:
        for index, source in enumerate(sources()):
            one = label_source(source, recipe, seed=index)
            assert not one.failure, one
            writer.append(one)
    return Distillation(recipe, recipe_file, folder / "dataset.h5")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(autouse=True)
def without_state_every_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save no state by time; tests that kill a training set the interval themselves."""
    monkeypatch.setattr(training, "STATE_EVERY_S", 60.0)


def with_settings(recipe: Recipe, **settings: Any) -> Recipe:
    changed = replace(recipe.training[PRESET], **settings)
    return replace(recipe, training=recipe.training | {PRESET: changed})


def train(
    distillation: Distillation, folder: Path, settings: dict[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    """Train by the recipe with its six steps, or with other settings."""
    recipe = with_settings(distillation.recipe, **(settings or {}))
    options = {"compiled": False, "quiet": True} | options
    return training.train(recipe, PRESET, distillation.dataset, folder, **options)


@pytest.fixture(scope="module")
def trained(distillation: Distillation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(distillation, folder)
    return folder


def curve_of(folder: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv without the time."""
    with open(folder / "metrics.csv", newline="") as stream:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]


def state_of(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "state.pt", weights_only=True)


# --- References and loss ------------------------------------------------------------------------


def test_loss_of_a_student_that_predicts_zero(distillation: Distillation):
    """With zero energies and forces, the loss depends on the labels only."""
    student = Student(PRESETS[PRESET])
    with torch.no_grad():
        student.readout_out.weight.zero_()
        student.readout_out.bias.zero_()
    batch = make_batch(build_graphs(read_frames(distillation.dataset, "train"), student), [0, 3, 4])
    batch = batch._replace(energies=torch.tensor([1.0, 20.0, 3.0]))
    settings = replace(distillation.recipe.training[PRESET], huber=0.5, energy_weight=7.0)
    forces = batch.forces.double()
    size = forces.abs()
    assert (size > 0.5).any()
    assert (size < 0.5).any()
    atoms = len(forces)
    energy = 7.0 * ((batch.energies / batch.atoms) ** 2).sum() / 3
    huber = torch.where(size < 0.5, size**2, 2 * 0.5 * size - 0.5**2).sum() / (3 * atoms)
    loss, squared, _, errors = loss_of(student.network, batch, settings, 3, atoms, 1.0)
    torch.testing.assert_close(errors, -batch.energies)
    assert loss.item() == pytest.approx(float(energy + huber), rel=1e-5)
    assert float(squared) == pytest.approx(float((size**2).sum()), rel=1e-5)
    pulled = batch._replace(virials=torch.full((3, 3, 3), torch.nan))
    pulled.virials[1] = 5.0
    pulled_loss = loss_of(student.network, pulled, settings, 3, atoms, 1.0).total
    virial = settings.virial_weight * (5.0 / int(batch.atoms[1])) ** 2 / 3
    assert pulled_loss.item() == pytest.approx(float(energy + huber) + virial, rel=1e-5)
    assert loss_of(student.network, pulled, settings, 3, atoms, 0.25).total.item() == pytest.approx(
        float(0.25 * (energy + virial) + huber), rel=1e-5
    )
    plain = replace(settings, huber=0.0)
    loss = loss_of(student.network, batch, plain, 3, atoms, 1.0).total
    assert loss.item() == pytest.approx(float(energy + (size**2).sum() / (3 * atoms)), rel=1e-5)


# --- Training -----------------------------------------------------------------------------------


def force_rmse(checkpoint: dict[str, Any], frames: LabelledFrames) -> float:
    student = Student(PRESETS[PRESET])
    student.load_state_dict(checkpoint["weights"])
    found = predict_frames(student.requires_grad_(False), frames)[1]
    return force_errors(found, frames.forces.double()).force_rmse_ev_per_angstrom


def test_training_lowers_the_error(distillation: Distillation, trained: Path, tmp_path: Path):
    """The error of the training frames, among them an atom and a crystal, falls in 300 steps."""
    frames = read_frames(distillation.dataset, "train")
    before = torch.load(trained / "model.pt", weights_only=True)
    after = train(distillation, tmp_path, {"steps": 300, "learning_rate": 3e-3})
    assert force_rmse(after, frames) < 0.6 * force_rmse(before, frames)


def test_checkpoint_holds_how_it_was_trained(distillation: Distillation, trained: Path):
    checkpoint = torch.load(trained / "model.pt", weights_only=True)
    assert checkpoint["config"] == PRESETS[PRESET].as_dict()
    frames = read_frames(distillation.dataset, "train")
    assert checkpoint["training"]["history"] == [
        {
            "dataset_sha256": [sha256(distillation.dataset)],
            "settings": asdict(distillation.recipe.training[PRESET]),
            "from_step": 0,
            "frames": len(frames.energies),
            "molecules": len(SMILES["train"]) + 2,
        }
    ]
    assert [row["step"] for row in curve_of(trained)] == ["6"]
    assert all(np.isfinite(float(value)) for row in curve_of(trained) for value in row.values())


def test_finished_training_is_not_repeated(
    distillation: Distillation, trained: Path, tmp_path: Path
):
    (tmp_path / "state.pt").write_bytes((trained / "state.pt").read_bytes())
    again = train(distillation, tmp_path)
    whole = torch.load(trained / "model.pt", weights_only=True)
    assert same(again["weights"], whole["weights"])
    assert again["training"]["history"] == whole["training"]["history"]
    assert (tmp_path / "metrics.csv").read_bytes() == (trained / "metrics.csv").read_bytes()


def after(
    call: Callable[..., Any], count: int, error: BaseException | None = None
) -> Callable[..., Any]:
    """Return the same function, which raises an error, or Ctrl-C, after its `count`-th call."""
    error = error or KeyboardInterrupt()
    calls = []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        result = call(*arguments, **options)
        calls.append(arguments)
        if len(calls) == count:
            raise error
        return result

    return interrupted


INSTANTS = {
    "forward": (stepping, "predict", 5),
    "gradients": (torch.nn.utils, "clip_grad_norm_", 4),
    "matrices": (stepping.Muon, "step", 4),
    "other weights": (torch.optim.AdamW, "step", 4),
    "update": (stepping.Step, "_update", 3),
    "validation": (training, "validation_errors", 2),
    "last validation": (training, "validation_errors", 3),
    "curve": (training, "write_curve", 3),
    "save": (torch, "save", 4),
}


@pytest.fixture(scope="module")
def validated_often(
    distillation: Distillation, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Training with a validation every other step, and its checkpoint."""
    folder = tmp_path_factory.mktemp("often")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "VALIDATE_EVERY", 2)
        return folder, train(distillation, folder)


@pytest.mark.parametrize(
    ("instant", "often"),  # with the state saved at every step, or only at the end
    [*((instant, True) for instant in INSTANTS), ("gradients", False), ("save", False)],
)
def test_interrupted_training_resumes_bit_for_bit(
    instant: str,
    often: bool,
    distillation: Distillation,
    validated_often: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(training, "VALIDATE_EVERY", 2)
    if often:
        monkeypatch.setattr(training, "STATE_EVERY_S", -1.0)
    owner, name, count = INSTANTS[instant]
    if instant == "save" and not often:
        count = 1
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, after(getattr(owner, name), count))
        with pytest.raises(KeyboardInterrupt):
            train(distillation, tmp_path)
    assert not (tmp_path / "model.pt").exists()
    resumed = train(distillation, tmp_path)
    whole_folder, whole = validated_often
    assert same(resumed["weights"], whole["weights"])
    assert curve_of(tmp_path) == curve_of(whole_folder)
    for part in ("student", "average"):
        assert same(state_of(tmp_path)[part], state_of(whole_folder)[part])


def test_training_resumes_after_the_gpu_failed(
    distillation: Distillation,
    validated_often: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(training, "VALIDATE_EVERY", 2)
    monkeypatch.setattr(training, "STATE_EVERY_S", -1.0)
    failure = torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
    with monkeypatch.context() as patch:
        patch.setattr(stepping.Step, "_update", after(stepping.Step._update, 4, failure))
        with pytest.raises(InputError, match="the GPU failed in step 4: CUDA error: uncorrectable"):
            train(distillation, tmp_path)
    assert state_of(tmp_path)["step"] == 3
    assert same(train(distillation, tmp_path)["weights"], validated_often[1]["weights"])


KILLABLE = """
import sys
from pathlib import Path
import mlff_student.distill.train as training
from mlff_student.distill.recipe import read_recipe
training.VALIDATE_EVERY, training.STATE_EVERY_S = 4, -1.0
recipe, dataset, folder = map(Path, sys.argv[1:])
training.train(read_recipe(recipe), "ultra_tiny", dataset, folder, compiled=False, quiet=True)
"""


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def test_killed_training_resumes_bit_for_bit(
    distillation: Distillation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """SIGKILL comes at two random moments of 60 steps, each of which saves the state."""
    values = yaml.safe_load(yaml.safe_dump(RECIPE))
    values["training"][PRESET]["steps"] = 60
    recipe_file = written(values, tmp_path / "recipe")
    killed = tmp_path / "killed"
    rng = np.random.default_rng(5)
    for rows in (2, 7):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLABLE, str(recipe_file), str(distillation.dataset), killed],
            env=environment(),
        )
        metrics = killed / "metrics.csv"
        until = time.monotonic() + 100.0
        while not metrics.exists() or len(metrics.read_text().splitlines()) < rows:
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < until
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (killed / "model.pt").exists()
        assert 0 < state_of(killed)["step"] < 60
    monkeypatch.setattr(training, "VALIDATE_EVERY", 4)
    recipe = read_recipe(recipe_file)
    checkpoints = [
        training.train(recipe, PRESET, distillation.dataset, folder, compiled=False, quiet=True)
        for folder in (killed, tmp_path / "whole")
    ]
    assert same(checkpoints[0]["weights"], checkpoints[1]["weights"])
    assert curve_of(killed) == curve_of(tmp_path / "whole")
    steps = [int(row["step"]) for row in curve_of(killed)]
    assert steps == list(range(4, 61, 4))
    assert not [path for path in killed.iterdir() if path.suffix == ".csv.part"]


def test_moving_average_is_validated_and_kept(
    distillation: Distillation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(stepping, "predict", after(stepping.predict, 6))  # in the sixth step
        with pytest.raises(KeyboardInterrupt):
            train(distillation, tmp_path)
    before = state_of(tmp_path)
    assert before["step"] == 5
    checkpoint = train(distillation, tmp_path)
    after_it = state_of(tmp_path)
    decay = distillation.recipe.training[PRESET].ema
    for name, weight in after_it["student"].items():
        average = after_it["average"][name]
        if name != "references":
            old = before["average"][name]
            torch.testing.assert_close(average, decay * old + (1 - decay) * weight)
        assert torch.equal(checkpoint["weights"][name], average)
    assert not torch.equal(
        checkpoint["weights"]["readout_out.weight"], after_it["student"]["readout_out.weight"]
    )
    student = Student(PRESETS[PRESET])
    student.load_state_dict(checkpoint["weights"])
    graphs = build_graphs(read_frames(distillation.dataset, "validation"), student)
    errors = training.validation_errors(student.network, graphs, relative=True)
    (row,) = curve_of(tmp_path)
    assert all(isinstance(value, float) for value in errors)
    for name, value in errors._asdict().items():
        assert float(row[f"validation_{name}"]) == pytest.approx(value, rel=1e-5), name


def test_early_stopping_returns_the_best_weights(
    distillation: Distillation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The learning rate is so high that the errors soon grow."""
    monkeypatch.setattr(training, "VALIDATE_EVERY", 1)
    settings = {"steps": 400, "learning_rate": 0.05, "warmup": 100, "patience": 4, "ema": 0.2}
    checkpoint = train(distillation, tmp_path, settings)
    curve = curve_of(tmp_path)
    errors = [float(row["validation_force_rmse_ev_per_angstrom"]) for row in curve]
    energies = [float(row["validation_energy_rmse_ev_per_atom"]) for row in curve]
    weight = distillation.recipe.training[PRESET].energy_weight
    best = int(np.argmin(np.square(errors) + weight * np.square(energies)))
    assert len(errors) == best + 5 < 400
    frames = read_frames(distillation.dataset, "validation")
    assert force_rmse(checkpoint, frames) == pytest.approx(errors[best], rel=1e-4)
    assert errors[-1] > 1.001 * errors[best]
    again = train(distillation, tmp_path, settings)
    assert same(again["weights"], checkpoint["weights"])
    assert len(curve_of(tmp_path)) == len(errors)


def with_broken_label(dataset: Path, copy: Path, column: str) -> None:
    """Write a dataset with a label of a training frame that is not finite."""
    frames = read_frames(dataset)
    with open_dataset(copy, teacher="gfn2-xtb") as writer:
        for k, split in ((0, "train"), (1, "train"), (2, "validation")):
            rows = slice(int(frames.start[k]), int(frames.start[k + 1]))
            one = structure_of(frames, k, f"{split}_{k}", split)
            broken = getattr(one, column).copy()
            if k == 1:
                broken.reshape(-1)[0] = np.nan
            assert rows.stop > rows.start
            writer.append(one._replace(**{column: broken}))


def structure_of(frames: LabelledFrames, k: int, name: str, split: str) -> LabelledStructure:
    """Return a frame as a separate structure."""
    rows = slice(int(frames.start[k]), int(frames.start[k + 1]))
    one = slice(k, k + 1)
    return LabelledStructure(
        name=name,
        identity=name,
        kind="small",
        split=split,
        attempted=1,
        failure="",
        atomic_numbers=frames.atomic_numbers[rows].numpy().astype(np.uint8),
        methods=[frames.methods[k]],
        positions=frames.positions[rows].numpy()[None],
        forces=frames.forces[rows].numpy()[None],
        energies=frames.energies[one].numpy(),
        temperatures=frames.temperatures[one].numpy(),
        cells=frames.cells[one].numpy(),
        pbc=frames.pbc[one].numpy(),
        stresses=frames.stresses[one].numpy(),
    )


@pytest.mark.parametrize("column", ["forces", "energies"])
def test_labels_that_are_not_finite_stop_the_training_at_their_step(
    column: str, distillation: Distillation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """There are two frames, so the second step sees the broken frame at the latest."""
    monkeypatch.setattr(training, "STATE_EVERY_S", -1.0)
    with_broken_label(distillation.dataset, tmp_path / "broken.h5", column)
    broken = distillation._replace(dataset=tmp_path / "broken.h5")
    message = r"not finite any more at step [12]; lower training\.ultra_tiny\.learning_rate"
    if column == "energies":  # there are no references then, and no step
        message = "energies that are not finite"
    with pytest.raises(InputError, match=message):
        train(broken, tmp_path, {"batch": 1, "steps": 4})
    if (tmp_path / "state.pt").exists():
        state = state_of(tmp_path)
        assert state["step"] == 1
        assert all(weight.isfinite().all() for weight in state["student"].values())


def test_diverging_training_keeps_the_last_state(
    distillation: Distillation, trained: Path, tmp_path: Path
):
    """Training then continues with the lower rate that the message asks for."""
    (tmp_path / "state.pt").write_bytes((trained / "state.pt").read_bytes())
    with pytest.raises(InputError, match="not finite any more at step 8"):
        train(distillation, tmp_path, {"steps": 12, "learning_rate": 1e30})
    assert (tmp_path / "state.pt").read_bytes() == (trained / "state.pt").read_bytes()
    train(distillation, tmp_path, {"steps": 12, "learning_rate": 1e-4})
    last = curve_of(tmp_path)[-1]
    assert last["step"] == "12"
    state = state_of(tmp_path)
    assert all(weight.isfinite().all() for weight in state["student"].values())


def test_unknown_preset_is_refused(distillation: Distillation, tmp_path: Path):
    with pytest.raises(
        InputError, match=r"no preset 'tinny' in the recipe; it has tiny, ultra_tiny"
    ):
        training.train(distillation.recipe, "tinny", distillation.dataset, tmp_path)


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_damaged_state_is_refused(
    damage: str, distillation: Distillation, trained: Path, tmp_path: Path
):
    content = (trained / "state.pt").read_bytes()
    if damage == "cut":
        (tmp_path / "state.pt").write_bytes(content[:-2000])
    else:  # as versions before wrote it
        state = state_of(trained)
        torch.save(state | {"schedules": []}, tmp_path / "state.pt")
    with pytest.raises(InputError, match=r"state.pt is damaged or of another version; move it"):
        train(distillation, tmp_path)
    assert not (tmp_path / "model.pt").exists()
    (tmp_path / "state.pt").write_bytes(content)
    (tmp_path / "model.pt").write_bytes(b"damaged")
    train(distillation, tmp_path)
    assert load_student(tmp_path / "model.pt")


def test_state_of_another_preset_is_refused(
    distillation: Distillation, trained: Path, tmp_path: Path
):
    (tmp_path / "state.pt").write_bytes((trained / "state.pt").read_bytes())
    with pytest.raises(InputError, match="holds the state of ultra_tiny, not tiny"):
        training.train(distillation.recipe, "tiny", distillation.dataset, tmp_path)


@pytest.mark.parametrize("missing", ["train", "validation"])
def test_an_empty_split_is_refused(missing: str, distillation: Distillation, tmp_path: Path):
    frames = read_frames(distillation.dataset)
    with open_dataset(tmp_path / "data.h5", teacher="gfn2-xtb") as writer:
        for k, split in enumerate(("train", "validation", "test")):
            if split != missing:
                writer.append(structure_of(frames, k, split, split))
    with pytest.raises(InputError, match=f"has no {missing} frames; see structures.held_out"):
        train(distillation._replace(dataset=tmp_path / "data.h5"), tmp_path / "model")


def test_a_grown_dataset_is_recorded_and_used(distillation: Distillation, tmp_path: Path):
    frames = read_frames(distillation.dataset)
    data = distillation._replace(dataset=tmp_path / "data.h5")
    splits = ("train", "train", "train", "validation")
    with open_dataset(data.dataset, teacher="gfn2-xtb") as writer:
        for k, split in enumerate(splits):
            writer.append(structure_of(frames, k, f"{split}_{k}", split))
    first = train(data, tmp_path / "model")["training"]["history"]
    with open_dataset(data.dataset, teacher="gfn2-xtb") as writer:
        writer.append(structure_of(frames, 6, "late", "train"))
    # A finished training does not use the new frames.
    assert train(data, tmp_path / "model")["training"]["history"] == first
    history = train(data, tmp_path / "model", {"steps": 9})["training"]["history"]
    assert history[:1] == first
    assert [(one["from_step"], one["frames"], one["molecules"]) for one in history] == [
        (0, 3, 3),
        (6, 4, 4),
    ]
    assert history[0]["dataset_sha256"] != history[1]["dataset_sha256"]
    assert history[1]["dataset_sha256"] == [sha256(data.dataset)]


def test_initial_weights_are_kept_and_references_fitted_anew(
    distillation: Distillation, tmp_path: Path, random_student: Callable[..., Student]
):
    given = random_student(PRESET, torch.float32)
    torch.save(
        {"config": PRESETS[PRESET].as_dict(), "weights": given.state_dict()},
        tmp_path / "given.pt",
    )
    still = {"steps": 1, "learning_rate": 1e-20}
    found = train(distillation, tmp_path / "model", still, initial=tmp_path / "given.pt")
    for name, weight in given.state_dict().items():
        assert torch.equal(found["weights"][name], weight) == (name != "references"), name
    # Least squares: no change of an element's reference lowers what is left of the energies.
    frames = read_frames(distillation.dataset, "train")
    student = Student(PRESETS[PRESET])
    student.load_state_dict(found["weights"])
    left = frames.energies - predict_frames(student.requires_grad_(False), frames)[0]
    assert left.abs().max() > 1e-2
    for symbol, (number, _) in ELEMENTS.items():
        there = (frames.atomic_numbers == number).double()
        counts = torch.zeros_like(left).index_add(
            0, torch.repeat_interleave(frames.start.diff()), there
        )
        # The network's energies are float32: 1e-7 of 100 eV in each of ten frames.
        assert abs(float(counts @ left)) < 1e-3, symbol
        if not there.any():
            k = list(ELEMENTS).index(symbol)
            assert found["weights"]["references"][k] == pytest.approx(float(given.references[k]))


def test_initial_weights_of_another_preset_are_refused(
    distillation: Distillation, tiny_checkpoint: Path, tmp_path: Path
):
    with pytest.raises(InputError, match=r"is no ultra_tiny, .*channels=64"):
        train(distillation, tmp_path, initial=tiny_checkpoint)
    with pytest.raises(ArchiveError, match="no checkpoint"):
        train(distillation, tmp_path, initial=tmp_path / "nothing.pt")


def test_extra_frames_are_trained_on(distillation: Distillation, trained: Path, tmp_path: Path):
    """With a batch of all frames, the gradient is that of all datasets together."""
    frames = read_frames(distillation.dataset, "test")
    with open_dataset(tmp_path / "extra.h5", teacher="a student") as writer:
        for k in range(3):
            writer.append(structure_of(frames, k, f"more_{k}", "train"))
        writer.append(structure_of(frames, 3, "other", "validation"))
    with open_dataset(tmp_path / "one_more.h5", teacher="a student") as writer:
        writer.append(structure_of(frames, 4, "yet_another", "train"))
    options = {"extra": [tmp_path / "extra.h5", tmp_path / "one_more.h5"]}
    found = train(distillation, tmp_path / "model", **options)
    without = torch.load(trained / "model.pt", weights_only=True)
    (history,) = found["training"]["history"]
    assert history["frames"] == without["training"]["history"][0]["frames"] + 4
    assert history["dataset_sha256"] == [
        sha256(path) for path in (distillation.dataset, *options["extra"])
    ]
    assert torch.equal(found["weights"]["references"], without["weights"]["references"])
    assert not same(found["weights"], without["weights"])

    with training.started_workers() as workers:
        whole = training._Training(
            distillation.recipe,
            PRESET,
            distillation.dataset,
            tmp_path / "other",
            workers,
            options["extra"],
            None,
        ).graphs
    own = read_frames(distillation.dataset, "train").start.diff()
    batch = make_batch(whole, [len(own) + 2, 1, len(own) + 3, len(own)])
    sizes = frames.start.diff()[[2, 4, 0]].tolist()
    assert batch.atoms.tolist() == [sizes[0], int(own[1]), *sizes[1:]]


# --- Several processes, few libraries -----------------------------------------------------------


def test_two_processes_give_the_weights_of_one(distillation: Distillation, tmp_path: Path):
    """Gradients are sums in another order, which float32 rounds by 1e-7, and Muon rounds to
    bfloat16: weights move by 1e-3 a step, and agree to less than half of one.
    """
    recipe_file = written(RECIPE, tmp_path / "recipe")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.h5").write_bytes(distillation.dataset.read_bytes())
    command = f"-m torch.distributed.run --standalone --nproc-per-node 2 -m mlff_student distill \
        train {recipe_file} --data {tmp_path / 'data'} --model {PRESET} --no-compile"
    done = subprocess.run(
        [sys.executable, *command.split()], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    one = training.train(
        read_recipe(recipe_file), PRESET, distillation.dataset, tmp_path / "one", compiled=False
    )
    two = torch.load(tmp_path / "data" / PRESET / "model.pt", weights_only=True)
    assert two["training"]["processes"] == 2
    assert two["training"]["history"] == one["training"]["history"]
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=0, atol=4e-4, msg=name)
    files = {path.name for path in (tmp_path / "data" / PRESET).iterdir()}
    assert files == {"state.pt", "metrics.csv", "tensorboard", "model.pt"}
    assert len(list((tmp_path / "data" / PRESET / "tensorboard").iterdir())) == 1  # of rank 0


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_without_a_share_adds_nothing(
    rank: int, distillation: Distillation, tmp_path: Path
):
    """Two processes, one frame: the other's gradients are zeros, not missing. Here each is alone
    with itself, so that the sum is its own part.
    """
    recipe = with_settings(distillation.recipe, batch=1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    try:
        workers = training.Workers(rank, 2, torch.device("cpu"))
        one = training._Training(
            recipe, PRESET, distillation.dataset, tmp_path / "model", workers, (), None
        )
        before = {name: value.clone() for name, value in one.student.state_dict().items()}
        one._step([0])
    finally:
        torch.distributed.destroy_process_group()
    assert one.done == 1
    assert same(one.student.state_dict(), before) == (rank == 1)


ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1].split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from pathlib import Path
from mlff_student.distill.recipe import read_recipe
from mlff_student.distill.train import train
recipe, dataset, folder = map(Path, sys.argv[2:])
train(read_recipe(recipe), "ultra_tiny", dataset, folder, compiled=False)
present = {name.split(".")[0] for name in sys.modules}
assert not present & set(sys.argv[1].split()), present
"""


def test_training_needs_no_chemistry_and_no_tensorboard(distillation: Distillation, tmp_path: Path):
    values = yaml.safe_load(yaml.safe_dump(RECIPE))
    values["training"][PRESET]["steps"] = 2
    recipe_file = written(values, tmp_path)
    absent = "ase rdkit openmm matplotlib scipy mdtraj vesin tblite typer tensorboard"
    arguments = [absent, str(recipe_file), str(distillation.dataset), str(tmp_path / "model")]
    done = subprocess.run(
        [sys.executable, "-c", ABSENT, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert files == {"state.pt", "metrics.csv", "model.pt"}


WITHOUT_ANYTHING = """
import runpy, sys
absent, sys.argv = sys.argv[1].split(), sys.argv[2:]
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
runpy.run_path(sys.argv[0], run_name="__main__")
assert sys.modules["mlff_student"].__file__.startswith(sys.argv[0].removesuffix("train.py"))
"""


def test_a_bundle_needs_torch_only(distillation: Distillation, tmp_path: Path):
    """All presets within the time, resumed when it is given more, with their errors."""
    folder = tmp_path / "bundle"
    size = write_bundle(distillation.recipe, distillation.dataset, folder)
    assert size < 2.0
    packages = "h5py yaml rich ase rdkit openmm matplotlib scipy mdtraj vesin tblite typer"
    command = [sys.executable, "-c", WITHOUT_ANYTHING, f"{packages} tensorboard"]
    for minutes in (0.05, 0.1):
        done = subprocess.run(
            [*command, str(folder / "train.py"), "--minutes", str(minutes), "--no-compile"],
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        for model in distillation.recipe.training:
            assert {path.name for path in (folder / model).iterdir()} == {
                *("state.pt", "metrics.csv", "model.pt", "errors.json")
            }
            training_time = torch.load(folder / model / "model.pt", weights_only=True)["training"]
            assert 20 * minutes < training_time["seconds"] + 1 < 60 * minutes + 9
            assert training_time["steps"] == int(curve_of(folder / model)[-1]["step"]) > 0
            errors = json.loads((folder / model / "errors.json").read_text())
            assert errors["all"]["frames"] == 9
            assert set(errors) == {"all", "small", "dimer"}
            student, _ = load_student(folder / model / "model.pt")
            test = read_packed(folder / "data.npz", "test")
            expected = force_errors(predict_frames(student, test)[1], test.forces.double())
            for name in ("force_rmse_ev_per_angstrom", "force_mae_ev_per_angstrom"):
                assert errors["all"][name] == pytest.approx(getattr(expected, name), rel=1e-4)
    write_bundle(distillation.recipe, distillation.dataset, folder)  # replaces the bundle
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(InputError, match="exists and is no bundle"):
        write_bundle(distillation.recipe, distillation.dataset, tmp_path / "other")
    with pytest.raises(InputError, match=r"more than 0.01 MB; give fewer with --structures"):
        write_bundle(distillation.recipe, distillation.dataset, folder, largest_mb=0.01)


def test_tensorboard_shows_the_curve(validated_often: tuple[Path, dict[str, Any]]):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = reader.EventAccumulator(str(validated_often[0] / "tensorboard")).Reload()
    rows = curve_of(validated_often[0])
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    for name in rows[0]:
        if name != "step":
            events = accumulator.Scalars(name)
            assert [event.step for event in events] == [2, 4, 6]
            expected = [float(row[name]) for row in rows]
            assert [event.value for event in events] == pytest.approx(expected, rel=1e-4)


# --- Evaluation and checkpoint ------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(
    distillation: Distillation, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of the trained student with its card."""
    folder = tmp_path_factory.mktemp("checkpoint") / "mine"
    write_checkpoint(
        distillation.recipe,
        distillation.recipe_file,
        distillation.dataset,
        trained / "model.pt",
        "mine",
        folder,
    )
    return folder


def test_card_holds_its_documented_content(distillation: Distillation, checkpoint: Path):
    files = {path.name for path in checkpoint.iterdir()}
    assert files == {"model.pt", "card.json", "summary.json", "README.md"}
    card = json.loads((checkpoint / "card.json").read_text())
    train_frames = read_frames(distillation.dataset, "train")
    test = read_frames(distillation.dataset, "test")
    assert card["name"] == "mine"
    assert card["parameters"] == sum(w.numel() for w in Student(PRESETS[PRESET]).parameters())
    assert card["teacher"] == "gfn2-xtb"
    assert card["dataset_sha256"] == sha256(distillation.dataset)
    assert card["recipe"] == "recipe.yaml"
    assert card["recipe_sha256"] == sha256(distillation.recipe_file)
    assert card["split_by"] == "molecule"
    assert card["held_out"] == {"test": test.names}
    made = card["training"]
    assert (made["molecules"], made["complexes"]) == (len(SMILES["train"]) + 1, 1)
    assert made["frames"] == len(train_frames.energies)
    assert made["steps"] == 6
    domain = card["domain"]
    assert domain["elements"] == ["H", "C", "N", "O"]
    assert domain["temperatures_K"] == [300.0, 600.0]
    assert domain["largest_molecule_atoms"] == 6
    largest = float(train_frames.forces.norm(dim=1).max())
    assert domain["largest_force_ev_per_angstrom"] == pytest.approx(largest, abs=0.005)
    text = (checkpoint / "README.md").read_text()
    assert text == card_text(card)
    for words in (
        "gfn2-xtb",
        "5 molecules and 1 complexes",
        "of 2 molecules that were not trained on",
        "Do not use it for ions",
    ):
        assert words in text, words


def test_groups_of_the_card_add_up(distillation: Distillation, checkpoint: Path):
    """The squared errors of the groups, weighted by their components, sum to that of the whole."""
    card = json.loads((checkpoint / "card.json").read_text())
    measured = card["accuracy"]["held_out_molecules"]
    test = read_frames(distillation.dataset, "test")
    single = [k for k, method in enumerate(test.methods) if method == "md"]
    assert measured["frames"] == len(single) == len(test.energies) - 1
    assert measured["molecules"] == 2
    whole = measured["atoms"] * measured["force_rmse_ev_per_angstrom"] ** 2
    for group in ("by_temperature_K", "by_element", "by_size", "by_class"):
        rows = measured[group].values()
        assert sum(row["atoms"] for row in rows) == measured["atoms"], group
        squares = sum(row["atoms"] * row["force_rmse_ev_per_angstrom"] ** 2 for row in rows)
        assert squares == pytest.approx(whole), group
    for group in ("by_temperature_K", "by_size", "by_class"):
        assert sum(row["frames"] for row in measured[group].values()) == measured["frames"]
    assert set(measured["by_temperature_K"]) == {"300", "600"}
    assert set(measured["by_size"]) == {"1-8 atoms", "9-16 atoms"}
    assert {name: row["frames"] for name, row in measured["complexes"].items()} == {"dimer": 1}
    assert measured["complexes"]["dimer"]["atoms"] == 6


def test_exported_checkpoint_has_the_errors_of_its_card(
    distillation: Distillation, checkpoint: Path
):
    archive = archive_of(checkpoint / "model.pt")
    card = json.loads((checkpoint / "card.json").read_text())
    for key in ("teacher", "accuracy", "dataset_sha256", "domain"):
        assert archive.metadata[key] == card[key], key
    test = read_frames(distillation.dataset, "test")
    student, _ = load_student(checkpoint / "model.pt")
    energies, forces, _ = predict_frames(student, test)
    squares, energy_squares = [], []
    for k in range(len(test.energies)):
        rows = slice(int(test.start[k]), int(test.start[k + 1]))
        energy, found, _ = archive.module(
            test.positions[rows], test.atomic_numbers[rows], test.cells[k], test.pbc[k]
        )
        # Both sum in float32, in another order.
        assert float(energy) == pytest.approx(float(energies[k]), abs=1e-5)
        torch.testing.assert_close(found, forces[rows], rtol=0, atol=2e-5, check_dtype=False)
        if test.methods[k] == "md":
            squares.append((found - test.forces[rows]).square().flatten())
            energy_squares.append(((energy - test.energies[k]) / len(found)).square())
    measured = card["accuracy"]["held_out_molecules"]
    rmse = float(torch.cat(squares).mean().sqrt())
    assert measured["force_rmse_ev_per_angstrom"] == pytest.approx(rmse, rel=1e-5)
    rmse = float(torch.stack(energy_squares).mean().sqrt())
    assert measured["energy_rmse_ev_per_atom"] == pytest.approx(rmse, rel=1e-5)


def test_evaluation_without_frames_is_refused(
    distillation: Distillation, trained: Path, tmp_path: Path
):
    frames = read_frames(distillation.dataset)
    with open_dataset(tmp_path / "data.h5", teacher="gfn2-xtb") as writer:
        writer.append(structure_of(frames, 0, "only", "train"))
    with pytest.raises(InputError, match="no held-out frames to measure on"):
        write_checkpoint(
            distillation.recipe,
            distillation.recipe_file,
            tmp_path / "data.h5",
            trained / "model.pt",
            "mine",
            tmp_path / "output",
        )
    assert not (tmp_path / "output").exists()


def test_card_of_a_specialised_student_names_trajectories(checkpoint: Path):
    card = json.loads((checkpoint / "card.json").read_text())
    text = card_text(card | {"split_by": "trajectory"})
    assert "5 trajectories of one molecule" in text
    assert "frames of its MD of trajectories that were not trained on" in text
    assert "only for the molecule that it was made for" in text
    assert "trajectories" not in card_text(card)


# --- Relabelling --------------------------------------------------------------------------------


def relabelled(distillation: Distillation, checkpoint: Path, output: Path, **options: Any) -> int:
    options = {"copies": 2, "largest_force": 1000.0, "seed": 5} | options
    return relabel(checkpoint / "model.pt", distillation.dataset, output, **options)


def test_relabelled_frames_have_labels_of_the_student(
    distillation: Distillation, checkpoint: Path, tmp_path: Path
):
    count = relabelled(distillation, checkpoint, tmp_path / "more.h5")
    given, frames = read_frames(distillation.dataset, "train"), read_frames(tmp_path / "more.h5")
    assert count == len(frames.energies) == 2 * len(given.energies)
    assert frames.names == given.names  # nothing held out
    assert set(read_summary(tmp_path / "more.h5").splits) == {"train"}
    assert set(frames.methods) == {"relabelled"}
    student, _ = load_student(checkpoint / "model.pt")
    energies, forces, _ = predict_frames(student, frames)
    # The same frames in other batches: float32 sums round differently; forces are kept in float32.
    torch.testing.assert_close(frames.energies, energies, rtol=0, atol=1e-5)
    torch.testing.assert_close(frames.forces.double(), forces, rtol=0, atol=1e-5)
    # Copies of a frame follow each other; they are displaced by 0.01 to 0.1 angstrom an axis.
    for k in range(len(given.energies)):
        old = given.positions[given.start[k] : given.start[k + 1]]
        for copy in (2 * k, 2 * k + 1):
            new = frames.positions[frames.start[copy] : frames.start[copy + 1]]
            assert 0.002 < (new - old).square().mean().sqrt() < 0.3
        assert torch.equal(frames.cells[2 * k], given.cells[k])
        assert torch.equal(frames.pbc[2 * k + 1], given.pbc[k])


def test_relabelling_resumes_where_it_stopped(
    distillation: Distillation, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import mlff_student.distill.relabel as relabelling

    relabelled(distillation, checkpoint, tmp_path / "whole.h5")
    with monkeypatch.context() as patch:
        patch.setattr(relabelling, "predict_frames", after(relabelling.predict_frames, 3))
        with pytest.raises(KeyboardInterrupt):
            relabelled(distillation, checkpoint, tmp_path / "more.h5")
    assert len(read_summary(tmp_path / "more.h5").names) == 2
    for _ in range(2):
        relabelled(distillation, checkpoint, tmp_path / "more.h5")
        found, whole = (read_frames(tmp_path / f"{name}.h5") for name in ("more", "whole"))
        assert found.names == whole.names
        assert torch.equal(found.positions, whole.positions)
        assert torch.equal(found.energies, whole.energies)


def test_relabelling_by_another_student_is_refused(
    distillation: Distillation, checkpoint: Path, tiny_checkpoint: Path, tmp_path: Path
):
    relabelled(distillation, checkpoint, tmp_path / "more.h5")
    with pytest.raises(InputError, match="was made with teacher"):
        relabelled(distillation, tiny_checkpoint.parent, tmp_path / "more.h5")


def test_relabelled_frames_with_large_forces_are_dropped_and_counted(
    distillation: Distillation, checkpoint: Path, tmp_path: Path
):
    relabelled(distillation, checkpoint, tmp_path / "all.h5")
    whole = read_frames(tmp_path / "all.h5")
    largest = whole.forces.abs().amax(1).numpy()
    worst = torch.tensor(np.maximum.reduceat(largest, whole.start[:-1].numpy()))
    limit = float(worst.sort().values[[9, 10]].mean())  # ten frames are below it
    kept = relabelled(distillation, checkpoint, tmp_path / "some.h5", largest_force=limit)
    assert kept == 10
    summary = read_summary(tmp_path / "some.h5")
    assert summary.attempted.sum() == len(whole.energies)
    for lost, failure in zip(summary.attempted - summary.labelled, summary.failures, strict=True):
        assert failure == (f"force above {limit:g} eV/angstrom" if lost else "")
    frames = read_frames(tmp_path / "some.h5")
    assert torch.equal(frames.energies, whole.energies[worst <= limit])


# --- Student in the loop ------------------------------------------------------------------------


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Label in this process, because starting workers takes longer than their work."""
    for module in (labelling, looping):
        monkeypatch.setattr(module, "on_cores", lambda _, work, jobs: (work(job) for job in jobs))


@pytest.fixture
def data(distillation: Distillation, tmp_path: Path) -> Path:
    """Folder with a copy of the dataset, to which rounds add frames."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "dataset.h5").write_bytes(distillation.dataset.read_bytes())
    return folder


def settings_of(recipe: Recipe, **changes: Any) -> Rounds:
    assert recipe.rounds is not None
    return replace(recipe.rounds, **changes)


def test_a_round_labels_frames_on_which_untrained_students_disagree(
    distillation: Distillation, data: Path, in_this_process: None
):
    recipe = distillation.recipe
    before = read_summary(data / "dataset.h5")
    (done,) = looping.run_rounds(recipe, data, 1, compiled=False)
    assert done.simulated == done.structures == done.frames == 2
    summary = read_summary(data / "dataset.h5")
    new = [k for k, name in enumerate(summary.names) if name not in before.names]
    assert len(new) == 2
    names = {summary.names[k] for k in new}
    assert names <= {"round1_water", "round1_methane", "round1_methanol"}
    assert {summary.splits[k] for k in new} == {"train"}
    assert summary.labelled[new].tolist() == [1, 1]
    frames = read_frames(data / "dataset.h5")
    k = int((frames.molecule == frames.names.index(min(names))).nonzero()[0])
    atoms = atoms_of(frames, k)
    atoms.calc = make_teacher(recipe.teacher)
    # The teacher's self-consistency ends at 1e-6 of its energy unit.
    assert atoms.get_potential_energy() == pytest.approx(float(frames.energies[k]), abs=1e-4)

    states = {path: path.read_bytes() for path in data.rglob("state.pt")}
    assert len(states) == 2
    hash_before = read_summary(data / "dataset.h5").names
    assert looping.run_rounds(recipe, data, 1, compiled=False) == [done]
    assert read_summary(data / "dataset.h5").names == hash_before
    assert all(path.read_bytes() == content for path, content in states.items())


@pytest.mark.parametrize("killed_at", ["labelling of round 1", "training of round 2"])
def test_killed_rounds_resume(
    killed_at: str,
    distillation: Distillation,
    data: Path,
    in_this_process: None,
    monkeypatch: pytest.MonkeyPatch,
):
    """The committee of a round has never been trained on frames of a later round."""
    recipe = replace(distillation.recipe, rounds=settings_of(distillation.recipe, count=2))
    whole = data.with_name("whole")
    whole.mkdir()
    (whole / "dataset.h5").write_bytes((data / "dataset.h5").read_bytes())
    expected = looping.run_rounds(recipe, whole, 1, compiled=False)
    with monkeypatch.context() as patch:
        if killed_at == "labelling of round 1":
            patch.setattr(labelling, "_label", after(labelling._label, 2))
        else:
            # Two members with three steps each, then in the second member's training of round 2.
            patch.setattr(stepping, "predict", after(stepping.predict, 2 * 3 + 3 + 2))
        with pytest.raises(KeyboardInterrupt):
            looping.run_rounds(recipe, data, 1, compiled=False)
    record = json.loads((data / "rounds" / "round_1.json").read_text())
    assert ("summary" in record) == (killed_at == "training of round 2")
    assert looping.run_rounds(recipe, data, 1, compiled=False) == expected
    assert [summary.structures for summary in expected] == [2, 2]
    one, other = (read_frames(folder / "dataset.h5") for folder in (data, whole))
    assert len(set(one.names)) == len(one.names)
    assert one.names == other.names
    assert torch.equal(one.positions, other.positions)
    for member in range(2):
        state = state_of(data / "rounds" / f"member_{member}")
        assert state["step"] == 6
        assert [entry["from_step"] for entry in state["history"]] == [0, 3]


def test_rounds_never_use_held_out_molecules(
    distillation: Distillation,
    data: Path,
    in_this_process: None,
    monkeypatch: pytest.MonkeyPatch,
):
    held_out = replace(distillation.recipe.structures.held_out, validation=1 / 3, test=1 / 3)
    structures = replace(distillation.recipe.structures, held_out=held_out)
    recipe = replace(distillation.recipe, structures=structures)
    run = []
    propose = looping.propose
    monkeypatch.setattr(looping, "propose", lambda *given: run.append(given) or propose(*given))
    assert [s.frames for s in looping.run_rounds(recipe, data, 1, compiled=False)] == [1]
    (given,) = run
    split = {one.name: one.split for one in looping.list_sources(structures, recipe.seed)}
    (name,) = [name for name in split if split[name] == "train"]
    assert f"round1_{name}" in read_summary(data / "dataset.h5").names
    assert given[0].name == f"round1_{name}"
    assert given[0].split == "train"


def one_water() -> Source:
    return Source("water", "O", "small", "file", "train", starts=(molecule("H2O"),))


def test_equal_students_do_not_disagree(distillation: Distillation, tiny_checkpoint: Path):
    members = [StudentForceFieldCalculator(tiny_checkpoint) for _ in range(2)]
    # In less than a femtosecond: random students pull a molecule apart.
    settings = settings_of(distillation.recipe, ps=0.0008, timestep_fs=0.01)
    (proposal,) = looping.propose(one_water(), members, settings, [1.0], seed=1)
    assert proposal.disagreement == 0.0


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # meant to happen
@pytest.mark.parametrize(
    ("scale", "temperature_K"), [(1e4, 300.0), (1.0, np.inf)], ids=["huge forces", "no numbers"]
)
def test_md_that_breaks_proposes_the_frame_before_it(
    scale: float, temperature_K: float, distillation: Distillation, tmp_path: Path
):
    """Huge forces break the molecule; positions that overflow are an error of the archive."""
    torch.manual_seed(0)
    student = Student(PRESETS[PRESET])
    with torch.no_grad():
        student.readout_out.weight *= scale
    content = {"config": PRESETS[PRESET].as_dict(), "weights": student.state_dict()}
    torch.save(content, tmp_path / "model.pt")
    member = StudentForceFieldCalculator(tmp_path / "model.pt")
    settings = settings_of(distillation.recipe, ps=2.0, frames=1)
    source, members = one_water(), [member, member]
    (first,) = looping.propose(source, members, settings, [temperature_K, 1.0], seed=1)
    assert first.disagreement == np.inf
    np.testing.assert_array_equal(first.atoms.positions, source.starts[0].positions)


def test_rounds_that_cannot_run_are_refused(distillation: Distillation, data: Path):
    with pytest.raises(InputError, match="no section `rounds`"):
        looping.run_rounds(replace(distillation.recipe, rounds=None), data, 1)
    wrong = replace(distillation.recipe, rounds=settings_of(distillation.recipe, model="original"))
    with pytest.raises(
        InputError, match=r"rounds\.model: no preset 'original'.*has tiny, ultra_tiny"
    ):
        looping.run_rounds(wrong, data, 1)
    with pytest.raises(InputError, match="distill sample` first"):
        looping.run_rounds(distillation.recipe, data / "nothing", 1)


# --- The quick way ------------------------------------------------------------------------------


def small_quick_recipe(folder: Path) -> Path:
    values = yaml.safe_load(quickly.QUICK_RECIPE.read_text())
    few = {"temperatures_K": [300], "frames": 2, "interval": 2, "equilibration": 2}
    values["sampling"] = {"molecule": {"starts": True, "md": few}, "held_out": {"md": few}}
    values["training"][PRESET] |= {"steps": 20, "batch": 8}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_quick_gives_an_archive_and_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quickly, "QUICK_RECIPE", small_quick_recipe(tmp_path))
    output = tmp_path / "water"
    card = quickly.quick("O", PRESET, "gfn2-xtb", output, workers=1, compiled=False)
    summary = read_summary(output / "dataset.h5")
    assert {split: summary.splits.count(split) for split in set(summary.splits)} == {
        "train": 12,
        "validation": 2,
        "test": 4,
    }
    assert len(set(summary.identities)) == 1
    archive = load_archive(output / f"{PRESET}.pt")
    assert archive.metadata["name"] == card["name"] == "water"
    assert archive.metadata["accuracy"] == card["accuracy"]
    assert card["split_by"] == "trajectory"
    assert "12 trajectories of one molecule" in (output / "README.md").read_text()
    assert card["accuracy"]["held_out_molecules"]["frames"] == 4 * 2
    # It begins with what the shipped student knows: no untrained one has learned that in 20 steps.
    assert card["accuracy"]["held_out_molecules"]["force_r2"] > 0.9
    times = {path: path.stat().st_mtime_ns for path in output.glob("dataset.h5")}
    assert quickly.quick("O", PRESET, "gfn2-xtb", output, workers=1, compiled=False) == card | {
        "dataset_sha256": sha256(output / "dataset.h5")
    }
    assert times.keys() == set(output.glob("dataset.h5"))


# --- Command line -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        "sample nothing.yaml --data {data}",
        "train nothing.yaml --data {data} --model tiny",
        "train {recipe} --data {data} --model original",
        "rounds {recipe} --data {data}",
        "evaluate {recipe} --data {data} --model tiny -o {data}/out",
        "relabel {data}/dataset.h5 --by nothing.pt -o {data}/more.h5",
        "quick --molecule nothing.sdf -o {data}/quick",
    ],
)
def test_errors_are_one_line_with_status_2(
    arguments: str,
    distillation: Distillation,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    words = arguments.format(data=tmp_path, recipe=distillation.recipe_file).split()
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: cli.app(["distill", *words]))
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_train_and_evaluate_on_the_command_line(
    distillation: Distillation, data: Path, tmp_path: Path
):
    runner, recipe = CliRunner(), str(distillation.recipe_file)
    options = ["--data", str(data), "--model", PRESET]
    done = runner.invoke(cli.app, ["distill", "train", recipe, *options, "--no-compile"])
    assert done.exit_code == 0, done.output
    output = tmp_path / "mine"
    done = runner.invoke(cli.app, ["distill", "evaluate", recipe, *options, "-o", str(output)])
    assert done.exit_code == 0, done.output
    assert "not trained on" in " ".join(done.output.split())
    more = tmp_path / "more.h5"
    options = f"--by {output}/model.pt -o {more} --copies 1 --largest-force 1000".split()
    done = runner.invoke(cli.app, ["distill", "relabel", str(data / "dataset.h5"), *options])
    assert done.exit_code == 0, done.output
    count = len(read_frames(data / "dataset.h5", "train").energies)
    assert f"{count} frames" in " ".join(done.output.split())
