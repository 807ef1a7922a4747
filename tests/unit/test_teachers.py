"""Teachers: labels from a file, a user's calculators, and errors for those that are missing."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    all_changes,
)
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from ase.io import read, write
from ase.stress import full_3x3_to_voigt_6_stress

from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.teachers import TEACHERS, make_teacher, teacher_names
from mlff_student.teachers.labelled import SAME_STRUCTURE, LabelledFile, labelled_frames
from mlff_student.teachers.neutral import neutral_by_default

FILE_DIGITS = 2e-8  # extended XYZ rounds coordinates and forces to eight decimals


def _package(name: str) -> str:
    return TEACHERS[name].factory.partition(".")[0]


@pytest.fixture
def labelled(structures: dict[str, Atoms], tmp_path: Path) -> tuple[Path, list[Atoms]]:
    """Extended XYZ file of EMT's labels, and the frames as they were before writing."""
    frames = []
    for name in ("water", "ethanol", "water"):
        atoms = structures[name].copy()
        atoms.rattle(0.05, seed=len(frames))
        atoms.calc = EMT()
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    path = tmp_path / "labels@1.extxyz"  # not the frame 1 of a file called labels
    write(path, frames)
    return path, frames


@pytest.mark.parametrize("name", TEACHERS)
def test_a_missing_package_is_named_with_the_command(name: str, monkeypatch: pytest.MonkeyPatch):
    for module in [m for m in sys.modules if m.partition(".")[0] == _package(name)]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, _package(name), None)  # what import sees as not installed
    with pytest.raises(MissingDependencyError) as caught:
        make_teacher(name)
    assert f"teacher {name!r} needs: pip install {TEACHERS[name].package} (" in str(caught.value)


def test_a_package_too_old_for_the_teacher_is_named(monkeypatch: pytest.MonkeyPatch):
    older = TEACHERS["orb-v3"]._replace(factory="ase.build:orb_v3")
    monkeypatch.setitem(TEACHERS, "orb-v3", older)
    with pytest.raises(MissingDependencyError, match=r"pip install 'orb-models>=.*'orb_v3'"):
        make_teacher("orb-v3")


@pytest.mark.parametrize("name", ["GFN2-xTB", "gfn2xtb", "gfn2"])
def test_an_unknown_teacher_is_corrected(name: str):
    with pytest.raises(InputError, match="did you mean 'gfn2-xtb'\\?") as caught:
        make_teacher(name)
    assert all(known in str(caught.value) for known in teacher_names())


@pytest.mark.parametrize("name", ["", "dft", "labels.extxyz", "file:"])
def test_an_unknown_teacher_without_a_near_name_lists_all(name: str):
    with pytest.raises(InputError, match=f"unknown teacher {name!r}; known: gfn2-xtb, .*file:"):
        make_teacher(name)


def test_a_file_returns_its_labels(labelled: tuple[Path, list[Atoms]]):
    path, frames = labelled
    teacher = make_teacher(f"file:{path}")
    assert isinstance(teacher, LabelledFile)
    for frame in frames:
        atoms = frame.copy()
        atoms.calc = teacher
        assert atoms.get_potential_energy() == frame.get_potential_energy()
        assert atoms.get_forces() == pytest.approx(frame.get_forces(), abs=FILE_DIGITS)
        atoms.positions = atoms.positions.astype(np.float32)  # the precision of a dataset
        assert atoms.get_potential_energy() == frame.get_potential_energy()
        with pytest.raises(PropertyNotImplementedError):
            atoms.get_stress()


def _moved(atoms: Atoms) -> None:
    atoms.positions[1, 2] += 2 * SAME_STRUCTURE


def _reordered(atoms: Atoms) -> None:
    atoms.numbers = atoms.numbers[::-1]


def _periodic(atoms: Atoms) -> None:
    atoms.set_cell([9.0] * 3)
    atoms.pbc = True


@pytest.mark.parametrize("change", [_moved, _reordered, _periodic])
def test_a_file_refuses_a_structure_that_it_does_not_contain(
    change: Callable[[Atoms], None], labelled: tuple[Path, list[Atoms]]
):
    path, frames = labelled
    atoms = frames[0].copy()
    atoms.calc = LabelledFile(path)
    atoms.get_potential_energy()
    change(atoms)
    with pytest.raises(InputError, match=r"contains no such structure of H2O .* that computes"):
        atoms.get_potential_energy()


