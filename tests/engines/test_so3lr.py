"""The teacher SO3LR: published energies of molecules, and electrostatics without a cutoff."""

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.optimize import BFGS

from mlff_student.core.errors import InputError
from mlff_student.teachers import make_teacher
from mlff_student.teachers.so3lr import (
    COULOMB,
    SO3LR,
    check_supported,
    reciprocal_energies,
)

STEP = 1e-4  # step of finite differences, angstrom or strain
KCAL_PER_MOL = units.kcal / units.mol


@pytest.fixture(scope="module")
def so3lr() -> SO3LR:
    return make_teacher("so3lr")


def energy(atoms: Atoms, calculator: SO3LR) -> float:
    atoms.calc = calculator
    return atoms.get_potential_energy()


@pytest.mark.parametrize("name", ["H2O", "CH3CH2OH", "C6H6", "CH3Cl", "SH2"])
def test_open_molecules_equal_the_package_without_a_cutoff(name: str, so3lr: SO3LR):
    """The calculator of so3krates-torch is right as long as no pair is cut off."""
    from so3krates_torch.calculator.so3 import SO3LRCalculator

    default = torch.get_default_dtype()
    try:
        published = SO3LRCalculator(r_max_lr=60.0, default_dtype="float64")
        published.models[0].r_max_lr = None
        atoms = molecule(name)
        atoms.rattle(0.05, seed=1)
        expected = atoms.copy()
        expected.calc = published
        expected.get_forces()
        energy_per_atom = expected.get_potential_energy() / len(atoms)
    finally:
        torch.set_default_dtype(default)
    constant = -163.61811829  # eV, of an atom of any element
    assert energy(atoms, so3lr) / len(atoms) == pytest.approx(energy_per_atom - constant, abs=1e-7)
    np.testing.assert_allclose(atoms.get_forces(), expected.get_forces(), atol=1e-8)
    assert torch.get_default_dtype() == default


@pytest.mark.parametrize("name", ["water_box", "triclinic"])
def test_forces_and_stress_are_derivatives(name: str, structures: dict[str, Atoms], so3lr: SO3LR):
    box = structures[name]
    energy(box, so3lr)
    forces, stress = box.get_forces(), box.get_stress(voigt=False)
    for index, axis in ((0, 0), (4, 1), (10, 2)):
        ends = []
        for sign in (1.0, -1.0):
            moved = box.copy()
            moved.positions[index, axis] += sign * STEP
            ends.append(energy(moved, so3lr))
        assert forces[index, axis] == pytest.approx(-(ends[0] - ends[1]) / (2 * STEP), abs=2e-5)
    for i, j in ((0, 0), (2, 2), (0, 1), (1, 2)):
        ends = []
        for sign in (1.0, -1.0):
            strain = np.eye(3)
            strain[i, j] += 0.5 * sign * STEP
            strain[j, i] += 0.5 * sign * STEP
            strained = box.copy()
            strained.set_cell(box.cell.array @ strain, scale_atoms=True)
            ends.append(energy(strained, so3lr))
        slope = (ends[0] - ends[1]) / (2 * STEP * box.get_volume())
        assert stress[i, j] == pytest.approx(slope, abs=2e-7)


def test_a_box_and_its_supercell_are_one_system(structures: dict[str, Atoms], so3lr: SO3LR):
    box = structures["triclinic"]
    single = energy(box, so3lr)
    large = box.repeat((2, 1, 1))
    assert energy(large, so3lr) == pytest.approx(2 * single, abs=1e-6)
    np.testing.assert_allclose(large.get_forces()[: len(box)], box.get_forces(), atol=2e-6)


def test_energy_in_a_large_box_approaches_that_of_the_open_structure(so3lr: SO3LR):
    """The images of a dipole in a box of edge L change its energy in proportion to L^-3."""
    water = molecule("H2O")
    open_energy = energy(water, so3lr)
    differences = []
    for edge in (20.0, 40.0):
        boxed = molecule("H2O")
        boxed.set_cell([edge] * 3)
        boxed.pbc = True
        differences.append(energy(boxed, so3lr) - open_energy)
    assert abs(differences[1]) < 1e-4
    assert differences[0] / differences[1] == pytest.approx(8.0, rel=0.1)


