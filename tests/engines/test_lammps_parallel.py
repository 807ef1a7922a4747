"""The LAMMPS pair style on several MPI ranks: the numbers of one rank and of the ASE path."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import read

from mlff_student.calculator import StudentForceFieldCalculator
from mlff_student.checkpoints import checkpoint_path
from mlff_student.export import export
from mlff_student.lammps_run import (
    SinglePoint,
    element_order,
    run_lmp,
    single_points,
    write_data,
)

# Sums of float32 in another order; the forces and virials below are of a few eV.
ENERGY = 1e-6  # eV/atom
FORCES = 1e-5  # eV/angstrom
VIRIAL = 1e-5  # of the largest component


def ase_point(atoms: Atoms, archive: Path) -> SinglePoint:
    """The ASE path; no virial where the structure is open."""
    atoms = atoms.copy()
    atoms.calc = StudentForceFieldCalculator(archive)
    virial = np.zeros((3, 3))
    if atoms.pbc.all():
        virial = -atoms.get_stress(voigt=False) * atoms.get_volume()
    return SinglePoint(atoms.get_potential_energy(), atoms.get_forces(), virial)


def assert_same(found: SinglePoint, expected: SinglePoint, name: str) -> None:
    __tracebackhide__ = True
    assert abs(found.energy - expected.energy) < ENERGY * len(expected.forces), name
    assert abs(found.forces - expected.forces).max() < FORCES, name
    if expected.virial.any():
        scale = abs(expected.virial).max()
        assert abs(found.virial - expected.virial).max() < VIRIAL * scale, name


def cases(structures: dict[str, Atoms]) -> dict[str, Atoms]:
    """Boxes smaller than the ghost cutoff and larger, ranks without atoms, edges or partners."""
    droplet = structures["water_box"].copy()
    droplet.set_cell([40.0, 44.0, 36.0])
    slab = structures["triclinic"].copy()
    slab.set_cell(slab.cell.array + np.diag([0.0, 0.0, 20.0]))
    slab.pbc = (True, True, False)
    scattered = Atoms(  # one pair with an edge, and atoms alone
        "OHNNO",
        positions=[[1.0, 1, 1], [1.0, 1, 2], [30.0, 1, 1], [1.0, 30, 20], [20.0, 20, 20]],
        cell=[40.0, 40.0, 40.0],
        pbc=True,
    )
    return {
        "small box": structures["water_box"],
        "large triclinic box": structures["triclinic"].repeat((2, 2, 1)),
        "droplet": droplet,
        "slab": slab,
        "scattered": scattered,
    }


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, pytest.param(8, marks=pytest.mark.slow)])
def test_any_number_of_ranks(ranks, structures, tiny_archive, tmp_path):
    systems = cases(structures)
    found = single_points(
        list(systems.values()), tiny_archive, tmp_path, backend="native", ranks=ranks
    )
    for point, (name, atoms) in zip(found, systems.items(), strict=True):
        assert_same(point, ase_point(atoms, tiny_archive), name)


@pytest.mark.parametrize(
    "layout",
    ["comm_style tiled\nbalance 1.0 rcb", "balance 1.0 shift xyz 20 1.01"],
    ids=["tiled", "shifted bricks"],
)
def test_any_layout_of_domains(layout, structures, tiny_archive, tmp_path):
    systems = cases(structures)
    found = single_points(
        list(systems.values()), tiny_archive, tmp_path, backend="native", ranks=3, extra=layout
    )
    for point, (name, atoms) in zip(found, systems.items(), strict=True):
        assert_same(point, ase_point(atoms, tiny_archive), name)


def test_native_stress_by_finite_differences(structures, tiny_archive, tmp_path):
    """W : e = -dE/ds of positions and cell strained by 1 + s e, on two ranks."""
    atoms = structures["triclinic"]
    strain = np.random.default_rng(1).standard_normal((3, 3))
    strain = 0.5 * (strain + strain.T)
    step = 1e-3
    strained = [atoms]
    for multiple in (1, -1, 2, -2):
        one = atoms.copy()
        one.set_cell(atoms.cell.array @ (np.eye(3) + multiple * step * strain), scale_atoms=True)
        strained.append(one)
    point, *others = single_points(strained, tiny_archive, tmp_path, backend="native", ranks=2)
    energies = [other.energy for other in others]
    slope = (8 * (energies[0] - energies[1]) - (energies[2] - energies[3])) / (12 * step)
    # Float32 rounds the energy by 1e-6 eV, which the stencil multiplies by 1.5 / step.
    assert -slope == pytest.approx(np.sum(point.virial * strain), abs=3e-3)


# --- What happens to a box between runs ----------------------------------------------------------

START = """\
units metal
boundary p p p
read_data point.data
pair_style mlff_student
pair_coeff * * {archive} {elements}
neighbor 1.0 bin
"""
SHOW = """\
write_dump all custom {name}.dump id element x y z fx fy fz modify sort id &
    element {elements} format float %.15g