def test_a_crystal_is_known_by_its_cell_and_has_its_stress(
    structures: dict[str, Atoms], tmp_path: Path
):
    box = structures["triclinic"]
    stress = np.arange(6.0)
    box.calc = SinglePointCalculator(box, energy=-1.0, forces=np.ones((len(box), 3)), stress=stress)
    write(tmp_path / "box.extxyz", box)
    atoms = box.copy()
    atoms.calc = LabelledFile(tmp_path / "box.extxyz")
    assert "stress" in atoms.calc.implemented_properties
    assert atoms.get_stress() == pytest.approx(stress)
    atoms.set_cell(atoms.cell.array + np.diag([0.0, 0.0, 0.01]))
    with pytest.raises(InputError, match="contains no such structure"):
        atoms.get_stress()


def test_labels_that_are_not_finite_are_returned(structures: dict[str, Atoms], tmp_path: Path):
    water = structures["water"]
    water.calc = SinglePointCalculator(water, energy=np.nan, forces=np.full((3, 3), np.nan))
    write(tmp_path / "failed.extxyz", water)
    frame = labelled_frames(tmp_path / "failed.extxyz")[0].copy()
    frame.calc = LabelledFile(tmp_path / "failed.extxyz")
    assert np.isnan(frame.get_potential_energy()) and np.isnan(frame.get_forces()).all()


# --- Names, signs and units of labels in files ----------------------------------------------------


def labels_in_file(
    path: Path, atoms: Atoms, info: dict[str, object], arrays: dict[str, np.ndarray], method=""
) -> dict[str, np.ndarray]:
    """Write a frame with these labels, and return what the teacher of the file says of it."""
    frame = atoms.copy()
    frame.info.update(info)
    frame.arrays.update(arrays)
    write(path, frame)
    teacher = make_teacher(f"file:{path}{method}")
    teacher.calculate(atoms)
    return teacher.results


@pytest.mark.parametrize(
    ("energy", "forces", "sign"),
    [
        ("energy", "forces", 1),
        ("Energy", "force", 1),
        ("REF_energy", "REF_forces", 1),  # MACE
        ("dft_energy", "dft_force", 1),  # GAP
        ("total_energy", "forces", 1),  # NequIP
        ("TotEnergy", "Forces", 1),
        ("free_energy", "forces", 1),
        ("energy_ref", "forces_ref", 1),
        ("energy", "gradient", -1),
        ("dft_energy", "dft_gradients", -1),
    ],
)
def test_names_of_energy_and_forces(energy, forces, sign, structures, tmp_path):
    label = np.arange(9.0).reshape(3, 3) - 4.0
    found = labels_in_file(
        tmp_path / "a.extxyz", structures["water"], {energy: -12.5}, {forces: sign * label}
    )
    assert found["energy"] == -12.5
    assert found["forces"] == pytest.approx(label, abs=FILE_DIGITS)


@pytest.mark.parametrize(
    ("name", "of_volume"), [("stress", None), ("virial", -1), ("REF_virials", -1)]
)
def test_a_virial_is_minus_the_stress_times_the_volume(name, of_volume, structures, tmp_path):
    box = structures["triclinic"]
    stress = np.array([[3.0, 0.5, 0.2], [0.5, -1.0, 0.7], [0.2, 0.7, 2.0]]) * 1e-3
    value = stress if of_volume is None else of_volume * box.get_volume() * stress
    prefix = "REF_" if name.startswith("REF") else ""
    found = labels_in_file(
        tmp_path / "a.extxyz",
        box,
        {f"{prefix}energy": -1.0, name: value},
        {f"{prefix}forces": np.ones((len(box), 3))},
    )
    assert found["stress"] == pytest.approx(full_3x3_to_voigt_6_stress(stress), abs=1e-9)
    wrong = {"energy": -1.0, "stress": stress, "virial": box.get_volume() * stress}
    with pytest.raises(InputError, match="is not minus the virial over the volume"):
        labels_in_file(tmp_path / "b.extxyz", box, wrong, {"forces": np.ones((len(box), 3))})


def test_boxes_keep_their_stress_beside_molecules(structures, tmp_path):
    box, water = structures["triclinic"], structures["water"]
    box.calc = SinglePointCalculator(
        box, energy=-1.0, forces=np.zeros((len(box), 3)), stress=np.arange(6.0)
    )
    water.calc = SinglePointCalculator(water, energy=-1.0, forces=np.zeros((3, 3)))
    write(tmp_path / "both.extxyz", [box, water])
    assert make_teacher(f"file:{tmp_path}/both.extxyz").get_property("stress", box.copy())[
        5
    ] == pytest.approx(5.0)


