"""The student: symmetry, exact gradients, smoothness at the cutoff, short-range repulsion."""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import make_supercell, molecule
from ase.data import atomic_numbers, covalent_radii
from scipy.spatial.transform import Rotation

from mlff_student.archive.registry import available_models, load_student
from mlff_student.core.errors import InputError
from mlff_student.model.architecture import derived_buffers
from mlff_student.model.elements import ELEMENTS
from mlff_student.model.neighbours import neighbour_edges
from mlff_student.model.repulsion import ZBLRepulsion, envelope
from mlff_student.model.student import (
    PRESETS,
    Student,
    StudentConfig,
    parameter_count,
    squeeze_distances,
    squeeze_energies,
)
from mlff_student.structures.smiles import embed

EXACT = 1e-9  # relative tolerance; an operation in float64 has a rounding of 1e-16
CUTOFF = 5.0
REACH = PRESETS["original"].repulsion_reach
RandomStudent = Callable[..., Student]


class Outcome(NamedTuple):
    """Energies, forces and virial of a structure by a student."""

    energies: np.ndarray  # (N,), eV
    forces: np.ndarray  # (N, 3), eV/angstrom
    virial: np.ndarray  # (3, 3), eV


def edges_of(atoms: Atoms) -> tuple[torch.Tensor, torch.Tensor]:
    return neighbour_edges(
        torch.tensor(atoms.positions),
        torch.tensor(atoms.cell.array),
        torch.tensor(atoms.pbc),
        CUTOFF,
    )


def species_of(student: Student, atoms: Atoms) -> torch.Tensor:
    return student.species_of[torch.tensor(atoms.numbers)]


def outcome(student: Student, atoms: Atoms) -> Outcome:
    """Evaluate a student, and sum its gradient here instead of by the package."""
    vectors, index = edges_of(atoms)
    energies, gradient = student(vectors, index, species_of(student, atoms), len(atoms))
    vectors, index, gradient = vectors.numpy(), index.numpy(), gradient.numpy()
    forces = np.zeros((len(atoms), 3))
    np.add.at(forces, index[0], gradient)
    np.add.at(forces, index[1], -gradient)
    return Outcome(energies.numpy(), forces, -np.einsum("ea,eb->ab", vectors, gradient))


def energy(student: Student, atoms: Atoms) -> float:
    return float(outcome(student, atoms).energies.sum())


def assert_same(actual: np.ndarray, expected: np.ndarray, what: str, tolerance: float = EXACT):
    __tracebackhide__ = True
    scale = max(1.0, float(np.abs(expected).max()))
    error = float(np.abs(actual - expected).max()) / scale
    assert error < tolerance, f"{what}: relative difference {error:.1e}, allowed {tolerance:.0e}"