print "STATE {name} $(pe:%.15g) $(atoms)"
"""
COMMANDS = {
    "replicate": "replicate 2 1 1",
    "displace_atoms": "displace_atoms all random 0.05 0.05 0.05 12",
    "change_box": "change_box all x scale 1.03 xy delta 0.4 remap",
    "delete_atoms": "group gone id 1:3\ndelete_atoms group gone compress no",
    "npt": "velocity all create 300 7 loop geom\ntimestep 0.0005\n"
    "fix motion all npt temp 300 300 0.1 aniso 1 1 1\nrun 25\nunfix motion",
    "tri": "fix motion all npt temp 300 300 0.1 tri 1 1 1\nrun 15\nunfix motion",
    "nvt": "fix motion all nvt temp 600 600 0.1\nrun 15\nunfix motion",
    "langevin": "fix motion all nve\nfix bath all langevin 300 300 0.1 48\nrun 15\n"
    "unfix bath\nunfix motion",
    "respa": "run_style respa 2 2\nfix motion all nve\nrun 5\nunfix motion\nrun_style verlet",
    "minimize": "minimize 0 1e-3 20 100",
    "box/relax": "fix relax all box/relax aniso 0.0\nminimize 0 1e-3 10 50\nunfix relax",
    "restart": "write_restart saved.restart\nclear\nread_restart saved.restart\n"
    "pair_style mlff_student\npair_coeff * * {archive} {elements}",
}


def final_states(script: str, log: str, folder: Path, names: list[str], archive: Path) -> None:
    """Energy and forces that LAMMPS has for each dump are those of ASE for its atoms."""
    for name in names:
        energy, count = next(
            line.split()[2:] for line in log.splitlines() if line.startswith(f"STATE {name} ")
        )
        atoms = read(folder / f"{name}.dump", format="lammps-dump-text", units="metal")
        assert len(atoms) == int(count), name
        expected = ase_point(atoms, archive)
        assert abs(expected.forces).max() > 0.01, name
        assert abs(float(energy) - expected.energy) < ENERGY * len(atoms), name
        assert abs(atoms.calc.results["forces"] - expected.forces).max() < FORCES, name


@pytest.fixture(scope="module")
def shipped_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that was trained: its molecules hold together."""
    path = tmp_path_factory.mktemp("shipped") / "tiny.pt"
    export(checkpoint_path("tiny"), path, verify=False)
    return path


@pytest.mark.parametrize("ranks", [1, 2])
def test_after_any_command(ranks, structures, shipped_archive, tmp_path):
    atoms = structures["triclinic"]
    values = {"archive": shipped_archive, "elements": " ".join(element_order(atoms))}
    write_data(atoms, tmp_path / "point.data")
    script = START.format(**values)
    for name, command in COMMANDS.items():
        show = SHOW.format(name=name.replace("/", "_"), **values)
        script += f"{command.format(**values)}\nrun 0\n{show}"
    log = run_lmp(script, tmp_path, "commands", ranks=ranks)
    names = [name.replace("/", "_") for name in COMMANDS]
    final_states(script, log, tmp_path, names, shipped_archive)
