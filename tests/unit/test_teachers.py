"""Teachers: labels from a file, a user's calculators, and errors for those that are missing."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.teachers import TEACHERS, make_teacher, teacher_names
from mlff_student.teachers.labelled import SAME_STRUCTURE, LabelledFile, labelled_frames

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
    path = tmp_path / "labels.extxyz"
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


@pytest.mark.parametrize(("lost", "expected"), [("forces", "no forces"), ("energy", "no energy")])
def test_a_frame_without_a_label_is_named(
    lost: str, expected: str, labelled: tuple[Path, list[Atoms]]
):
    path, frames = labelled
    labels = dict(frames[1].calc.results)
    value = labels.pop(lost)
    frames[1].calc = SinglePointCalculator(frames[1], **labels)
    (frames[1].info if lost == "energy" else frames[1].arrays)[f"REF_{lost}"] = value
    write(path, frames)
    with pytest.raises(InputError) as caught:
        labelled_frames(path)
    message = str(caught.value)
    assert f"{path}, frame 1 (the first is 0): {expected}." in message
    assert "must be renamed" in message and f"REF_{lost}" in message.partition("Found: ")[2]


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
    assert np.isnan(read(path, 0).positions).any()
    with pytest.raises(InputError, match=r"frame 0 .* positions are not finite"):
        labelled_frames(path)


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