def test_reciprocal_sum_of_rock_salt():
    """erf(a r) / r from the reciprocal lattice plus erfc(a r) / r gives Madelung's constant."""
    edge, a = 1.0, 4.0
    corners = np.array(np.meshgrid(*[[0.0, 0.5]] * 3, indexing="ij")).reshape(3, -1).T
    charges = np.where((2 * corners).sum(1) % 2 == 0, 1.0, -1.0)
    tensors = [torch.tensor(x) for x in (charges, corners, edge * np.eye(3))]
    long_range = float(reciprocal_energies(*tensors, a)[0])
    cells = np.array(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij")).reshape(3, -1).T
    distance = np.linalg.norm(corners[None] + cells[:, None] - corners[0], axis=2)
    other = distance > 1e-9
    erfc = torch.erfc(torch.tensor(a * distance[other])).numpy() / distance[other]
    near = 0.5 * charges[0] * (np.broadcast_to(charges, distance.shape)[other] * erfc).sum()
    nearest = 0.5 * edge
    assert -2.0 * (long_range + near) * nearest == pytest.approx(1.7475645946, abs=1e-8)


def test_electrostatics_with_a_cutoff_converge(structures: dict[str, Atoms], so3lr: SO3LR):
    """A shifted sum with a cutoff and its self term approaches the reciprocal sum."""
    box = structures["water_box"]
    energy(box, so3lr)
    charges = so3lr.results["charges"]
    exact = COULOMB * float(
        reciprocal_energies(
            *(torch.tensor(x) for x in (charges, box.positions, box.cell.array)), 0.25
        ).sum()
    )
    errors = []
    for cutoff in (16.0, 32.0):
        reach = int(np.ceil(cutoff / box.cell.lengths().min()))
        cells = np.array(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"))
        shifts = cells.reshape(3, -1).T @ box.cell.array
        total = 0.0
        shift = torch.erf(torch.tensor(cutoff / 4.0)).item() / cutoff
        for i in range(len(box)):
            distance = np.linalg.norm(box.positions + shifts[:, None] - box.positions[i], axis=2)
            inside = (distance < cutoff) & (distance > 1e-9)
            values = torch.erf(torch.tensor(distance[inside] / 4.0)).numpy() / distance[inside]
            pairs = np.broadcast_to(charges, distance.shape)[inside] * (values - shift)
            total += 0.5 * charges[i] * pairs.sum()
        total -= 0.5 * shift * (charges**2).sum()
        errors.append(abs(COULOMB * total - exact) / 8)
    assert errors[1] < 0.0026  # eV a molecule, 0.25 kJ/mol
    assert errors[1] < 0.5 * errors[0] < 0.0035


def test_batch_equals_single_structures(structures: dict[str, Atoms], so3lr: SO3LR):
    many = [structures[name] for name in ("water", "triclinic", "ethanol", "water_box")]
    for atoms, labels in zip(many, so3lr.label(many), strict=True):
        assert labels.energy == pytest.approx(energy(atoms, so3lr), abs=1e-9)
        np.testing.assert_allclose(labels.forces, atoms.get_forces(), atol=1e-9)
        if atoms.pbc.all():
            np.testing.assert_allclose(labels.stress, atoms.get_stress(voigt=False), atol=1e-11)


def test_water_molecule_and_dimer(so3lr: SO3LR):
    """Geometry of the molecule, and the dimer's binding energy: CCSD(T) gives -5.0 kcal/mol."""
    water = molecule("H2O")
    water.calc = so3lr
    BFGS(water, logfile=None).run(fmax=1e-3)
    assert water.get_distance(0, 1) == pytest.approx(0.958, abs=0.003)
    assert water.get_angle(1, 0, 2) == pytest.approx(104.8, abs=0.5)
    dimer = Atoms(
        "OHHOHH",
        [[-1.551, -0.115, 0], [-1.934, 0.763, 0], [-0.600, 0.041, 0],
         [1.351, 0.111, 0], [1.680, -0.374, -0.759], [1.680, -0.374, 0.759]],
    )  # fmt: skip
    dimer.calc = so3lr
    BFGS(dimer, logfile=None).run(fmax=2e-3, steps=200)
    binding = (dimer.get_potential_energy() - 2 * water.get_potential_energy()) / KCAL_PER_MOL
    assert -6.0 < binding < -5.0


def test_charge_and_spin_come_from_the_structure(so3lr: SO3LR):
    hydronium = Atoms(
        "OHHH", [[0, 0, 0.1], [0.94, 0, -0.1], [-0.47, 0.81, -0.1], [-0.47, -0.81, -0.1]]
    )
    hydronium.calc = so3lr
    with pytest.raises(InputError, match="11 electrons cannot have the spin multiplicity 1"):
        hydronium.get_potential_energy()
    hydronium.info["charge"] = 1
    hydronium.get_potential_energy()
    assert so3lr.results["charges"].sum() == pytest.approx(1.0, abs=1e-5)
    water = molecule("H2O")
    neutral = energy(water, so3lr)
    water.info.update(charge=1, spin=2)
    assert abs(water.get_potential_energy() - neutral) > 1.0  # computed again, though nothing moved


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda atoms: atoms.symbols.__setitem__(0, "Br"), "the structure has Br"),
        (lambda atoms: atoms.positions.__setitem__(0, np.nan), "not finite"),
        (lambda atoms: atoms.set_pbc([True, True, False]), "fully periodic"),
        (lambda atoms: atoms.set_pbc(True), "no volume"),
        (lambda atoms: atoms.info.update(spin=1.5), "whole numbers"),
        (lambda atoms: atoms.info.update(total_charge=1), "cannot have"),
        (lambda atoms: atoms.info.update(charge=0.5), "whole numbers"),
        (lambda atoms: atoms.info.update(charge=np.nan), "expected is a number"),
        (lambda atoms: atoms.info.update(charge="one"), "expected is a number"),
        (lambda atoms: atoms.positions.__setitem__(1, atoms.positions[0]), "angstrom apart"),
        (lambda atoms: atoms.info.update(spin=2), "cannot have"),
    ],
)
def test_unsupported_structures_are_refused(change, message: str):
    atoms = molecule("H2O")
    change(atoms)
    with pytest.raises(InputError, match=message):
        check_supported(atoms)


def test_float32_gives_the_labels_of_float64(structures: dict[str, Atoms], so3lr: SO3LR):
    rng = np.random.default_rng(5)
    several = [molecule("CH3CH2OH"), structures["triclinic"].copy()]
    for atoms in several:
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
    single, double = SO3LR("float32").label(several), so3lr.label(several)
    for mine, exact in zip(single, double, strict=True):
        assert np.abs(mine.forces - exact.forces).max() < 1e-4
        assert mine.energy == pytest.approx(exact.energy, abs=1e-4)
        assert mine.forces.std() > 0.1
    assert single[1].stress is not None
    np.testing.assert_allclose(single[1].stress, double[1].stress, atol=1e-6)
