"""Pairs that LAMMPS leaves out of neighbor lists: the pair style refuses the run, or is right."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.data import atomic_masses, atomic_numbers
from ase.io import read

from mlff_student.archive.export import export
from mlff_student.archive.registry import checkpoint_path
from mlff_student.core.errors import StudentError
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.engines.lammps.input import write_lammps_input
from mlff_student.engines.lammps.run import run_lmp
from mlff_student.structures.checks import perceive_bonds

ENERGY = 1e-6  # eV/atom, of float32 sums in another order


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that was trained: its molecules hold together."""
    path = tmp_path_factory.mktemp("shipped") / "tiny.pt"
    export(checkpoint_path("tiny"), path, verify=False)
    return path


def student_energy(atoms: Atoms, archive: Path) -> float:
    atoms = atoms.copy()
    atoms.calc = StudentForceFieldCalculator(archive)
    return atoms.get_potential_energy()


def write_full(
    path: Path,
    atoms: Atoms,
    types: list[str],
    kinds: list[str],
    bonds: Sequence[tuple[int, int]],
    angles: Sequence[tuple[int, int, int]] = (),
) -> None:
    """Data file of the atom style full. `types` are its types, such as "O" and "O of water", and
    `kinds` are the types of the atoms.
    """
    charges, molecules = atoms.get_initial_charges(), atoms.arrays["mol-id"]
    lines = [f"\n\n{len(atoms)} atoms\n{len(types)} atom types\n{len(bonds)} bonds\n1 bond types"]
    lines += [f"{len(angles)} angles\n1 angle types"]
    lines += [f"0 {atoms.cell[k, k]} {x}lo {x}hi" for k, x in enumerate("xyz")]
    lines += ["\nMasses\n"]
    masses = [atomic_masses[atomic_numbers[kind.split()[0]]] for kind in types]
    lines += [f"{k + 1} {mass}" for k, mass in enumerate(masses)]
    lines += ["\nAtoms # full\n"]
    for k, (x, y, z) in enumerate(atoms.positions):
        kind = types.index(kinds[k]) + 1
        lines += [f"{k + 1} {molecules[k]} {kind} {charges[k]} {x:.10f} {y:.10f} {z:.10f}"]
    for name, rows in (("Bonds", bonds), ("Angles", angles)):
        if rows:
            lines += [f"\n{name}\n"]
        for k, row in enumerate(rows):
            lines += [f"{k + 1} 1 {' '.join(str(index + 1) for index in row)}"]
    path.write_text("\n".join(lines) + "\n")


# --- A molecule with bonds in its data file -------------------------------------------------------

ETHANOL = """\
units metal
atom_style full
boundary p p p
bond_style zero
read_data ethanol.data extra/bond/per/atom 2 extra/special/per/atom 6
bond_coeff *
{before}
pair_style mlff_student
pair_coeff * * {archive} C H O
{after}
run 0
print "ENERGY $(pe:%.10f)"
"""


@pytest.fixture
def ethanol(structures, tmp_path) -> Atoms:
    """Ethanol in a periodic box, and `ethanol.data` with its bonds."""
    atoms = structures["ethanol"]
    atoms.center(vacuum=5.0)
    atoms.pbc = True
    atoms.arrays["mol-id"] = np.ones(len(atoms), int)
    bonds = [tuple(pair) for pair in perceive_bonds(atoms)]
    assert len(bonds) == 8
    write_full(tmp_path / "ethanol.data", atoms, ["C", "H", "O"], list(atoms.symbols), bonds)
    return atoms