# --- Bounds where there are no data ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("squeeze", "limit", "inside", "ends"),
    [
        (
            squeeze_distances,
            0.88,
            torch.linspace(0.88, 6.0, 100, dtype=torch.float64),
            (0.48, 0.88),
        ),
        (squeeze_energies, -3.0, torch.linspace(-3.0, 50.0, 100, dtype=torch.float64), (-3.0,)),
    ],
)
def test_squeezing_is_smooth_and_changes_nothing_inside(
    squeeze: Callable, limit: float, inside: torch.Tensor, ends: tuple[float, ...]
):
    bound = torch.tensor(limit, dtype=torch.float64)
    value, slope = squeeze(inside, bound)
    assert (value == inside).all()
    assert (slope == 1.0).all()
    x = torch.linspace(limit - 5.0, limit + 1.0, 600, dtype=torch.float64).requires_grad_()
    value, slope = squeeze(x, bound)
    (autograd,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(slope, autograd, rtol=1e-9, atol=1e-12)
    assert (value.diff() >= 0.0).all()
    step = 1e-6
    for end in ends:  # the second derivative does not jump
        around = torch.tensor([end - 2 * step, end - step, end + step, end + 2 * step]).double()
        slopes = squeeze(around, bound)[1]
        assert abs(float(slopes[1] - slopes[0]) - float(slopes[3] - slopes[2])) / step < 1e-3


def test_squeezed_distances_and_energies_have_a_floor():
    limit = torch.tensor(0.88, dtype=torch.float64)
    squeezed, slope = squeeze_distances(torch.tensor([0.48, 0.1, 1e-9]).double(), limit)
    torch.testing.assert_close(squeezed, torch.full((3,), 0.68).double())
    assert slope[1:].abs().max() == 0.0
    limit = torch.tensor(-3.0, dtype=torch.float64)
    squeezed, slope = squeeze_energies(torch.tensor([-20.0, -1e30]).double(), limit)
    torch.testing.assert_close(squeezed, torch.full((2,), -5.0).double())
    assert slope[1] == 0.0


def test_gradient_where_both_bounds_act(random_student: RandomStudent):
    """The gradient is right for atoms at 0.48 to 0.88 angstrom and energies near the bound."""
    student = deepcopy(random_student("tiny"))
    atoms = molecule("CH3CH2OH")
    atoms.positions *= 0.65
    vectors, index = edges_of(atoms)
    species = species_of(student, atoms)
    bare, _ = student.network(vectors, index, species, len(atoms))
    with torch.no_grad():
        student.readout_out.bias -= bare.median() + 3.0
    eps, gradient = student.network(vectors, index, species, len(atoms))
    assert (eps > -3.0).any()
    assert (eps < -3.0).any()
    assert ((vectors.norm(dim=1) > 0.48) & (vectors.norm(dim=1) < 0.88)).any()
    leaf = vectors.clone().requires_grad_()
    energies, _ = student.network(leaf, index, species, len(atoms))
    (autograd,) = torch.autograd.grad(energies.sum(), leaf)
    torch.testing.assert_close(gradient, autograd, rtol=1e-9, atol=1e-9)


# --- Size ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "named"), [("original", 427e3), ("tiny", 77e3), ("ultra_tiny", 21e3)]
)
def test_parameter_counts_are_within_two_percent_of_the_names(preset: str, named: float):
    assert abs(parameter_count(Student(PRESETS[preset])) / named - 1.0) < 0.02


def test_every_weight_of_every_preset_acts_on_the_energy(
    random_student: RandomStudent, structures: dict[str, Atoms]
):
    """Every weight has an effect, except those message weights of the first layer that act on
    mu = 0, as `Student` says.
    """
    for preset in PRESETS:
        student = Student(PRESETS[preset], torch.float64)
        student.load_state_dict(random_student(preset).state_dict())
        atoms = structures["ethanol"]
        energies, _ = student(*edges_of(atoms), species_of(student, atoms), len(atoms))
        energies.sum().backward()
        present = species_of(student, atoms).unique()
        for name, weight in student.named_parameters():
            grad = weight.grad[present] if name == "embedding.weight" else weight.grad
            if name.startswith(("blocks.0.message", "blocks.0.filter")):
                grad = grad[: 2 * PRESETS[preset].channels]
            assert (grad != 0).all(), f"{preset}: part of {name} does nothing"


def test_configuration_survives_json():
    config = PRESETS["tiny"]
    assert StudentConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_channels_must_suit_the_vector_unit():
    with pytest.raises(InputError, match=r"multiple of 16, got 24"):
        Student(StudentConfig(channels=24, layers=1, radial_functions=4))


# --- Symmetry -----------------------------------------------------------------------------------

Transform = Callable[[Atoms, np.random.Generator], tuple[Atoms, np.ndarray, np.ndarray]]


