"""Distillation from recipe to checkpoint, on real labels of the teacher."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from rdkit import Chem

import mlff_student.distill.sample as sampling
import mlff_student.distill.train as training
from mlff_student.checkpoints import archive_of
from mlff_student.distill.dataset import SPLITS, Frames, read_split, sha256
from mlff_student.distill.evaluate import force_errors, predict_frames, write_checkpoint
from mlff_student.distill.molecules import Molecule, embed, read_library
from mlff_student.distill.recipe import FIRST_RECIPE, Recipe, read_recipe
from mlff_student.elements import ELEMENTS
from mlff_student.errors import InputError
from mlff_student.files import atomic_write
from mlff_student.student import PRESETS, Student
from mlff_student.teachers import make_teacher

RECIPE = {
    "teacher": "gfn2-xtb",
    "seed": 3,
    "sampling": {
        "molecules": 8,
        "largest": 7,
        "always": ["water", "methane", "ammonia"],
        "temperatures_K": [300, 600],
        "frames": 1,
        "interval": 3,
        "equilibration": 2,
        "timestep_fs": 1.0,
        "friction_per_fs": 0.02,
        "largest_force": 30.0,
        "held_out": {"validation": 0.15, "test": 0.15},
    },
    "training": {
        "ultra_tiny": {
            "steps": 6,
            "batch": 3,
            "learning_rate": 1e-3,
            "warmup": 2,
            "energy_weight": 10.0,
            "clip": 5.0,
            "ema": 0.9,
        }
    },
}
SMALL = [
    Molecule("O", "water", "small"),
    Molecule("C", "methane", "small"),
    Molecule("N", "ammonia", "small"),
    Molecule("CO", "methanol", "small"),
    Molecule("C=O", "formaldehyde", "small"),
    Molecule("C#N", "hydrogen_cyanide", "small"),
    Molecule("OO", "hydrogen_peroxide", "small"),
    Molecule("CCO", "ethanol", "solvent"),  # above the limit of 7 atoms
]


class Distillation(NamedTuple):
    """A whole small distillation on disk."""

    recipe: Recipe
    recipe_file: Path
    samples: Path  # folder of npz files
    dataset: Path
    counts: dict[str, int]
    frames: int  # as `sample` reports
    failures: list[str]


@pytest.fixture(scope="module")
def distillation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Distillation]:
    folder = tmp_path_factory.mktemp("distillation")
    recipe_file = folder / "recipe.yaml"
    recipe_file.write_text(yaml.safe_dump(RECIPE))
    recipe = read_recipe(recipe_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "read_library", lambda: SMALL)
        frames, failures = sampling.sample(recipe, folder / "samples", workers=1)
        counts = sampling.write_dataset(recipe, folder / "samples", folder / "data.h5")
        yield Distillation(
            recipe, recipe_file, folder / "samples", folder / "data.h5", counts, frames, failures
        )


def train(distillation: Distillation, folder: Path) -> dict[str, torch.Tensor]:
    """Weights after the recipe's six steps."""
    training.train(distillation.recipe, "ultra_tiny", distillation.dataset, folder, compiled=False)
    return torch.load(folder / "model.pt", weights_only=True)["weights"]