def test_bonds_that_remove_no_pairs(ethanol, archive, tmp_path):
    accepted = {
        "special_bonds lj/coul 1 1 1": "",
        "special_bonds lj 0 0 0 coul 1 1 1": "",
        "special_bonds lj/coul 1e-50 1e-50 1e-50": "",
        "delete_bonds all multi remove special": "",
        # The second command builds the lists of neighbors that the first has left behind.
        "delete_bonds all multi remove": "delete_bonds all multi remove special",
        # The data file has one oxygen atom and one molecule.
        "special_bonds lj/coul 1 1 1\nneigh_modify exclude type 3 3": "",
        "special_bonds lj/coul 1 1 1\nneigh_modify exclude molecule/inter all": "",
    }
    script = "clear\n".join(
        ETHANOL.format(archive=archive, before=before, after=after)
        for before, after in accepted.items()
    )
    for ranks in (1, 2):
        log = run_lmp(script, tmp_path, "accepted", ranks=ranks)
        energies = np.array(re.findall(r"^ENERGY (.*)", log, re.MULTILINE), float)
        assert len(energies) == len(accepted)
        expected = student_energy(ethanol, archive)
        np.testing.assert_allclose(energies, expected, atol=ENERGY * len(ethanol))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("", "", "special_bonds removes 1-2 neighbors, here of atoms.*special_bonds lj/coul 1 1 1"),
        ("delete_bonds all multi remove", "", "delete_bonds GROUP multi remove special"),
        ("special_bonds lj/coul 1 0 1", "", "removes 1-3 neighbors"),
        ("special_bonds lj/coul 1 1 0", "", "removes 1-4 neighbors"),
        ("special_bonds lj/coul 1 1 1", "run 0\nspecial_bonds lj/coul 0 1 1", "removes 1-2"),
        (
            "special_bonds lj/coul 1 1 1\ngroup h type 2\nneigh_modify exclude group h h",
            "",
            "neigh_modify exclude group h h removes neighbors",
        ),
        (
            "special_bonds lj/coul 1 1 1\nneigh_modify exclude type 3 3",
            "run 0\nneigh_modify exclude type 3 1",
            "neigh_modify exclude type 3 1 removes neighbors, here of atoms",
        ),
        (
            "special_bonds lj/coul 1 1 1\nneigh_modify exclude molecule/intra all",
            "",
            "neigh_modify exclude molecule/intra all removes neighbors",
        ),
    ],
)
def test_pairs_that_are_removed(before, after, words, ethanol, archive, tmp_path):
    """Refused, on several ranks too, of which some have no atoms."""
    script = ETHANOL.format(archive=archive, before=before, after=after)
    ranks = 2 if after == "" and "group" in before else 1
    with pytest.raises(StudentError, match=words):
        run_lmp(script, tmp_path, "refused", ranks=ranks)


# --- What comes during a run ----------------------------------------------------------------------

WATER_MOLECULE = """\
water

3 atoms
{bonds}

Coords

1 0.0 0.0 0.1173
2 0.0 0.7572 -0.4692
3 0.0 -0.7572 -0.4692

Types

1 2
2 1
3 1
"""
TWO_BONDS = "\nBonds\n\n1 1 1 2\n2 1 1 3\n"
WATER = """\
units metal
atom_style full
bond_style zero
boundary p p p
region box block 0 {size} 0 {size} 0 {size}
create_box 2 box bond/types 1 extra/bond/per/atom 4 extra/special/per/atom 8
mass 1 1.008
mass 2 15.999
molecule w plain.mol
molecule bonded bonded.mol
create_atoms 0 random {count} 4711 NULL mol w 77 overlap 3.0 maxtry 1000
pair_style mlff_student
pair_coeff * * {archive} H O
bond_coeff *
neighbor 1.0 bin
neigh_modify every 1 delay 0 check yes
timestep 0.0002
fix motion all nve
"""


@pytest.fixture
def water_files(tmp_path) -> None:
    (tmp_path / "plain.mol").write_text(WATER_MOLECULE.format(bonds=""))
    (tmp_path / "bonded.mol").write_text(WATER_MOLECULE.format(bonds="2 bonds") + TWO_BONDS)


