"""Teachers of other packages: what they compute, the arguments they take, missing weights."""

import inspect
import socket
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from tblite.ase import TBLite

from mlff_student.core.errors import MissingDependencyError
from mlff_student.teachers import TEACHERS, make_teacher
from mlff_student.teachers.registry import load_attribute

DOWNLOADED = [name for name, teacher in TEACHERS.items() if teacher.cache]


def _package(name: str) -> str:
    return TEACHERS[name].factory.partition(".")[0]


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


def test_xtb_reads_charge_and_spin():
    """As tblite does with its own option; and not those of the structure before."""
    hydronium = Atoms("OH3", [[0, 0, 0.1], [0.95, 0, 0], [-0.47, 0.82, 0], [-0.47, -0.82, 0]])
    expected = {}
    for charge, multiplicity in ((1, 1), (0, 2), (-1, 1)):
        options = TEACHERS["gfn2-xtb"].arguments
        own = TBLite(charge=charge, multiplicity=multiplicity, **options)
        expected[charge, multiplicity] = own.get_property("energy", hydronium)
    teacher = make_teacher("gfn2-xtb")
    hydronium.calc = teacher
    for charge, multiplicity in [*expected, (1, 1)]:
        hydronium.info = {"charge": charge, "spin": multiplicity}
        energy = hydronium.get_potential_energy()
        assert energy == pytest.approx(expected[charge, multiplicity], abs=1e-4)
    assert teacher.check_state(hydronium) == []  # energy and forces need one calculation
    assert len({round(energy, 1) for energy in expected.values()}) == 3


@pytest.mark.parametrize("name", TEACHERS)
def test_the_package_takes_our_arguments(name: str):
    pytest.importorskip(_package(name))
    teacher = TEACHERS[name]
    signature = inspect.signature(load_attribute(teacher.factory))
    bound = signature.bind(**teacher.arguments)
    # Not swallowed by a **kwargs, except where the class takes nothing else (tblite).
    named = {key for key, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD}
    assert set(bound.arguments) <= named or teacher.factory.endswith(":XTB")


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