def test_labels_of_several_methods(structures, tmp_path):
    """Labels that differ are a question to the user; equal ones are not."""
    water, path = structures["water"], tmp_path / "two.extxyz"
    forces = np.ones((3, 3))
    info, arrays = (
        {"energy": -1.0, "REF_energy": -2.0},
        {"forces": forces, "REF_forces": 2 * forces},
    )
    with pytest.raises(
        InputError, match=r"-1\.0+ eV under energy, -2\.0+ eV under ref_energy.*#ref"
    ):
        labels_in_file(path, water, info, arrays)
    found = labels_in_file(path, water, info, arrays, "#REF_")
    assert (found["energy"], found["forces"][0, 0]) == (-2.0, 2.0)
    same = labels_in_file(
        path, water, info | {"REF_energy": -1.0}, {"forces": forces, "REF_forces": forces}
    )
    assert same["energy"] == -1.0
    # An energy alone, a prediction beside its reference, and the spread of several models.
    other = {"REF_energy": -2.0, "energy": -1.0, "MACE_energy": -3.0, "std_energy": 0.1}
    arrays = {"REF_forces": forces, "MACE_forces": 3 * forces, "std_forces": forces}
    assert labels_in_file(path, water, other, arrays)["energy"] == -2.0
    assert labels_in_file(path, water, other, arrays, "#mace")["energy"] == -3.0
    plain = {"forces": forces}
    assert labels_in_file(path, water, other, arrays | plain, "#")["energy"] == -1.0
    with pytest.raises(InputError, match=r"no energy and no forces of 'ccsd'"):
        labels_in_file(path, water, other, arrays, "#ccsd")
    del arrays["REF_forces"]
    with pytest.raises(
        InputError, match=r"no forces\..*#mace uses those of 'mace'.*Found: .*REF_en"
    ):
        labels_in_file(path, water, other, arrays)


def test_frames_of_different_methods_are_not_mixed(labelled: tuple[Path, list[Atoms]]):
    path, frames = labelled
    labels = dict(frames[1].calc.results)
    frames[1].calc = None
    frames[1].info["dft_energy"], frames[1].arrays["dft_forces"] = labels.values()
    write(path, frames)
    with pytest.raises(InputError, match="frame 0 are called energy, those of frame 1 dft_energy"):
        labelled_frames(path)


def test_units_that_a_file_states(structures, tmp_path):
    water, forces = structures["water"], np.ones((3, 3))
    stated = {"energy": -1.0, "energy_unit": "Hartree", "forces_units": "Hartree/Bohr"}
    found = labels_in_file(tmp_path / "a.extxyz", water, stated, {"forces": forces})
    assert found["energy"] == pytest.approx(-27.2113862, rel=1e-7)
    assert found["forces"] == pytest.approx(51.4220675 * forces, rel=1e-7)
    with pytest.raises(InputError, match="energy has the unit 'furlong'; known are ev"):
        labels_in_file(
            tmp_path / "b.extxyz", water, stated | {"energy_unit": "furlong"}, {"forces": forces}
        )
    other = {"REF_energy": -1.0, "energy_units": "kJ/mol", "REF_forces_unit": "eV/A"}
    found = labels_in_file(tmp_path / "c.extxyz", water, other, {"REF_forces": forces})
    assert found["energy"] == pytest.approx(-0.0103642697, rel=1e-7)
    assert found["forces"] == pytest.approx(forces)
    with pytest.raises(InputError, match="units is 'kcal/mol', which says nothing of the forces"):
        stated = {"energy": -1.0, "units": "kcal/mol"}
        labels_in_file(tmp_path / "d.extxyz", water, stated, {"forces": forces})
    database = connect(tmp_path / "schnetpack.db")
    database.metadata = {
        "_property_unit_dict": {"energy": "kcal/mol", "forces": "kcal/mol/Ang"},
        "_distance_unit": "Ang",
    }
    database.write(water, data={"energy": np.array([-23.0605478]), "forces": forces})
    teacher = make_teacher(f"file:{tmp_path}/schnetpack.db")
    assert teacher.get_property("energy", water) == pytest.approx(-1.0, rel=1e-7)
    assert teacher.get_property("forces", water) == pytest.approx(forces / 23.0605478, rel=1e-7)


def test_labels_of_fixed_atoms(structures, tmp_path):
    """ASE hides the forces of fixed atoms; the teacher's label is the method's force."""
    water, forces = structures["water"], np.arange(1.0, 10.0).reshape(3, 3)
    water.set_constraint(FixAtoms([0]))  # move_mask of extended XYZ
    info = {"energy": -1.0}
    found = labels_in_file(tmp_path / "a.extxyz", water, info, {"forces": forces})
    assert read(tmp_path / "a.extxyz").constraints
    assert found["forces"] == pytest.approx(forces, abs=FILE_DIGITS)
    with pytest.raises(InputError, match=r"fixed atoms \[0\] are zero.*apply_constraint=False"):
        labels_in_file(tmp_path / "b.extxyz", water, info, {"forces": forces * [[0], [1], [1]]})


