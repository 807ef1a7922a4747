"""The quality gate: each check fails for its own reason, and passes otherwise.

The datasets hold embedded molecules with random displacements, labelled by springs.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from scipy.spatial.transform import Rotation

from mlff_student.core.errors import InputError
from mlff_student.distill.check import (
    GateCheck,
    GateReport,
    check_dataset,
    find_leaks,
    finite_frames,
    load_gate,
    lowest_frames,
    scan_geometry,
)
from mlff_student.distill.check_report import records, write_report
from mlff_student.distill.dataset import (
    SPLITS,
    LabelledStructure,
    open_dataset,
    read_frames,
    read_summary,
)
from mlff_student.distill.sources import connectivity
from mlff_student.model.elements import ELEMENTS
from mlff_student.structures.smiles import embed, identity

FRAMES = 10
SPRING = 20.0  # eV/angstrom^2, of every atom to its place
NAN = np.float32(np.nan)
LARGE = "CC(C)Cc1ccc(cc1)C(C)C(=O)NCCO"  # 41 atoms
MOLECULES = {  # by split; all elements, many sizes and environments
    "train": ("O", "CO", "C", "CCO", "FC(F)Br", "CCCl", "CP", "CSC", "CC(=O)NC", LARGE),
    "validation": ("CCN", "C=O"),
    "test": ("CC=O", "C#N"),
}


@cache
def embedded(smiles: str) -> Atoms:
    return embed(smiles)[0]


def labelled(
    atoms: Atoms, name: str, split: str, key: str, frames: int = FRAMES, **changes: Any
) -> LabelledStructure:
    """Frames with random thermal displacements from a geometry, and harmonic labels."""
    rng = np.random.default_rng(len(name) + len(atoms))
    shaken = rng.normal(scale=0.05, size=(frames, len(atoms), 3))
    # References as an element's, and a strain that is the molecule's own.
    energy = -13.6 * atoms.numbers.sum() + 0.05 * len(atoms) * rng.normal()
    structure = LabelledStructure(
        name=name,
        identity=key,
        kind="made",
        split=split,
        attempted=frames,
        failure="",
        atomic_numbers=atoms.numbers.astype(np.uint8),
        methods=["md"] * frames,
        positions=(atoms.positions + shaken).astype(np.float32),
        forces=(-SPRING * shaken).astype(np.float32),
        energies=energy + 0.5 * SPRING * (shaken**2).sum((1, 2)),
        temperatures=np.full(frames, 300.0, np.float32),
        cells=np.tile(atoms.cell.array.astype(np.float32), (frames, 1, 1)),
        pbc=np.tile(atoms.pbc, (frames, 1)),
        stresses=np.full((frames, 6), NAN),
    )
    return structure._replace(**changes)


def sound() -> list[LabelledStructure]:
    """Structures that pass every check."""
    return [
        labelled(embedded(smiles), f"{split}_{k}", split, identity(smiles))
        for split in SPLITS
        for k, smiles in enumerate(MOLECULES[split])
    ]


@pytest.fixture
def gate(tmp_path: Path) -> Callable[..., GateReport]:
    """Return a function that writes structures to a dataset and checks it."""

    def check(structures: list[LabelledStructure], **attributes: Any) -> GateReport:
        with open_dataset(tmp_path / "data.h5", teacher="springs", **attributes) as writer:
            for structure in structures:
                writer.append(structure)
        return check_dataset(tmp_path / "data.h5")

    return check


def failed(report: GateReport) -> dict[str, GateCheck]:
    """Return the checks that failed, by the key of their figure."""
    return {check.figure.key: check for check in report.checks if not check.passed}


def the_only_failure(report: GateReport) -> GateCheck:
    """Return the check that failed, and assert that no other did."""
    assert not report.passed
    (check,) = failed(report).values()
    assert report.verdict == f"NO-GO: {check.figure.title}"
    return check


def test_valid_dataset_passes_every_check(gate: Callable[..., GateReport]):
    report = gate(sound())
    assert failed(report) == {}
    assert report.verdict == "GO"
    assert [check.figure.key for check in report.checks] == list(load_gate())
    assert all(check.asked for check in report.checks)
    assert (record := report.as_record())["frames"] == record["frames_attempted"] == 14 * FRAMES


def test_every_limit_has_a_source_and_a_remedy():
    for name, limit in load_gate().items():
        assert limit.threshold.bound in ("least", "most"), name
        assert limit.asked in ("of any", "by molecule"), name
        assert len(limit.threshold.source) > 20 and len(limit.remedy) > 20, name


@pytest.mark.parametrize(("lost", "passes"), [(7, True), (8, False)])
def test_success_rate_counts_frames_that_were_attempted(
    lost: int, passes: bool, gate: Callable[..., GateReport]
):
    """7 of 147 is 4.8 %, 8 of 148 is 5.4 %."""
    first, *others = sound()
    first = first._replace(attempted=FRAMES + lost, failure="md: force of 44 eV/angstrom")
    others[0] = others[0]._replace(failure="md: force of 31 eV/angstrom; no conformer")
    report = gate([first, *others])
    assert report.passed == passes
    if not passes:
        check = the_only_failure(report)
        assert check.figure.key == "success_percent"
        assert check.figure.value == pytest.approx(100 * 140 / 148)
        assert check.worst == ["train_0: 10 of 18 frames, md: force of 44 eV/angstrom"]
    assert report.failures == {"md: force of # eV/angstrom": 2, "no conformer": 1}


@pytest.mark.parametrize("column", ["energies", "positions", "forces"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_fails(
    column: str, value: float, gate: Callable[..., GateReport]
):
    structures = sound()
    structures[3] = structures[3]._replace(
        **{column: (array := getattr(structures[3], column).copy())}
    )
    array.flat[-1] = value  # in the last frame
    check = the_only_failure(gate(structures))
    assert (check.figure.key, check.figure.value) == ("nonfinite_frames", 1)
    assert check.worst == [f"train_3, frame {FRAMES - 1}"]


def test_a_stress_is_nan_as_a_whole_or_not_at_all(gate: Callable[..., GateReport]):
    structures = sound()
    stresses = np.full((FRAMES, 6), NAN)
    stresses[:3, :3] = 0.1  # three frames of half a tensor
    structures[2] = structures[2]._replace(stresses=stresses)
    check = the_only_failure(gate(structures))
    assert check.worst == [f"train_2, frame {k}" for k in range(3)]


def test_a_periodic_cell_needs_a_volume(gate: Callable[..., GateReport]):
    flat = labelled(embedded("CF"), "flat", "train", "CF", pbc=np.ones((FRAMES, 3), bool))
    tilted = labelled(embedded("CBr"), "tilted", "train", "CBr")
    # Periodic along one direction, whatever its orientation and the other rows.
    tilted.cells[:, 0] = [0.0, 9.0, 0.0]
    tilted.pbc[:, 0] = True
    check = the_only_failure(gate([*sound(), flat, tilted]))
    assert (check.figure.key, check.figure.value) == ("nonfinite_frames", FRAMES)


def moved(structure: LabelledStructure, frame: int, distance: float) -> LabelledStructure:
    """Set the distance of the first two atoms of a frame."""
    positions = structure.positions.copy()
    vector = positions[frame, 1] - positions[frame, 0]
    positions[frame, 1] = positions[frame, 0] + distance * vector / np.linalg.norm(vector)
    return structure._replace(positions=positions)


def test_overlapping_atoms_fail(gate: Callable[..., GateReport]):
    structures = sound()
    structures[1] = moved(structures[1], 4, 0.25)
    report = gate(structures)
    # One of 140 frames is also more than 0.1 %.
    assert set(failed(report)) == {"shortest_distance_angstrom", "overlapping_percent"}
    found = failed(report)["shortest_distance_angstrom"]
    assert found.figure.value == pytest.approx(0.25, abs=1e-5)
    assert found.worst[0] == "train_1, frame 4: 0.25 angstrom"


def test_atoms_close_for_their_elements_fail(gate: Callable[..., GateReport]):
    """0.6 angstrom is 0.42 of the sum of the radii of C and O, and 0.62 of that of H and O."""
    structures = sound()
    structures[1] = moved(structures[1], 4, 0.6)
    assert structures[1].atomic_numbers[:2].tolist() == [6, 8]
    structures[0] = moved(structures[0], 4, 0.6)
    check = the_only_failure(gate(structures))
    assert check.figure.key == "overlapping_percent"
    assert check.worst == ["train_1, frame 4: 0.423 of the radii"]


def test_distances_to_periodic_images_are_measured(tmp_path: Path, gate: Callable[..., GateReport]):
    """Two atoms far apart in the box and 0.2 angstrom through its face."""
    box = Atoms("CO", [[0.1, 1.0, 1.0], [7.9, 1.0, 1.0]], cell=[8.0] * 3, pbc=True)
    structure = labelled(
        box, "box", "train", "box", positions=np.tile(box.positions, (FRAMES, 1, 1))
    )
    report = gate([*sound(), structure])
    check = failed(report)["shortest_distance_angstrom"]
    assert check.figure.value == pytest.approx(0.2, abs=1e-5)
    assert check.worst[0].startswith("box, frame 0")


def test_duplicates_are_found_after_rotation_reflection_and_permutation(
    gate: Callable[..., GateReport],
):
    structures = sound()
    ethanol = structures[3]
    base = ethanol.positions[0].astype(float)
    turned = base @ Rotation.random(rng=np.random.default_rng(0)).as_matrix() + 5.0
    hydrogens = np.flatnonzero(ethanol.atomic_numbers == 1)
    permuted = base.copy()
    permuted[hydrogens] = base[hydrogens[::-1]]
    near, far = base.copy(), base.copy()
    near[0] += [0.0003, 0.0, 0.0]
    far[0] += [0.02, 0.0, 0.0]
    copies = np.stack([turned, permuted, -base, near, far]).astype(np.float32)
    positions = np.concatenate([ethanol.positions[:5], copies])
    structures[3] = ethanol._replace(positions=positions)
    check = the_only_failure(gate(structures))
    assert check.figure.key == "duplicate_percent"
    assert check.figure.value == pytest.approx(100 * 4 / 140)
    assert check.worst == [f"train_3, frame {k}" for k in (5, 6, 7, 8)]


def test_equal_molecule_with_another_name_is_a_duplicate(
    gate: Callable[..., GateReport],
):
    structures = sound()
    again = structures[3]._replace(name="again")
    other = structures[3]._replace(name="other", identity="COC")
    report = gate([*structures, again, other])
    assert report.geometry.duplicate.sum() == FRAMES
    assert the_only_failure(report).worst[0] == "again, frame 0"


def test_periodic_duplicates_and_single_atoms(tmp_path: Path):
    diamond = bulk("C", cubic=True)
    crystal = labelled(diamond, "crystal", "train", "C8")
    shifted = crystal.positions.copy()
    shifted[3] = shifted[2] + np.float32(1.7)  # the whole crystal moved, atoms over the cell's edge
    atom = labelled(Atoms("H"), "atom", "train", "[H]", frames=3)
    with open_dataset(tmp_path / "data.h5") as writer:
        writer.append(crystal._replace(positions=shifted))
        writer.append(atom)
    frames = read_frames(tmp_path / "data.h5")
    geometry = scan_geometry(frames, finite_frames(frames), 1e-3)
    # Any two frames of one atom are the same.
    assert np.flatnonzero(geometry.duplicate).tolist() == [3, FRAMES + 1, FRAMES + 2]
    assert np.isinf(geometry.shortest[FRAMES:]).all()
    assert geometry.shortest[0] == pytest.approx(1.54, abs=0.3)


def test_an_energy_outlier_is_found_within_its_molecule(gate: Callable[..., GateReport]):
    structures = sound()
    energies = structures[5].energies.copy()
    energies[[2, 6]] += 0.5 * len(structures[5].atomic_numbers)  # 0.5 eV/atom
    structures[5] = structures[5]._replace(energies=energies)
    check = the_only_failure(gate(structures))
    assert check.figure.key == "energy_outlier_percent"
    assert check.figure.value == pytest.approx(100 * 2 / 140)
    assert {line.split(":")[0] for line in check.worst} == {"train_5, frame 2", "train_5, frame 6"}


def test_a_molecule_with_energies_in_another_unit_is_an_outlier(gate: Callable[..., GateReport]):
    structures = sound()
    odd = labelled(embedded("CCO"), "odd", "train", "CCO")
    # One more structure of a known composition: the fit cannot absorb it.
    odd = odd._replace(energies=odd.energies + 10.0 * len(odd.atomic_numbers), identity="odd")
    others = [
        labelled(embedded(smiles), smiles, "train", smiles)
        for smiles in ("CCC", "COC", "CCCC", "OCCO", "CCCO", "CC(C)C", "CCOC", "COCO", "CC(O)C")
    ]
    check = failed(gate([*structures, *others, odd]))["energy_outlier_percent"]
    assert check.figure.value == pytest.approx(100 * FRAMES / (24 * FRAMES))
    assert all(line.startswith("odd, frame") for line in check.worst)


def test_a_force_outlier_is_found_by_its_element(gate: Callable[..., GateReport]):
    structures = sound()
    for k in (4, 5):
        forces = structures[k].forces.copy()
        forces[3, 0, 1] = 20.0  # of a standard deviation of 1 eV/angstrom
        structures[k] = structures[k]._replace(forces=forces)
    check = the_only_failure(gate(structures))
    assert check.figure.key == "force_outlier_percent"
    assert {line.split(":")[0] for line in check.worst} == {"train_4, frame 3", "train_5, frame 3"}


def test_frames_distorted_on_purpose_have_a_separate_limit(gate: Callable[..., GateReport]):
    """Up to 4 of 20 frames without a temperature may be outliers."""

    def distorted(count: int) -> LabelledStructure:
        structure = labelled(embedded("CCF"), "distorted", "train", "CCF", frames=20)
        structure.temperatures[:] = np.nan
        structure.forces[:count, 0, 0] = 25.0
        return structure

    structures = sound()
    assert failed(gate([*structures, distorted(4)])) == {}
    report = gate([distorted(5)._replace(name="more", identity="more")])
    assert the_only_failure(report).figure.key == "distorted_outlier_percent"
    assert the_only_failure(report).figure.value == pytest.approx(100 * 9 / 40)


def test_a_force_above_the_largest_fails(gate: Callable[..., GateReport]):
    structures = sound()
    structures[4].forces[3, 0, 1] = -31.0
    check = the_only_failure(gate(structures))  # one outlier of 140 frames is below 1 %
    assert check.figure.key == "largest_force_ev_per_angstrom"
    assert check.figure.value == pytest.approx(31.0)
    assert check.worst[0] == "train_4, frame 3: 31 eV/angstrom"


@pytest.mark.parametrize("missing", ["train", "validation", "test"])
def test_an_empty_split_fails(missing: str, gate: Callable[..., GateReport]):
    kept = [structure for structure in sound() if structure.split != missing]
    if missing == "train":  # all elements and sizes must stay
        kept = [
            structure._replace(split=structure.split.replace("train", "test"))
            for structure in sound()
        ]
        kept = [
            structure if structure.split == "validation" else structure._replace(split="test")
            for structure in kept
        ]
    check = the_only_failure(gate(kept))
    assert check.figure.key == "empty_splits"
    assert check.worst == [missing]


def test_a_missing_element_fails(gate: Callable[..., GateReport]):
    check = the_only_failure(
        gate([structure for structure in sound() if 35 not in structure.atomic_numbers])
    )
    assert (check.figure.key, check.figure.value) == ("elements_covered", 7)
    assert check.worst == ["F", "Br"]


def test_sizes_that_hardly_vary_fail(gate: Callable[..., GateReport]):
    """The variation is over structures, not over frames."""
    structures = [structure for structure in sound() if len(structure.atomic_numbers) < 30]
    check = the_only_failure(gate(structures))
    sizes = [len(structure.atomic_numbers) for structure in structures]
    assert check.figure.key == "size_variation"
    assert check.figure.value == pytest.approx(np.std(sizes) / np.mean(sizes))


def test_diversity_is_the_entropy_of_environments(gate: Callable[..., GateReport]):
    """The nine atoms of ethanol are C(CHHH), C(CHHO), O(CH), H(O) and five H(C)."""
    structure = labelled(embedded("CCO"), "ethanol", "train", "CCO")
    water = labelled(embedded("O"), "water", "train", "O")
    found = {check.figure.key: check for check in gate([structure]).checks}["diversity_bits"]
    shares = np.array([1, 1, 1, 1, 5]) / 9
    assert found.figure.value == pytest.approx(-(shares * np.log2(shares)).sum())
    assert not found.passed
    # Each structure counts once, whatever its number of frames: O(HH), and H(O) thrice.
    many = labelled(embedded("O"), "many", "train", "O", frames=50)
    for extra in (water, many):
        shares = np.array([1, 1, 1, 3, 5, 1]) / 12
        with_water = {check.figure.key: check for check in gate([extra]).checks}["diversity_bits"]
        if extra is water:
            assert with_water.figure.value == pytest.approx(-(shares * np.log2(shares)).sum())
    shares = np.array([1, 1, 1, 5, 5, 2]) / 15
    assert with_water.figure.value == pytest.approx(-(shares * np.log2(shares)).sum())


# --- Leaks --------------------------------------------------------------------------------------


def test_one_identity_in_two_splits_is_a_leak(gate: Callable[..., GateReport]):
    again = labelled(embedded("CCO"), "again", "test", "CCO")
    check = the_only_failure(gate([*sound(), again]))
    assert (check.figure.key, check.figure.value) == ("leaked_molecules", 1)
    assert check.worst == ["CCO: train_3 (train), again (test)"]


def test_a_complex_with_a_component_of_another_split_is_a_leak(gate: Callable[..., GateReport]):
    methane, water = embedded("C").copy(), embedded("O").copy()
    water.positions += [5.0, 0.0, 0.0]
    of_one = labelled(methane + water, "of_one", "train", "C.O")
    of_two = labelled(methane + water, "of_two", "train", "C#N.O")
    assert gate([*sound(), of_one]).passed
    check = the_only_failure(gate([of_two]))
    assert check.worst == ["C#N: test_1 (test), of_two (train)"]


def test_a_leak_under_another_identity_is_found_by_geometry(gate: Callable[..., GateReport]):
    """A nitro group may be written in two ways; conformers and order of atoms do not matter."""
    charged, hypervalent = "C[N+](=O)[O-]", "CN(=O)=O"
    first = labelled(embedded(charged), "charged", "train", charged)
    atoms = embed(charged, seed=5)[0][::-1]
    second = labelled(atoms, "hypervalent", "test", hypervalent)
    check = the_only_failure(gate([*sound(), first, second]))
    assert (check.figure.key, check.figure.value) == ("leaked_molecules", 1)
    assert check.worst == ["CH3NO2: charged (train) has the bonds of hypervalent (test)"]


def leaks(structures: list[LabelledStructure], path: Path) -> tuple[list[str], list[str]]:
    with open_dataset(path) as writer:
        for structure in structures:
            writer.append(structure)
    frames, splits = read_frames(path), read_summary(path).splits
    return find_leaks(frames, splits, list(lowest_frames(frames, finite_frames(frames))))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("CC(=O)C", "CC(O)=C"),  # tautomers
        ("COC", "CCO"),
        ("C1CCC2CCCCC2C1", "C1CCC(C1)C1CCCC1"),  # decalin and bicyclopentyl have one hash
    ],
)
def test_isomers_in_two_splits_are_no_leak(first: str, second: str, tmp_path: Path):
    structures = [
        labelled(embedded(smiles), smiles, split, identity(smiles))
        for smiles, split in ((first, "train"), (second, "test"))
    ]
    assert leaks(structures, tmp_path / "data.h5") == ([], [])
    if first.startswith("C1"):
        assert connectivity(embedded(first)) == connectivity(embedded(second))


def test_stereoisomers_are_one_molecule(tmp_path: Path):
    """Two stereoisomers in two splits are a leak."""
    structures = [
        labelled(embedded(smiles), smiles, split, smiles)
        for smiles, split in (("C[C@H](F)Cl", "train"), ("C[C@@H](F)Cl", "test"))
    ]
    assert len(leaks(structures, tmp_path / "data.h5")[0]) == 1


def test_a_molecule_in_pieces_is_counted_and_not_compared(tmp_path: Path):
    """If it were compared, every product of a decomposition would be a leak."""
    pieces = molecule("H2O") + Atoms("H2", [[5.0, 0.0, 0.0], [5.74, 0.0, 0.0]])
    structures = [labelled(pieces, split, split, split) for split in ("train", "test")]
    assert leaks(structures, tmp_path / "data.h5") == ([], ["train", "test"])


def test_dataset_split_by_trajectory_need_not_pass_the_checks_of_molecules(
    gate: Callable[..., GateReport], tmp_path: Path
):
    structures = [labelled(embedded("CCO"), f"ethanol_{split}", split, "CCO") for split in SPLITS]
    report = gate(structures, split_by="trajectory")
    assert report.verdict == "GO"
    asked = {check.figure.key for check in report.checks if not check.asked}
    assert asked == {"elements_covered", "size_variation", "diversity_bits", "leaked_molecules"}
    write_report(report, tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "This dataset is split by trajectory" in text
    # The dataset must still pass the other checks.
    broken = labelled(embedded("CCO"), "broken", "train", "CCO")
    broken.energies[0] = np.nan
    assert the_only_failure(gate([broken], split_by="trajectory")).figure.key == "nonfinite_frames"


# --- Input and report ---------------------------------------------------------------------------


def test_file_that_is_no_dataset_is_refused(gate: Callable[..., GateReport], tmp_path: Path):
    with pytest.raises(InputError, match="no dataset"):
        check_dataset(tmp_path / "nothing.h5")
    with pytest.raises(InputError, match="has no frames"):
        gate([])
    none = labelled(embedded("O"), "none", "train", "O", frames=0, attempted=4, failure="SCF")
    with pytest.raises(InputError, match=r"has no frames \(1 structures\)"):
        gate([none])
    cut = tmp_path / "cut.h5"
    cut.write_bytes((tmp_path / "data.h5").read_bytes()[:3000])
    with pytest.raises(InputError, match=r"cut\.h5 is not a whole HDF5 file"):
        check_dataset(cut)


def test_structures_without_frames_do_not_shift_the_others(gate: Callable[..., GateReport]):
    none = labelled(embedded("O"), "none", "train", "O", frames=0, attempted=2, failure="SCF")
    report = gate([none, *sound()])
    assert report.passed
    assert report.as_record()["structures_without_frames"] == 1
    assert report.checks[0].worst == ["none: 0 of 2 frames, SCF"]


def test_a_dataset_without_a_finite_frame_is_refused(gate: Callable[..., GateReport]):
    structures = [structure._replace(energies=np.full(FRAMES, np.nan)) for structure in sound()]
    with pytest.raises(InputError, match="not one of 140 frames is finite"):
        gate(structures)


def test_report_holds_values_and_remedies(gate: Callable[..., GateReport], tmp_path: Path):
    structures = sound()
    structures[4].forces[3, 0, 1] = 40.0
    report = gate(structures)
    folder = tmp_path / "new" / "report"
    write_report(report, folder)
    content = json.loads((folder / "report.json").read_text())
    assert set(content) == {"command", "version", "model", "machine", "results"}
    whole, *checks = content["results"]
    (failure,) = failed(report).values()
    assert whole["verdict"] == f"NO-GO: {failure.figure.title}"
    assert not whole["passed"] and not whole["largest_force_ev_per_angstrom_passed"]
    assert whole["largest_force_ev_per_angstrom"] == 40.0
    assert [record["check"] for record in checks] == list(load_gate())
    assert content["results"] == json.loads(json.dumps(records(report)))
    assert all(
        isinstance(value, str | int | float)
        for record in content["results"]
        for value in record.values()
    )

    text = (folder / "report.md").read_text()
    assert text.startswith(f"# {report.verdict}\n")
    limit = load_gate()["largest_force_ev_per_angstrom"]
    assert f"What to do: {limit.remedy}" in text
    assert "- train_4, frame 3: 40 eV/angstrom" in text
    assert "| made | 14 | 100 | 20 | 20 |" in text
    for symbol in ELEMENTS:
        assert f"| {symbol} | {report.atoms_of[symbol]} " in text
    plots = sorted(path.name for path in folder.glob("*.png"))
    assert len(plots) == 6
    assert all(f"![{name}]({name})" in text for name in plots)
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in plots)
    assert len(list(folder.iterdir())) == 8  # no temporary file is left


def test_the_same_dataset_gives_the_same_report(gate: Callable[..., GateReport], tmp_path: Path):
    torch.manual_seed(0)
    first, second = gate(sound()), check_dataset(tmp_path / "data.h5")
    assert records(first) == records(second)


def test_a_folder_that_cannot_be_made_is_refused(gate: Callable[..., GateReport], tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        write_report(gate(sound()), tmp_path / "file" / "report")