def test_bonds_that_arrive(water_files, archive, tmp_path):
    """Refused at the step at which they arrive, with the name of the fix; not if they are kept."""
    start = WATER.format(size=14, count=3, archive=archive)
    create = "fix make all bond/create 2 1 2 1.3 1 iparam 4 1\nrun 6\n"
    with pytest.raises(StudentError, match=r"1-2 neighbors.*fix make bond/create adds bonds"):
        run_lmp(start + create, tmp_path, "create", ranks=2)
    deposit = "region top block 0 14 0 14 8 14\n"
    deposit += "fix add all deposit 1 0 1 991 region top mol bonded near 2.5\nrun 3\n"
    with pytest.raises(StudentError, match=r"1-2 neighbors.*fix add deposit adds bonds"):
        run_lmp(start + deposit, tmp_path, "deposit")
    kept = start + "special_bonds lj/coul 1 1 1\n" + deposit
    kept += "write_dump all custom kept.dump id element x y z modify sort id element H O &\n"
    kept += 'format float %.12g\nprint "ENERGY $(pe:%.10f) $(bonds)"\n'
    log = run_lmp(kept, tmp_path, "kept", ranks=2)
    energy, bonds = re.findall(r"^ENERGY (\S+) (\d+)", log, re.MULTILINE)[-1]
    atoms = read(tmp_path / "kept.dump", format="lammps-dump-text", units="metal")
    assert len(atoms) == 12 and int(bonds) == 2
    expected = student_energy(atoms, archive)
    assert float(energy) == pytest.approx(expected, abs=ENERGY * len(atoms))


def test_grand_canonical_monte_carlo(water_files, archive, tmp_path):
    """Six molecules on average of a nearly ideal gas, where a deleted molecule has no energy. The
    second run, and Widom's method after it, have the energies of the first.
    """
    energy = student_energy(
        Atoms("OHH", [[0, 0, 0.1173], [0, 0.7572, -0.4692], [0, -0.7572, -0.4692]]), archive
    )
    expected = 6
    size, temperature, boltzmann, bar = 60.0, 300.0, 8.617333e-5, 1.0 / 1602176.6  # eV/angstrom^3
    pressure = expected * boltzmann * temperature / size**3 / bar
    script = WATER.format(size=size, count=expected, archive=archive)
    script += f"""
unfix motion
fix mc all gcmc 1 20 0 0 54321 {temperature} 0.0 0.1 mol w pressure {pressure} &
    intra_energy {energy} full_energy
thermo_style custom step atoms pe
thermo_modify lost ignore format float %.10g
thermo 1
run 150
run 150
unfix mc
fix test all widom 1 20 0 12345 {temperature} mol w full_energy intra_energy {energy}
thermo_style custom step atoms pe f_test[2]
run 5
"""
    log = run_lmp(script, tmp_path, "gcmc")
    assert "fix mc gcmc: an isolated molecule has an energy other than zero" in log
    rows = np.array(re.findall(r"^ +(\d+) +(\d+) +(-\d\S+) *$", log, re.MULTILINE), float)
    assert len(rows) == 302
    count = rows[:, 1] / 3
    # A Poisson distribution of variance 6, of some 100 independent values.
    assert count.mean() == pytest.approx(expected, abs=1.0)
    assert count.min() <= 3 and count.max() >= 9
    # Molecules attract each other a little in a tenth of a percent of the volume.
    assert np.median(rows[:, 2] - energy * count) == pytest.approx(0.0, abs=1e-3)
    widom = re.findall(r"^ +\d+ +\d+ +-\d\S+ +(\S+) *$", log, re.MULTILINE)
    assert np.median(np.array(widom[1:], float)) == pytest.approx(1.0, abs=0.05)