@pytest.fixture(scope="module")
def trained(distillation: Distillation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(distillation, folder)
    return folder


# --- Recipe -------------------------------------------------------------------------------------


def written(values: object, folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(
    ("section", "wrong", "right"),
    [
        ("recipe", "techer", "teacher"),
        ("sampling", "temperature_K", "temperatures_K"),
        ("sampling", "largest_forces", "largest_force"),
        ("training.ultra_tiny", "learning_rat", "learning_rate"),
        ("sampling.held_out", "validaton", "validation"),
    ],
)
def test_misspelt_key_names_the_nearest(section: str, wrong: str, right: str, tmp_path: Path):
    values = yaml.safe_load(yaml.safe_dump(RECIPE))
    inner = values
    for part in section.split("."):
        inner = inner if part == "recipe" else inner[part]
    inner[wrong] = inner.pop(right)
    with pytest.raises(InputError, match=f"{section}: .*{wrong}'; did you mean '{right}'"):
        read_recipe(written(values, tmp_path))


def test_missing_key_is_named(tmp_path: Path):
    values = yaml.safe_load(yaml.safe_dump(RECIPE))
    del values["sampling"]["frames"]
    with pytest.raises(InputError, match="sampling: missing frames"):
        read_recipe(written(values, tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a\n- b\n",
        "{",
        "teacher: x\n\tseed: 1",
        yaml.safe_dump(RECIPE | {"training": None}),
        yaml.safe_dump(RECIPE | {"training": ["tiny"]}),
        yaml.safe_dump(RECIPE | {"sampling": 3}),
    ],
)
def test_what_is_no_recipe_is_an_input_error(text: str, tmp_path: Path):
    with pytest.raises(InputError):
        read_recipe(written(text, tmp_path))


def test_missing_recipe_file(tmp_path: Path):
    with pytest.raises(InputError, match="no recipe file"):
        read_recipe(tmp_path / "nothing.yaml")


def test_shipped_recipe_is_valid_and_serves_every_preset():
    recipe = read_recipe(FIRST_RECIPE)
    assert set(recipe.training) == set(PRESETS)
    names = {molecule.name for molecule in read_library()}
    assert set(recipe.sampling.always) <= names
    assert set(recipe.sampling.held_out) <= set(SPLITS)


# --- Library ------------------------------------------------------------------------------------


def test_library_is_large_valid_and_distinct():
    library = read_library()
    parsed = [Chem.MolFromSmiles(molecule.smiles) for molecule in library]
    assert all(parsed)
    assert len({Chem.MolToSmiles(one) for one in parsed}) == len(library) >= 1000
    assert len({molecule.name for molecule in library}) == len(library)
    assert all("/" not in molecule.name for molecule in library)  # they become file names
    assert {atom.GetSymbol() for one in parsed for atom in one.GetAtoms()} | {"H"} == set(ELEMENTS)


def test_library_is_neutral_closed_shell_single_molecules():
    for molecule in read_library():
        parsed = Chem.MolFromSmiles(molecule.smiles)
        assert Chem.GetFormalCharge(parsed) == 0, molecule
        assert not any(atom.GetNumRadicalElectrons() for atom in parsed.GetAtoms()), molecule
        assert len(Chem.GetMolFrags(parsed)) == 1, molecule


def test_embedding_is_reproducible():
    one, other = embed("CC(=O)NC(C)C(=O)NC")[0], embed("CC(=O)NC(C)C(=O)NC")[0]
    assert (one.positions == other.positions).all()
    assert (one.positions != embed("CC(=O)NC(C)C(=O)NC", seed=2)[0].positions).any()


def test_a_longer_library_does_not_reshuffle_the_choice(monkeypatch: pytest.MonkeyPatch):
    recipe = read_recipe(FIRST_RECIPE)
    before = sampling.choose_molecules(recipe)
    assert len(before) == len(set(before)) == recipe.sampling.molecules
    assert before == sampling.choose_molecules(recipe)
    assert {one.name for one in before[: len(recipe.sampling.always)]} == set(
        recipe.sampling.always
    )
    longer = [*read_library(), Molecule("CCCCCCCCC", "one_more", "hydrocarbon")]
    monkeypatch.setattr(sampling, "read_library", lambda: longer)
    assert len(set(sampling.choose_molecules(recipe)) ^ set(before)) <= 2


# --- Teacher and samples ------------------------------------------------------------------------


def test_unknown_teacher_names_the_known_ones():
    with pytest.raises(InputError, match=r"'gfn3-xtb'.*gfn2-xtb, gfn1-xtb"):
        make_teacher("gfn3-xtb")


def test_every_molecule_within_the_limit_is_sampled(distillation: Distillation):
    assert distillation.frames == 7 * 2
    assert distillation.failures == ["ethanol: too large or no usable frame"]
    names = {path.name for path in distillation.samples.iterdir()}
    assert names == {f"{molecule.name}.npz" for molecule in SMALL[:-1]}


def test_labels_are_the_teachers_at_the_stored_positions(distillation: Distillation):
    for name in ("methanol", "water"):
        sample = np.load(distillation.samples / f"{name}.npz")
        assert sample["temperatures"].tolist() == [300, 600]
        for positions, energy, forces in zip(
            sample["positions"], sample["energies"], sample["forces"], strict=True
        ):
            atoms = Atoms(sample["atomic_numbers"], positions=positions)
            atoms.calc = make_teacher("gfn2-xtb")
            # Positions are kept in float32: 1e-7 angstrom times a bond's 60 eV/angstrom^2.
            assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-5)
            np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-3)
        assert np.abs(np.diff(sample["positions"], axis=0)).max() > 1e-3