def test_an_isolated_atom_has_no_force(tmp_path):
    found = labels_in_file(tmp_path / "a.extxyz", Atoms("O"), {"REF_energy": -3.0}, {})
    assert (found["energy"], found["forces"].tolist()) == (-3.0, [[0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("info", "arrays", "message"),
    [
        ({"energy": -1.0}, {}, "no forces. Expected"),
        ({}, {"forces": np.ones((3, 3))}, "no energy. Expected"),
        ({"energy": [-1.0, -2.0]}, {"forces": np.ones((3, 3))}, r"energy has the shape \(2,\)"),
        ({"energy": -1.0}, {"forces": np.ones(3)}, r"forces has the shape \(3,\); expected is"),
        ({"Energy": -1.0, "total_energy": -2.0}, {"forces": np.ones((3, 3))}, "another energy"),
    ],
)
def test_labels_that_cannot_be_used(info, arrays, message, structures, tmp_path):
    with pytest.raises(InputError, match=rf"a\.extxyz, frame 0 \(the first is 0\).*{message}"):
        labels_in_file(tmp_path / "a.extxyz", structures["water"], info, arrays)


def test_one_structure_with_two_energies(labelled: tuple[Path, list[Atoms]]):
    path, frames = labelled
    again = frames[0].copy()
    again.calc = SinglePointCalculator(again, **frames[0].calc.results | {"energy": 0.0})
    write(path, [*frames, again])
    with pytest.raises(InputError, match="a structure of H2O twice, with the energies"):
        LabelledFile(path)


# --- Files and factories --------------------------------------------------------------------------


def test_files_without_labelled_structures(tmp_path: Path, labelled: tuple[Path, list[Atoms]]):
    with pytest.raises(InputError, match="no file of labelled structures"):
        labelled_frames(tmp_path / "absent.extxyz")
    (tmp_path / "empty.extxyz").touch()
    with pytest.raises(InputError, match=r"cannot read .*empty"):
        labelled_frames(tmp_path / "empty.extxyz")
    path, _ = labelled
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace(lines[2].split()[1], "nan")
    path.write_text("\n".join(lines))
    assert np.isnan(read(path, 0, do_not_split_by_at_sign=True).positions).any()
    with pytest.raises(InputError, match=r"frame 0 .* positions are not finite"):
        labelled_frames(path)


class Sticky(LennardJones):
    """Energy equal to the charge; without one, to that of the structure before, as in AIMNet2."""

    charge = 0.0

    def calculate(self, atoms=None, properties=None, system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.charge = self.atoms.info.get("charge", self.charge)
        self.results["energy"] = self.charge


def test_no_charge_is_taken_from_the_structure_before(structures):
    teacher, water, cation = neutral_by_default(Sticky()), structures["water"], Atoms("He")
    cation.info["charge"] = 1
    assert [teacher.get_property("energy", atoms) for atoms in (cation, water)] == [1.0, 0.0]
    assert "charge" not in water.info and teacher.check_state(water) == []
    water.info["charge"] = -1  # ASE does not see this change
    assert teacher.get_property("energy", water) == -1.0


def test_a_calculator_of_the_user(structures: dict[str, Atoms]):
    water = structures["water"]
    water.calc = make_teacher("python:ase.calculators.lj:LennardJones")
    assert isinstance(water.calc, LennardJones)
    assert np.isfinite(water.get_forces()).all()


class OnlyEnergy(Calculator):
    """A calculator that cannot be a teacher, because it has no forces."""

    implemented_properties = ("energy",)


class NeedsArguments(OnlyEnergy):
    """A factory that cannot be called without arguments."""

    def __init__(self, model: str):
        super().__init__()


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("", InputError, "expected python:package.module:factory"),
        ("ase.calculators.lj", InputError, "expected python:package.module:factory"),
        ("no_such_package.module:make", MissingDependencyError, "cannot import no_such_package"),
        ("ase.calculators.lj:Absent", InputError, "has no attribute 'Absent'"),
        (f"{__name__}:NeedsArguments", InputError, "raised TypeError: .*'model'"),
        (f"{__name__}:OnlyEnergy", InputError, "found OnlyEnergy with energy$"),
        ("builtins:dict", InputError, "found dict with no properties"),
    ],
)
def test_a_factory_that_cannot_be_used(target: str, error: type[Exception], message: str):
    with pytest.raises(error, match=message) as caught:
        make_teacher(f"python:{target}")
    assert f"teacher 'python:{target}'" in str(caught.value)