def test_overlapping_atoms_repel(archive, tmp_path):
    """Down to 0.002 angstrom the energy rises, and a minimiser takes the atoms apart."""
    distances = (0.2, 0.05, 0.002)
    script = ""
    for distance in distances:
        script += f"""
units metal
boundary p p p
region box block 0 12 0 12 0 12
create_box 2 box
mass 1 1.008
mass 2 15.999
create_atoms 2 single 5 5 5
create_atoms 1 single {5 + distance} 5 5
create_atoms 1 single 5 5.95 5
pair_style mlff_student
pair_coeff * * {archive} H O
run 0
print "ENERGY $(pe:%.10f)"
minimize 0 1e-3 300 3000
print "ENERGY $(pe:%.10f)"
clear
"""
    log = run_lmp(script, tmp_path, "overlap")
    energies = np.array(re.findall(r"^ENERGY (.*)", log, re.MULTILINE), float)
    overlapping, relaxed = energies.reshape(-1, 2).T
    assert (np.diff(overlapping) > 100.0).all()
    water = molecule("H2O")
    assert relaxed == pytest.approx(student_energy(water, archive), abs=0.1)


# --- Beside a classical force field ---------------------------------------------------------------

MIXED = """\
units real
atom_style full
bond_style harmonic
angle_style harmonic
read_data mixed.data extra/bond/per/atom 2
bond_coeff 1 450 0.9572
angle_coeff 1 55 104.52
group solvent type 4 5
group solute type 1 2 3
{style}
special_bonds lj/coul {special}
"""
CLASSICAL = """\
pair_coeff 4 4 {style} 0 1
pair_coeff 5 5 {style} 0.1521 3.1507
pair_coeff 4 5 {style} 0 1
pair_coeff 1*3 4 {style} 0 1
pair_coeff 1*3 5 {style} 0.1 3.2
"""
LOOK = 'run 0\nprint "ENERGY $(pe:%.10f)"\n'
STYLES = {
    "lj/cut/coul/long": "kspace_style pppm 1e-5\n",
    "lj/cut/coul/cut": "neigh_modify exclude molecule/intra solvent\n",
}


@pytest.fixture
def mixed(structures, tmp_path) -> Atoms:
    """Ethanol without bonds in TIP3P water with bonds, as `mixed.data`; returns the ethanol."""
    ethanol = structures["ethanol"]
    ethanol.set_cell([16.0] * 3)
    ethanol.pbc = True
    ethanol.center()
    atoms, kinds, bonds, angles = ethanol.copy(), list(ethanol.symbols), [], []
    charges, molecules = [0.0] * len(atoms), [1] * len(atoms)
    for corner in np.ndindex(2, 2, 2):
        water = molecule("H2O")
        water.rotate(77.0 * sum(corner), (1.0, 2.0, 3.0))
        water.translate(2.0 + 8.0 * np.array(corner) - water.positions[0])
        first = len(atoms)
        bonds += [(first, first + 1), (first, first + 2)]
        angles += [(first + 1, first, first + 2)]
        kinds += ["O of water", "H of water", "H of water"]
        charges += [-0.834, 0.417, 0.417]
        molecules += [molecules[-1] + 1] * 3
        atoms += water
    atoms.set_initial_charges(charges)
    atoms.arrays["mol-id"] = np.array(molecules)
    types = ["C", "H", "O", "H of water", "O of water"]
    write_full(tmp_path / "mixed.data", atoms, types, kinds, bonds, angles)
    return ethanol


def mixed_script(style: str, archive: Path, special: str = "0 0 0.5") -> str:
    line = f"pair_style hybrid/overlay mlff_student {style} 7.0 7.0"
    script = MIXED.format(style=line, special=special) + STYLES[style]
    script += f"pair_coeff * * mlff_student {archive} C H O NULL NULL\n"
    return script + CLASSICAL.format(style=style)


