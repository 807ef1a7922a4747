"""Teachers: what they compute, what their packages take, and what is said where one cannot be."""

import inspect
import socket
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.teachers import TEACHERS, make_teacher, teacher_names
from mlff_student.teachers.labelled import SAME_STRUCTURE, LabelledFile, labelled_frames
from mlff_student.teachers.registry import load_attribute

DOWNLOADED = [name for name, teacher in TEACHERS.items() if teacher.cache]
FILE_DIGITS = 2e-8  # extended XYZ rounds coordinates and forces to eight decimals


def _package(name: str) -> str:
    return TEACHERS[name].factory.partition(".")[0]


@pytest.fixture
def labelled(structures: dict[str, Atoms], tmp_path: Path) -> tuple[Path, list[Atoms]]:
    """Extended XYZ file of GFN1-xTB labels, and the frames as they were before writing."""
    frames = []
    for name in ("water", "ethanol", "water"):
        atoms = structures[name].copy()
        atoms.rattle(0.05, seed=len(frames))
        atoms.calc = make_teacher("gfn1-xtb")
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    path = tmp_path / "labels.extxyz"
    write(path, frames)
    return path, frames


@pytest.mark.parametrize("name", ["gfn2-xtb", "gfn1-xtb"])
def test_forces_are_minus_the_gradient(name: str, structures: dict[str, Atoms]):
    atoms = structures["water"]
    atoms.calc = make_teacher(name)
    forces = atoms.get_forces()
    step = 2e-3  # angstrom
    energies = []
    for moved in (step, -step):
        atoms.positions[1, 2] += moved
        energies.append(atoms.get_potential_energy())
        atoms.positions[1, 2] -= moved
    # The energy converges to 1e-6 hartree = 3e-5 eV at worst, over 4e-3 angstrom.
    assert forces[1, 2] == pytest.approx((energies[1] - energies[0]) / (2 * step), abs=7e-3)
    assert abs(forces[1, 2]) > 0.1


def test_gfn2_water_has_its_published_energy():
    # The example in the documentation of tblite.ase: water as in ASE's collection.
    from ase.build import molecule

    water = molecule("H2O", calculator=make_teacher("gfn2-xtb"))
    assert water.get_potential_energy() == pytest.approx(-137.96777625, abs=1e-5)


@pytest.mark.parametrize("name", TEACHERS)
def test_the_package_takes_our_arguments(name: str):
    pytest.importorskip(_package(name))
    teacher = TEACHERS[name]
    signature = inspect.signature(load_attribute(teacher.factory))
    bound = signature.bind(**teacher.arguments)
    # Not swallowed by a **kwargs, except where the class takes nothing else (tblite).
    named = {key for key, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD}
    assert set(bound.arguments) <= named or teacher.factory == "tblite.ase:TBLite"


@pytest.mark.parametrize(
    ("name", "architecture", "options"),
    [
        ("orb-v2", "orb_v2_architecture", {}),
        (
            "orb-v3",
            "orb_v3_conservative_architecture",
            {"has_charge_spin_cond": True, "has_stress": False},
        ),
    ],
)
def test_orb_with_random_weights_labels_a_neutral_singlet(
    name: str,
    architecture: str,
    options: dict[str, bool],
    structures: dict[str, Atoms],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    pretrained = pytest.importorskip("orb_models.forcefield.pretrained")
    torch.manual_seed(0)
    build = getattr(pretrained, architecture)
    if "system_config" in inspect.signature(build).parameters:  # orb-models 0.5
        atomic_system = import_module("orb_models.forcefield.atomic_system")
        options = options | {"system_config": atomic_system.SystemConfig(6.0, 20)}
    weights = tmp_path / "random.ckpt"
    torch.save(build(**options).state_dict(), weights)
    arguments = TEACHERS[name].arguments | {"weights_path": str(weights), "device": "cpu"}
    monkeypatch.setitem(TEACHERS, name, TEACHERS[name]._replace(arguments=arguments))

    water = structures["water"]
    water.calc = make_teacher(name)
    assert np.isfinite(water.get_potential_energy())
    assert water.get_forces().shape == (3, 3)
    assert "charge" not in water.info
    if name == "orb-v3":  # a charge of one's own is heard
        neutral = water.get_potential_energy()
        cation = water.copy()
        cation.info = {"charge": 1, "spin": 2}
        cation.calc = make_teacher(name)
        assert cation.get_potential_energy() != neutral


@pytest.mark.parametrize("name", DOWNLOADED)
def test_weights_that_cannot_be_downloaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip(_package(name))
    load_attribute(TEACHERS[name].factory)  # imported before the network goes

    def offline(*_: object, **__: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between attempts
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("AIMNET_CACHE_DIR", str(tmp_path))
    if find_spec("cached_path"):
        monkeypatch.setattr("cached_path.common.CACHE_DIRECTORY", tmp_path)
    with pytest.raises(MissingDependencyError) as caught:
        make_teacher(name)
    message = str(caught.value)
    assert f"weights of teacher {name!r}" in message and TEACHERS[name].cache in message
    assert len(message) < 450 and "\n" not in message
    assert not capsys.readouterr().out


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


def test_a_file_answers_with_its_labels(labelled: tuple[Path, list[Atoms]]):
    path, frames = labelled
    teacher = make_teacher(f"file:{path}")
    assert isinstance(teacher, LabelledFile)
    for frame in frames:
        atoms = frame.copy()
        atoms.calc = teacher
        assert atoms.get_potential_energy() == frame.get_potential_energy()
        assert atoms.get_forces() == pytest.approx(frame.get_forces(), abs=FILE_DIGITS)
        atoms.positions = atoms.positions.astype(np.float32)  # as a dataset keeps them
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
def test_a_file_refuses_a_structure_it_does_not_hold(
    change: Callable[[Atoms], None], labelled: tuple[Path, list[Atoms]]
):
    path, frames = labelled
    atoms = frames[0].copy()
    atoms.calc = LabelledFile(path)
    atoms.get_potential_energy()
    change(atoms)
    with pytest.raises(InputError, match=r"holds no such structure of H2O .* teacher that compute"):
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
    with pytest.raises(InputError, match="holds no such structure"):
        atoms.get_stress()


def test_labels_that_are_not_finite_are_handed_on(structures: dict[str, Atoms], tmp_path: Path):
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
    found = dict(frames[1].calc.results)
    value = found.pop(lost)
    frames[1].calc = SinglePointCalculator(frames[1], **found)
    (frames[1].info if lost == "energy" else frames[1].arrays)[f"REF_{lost}"] = value
    write(path, frames)
    with pytest.raises(InputError) as caught:
        labelled_frames(path)
    message = str(caught.value)
    assert f"{path}, frame 1 (the first is 0): {expected}." in message
    assert "must be renamed" in message and f"REF_{lost}" in message.partition("Found: ")[2]


def test_files_that_are_no_labelled_structures(tmp_path: Path, labelled: tuple[Path, list[Atoms]]):
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


def test_a_calculator_of_ones_own(structures: dict[str, Atoms]):
    water = structures["water"]
    water.calc = make_teacher("python:ase.calculators.lj:LennardJones")
    assert isinstance(water.calc, LennardJones)
    assert np.isfinite(water.get_forces()).all()


class OnlyEnergy(Calculator):
    """A calculator that cannot teach."""

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