def test_sampling_goes_on_where_it_stopped(distillation: Distillation, tmp_path: Path):
    """Finished molecules stay; one that is lost comes back with the same frames."""
    again = tmp_path / "samples"
    again.mkdir()
    for path in distillation.samples.iterdir():
        if path.stem != "formaldehyde":
            (again / path.name).write_bytes(path.read_bytes())
    kept = {path.name: path.stat().st_mtime_ns for path in again.iterdir()}
    frames, _ = sampling.sample(distillation.recipe, again, workers=1)
    assert frames == 2
    assert all((again / name).stat().st_mtime_ns == time for name, time in kept.items())
    lost, found = (np.load(folder / "formaldehyde.npz") for folder in (distillation.samples, again))
    np.testing.assert_array_equal(found["positions"], lost["positions"])


def test_frames_with_a_large_force_are_dropped(distillation: Distillation):
    settings = replace(distillation.recipe.sampling, largest_force=1e-3)
    assert sampling.sample_molecule(SMALL[0], "gfn2-xtb", settings, seed=0) is None


# --- Dataset ------------------------------------------------------------------------------------


def test_held_out_molecules_are_disjoint(distillation: Distillation):
    splits = {split: read_split(distillation.dataset, split) for split in SPLITS}
    names = [name for split in splits.values() for name in split.names]
    assert len(names) == len(set(names)) == 7
    assert {"water", "methane", "ammonia"} <= set(splits["train"].names)
    assert len(splits["validation"].names) == len(splits["test"].names) == 1
    assert distillation.counts == {"train": 10, "validation": 2, "test": 2}


def test_dataset_holds_the_samples(distillation: Distillation):
    for split in SPLITS:
        frames = read_split(distillation.dataset, split)
        assert frames.start[0] == 0
        assert frames.start[-1] == len(frames.positions) == len(frames.atomic_numbers)
        for index, name in enumerate(frames.names):
            sample = np.load(distillation.samples / f"{name}.npz")
            for k, frame in enumerate(torch.nonzero(frames.molecule == index).flatten().tolist()):
                atoms = slice(int(frames.start[frame]), int(frames.start[frame + 1]))
                np.testing.assert_array_equal(
                    frames.atomic_numbers[atoms], sample["atomic_numbers"]
                )
                np.testing.assert_array_equal(frames.positions[atoms], sample["positions"][k])
                np.testing.assert_array_equal(frames.forces[atoms], sample["forces"][k])
                assert frames.energies[frame] == sample["energies"][k]
                assert frames.temperatures[frame] == sample["temperatures"][k]


def test_dataset_is_the_same_when_written_again(distillation: Distillation, tmp_path: Path):
    sampling.write_dataset(distillation.recipe, distillation.samples, tmp_path / "again.h5")
    for split in SPLITS:
        one, other = (
            read_split(path, split) for path in (distillation.dataset, tmp_path / "again.h5")
        )
        assert one.names == other.names
        assert torch.equal(one.positions, other.positions)