def turned(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    return Atoms(
        atoms.numbers, positions=atoms.positions @ matrix.T, cell=atoms.cell.array @ matrix.T,
        pbc=atoms.pbc,
    )  # fmt: skip


def rotation(atoms, rng):
    matrix = Rotation.random(rng=rng).as_matrix()
    return turned(atoms, matrix), matrix, np.arange(len(atoms))


def reflection(atoms, rng):
    normal = rng.standard_normal(3)
    normal /= np.linalg.norm(normal)
    matrix = np.eye(3) - 2.0 * np.outer(normal, normal)
    return turned(atoms, matrix), matrix, np.arange(len(atoms))


def translation(atoms, rng):
    moved = atoms.copy()
    moved.positions += 30.0 * rng.standard_normal(3)
    return moved, np.eye(3), np.arange(len(atoms))


def permutation_of_like_atoms(atoms, rng):
    order = np.arange(len(atoms))
    for number in np.unique(atoms.numbers):
        like = np.flatnonzero(atoms.numbers == number)
        order[like] = rng.permutation(like)
    moved = atoms.copy()
    moved.positions = atoms.positions[order]
    return moved, np.eye(3), order


def another_atom_order(atoms, rng):
    order = rng.permutation(len(atoms))
    return atoms[order], np.eye(3), order


def lattice_translation_of_each_atom(atoms, rng):
    moved = atoms.copy()
    images = rng.integers(-3, 4, (len(atoms), 3)) * atoms.pbc
    moved.positions += images @ atoms.cell.array
    return moved, np.eye(3), np.arange(len(atoms))


TRANSFORMS = [
    rotation,
    reflection,
    translation,
    permutation_of_like_atoms,
    another_atom_order,
    lattice_translation_of_each_atom,
]
STUDENTS = [("random", preset) for preset in PRESETS]
STUDENTS += [("shipped", name) for name in available_models()]
SYSTEMS = ["ethanol", "molecule32", "water_box", "triclinic", "slab", "below_cutoff", "compressed"]


def system(name: str, structures: dict[str, Atoms]) -> Atoms:
    if name == "slab":
        atoms = structures["ethanol"]
        atoms.set_cell([[6.0, 0.0, 0.0], [1.5, 5.5, 0.0], [0.0, 0.0, 0.0]])
        atoms.pbc = (True, True, False)
        return atoms
    if name == "compressed":  # so that the repulsion acts as well
        atoms = structures["ethanol"]
        atoms.positions *= 0.75
        return atoms
    if name == "below_cutoff":
        atoms = structures["water"]
        atoms.set_cell([[3.2, 0.0, 0.0], [0.7, 3.4, 0.0], [-0.5, 0.4, 3.6]])
        atoms.pbc = True
        return atoms
    return structures[name]


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize(("origin", "model"), STUDENTS)
def test_invariant_energy_and_covariant_forces(
    origin: str,
    model: str,
    name: str,
    random_student: RandomStudent,
    structures: dict[str, Atoms],
):
    if origin == "random":
        student = random_student(model)
    else:
        student, _ = load_student(available_models()[model] / "model.pt", torch.float64)
    atoms = system(name, structures)
    before = outcome(student, atoms)
    assert np.abs(before.forces).max() > 1e-2  # without forces the test would prove nothing
    for transform in TRANSFORMS:
        moved, matrix, order = transform(atoms, np.random.default_rng(5))
        after = outcome(student, moved)
        label = f"{origin} {model}, {name}, {transform.__name__}"
        assert_same(after.energies, before.energies[order], f"{label}: energies")
        assert_same(after.forces, before.forces[order] @ matrix.T, f"{label}: forces")
        assert_same(after.virial, matrix @ before.virial @ matrix.T, f"{label}: virial")


@pytest.mark.parametrize("name", SYSTEMS)
def test_no_net_force_and_no_net_torque(
    name: str, random_student: RandomStudent, structures: dict[str, Atoms]
):
    result = outcome(random_student("tiny"), system(name, structures))
    assert np.abs(result.forces.sum(0)).max() < 1e-11 * len(result.forces)
    # In a periodic cell, no net torque means that the virial is symmetric.
    assert_same(result.virial, result.virial.T, "virial")


# --- Range --------------------------------------------------------------------------------------


def test_two_distant_copies_have_twice_the_energy(
    random_student: RandomStudent, structures: dict[str, Atoms]
):
    atoms = structures["ethanol"]
    copy = atoms.copy()
    copy.positions += [100.0, 0.0, 0.0]
    single, double = (outcome(random_student("tiny"), each) for each in (atoms, atoms + copy))
    assert_same(double.energies, np.tile(single.energies, 2), "energies")
    assert_same(double.forces, np.tile(single.forces, (2, 1)), "forces")


def approaching_atom(atoms: Atoms, distance: float) -> Atoms:
    """Add an oxygen at this distance beyond the last atom along x."""
    last = int(atoms.positions[:, 0].argmax())
    both = atoms.copy()
    both += Atoms("O", positions=[atoms.positions[last] + [distance, 0.0, 0.0]])
    others = np.delete(np.arange(len(atoms)), last)
    assert both.get_distances(len(atoms), others).min() > distance + 0.01
    return both


@pytest.mark.parametrize("preset", PRESETS)
def test_an_atom_beyond_the_cutoff_has_no_effect(
    preset: str, random_student: RandomStudent, structures: dict[str, Atoms]
):
    student = random_student(preset)
    alone = outcome(student, structures["ethanol"])
    both = outcome(student, approaching_atom(structures["ethanol"], CUTOFF + 1e-9))
    assert (both.forces[-1] == 0.0).all()
    assert_same(both.forces[:-1], alone.forces, "forces", 1e-14)
    assert_same(both.energies[:-1], alone.energies, "energies", 1e-14)


@pytest.mark.parametrize("preset", PRESETS)
def test_energy_force_and_curvature_vanish_at_the_cutoff(
    preset: str, random_student: RandomStudent, structures: dict[str, Atoms]
):
    student, ethanol = random_student(preset), structures["ethanol"]
    beyond = outcome(student, approaching_atom(ethanol, CUTOFF + 1e-6))
    before = outcome(student, approaching_atom(ethanol, CUTOFF - 1e-6))
    assert abs(before.energies.sum() - beyond.energies.sum()) < 1e-10
    assert np.abs(before.forces - beyond.forces).max() < 1e-10

    # Near the cutoff the force is proportional to the square of the gap, its slope to the gap.
    gaps = np.array([1e-2, 1e-3, 1e-4])
    forces = [
        np.abs(outcome(student, approaching_atom(ethanol, CUTOFF - gap)).forces[-1]).max()
        for gap in gaps
    ]
    curvature = np.array(forces) / gaps
    assert curvature[0] > 1e-6  # the pair does interact
    # The expected ratio is 10; the next order in the gap changes it by a few times 1e-2.
    assert curvature[:-1] / curvature[1:] == pytest.approx([10.0, 10.0], rel=0.15)


@pytest.mark.parametrize("preset", PRESETS)
def test_cells_below_the_cutoff_equal_their_supercell(
    preset: str, random_student: RandomStudent, structures: dict[str, Atoms]
):
    student, atoms = random_student(preset), system("below_cutoff", structures)
    single = outcome(student, atoms)
    repeated = outcome(student, atoms.repeat((2, 3, 2)))
    assert_same(repeated.energies, np.tile(single.energies, 12), "energies")
    assert_same(repeated.forces, np.tile(single.forces, (12, 1)), "forces")
    assert_same(repeated.virial / 12.0, single.virial, "virial")


def test_another_cell_of_the_same_lattice_changes_nothing(
    random_student: RandomStudent, structures: dict[str, Atoms]
):
    student, atoms = random_student("tiny"), system("below_cutoff", structures)
    skewed = make_supercell(atoms, [[1, 0, 0], [2, 1, 0], [-1, 3, 1]])
    first, second = outcome(student, atoms), outcome(student, skewed)
    assert_same(second.energies.sum(), first.energies.sum(), "energy")
    assert_same(second.virial, first.virial, "virial")


def test_one_atom_has_its_reference_energy_plus_the_networks(random_student: RandomStudent):
    student = random_student("tiny")
    atom = Atoms("O", positions=[[1.0, 2.0, 3.0]])
    result = outcome(student, atom)
    species = species_of(student, atom)
    eps, _ = student.network(torch.zeros(0, 3).double(), torch.zeros(2, 0).long(), species, 1)
    assert (result.forces == 0.0).all()
    assert_same(result.energies, (eps + student.references[species]).numpy(), "energy", 1e-14)


def test_no_cap_on_neighbours(random_student: RandomStudent):
    """Each of 200 neighbours within the cutoff acts on the energy."""
    rng = np.random.default_rng(2)
    directions = rng.standard_normal((200, 3))
    shell = directions / np.linalg.norm(directions, axis=1)[:, None] * rng.uniform(3, 4.9, (200, 1))
    cluster = Atoms("C" + "H200", positions=np.concatenate([np.zeros((1, 3)), shell]))
    student = random_student("ultra_tiny")
    vectors, index = edges_of(cluster)
    onto_centre = index[0] == 0
    assert onto_centre.sum() == 200
    # Only atom 0 has an energy and receives, so each gradient belongs to one neighbour.
    _, gradient = student(
        vectors[onto_centre], index[:, onto_centre], species_of(student, cluster), 1
    )
    assert (gradient.norm(dim=1) > 0).all()


# --- Derivatives --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("preset", PRESETS)
def test_hand_derived_gradient_equals_autograd(
    preset: str, name: str, random_student: RandomStudent, structures: dict[str, Atoms]
):
    student, atoms = random_student(preset), system(name, structures)
    vectors, index = edges_of(atoms)
    for n_local in (len(atoms), len(atoms) // 2):
        leaf = vectors.clone().requires_grad_()
        energies, gradient = student(leaf, index, species_of(student, atoms), n_local)
        energies.sum().backward()
        assert energies.shape == (n_local,)
        assert_same(gradient.detach().numpy(), leaf.grad.numpy(), f"n_local {n_local}", 1e-11)


def five_point(function: Callable[[float], float], step: float) -> float:
    """Return the first derivative at 0, with an error of order step^4."""
    near, far = function(step) - function(-step), function(2 * step) - function(-2 * step)
    return (8.0 * near - far) / (12.0 * step)


# The rounding of an energy of 200 eV, divided by 2e-4 angstrom, is 1e-9. The error of the stencil,
# measured with different steps, is 1e-7 for 20 radial functions.
STEP = 2e-4  # angstrom
DIFFERENCE = 1e-6  # eV/angstrom


@pytest.mark.parametrize("name", ["molecule32", "triclinic", "slab", "compressed"])
@pytest.mark.parametrize("preset", PRESETS)
def test_forces_equal_finite_differences(
    preset: str, name: str, random_student: RandomStudent, structures: dict[str, Atoms]
):
    student, atoms = random_student(preset), system(name, structures)
    forces = outcome(student, atoms).forces
    for atom, axis in [(0, 0), (1, 1), (len(atoms) - 1, 2)]:

        def along(step: float, atom: int = atom, axis: int = axis) -> float:
            moved = atoms.copy()
            moved.positions[atom, axis] += step
            return energy(student, moved)

        assert -five_point(along, STEP) == pytest.approx(forces[atom, axis], abs=DIFFERENCE)


@pytest.mark.parametrize("name", ["water_box", "triclinic", "below_cutoff"])
def test_virial_equals_the_strain_derivative(
    name: str, random_student: RandomStudent, structures: dict[str, Atoms]
):
    student, atoms = random_student("tiny"), system(name, structures)
    virial = outcome(student, atoms).virial
    for a, b in np.ndindex(3, 3):

        def strained(step: float, a: int = a, b: int = b) -> float:
            deformation = np.eye(3)
            deformation[a, b] += step
            moved = atoms.copy()
            moved.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
            return energy(student, moved)

        # A strain moves the farthest neighbours by five times the step.
        assert -five_point(strained, 2e-4) == pytest.approx(virial[a, b], abs=len(atoms) * 1e-6)


# --- Ghosts -------------------------------------------------------------------------------------


def test_ghosts_send_but_carry_no_energy(
    random_student: RandomStudent, structures: dict[str, Atoms]
):
    """Explicit images within layers x cutoff give the same energies as a periodic cell, and the
    same forces when those of the images are added to their atoms.
    """
    student, atoms = random_student("ultra_tiny"), structures["water_box"]
    layers, n = PRESETS["ultra_tiny"].layers, len(atoms)
    images = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    shifts = images[np.any(images != 0, axis=1)] @ atoms.cell.array
    ghosts = (atoms.positions + shifts[:, None]).reshape(-1, 3)
    owner = np.tile(np.arange(n), len(shifts))
    gap = np.linalg.norm(ghosts[:, None] - atoms.positions, axis=2).min(1)
    ghosts, owner = ghosts[gap < layers * CUTOFF], owner[gap < layers * CUTOFF]
    nodes = Atoms(
        np.concatenate([atoms.numbers, atoms.numbers[owner]]),
        positions=np.concatenate([atoms.positions, ghosts]),
    )
    vectors, index = edges_of(nodes)
    energies, gradient = student(vectors, index, species_of(student, nodes), n)
    owners = torch.tensor(np.concatenate([np.arange(n), owner]))[index]
    forces = torch.zeros(n, 3).double()
    forces = forces.index_add(0, owners[0], gradient).index_add(0, owners[1], -gradient)
    expected = outcome(student, atoms)
    assert_same(energies.numpy(), expected.energies, "energies")
    assert_same(forces.numpy(), expected.forces, "forces")


def test_energy_of_the_local_atoms_does_not_depend_on_how_many_are_local(
    random_student: RandomStudent, structures: dict[str, Atoms]
):
    student, atoms = random_student("tiny"), structures["molecule32"]
    close = atoms.copy()
    close.positions *= 0.7  # so that the repulsion acts as well
    vectors, index = edges_of(close)
    species = species_of(student, close)
    expected, _ = student(vectors, index, species, len(close))
    for n_local in (0, 1, 20):
        part, _ = student(vectors, index, species, n_local)
        assert part.shape == (n_local,)
        torch.testing.assert_close(part, expected[:n_local], rtol=1e-13, atol=1e-12)


def test_float32_weights_give_float64_energies_within_rounding(
    random_student: RandomStudent, structures: dict[str, Atoms]
):
    for preset in PRESETS:
        single, double = random_student(preset, torch.float32), random_student(preset)
        rounded, exact = (outcome(s, structures["molecule32"]) for s in (single, double))
        assert rounded.energies.dtype == rounded.forces.dtype == np.float64
        # Relative errors of 1e-7 add up over about 20 neighbours and three layers.
        assert np.abs(rounded.energies - exact.energies).max() < 2e-5
        assert np.abs(rounded.forces - exact.forces).max() < 1e-4


# --- Short-range repulsion ----------------------------------------------------------------------


def zbl(z1: int, z2: int, r: np.ndarray) -> np.ndarray:
    """Return the universal potential of Ziegler, Biersack and Littmark (1985), eV."""
    length = 0.8854 * units.Bohr / (z1**0.23 + z2**0.23)
    x = r / length
    screening = (
        0.1818 * np.exp(-3.2 * x)
        + 0.5099 * np.exp(-0.9423 * x)
        + 0.2802 * np.exp(-0.4029 * x)
        + 0.02817 * np.exp(-0.2016 * x)
    )
    return z1 * z2 * units.Hartree * units.Bohr / r * screening


PAIRS = [("H", "H"), ("C", "H"), ("O", "C"), ("S", "S"), ("Br", "P")]


def repulsion_of(pair: tuple[str, str], r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    symbols = tuple(ELEMENTS)
    first, second = (torch.full((len(r),), symbols.index(symbol)) for symbol in pair)
    buffers = derived_buffers(StudentConfig(16, 1, 1, repulsion_reach=REACH))
    tables = {name.removeprefix("repulsion."): values for name, values in buffers.items()}
    names = ("charges", "lengths", "ranges", "weights", "rates")
    repulsion = ZBLRepulsion({name: tables[name] for name in names})
    value, slope = repulsion(torch.tensor(r), first, second)
    return value.numpy(), slope.numpy()


def range_of(pair: tuple[str, str]) -> float:
    return REACH * sum(ELEMENTS[symbol][1] for symbol in pair)


@pytest.mark.parametrize("pair", PAIRS)
def test_repulsion_is_zbl_times_the_envelope(pair: tuple[str, str]):
    r = np.linspace(0.05, 1.2, 40) * range_of(pair)
    x = np.minimum(r / range_of(pair), 1.0)
    fade = 1.0 - 28.0 * x**6 + 48.0 * x**7 - 21.0 * x**8
    z1, z2 = (ELEMENTS[symbol][0] for symbol in pair)
    # ase.units has CODATA 2014, the package 2018; they differ by 1e-8.
    expected = zbl(z1, z2, r) * fade
    assert repulsion_of(pair, r)[0] == pytest.approx(expected, rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("pair", PAIRS)
def test_repulsion_becomes_coulombs_law_at_small_distance(pair: tuple[str, str]):
    z1, z2 = (ELEMENTS[symbol][0] for symbol in pair)
    r = np.array([1e-5])
    # e^2 / (4 pi eps_0) = 14.39964 eV angstrom; the screening weights add up to 1.00007.
    assert repulsion_of(pair, r)[0] * r == pytest.approx(14.39964 * z1 * z2, rel=1e-3)


@pytest.mark.parametrize("pair", PAIRS)
def test_repulsion_repels_and_ends_smoothly(pair: tuple[str, str]):
    end = range_of(pair)
    inside = np.linspace(0.02, 0.99, 300) * end
    value, slope = repulsion_of(pair, inside)
    assert (value > 0).all()
    assert (slope < 0).all()
    value, slope = repulsion_of(pair, np.array([1.0, 1.0 + 1e-12, 2.0, 10.0]) * end)
    assert (value == 0).all()
    assert (slope == 0).all()
    # Just below the end, value and slope are proportional to the third and second power of the gap.
    gap = np.array([1e-2, 1e-3, 1e-4])
    value, slope = repulsion_of(pair, (1.0 - gap) * end)
    assert value[:-1] / value[1:] == pytest.approx([1e3, 1e3], rel=0.1)
    assert slope[:-1] / slope[1:] == pytest.approx([1e2, 1e2], rel=0.1)


@pytest.mark.parametrize("pair", PAIRS)
def test_slope_of_the_repulsion_equals_finite_differences(pair: tuple[str, str]):
    r, step = np.linspace(0.2, 0.99, 30) * range_of(pair), 1e-5
    slope = (repulsion_of(pair, r + step)[0] - repulsion_of(pair, r - step)[0]) / (2 * step)
    # The error is of second order in a step that is 1e4 times shorter than the screening length.
    assert repulsion_of(pair, r)[1] == pytest.approx(slope, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    "smiles", ["[H][H]", "N#N", "F", "Cl", "FF", "C#C", "C#N", "O=C=O", "C=O", "O=P(O)(O)O", "BrBr"]
)
def test_repulsion_of_molecules_at_rest_is_negligible(smiles: str):
    """The repulsion ends below single and double bonds, and 2 % above triple bonds of carbon."""
    atoms, bonds = embed(smiles)
    for i, j in bonds:
        distance = np.array([atoms.get_distance(i, j)])
        value, _ = repulsion_of((atoms.symbols[i], atoms.symbols[j]), distance)
        assert value[0] < (2e-3 if "#" in smiles else 1e-12)  # eV


def test_collapsing_molecule_is_pushed_apart(random_student: RandomStudent):
    """At a fifth of the bond length the repulsion dominates for students with any weights."""
    for preset in PRESETS:
        water = molecule("H2O")
        water.positions *= 0.2
        virial = outcome(random_student(preset), water).virial
        assert np.trace(virial) > 100.0  # eV; a positive trace is an outward pressure


def test_envelope_and_its_derivative():
    x = torch.linspace(0.0, 1.3, 200, dtype=torch.float64, requires_grad=True)
    value, slope = envelope(x)
    (expected,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-12)
    assert value[0].item() == 1.0
    assert (value[x >= 1.0] == 0.0).all()
    assert (slope <= 0.0).all()


# --- Elements -----------------------------------------------------------------------------------


def test_element_table_equals_ases():
    for symbol, (number, radius) in ELEMENTS.items():
        assert number == atomic_numbers[symbol]
        assert radius == covalent_radii[number], symbol