def test_beside_bonded_water(mixed, archive, tmp_path):
    """The energy is that of the student alone plus that of the classical force field alone."""
    script = ""
    for style in STYLES:
        alone = MIXED.format(style=f"pair_style {style} 7.0 7.0", special="0 0 0.5")
        alone += STYLES[style] + "pair_coeff * * 0 1\n"
        script += alone + CLASSICAL.replace("{style} ", "") + LOOK + "clear\n"
        script += mixed_script(style, archive) + LOOK + "clear\n"
    # PPPM keeps bonded pairs of the student too. The bond itself is classical.
    script += mixed_script("lj/cut/coul/long", archive).replace(
        "group solvent", "create_bonds single/bond 1 1 2\ngroup solvent"
    )
    script += "bond_coeff 1 0.0 0.9572\nangle_coeff 1 0.0 104.52\n" + LOOK
    expected = student_energy(mixed, archive) * 23.060549
    for ranks in (1, 2):
        log = run_lmp(script, tmp_path, "mixed", ranks=ranks)
        energies = np.array(re.findall(r"^ENERGY (.*)", log, re.MULTILINE), float)
        tolerance = 23.06 * ENERGY * len(mixed)
        assert energies[1] - energies[0] == pytest.approx(expected, abs=tolerance)
        assert energies[3] - energies[2] == pytest.approx(expected, abs=tolerance)


def test_bonded_student_beside_water_without_kspace(mixed, archive, tmp_path):
    """The advice of the refusal is not to change what the water needs."""
    bond = "create_bonds single/bond 1 1 2\n"
    script = mixed_script("lj/cut/coul/cut", archive)
    with pytest.raises(StudentError, match=r"1-2 neighbors.*1\.0e-50 instead of 0") as refusal:
        run_lmp(script + bond + LOOK, tmp_path, "refused", ranks=2)
    assert "1 1 1" not in str(refusal.value)
    delete = "delete_bonds solute multi remove special\n"
    run_lmp(script + bond + delete + LOOK, tmp_path, "deleted")


@pytest.mark.parametrize(("units", "ranks"), [("real", 2), ("metal", 1)])
def test_shipped_input_with_water(units, ranks, structures, archive, tmp_path):
    """`in.tip3p` runs; the student's part is the energy of the molecule, which its charges do not
    change.
    """
    atoms = structures["ethanol"]
    atoms.set_cell([12.0, 12.5, 13.0])
    atoms.pbc = True
    atoms.center()
    charges = np.where(atoms.symbols == "O", -0.6, 0.0)
    charges[atoms.symbols == "H"] = 0.6 / np.sum(atoms.symbols == "H")
    atoms.set_initial_charges(charges)
    variables = {"steps": "40", "every": "20", "cutoff": "6"}
    written = write_lammps_input(
        atoms, str(archive), "tip3p", tmp_path, units=units, variables=variables
    )
    script = written.script.read_text().replace("200 2000", "40 400")  # of the minimisation
    log = run_lmp(script, tmp_path, "tip3p", ranks=ranks)
    scale = 23.060549 if units == "real" else 1.0
    rows = re.findall(r"^ +(?:0|20|40) +[\d.]+ +([\d.]+) .* (-[\d.]+) *$", log, re.MULTILINE)
    temperature, student = np.array(rows[-3:], float).T
    assert (temperature > 50.0).all() and (temperature < 500.0).all()
    frames = read(tmp_path / "trajectory.extxyz", ":")
    assert len(frames) == 3 and 120 < len(frames[-1]) < 220
    for frame, energy in zip(frames, student, strict=True):
        # The file has six digits: 1e-5 angstrom times forces of some eV/angstrom.
        solute = frame[: len(atoms)]
        assert energy / scale == pytest.approx(student_energy(solute, archive), abs=2e-3)
    # Without water, what the charges add is the interaction with periodic images.
    drop = r"^(create_atoms|minimize|delete_atoms|fix +rigid) .*\n"
    alone = re.sub(drop, "", script, flags=re.MULTILINE)
    log = run_lmp(alone, tmp_path, "alone", ranks=ranks)
    potential, student = re.findall(
        r"^ +40 +[\d.]+ +[\d.]+ +(-[\d.]+) .* (-[\d.]+) *$", log, re.MULTILINE
    )[-1]
    assert (float(potential) - float(student)) / scale == pytest.approx(0.0, abs=0.05)