def test_dataset_hash_is_that_of_the_file(distillation: Distillation):
    expected = hashlib.sha256(distillation.dataset.read_bytes()).hexdigest()
    assert sha256(distillation.dataset) == expected


def test_missing_data_say_what_to_run(distillation: Distillation, tmp_path: Path):
    with pytest.raises(InputError, match="run `mlff-student distill sample` first"):
        sampling.write_dataset(distillation.recipe, tmp_path, tmp_path / "data.h5")
    with pytest.raises(InputError, match="run `mlff-student distill sample` first"):
        read_split(tmp_path / "data.h5", "train")
    assert list(tmp_path.iterdir()) == []


# --- Training -----------------------------------------------------------------------------------


def synthetic_frames(energies_of: dict[int, float], frames: int = 40) -> Frames:
    """Atoms at random places whose energy is the sum of one number an element."""
    rng = np.random.default_rng(0)
    counts = rng.integers(3, 12, frames)
    numbers = rng.choice(list(energies_of), counts.sum())
    start = np.concatenate([[0], counts.cumsum()])
    each = np.array([energies_of[number] for number in numbers])
    return Frames(
        names=["random"],
        kinds=["random"],
        molecule=torch.zeros(frames).long(),
        start=torch.tensor(start),
        atomic_numbers=torch.tensor(numbers),
        positions=torch.tensor(rng.random((counts.sum(), 3)) * 4.0).float(),
        forces=torch.zeros(int(counts.sum()), 3),
        energies=torch.tensor(np.add.reduceat(each, start[:-1])),
        temperatures=torch.full((frames,), 300.0).double(),
    )


def test_references_recover_exact_energies_of_elements():
    exact = {1: -13.1, 6: -1030.5, 8: -2043.25, 17: -12500.125}
    student = Student(PRESETS["ultra_tiny"])
    training.fit_references(synthetic_frames(exact), student)
    for symbol, (number, _) in ELEMENTS.items():
        found = float(student.references[list(ELEMENTS).index(symbol)])
        # Of an element that is not in the data nothing can be said: the smallest solution is 0.
        assert found == pytest.approx(exact.get(number, 0.0), abs=1e-7), symbol


def test_unknown_elements_in_the_data_are_refused(random_student: Callable[..., Student]):
    with pytest.raises(InputError, match="atomic number 14, unknown"):
        training.build_graphs(synthetic_frames({14: 1.0}), random_student("ultra_tiny"))


def test_unknown_preset_is_refused(distillation: Distillation, tmp_path: Path):
    with pytest.raises(InputError, match=r"no preset 'tinny' in the recipe; it has ultra_tiny"):
        training.train(distillation.recipe, "tinny", distillation.dataset, tmp_path)


def test_every_frame_is_seen_once_an_epoch_and_resumption_does_not_show():
    batches = training.shuffled(10, 3, seed=1, step=0)
    whole = [next(batches) for _ in range(9)]  # three epochs of three batches
    for epoch in range(3):
        seen = [k for batch in whole[3 * epoch : 3 * epoch + 3] for k in batch]
        assert len(seen) == len(set(seen)) == 9
    assert whole[:3] != whole[3:6]
    for step in range(9):
        assert next(training.shuffled(10, 3, seed=1, step=step)) == whole[step]
    assert sorted(next(training.shuffled(2, 5, seed=1, step=7))) == [0, 1]


def test_training_moves_the_weights_and_lowers_the_error(
    distillation: Distillation, tmp_path: Path
):
    """On its own six frames, in 60 steps."""
    settings = replace(distillation.recipe.training["ultra_tiny"], steps=60, learning_rate=5e-3)
    recipe = replace(distillation.recipe, training={"ultra_tiny": settings})
    training.train(recipe, "ultra_tiny", distillation.dataset, tmp_path, compiled=False)
    student = Student(PRESETS["ultra_tiny"])
    frames = read_split(distillation.dataset, "train")
    torch.manual_seed(recipe.seed)
    start = Student(PRESETS["ultra_tiny"])
    training.fit_references(frames, start)
    student.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True)["weights"])
    errors = [
        force_errors(predict_frames(one.requires_grad_(False), frames)[1], frames.forces.double())
        for one in (start, student)
    ]
    assert errors[1].force_rmse_ev_per_angstrom < 0.8 * errors[0].force_rmse_ev_per_angstrom


def test_stopped_and_resumed_training_gives_the_same_bits(
    distillation: Distillation, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training, "STATE_EVERY_S", 0.0)
    predict, calls = training.predict, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return predict(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "predict", killed)
        with pytest.raises(KeyboardInterrupt):
            train(distillation, tmp_path)
    assert not (tmp_path / "model.pt").exists()
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 3

    resumed = train(distillation, tmp_path)
    whole = torch.load(trained / "model.pt", weights_only=True)["weights"]
    assert resumed.keys() == whole.keys()
    for name, weight in whole.items():
        assert torch.equal(resumed[name], weight), name


def test_finished_training_is_not_repeated(
    distillation: Distillation, trained: Path, tmp_path: Path
):
    for name in ("state.pt", "metrics.csv"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    again = train(distillation, tmp_path)
    whole = torch.load(trained / "model.pt", weights_only=True)["weights"]
    assert all(torch.equal(again[name], weight) for name, weight in whole.items())
    assert (tmp_path / "metrics.csv").read_bytes() == (trained / "metrics.csv").read_bytes()


def test_metrics_have_one_row_a_validation(trained: Path):
    header, *rows = (trained / "metrics.csv").read_text().splitlines()
    assert header.startswith("step,seconds,train_force_rmse_ev_per_angstrom,validation_")
    assert [row.split(",")[0] for row in rows] == ["6"]
    assert all(np.isfinite(float(value)) for row in rows for value in row.split(","))


# --- Evaluation and checkpoint ------------------------------------------------------------------


def test_force_errors_of_known_answers():
    label = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.05]]).double()
    exact = force_errors(label, label)
    assert exact.force_rmse_ev_per_angstrom == exact.force_mae_ev_per_angstrom == 0.0
    assert exact.force_r2 == 1.0
    assert exact.force_angle_deg == pytest.approx(0.0, abs=1e-4)
    # A quarter turn in the plane of x and y; the third is too small to have a direction.
    turned = label[:, [1, 0, 2]] * torch.tensor([1.0, -1.0, -1.0])
    found = force_errors(turned, label)
    assert found.atoms == 3
    assert found.force_angle_deg == pytest.approx(90.0)
    assert found.force_mae_ev_per_angstrom == pytest.approx((1 + 1 + 2 + 2 + 0.1) / 9)
    assert found.force_rmse_ev_per_angstrom == pytest.approx(np.sqrt((2 + 8 + 0.01) / 9))


def test_training_and_archive_compute_the_same_numbers(distillation: Distillation, trained: Path):
    """The network's prediction plus what is taken off the labels is the archive's answer."""
    weights = torch.load(trained / "model.pt", weights_only=True)["weights"]
    student = Student(PRESETS["ultra_tiny"])
    student.load_state_dict(weights)
    student.requires_grad_(False)
    frames = read_split(distillation.dataset, "train")
    graphs = training.build_graphs(frames, student)
    chosen = list(range(len(frames.energies)))
    energies, forces = training.predict(student.network, training.make_batch(graphs, chosen))
    energies = energies.double() + frames.energies - graphs.energies
    forces = forces + frames.forces - graphs.forces
    module = archive_of(trained / "model.pt").module
    for k in chosen:
        atoms = slice(int(frames.start[k]), int(frames.start[k + 1]))
        energy, expected, _ = module(
            frames.positions[atoms],
            frames.atomic_numbers[atoms],
            torch.zeros(3, 3),
            torch.zeros(3, dtype=torch.bool),
        )
        # Labels without references are float32: 1e-7 of up to 100 eV.
        assert float(energies[k]) == pytest.approx(float(energy), abs=1e-4)
        torch.testing.assert_close(forces[atoms].double(), expected, rtol=0, atol=2e-5)
    whole = predict_frames(student, frames, batch=4)
    torch.testing.assert_close(whole[0], energies, rtol=0, atol=1e-4)
    torch.testing.assert_close(whole[1], forces.double(), rtol=0, atol=2e-5)


def test_labels_lose_their_references_and_repulsion(random_student: Callable[..., Student]):
    """Random places, hence pairs as close as 0.3 angstrom with up to 1000 eV between them."""
    student = random_student("ultra_tiny", torch.float32)
    frames = synthetic_frames({1: -13.0, 6: -1030.0, 17: -12500.0})
    graphs = training.build_graphs(frames, student)
    chosen = list(range(len(frames.energies)))
    energies, forces = training.predict(student.network, training.make_batch(graphs, chosen))
    taken = frames.energies - graphs.energies, frames.forces - graphs.forces
    assert taken[1].abs().max() > 100.0
    whole = predict_frames(student, frames)
    # Rounding of float32 labels of 1e5 eV, and of forces of 1e4 eV/angstrom.
    torch.testing.assert_close(whole[0], energies.double() + taken[0], rtol=1e-6, atol=1e-2)
    torch.testing.assert_close(whole[1], (forces + taken[1]).double(), rtol=1e-5, atol=1e-2)


def test_checkpoint_has_a_card_and_loads(distillation: Distillation, trained: Path, tmp_path: Path):
    output = tmp_path / "ultra_tiny"
    card = write_checkpoint(
        distillation.recipe,
        distillation.recipe_file,
        "ultra_tiny",
        distillation.dataset,
        trained / "model.pt",
        output,
    )
    assert {"README.md", "card.json", "model.pt"} <= {path.name for path in output.iterdir()}
    assert json.loads((output / "card.json").read_text()) == card
    test = read_split(distillation.dataset, "test")
    measured = card["accuracy"]["held_out_molecules"]
    assert measured["frames"] == len(test.energies)
    assert measured["atoms"] == len(test.positions)
    assert sum(one["atoms"] for one in measured["by_element"].values()) == measured["atoms"]
    assert sum(one["atoms"] for one in measured["by_temperature_K"].values()) == measured["atoms"]
    assert card["held_out"]["test"] == test.names
    assert card["dataset_sha256"] == sha256(distillation.dataset)
    text = (output / "README.md").read_text()
    assert "gfn2-xtb" in text
    assert "Not for." in text

    archive = archive_of(output / "model.pt")
    assert archive.metadata["name"] == "ultra_tiny"
    assert archive.metadata["teacher"] == "gfn2-xtb"
    assert archive.metadata["accuracy"] == card["accuracy"]
    assert archive.metadata["dataset_sha256"] == card["dataset_sha256"]
    # The card's error is that of the archive.
    squares = []
    for k in range(len(test.energies)):
        atoms = slice(int(test.start[k]), int(test.start[k + 1]))
        _, forces, _ = archive.module(
            test.positions[atoms],
            test.atomic_numbers[atoms],
            torch.zeros(3, 3),
            torch.zeros(3, dtype=torch.bool),
        )
        squares.append((forces - test.forces[atoms]).square().flatten())
    rmse = float(torch.cat(squares).mean().sqrt())
    assert measured["force_rmse_ev_per_angstrom"] == pytest.approx(rmse, rel=1e-5)


# --- Files --------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "state"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("half of the new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
