"""The ASE calculator: results, refused structures, stored state, and work with ASE."""

import copy
import json
import pickle
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from torch import Tensor, nn

from mlff_student import StudentForceFieldCalculator
from mlff_student.archive.archive import load_archive
from mlff_student.archive.backends import evaluator, unavailable
from mlff_student.archive.graph import edge_search, evaluate_graph, within_memory
from mlff_student.archive.registry import checkpoint_path, read_card
from mlff_student.archive.scripting import script
from mlff_student.core.errors import ArchiveError, InputError, MissingDependencyError

SYSTEMS = ["water", "ethanol", "molecule32", "water_box", "triclinic"]
BACKENDS = [
    pytest.param(
        "native", marks=pytest.mark.skipif(bool(unavailable()), reason=f"{unavailable()}")
    ),
    "portable",
]
# Float32 arithmetic in another order; forces of a few eV/angstrom.
ENERGY, FORCE = 2e-5, 3e-5


@pytest.fixture(scope="module")
def tiny() -> StudentForceFieldCalculator:
    """The shipped student on the backend that "auto" chooses."""
    return StudentForceFieldCalculator("tiny", enable_timing=True)


@pytest.fixture(scope="module")
def neutral(tiny_archive) -> StudentForceFieldCalculator:
    """A student of random weights that was trained on neutral molecules only."""
    return StudentForceFieldCalculator(tiny_archive)


@pytest.fixture
def charged(tiny_checkpoint, tmp_path) -> Path:
    """Checkpoint of the same student, whose card says that it was trained on ions too."""
    path = Path(shutil.copy(tiny_checkpoint, tmp_path / "model.pt"))
    card = read_card(tiny_checkpoint)
    card["domain"]["charged"] = True
    path.with_name("card.json").write_text(json.dumps(card))
    return path


@pytest.fixture(scope="module", params=BACKENDS)
def calculator(request) -> StudentForceFieldCalculator:
    """The shipped student on both backends."""
    return StudentForceFieldCalculator("tiny", backend=request.param)


@pytest.fixture(scope="module")
def exact() -> StudentForceFieldCalculator:
    """The shipped student in float64, for derivatives by finite differences."""
    return StudentForceFieldCalculator("tiny", dtype="float64")


def slab() -> Atoms:
    """Ethanol, periodic in two directions, in a cell with three vectors."""
    atoms = molecule("CH3CH2OH", cell=[6.0, 7.0, 11.0], pbc=(True, True, False))
    atoms.rattle(0.03, seed=2)
    return atoms


# --- Basic ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SYSTEMS)
def test_results_are_those_of_the_archive(name, calculator, structures):
    atoms = structures[name]
    atoms.calc = calculator
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    portable = evaluator(calculator.archive, "portable")
    expected = portable.evaluate(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc)
    assert energy == pytest.approx(expected.energies.sum(), abs=ENERGY)
    assert forces == pytest.approx(expected.forces, abs=FORCE)
    assert forces.shape == (len(atoms), 3) and forces.dtype == np.float64
    assert atoms.get_potential_energies().sum() == pytest.approx(energy, abs=1e-9)
    assert atoms.get_potential_energy(force_consistent=True) == energy
    # No external field: float32 gradients of edges cancel to rounding.
    assert forces.sum(0) == pytest.approx(np.zeros(3), abs=FORCE)


def test_energies_of_atoms_are_local(tiny, structures):
    """A molecule beyond the cutoff does not change the energies of atoms."""
    water, ethanol = structures["water"], structures["ethanol"]
    both = water + ethanol
    both.positions[len(water) :] += 30.0
    shares = [tiny.get_property("energies", atoms) for atoms in (water, ethanol, both)]
    assert shares[2] == pytest.approx(np.concatenate(shares[:2]), abs=ENERGY)


def test_checkpoint_by_name_and_by_path(tiny, structures, tmp_path):
    path = shutil.copy(checkpoint_path("tiny"), tmp_path / "model.pt")
    shutil.copy(checkpoint_path("tiny").with_name("card.json"), tmp_path)
    expected = tiny.get_property("energy", structures["ethanol"])
    places = (path, str(path), tmp_path, "tiny")  # file, its name, its folder, a shipped one
    for options in [{"checkpoint_path": place} for place in places] + [{"model": tmp_path}]:
        other = StudentForceFieldCalculator(**options)
        assert other.get_property("energy", structures["ethanol"]) == expected
    path.unlink()
    with pytest.raises(ArchiveError, match=r"contains no checkpoint: there is no .*model\.pt"):
        StudentForceFieldCalculator(tmp_path)


def test_options_of_ase(structures):
    """Options of ASE's calculators are accepted, and none changes the loaded network."""
    atoms = structures["water"]
    calculator = StudentForceFieldCalculator("tiny", atoms=atoms, label="mine", directory="there")
    assert atoms.calc is calculator
    assert (calculator.directory, calculator.prefix) == ("there", "mine")
    before = calculator.todict()
    assert calculator.set(**before) == {}
    for change in ({"model": "ultra_tiny"}, {"dtype": "float64"}, {"skin": 2.0}):
        with pytest.raises(InputError, match=f"{next(iter(change))} cannot be set afterwards"):
            calculator.set(**change)
    assert calculator.todict() == before
    assert calculator.archive.metadata["name"] == "tiny"


def test_precision_of_an_exported_archive(tiny_archive, tiny_archive64):
    """An archive is used in its own precision; another one is an error."""
    for path, own, other in (
        (tiny_archive, "float32", "float64"),
        (tiny_archive64, "float64", "float32"),
    ):
        for dtype in (None, own, getattr(torch, own)):
            calculator = StudentForceFieldCalculator(path, dtype=dtype)
            assert calculator.todict()["dtype"] == own
            assert calculator.archive.metadata["dtype"] == own
        with pytest.raises(InputError, match=f"exported in {own}.*again with --dtype {other}"):
            StudentForceFieldCalculator(path, dtype=other)
    with pytest.raises(MissingDependencyError, match="the archive in float64"):
        StudentForceFieldCalculator(tiny_archive64, backend="native")


def test_float64(exact, tiny, structures):
    assert exact.backend == "portable"  # the native kernels compute in float32
    energies = [each.get_property("energy", structures["ethanol"]) for each in (exact, tiny)]
    assert energies[0] != energies[1]
    assert energies[0] == pytest.approx(energies[1], abs=ENERGY)


def test_repr_and_name(tiny, structures, tmp_path):
    card = read_card(checkpoint_path("tiny"))
    of_card = card["teacher"], card["domain"]["elements"][-1]
    for part in ("'tiny'", "76,097 parameters", *of_card, "cpu", "float32", tiny.backend):
        assert part in repr(tiny)
    assert tiny.todict() == {
        "model": "tiny",
        "device": "cpu",
        "dtype": "float32",
        "backend": "auto",
    }


# --- Validation -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "huge"}, ArchiveError, "no model 'huge'; shipped are original, "),
        ({"checkpoint_path": "nowhere/model.pt"}, ArchiveError, "nowhere/model.pt"),
        ({"model": "tiny", "checkpoint_path": "tiny"}, InputError, "give model='tiny' or"),
        ({"model": "tiny", "device": "abacus"}, InputError, "'abacus'"),
        ({"model": "tiny", "dtype": "float16"}, InputError, "float32 or float64, got 'float16'"),
        ({"model": "tiny", "backend": "fast"}, InputError, "no backend 'fast'; expected auto"),
        ({"model": "tiny", "batch_memory_mb": 0.0}, InputError, "positive, got 0.0"),
        ({"chekpoint_path": "my.pt"}, InputError, "'chekpoint_path'; did you mean 'checkpoint_p"),
        ({"model": "tiny", "kwargs": {}}, InputError, "unknown key 'kwargs'"),
        (
            {"model": "tiny", "dtype": torch.float64, "backend": "native"},
            MissingDependencyError,
            "float32, the archive in float64",
        ),
    ],
)
def test_options_refused(options, error, message):
    with pytest.raises(error, match=message):
        StudentForceFieldCalculator(**options)


def test_charge_and_multiplicity_of_a_calculator(tiny_archive, charged):
    for options, message in (
        ({"charge": 1}, "charge 1, multiplicity 1: .* neutral"),
        ({"multiplicity": 3}, "charge 0, multiplicity 3: .* neutral"),
    ):
        with pytest.raises(InputError, match=message):
            StudentForceFieldCalculator(tiny_archive, **options)
    with pytest.raises(InputError, match=r"charge 0, multiplicity 3: .* closed-shell"):
        StudentForceFieldCalculator(charged, multiplicity=3)
    methyl = Atoms("CH3", molecule("CH3").positions)
    with pytest.raises(InputError, match="State the total charge"):
        StudentForceFieldCalculator(charged).get_property("energy", methyl)
    for charge in (0.5, np.nan, np.inf):
        with pytest.raises(InputError, match="whole number"):
            StudentForceFieldCalculator(charged, charge=charge)
    cation = StudentForceFieldCalculator(charged, charge=1)
    energy = cation.get_property("energy", methyl)
    assert cation.calculate_batch([methyl])[0]["energy"] == pytest.approx(energy, abs=ENERGY)
    methyl.info["charge"] = 1
    assert StudentForceFieldCalculator(charged).get_property("energy", methyl) == energy


def test_a_charge_that_makes_a_radical_is_noticed(charged):
    atoms = molecule("H2O")
    atoms.calc = StudentForceFieldCalculator(charged)
    energy = atoms.get_potential_energy()
    atoms.info["charge"] = 1
    with pytest.raises(InputError, match=r"charge \+1 has 9 electrons"):
        atoms.get_potential_energy()
    atoms.info["charge"] = 2
    assert atoms.get_potential_energy() == energy


def nan_position() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.positions[2, 1] = np.nan
    return atoms


def far_atom() -> Atoms:
    atoms = molecule("H2O")
    atoms.positions[1, 0] = 1e7
    return atoms


def in_nanometres() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.positions /= 10.0
    return atoms


def glycine_zwitterion() -> Atoms:
    """Formal charges as RDKit and ASE read them from a file, which sum to zero."""
    charges = np.zeros(10)
    charges[[0, 4]] = 1.0, -1.0
    positions = [[1.4 * k, 0.0, 0.0] for k in range(10)]
    return Atoms("NCCOOH5", positions, charges=charges)


BAD = {
    "unknown element": (lambda: Atoms("NaCl", [[0, 0, 0], [0, 0, 2.4]]), "does not know Na; it kn"),
    "NaN position": (nan_position, r"atom 2 \(O\) has the position .*nan"),
    "atom out of this world": (far_atom, r"atom 1 \(H\) has the position .*1\.0+e\+07"),
    "coincident atoms": (lambda: Atoms("H2", np.zeros((2, 3))), "0.000 angstrom apart"),
    "nanometres": (in_nanometres, "Are the positions in angstrom?"),
    "empty": (Atoms, "no atoms"),
    "missing hydrogens": (lambda: molecule("CH3CH2OH")[[0, 1, 2]], "lacks hydrogens"),
    "no cell": (lambda: Atoms("OH2", molecule("H2O").positions, pbc=True), "no volume"),
    "NaN cell": (lambda: molecule("H2O", cell=[np.nan, 9.0, 9.0], pbc=True), "is not finite"),
    "NaN cell, open": (lambda: molecule("H2O", cell=[np.nan, 9.0, 9.0]), "is not finite"),
    "waters without hydrogens": (
        lambda: Atoms("OOO", [[0.0, 0.0, 0.0], [2.8, 0.0, 0.0], [0.0, 2.8, 0.0]]),
        r"atom 0 \(O\) lacks hydrogens",
    ),
    "cation": (lambda: molecule("H2O", info={"charge": 1}), "charge 1, multiplicity 1"),
    "triplet": (lambda: molecule("CH2_s3B1d", info={"spin": 3}), "charge 0, multiplicity 3"),
    "initial charges": (lambda: molecule("H2O", charges=[-1.0, 0.0, 0.0]), "charge -1"),
    "radical": (lambda: Atoms("CH3", molecule("CH3").positions), "has 9 electrons"),
    "zwitterion": (glycine_zwitterion, r"atom 0 \(N\) has the formal charge \+1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_structure(case, neutral, structures):
    """A bad structure is refused each time, and leaves no results of an earlier structure."""
    make, message = BAD[case]
    neutral.get_property("energy", structures["ethanol"])
    atoms = make()
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            neutral.get_property("forces", atoms)
        assert neutral.results == {}
    assert np.isfinite(neutral.get_property("energy", structures["ethanol"]))


@pytest.mark.parametrize("case", BAD)
def test_bad_structure_in_a_batch(case, neutral, structures):
    make, message = BAD[case]
    with pytest.raises(InputError, match=f"structure 2: .*{message}"):
        neutral.calculate_batch([structures["water"], structures["water_box"], make()])


def test_no_structure_in_a_batch(tiny):
    with pytest.raises(InputError, match=r"structure 1 is str, expected an ase\.Atoms"):
        tiny.calculate_batch([molecule("H2O"), "H2O"])


@pytest.mark.parametrize("charge", [1, -1.0, "2", np.float64(1.0)])
def test_a_charge_that_is_given_after_the_first_call(charge, neutral):
    """ASE looks for changes of positions, elements, cell and initial charges, not of `info`."""
    atoms = molecule("H2O", info={"charge": 0, "spin": 1})
    atoms.calc = neutral
    energy = atoms.get_potential_energy()
    atoms.info["charge"] = charge
    for _ in range(2):
        with pytest.raises(InputError, match="neutral closed-shell molecules only"):
            atoms.get_potential_energy()
    del atoms.info["charge"]
    assert atoms.get_potential_energy() == energy
    atoms.set_initial_charges([1.0, 0.0, 0.0])
    with pytest.raises(InputError, match="charge 1"):
        atoms.get_forces()
    atoms.set_initial_charges([-0.8, 0.4, 0.4])  # partial charges of a neutral molecule
    assert atoms.get_potential_energy() == energy


def test_positions_that_go_bad_during_a_run(calculator):
    """Positions are checked even if elements and cell are unchanged."""
    atoms = molecule("H2O")
    atoms.calc = calculator
    atoms.get_forces()
    atoms.positions[1] = np.nan
    with pytest.raises(InputError, match=r"atom 1 \(H\)"):
        atoms.get_forces()
    atoms.positions[:] = molecule("H2O").positions
    atoms.positions[1] = atoms.positions[0]
    for _ in range(2):
        with pytest.raises(InputError, match=r"coincide|apart"):
            atoms.get_forces()


def test_another_structure_of_the_same_atoms(calculator):
    """A structure that is not a step of the run before is checked for distances, also of images."""
    atoms = molecule("H2O", cell=[8.0, 8.0, 8.0], pbc=True)
    atoms.calc = calculator
    atoms.get_forces()
    for place in (atoms.positions[0] + [0.0, 0.0, 0.1], atoms.positions[2] + [8.0, 0.2, -8.0]):
        other = atoms.copy()
        other.positions[1] = place
        with pytest.raises(InputError, match="apart"):
            calculator.get_property("forces", other)
        atoms.get_forces()


def test_bonds_may_stretch_during_a_run(calculator, structures):
    """A bond stretched until hydrogens seem to be missing is refused only at the start of a run."""
    atoms = molecule("CH3OH", cell=[8.0, 8.0, 8.0], pbc=True)
    atoms.calc = calculator
    atoms.get_forces()
    atoms.positions[2] += [0.0, 1.2, 0.0]
    with pytest.raises(InputError, match="lacks hydrogens"):
        calculator.get_property("forces", atoms.copy() + Atoms("HH", [[4, 4, 4], [4, 4, 4.7]]))
    atoms.calc.get_property("energy", structures["water"])
    atoms.positions[2] -= [0.0, 1.2, 0.0]
    atoms.get_forces()
    atoms.positions[2] += [0.0, 1.2, 0.0]
    atoms.set_cell([8.1, 8.0, 8.0])
    assert np.isfinite(atoms.get_stress()).all()
    atoms.set_cell([8.1, 8.0, 0.0])
    with pytest.raises(InputError, match="no volume"):
        atoms.get_forces()


# --- Derivatives, periodic boundaries, stress -----------------------------------------------------


@pytest.mark.parametrize("name", ["ethanol", "water_box"])
def test_forces_are_the_gradient(name, exact, structures):
    atoms = structures[name]
    atoms.calc = exact
    moved = [0, 1, 2]
    numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=moved)
    # Central differences: h^2 times third derivatives of about 100 eV/angstrom^3.
    assert atoms.get_forces()[moved] == pytest.approx(numerical, abs=1e-5)


@pytest.mark.parametrize("name", ["water_box", "triclinic"])
def test_stress_is_the_strain_derivative(name, exact, structures):
    atoms = structures[name]
    atoms.calc = exact
    numerical = calculate_numerical_stress(atoms, eps=1e-5)
    assert atoms.get_stress() == pytest.approx(numerical, abs=1e-7)


def test_stress_of_a_slab(exact):
    """The stress of a slab is that in the periodic plane, divided by the volume of its cell."""
    atoms = slab()
    atoms.calc = exact
    numerical = calculate_numerical_stress(atoms, eps=1e-5)
    assert atoms.get_stress() == pytest.approx(numerical, abs=1e-7)


@pytest.mark.parametrize("name", ["water_box", "triclinic"])
def test_stresses_of_atoms_add_up(name, calculator, structures):
    atoms = structures[name]
    atoms.calc = calculator
    shares = atoms.get_stresses()
    assert shares.shape == (len(atoms), 6)
    assert shares.sum(0) == pytest.approx(atoms.get_stress(), abs=1e-7)
    # The molecules differ, so the stresses of atoms are not all the mean.
    assert np.ptp(shares[:, 0]) > 1e-4


def test_no_stress_without_a_cell(tiny, structures):
    for name in ("stress", "stresses"):
        with pytest.raises(PropertyNotImplementedError):
            tiny.get_property(name, structures["water"])


def test_stress_turned_off(structures):
    silent = StudentForceFieldCalculator("tiny", enable_stress=False)
    with pytest.raises(PropertyNotImplementedError):
        silent.get_property("stress", structures["water_box"])
    silent.get_property("energy", structures["water_box"])
    assert set(silent.results) == {"energy", "free_energy", "energies", "forces"}


def test_lattice_translation(calculator, structures):
    """Wrapping atoms into the cell, and shifting all of them, does not change the forces."""
    atoms = structures["triclinic"]
    expected = calculator.get_property("forces", atoms)
    moved = atoms.copy()
    moved.positions[::3] += moved.cell.array[0] - 2 * moved.cell.array[2]
    moved.positions += [0.3, -5.0, 2.0]
    assert calculator.get_property("forces", moved) == pytest.approx(expected, abs=FORCE)


# --- State ----------------------------------------------------------------------------------------


def test_caching(tiny, structures):
    """One calculation gives all results of a structure; any change needs another one."""
    atoms = structures["water_box"]
    atoms.calc = tiny
    tiny.reset_timing()
    count = lambda: tiny.get_timing_stats()["count"]  # noqa: E731
    atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(), atoms.get_forces()
    assert count() == 1
    atoms.positions[0, 0] += 0.01
    atoms.get_forces()
    assert count() == 2
    atoms.set_cell(atoms.cell.array * 1.01)
    atoms.get_forces()
    assert count() == 3
    atoms.pbc = False
    atoms.get_forces()
    assert count() == 4
    tiny.reset()
    atoms.get_forces()
    assert count() == 5


def test_results_belong_to_the_caller(tiny, structures):
    atoms = structures["ethanol"]
    atoms.calc = tiny
    forces = atoms.get_forces()
    kept = forces.copy()
    atoms.positions += 0.05 * np.sin(np.arange(27).reshape(9, 3))
    atoms.get_forces()
    assert (forces == kept).all()


def test_timing(tiny, structures):
    tiny.reset_timing()
    assert tiny.get_timing_stats() == {"count": 0}
    for name in SYSTEMS:
        tiny.get_property("energy", structures[name])
    stats = tiny.get_timing_stats()
    assert stats["count"] == len(SYSTEMS)
    assert 0 < stats["min_ms"] <= stats["median_ms"] <= stats["max_ms"]
    assert stats["min_ms"] <= stats["mean_ms"] <= stats["max_ms"]
    assert stats["min_ms"] <= stats["last_ms"] <= stats["max_ms"]
    untimed = StudentForceFieldCalculator("tiny")
    untimed.get_property("energy", structures["water"])
    assert untimed.get_timing_stats() == {"count": 0}


def test_neighbours_kept_between_calls(calculator, structures):
    """Forces are right after small steps, moves beyond the skin, other cells and structures."""
    rng = np.random.default_rng(4)
    fresh = StudentForceFieldCalculator("tiny", backend=calculator.backend)
    atoms = structures["triclinic"]
    centres = atoms.positions.copy()
    for step in range(30):
        if step % 10 == 9:
            centres += rng.uniform(-3.0, 3.0, 3)
            centres[:3] += [0.4, 0.4, 0.0]  # a molecule
        if step % 7 == 6:
            atoms.set_cell(atoms.cell.array * 1.01)
        if step % 6 == 5:
            calculator.get_property("energy", structures["ethanol"])
        atoms.positions = centres + 0.02 * rng.standard_normal(centres.shape)
        fresh._start()
        assert calculator.get_property("forces", atoms) == pytest.approx(
            fresh.get_property("forces", atoms), abs=FORCE
        )


@pytest.mark.skipif(bool(unavailable()), reason=f"{unavailable()}")
def test_no_search_within_the_skin():
    """A list with a skin is used again, which takes a tenth of the time of a search."""
    water = molecule("H2O", cell=[3.1, 3.1, 3.1], pbc=True).repeat(5)

    def seconds(skin: float) -> float:
        search, moved = edge_search(5.0, skin), water.copy()
        search.compute(moved.positions, moved.cell.array, moved.pbc)
        start = time.process_time()
        for _ in range(10):
            moved.positions += 0.01
            search.compute(moved.positions, moved.cell.array, moved.pbc)
        return time.process_time() - start

    assert seconds(1.0) < 0.5 * seconds(0.0)


def test_pickle(calculator, structures):
    atoms = structures["triclinic"]
    expected = calculator.get_property("forces", atoms).copy()
    for other in (pickle.loads(pickle.dumps(calculator)), copy.deepcopy(calculator)):
        assert repr(other) == repr(calculator)
        other.reset()
        assert other.get_property("forces", atoms) == pytest.approx(expected, abs=FORCE)
    atoms.calc = calculator
    again = pickle.loads(pickle.dumps(atoms))
    assert again.get_potential_energy() == atoms.get_potential_energy()


def test_pickle_needs_no_file(structures, tmp_path):
    path = shutil.copy(checkpoint_path("tiny"), tmp_path / "model.pt")
    calculator = StudentForceFieldCalculator(path)
    expected = calculator.get_property("energy", structures["ethanol"])
    content = pickle.dumps(calculator)
    path.unlink()
    other = pickle.loads(content)
    other.reset()
    assert other.get_property("energy", structures["ethanol"]) == expected


def test_elements_for_mlipaudit(tiny):
    assert tiny.allowed_atomic_numbers == {1, 6, 7, 8, 9, 15, 16, 17, 35}


@pytest.fixture
def frequent_switches():
    """Python changes between threads a thousand times as often."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("frequent_switches")
def test_modules_are_compiled_in_several_threads():
    """torch.jit.script alone raises "Can't redefine method" here, in five of six runs."""
    start = Barrier(8)

    def compiled(kind: type[nn.Module]) -> Tensor:
        module = kind()
        start.wait()
        return script(module)(torch.zeros(3))

    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):

            class Shift(nn.Module):
                def forward(self, x: Tensor) -> Tensor:
                    return x + 1.0

            class Twice(nn.Module):
                def __init__(self) -> None:
                    super().__init__()
                    self.layers = nn.ModuleList(Shift() for _ in range(4))

                def forward(self, x: Tensor) -> Tensor:
                    for layer in self.layers:
                        x = layer(x)
                    return x

            assert all((x == 4.0).all() for x in pool.map(compiled, [Twice] * 8))


# --- Batches --------------------------------------------------------------------------------------


def mixture(structures: dict[str, Atoms]) -> list[Atoms]:
    """Open and periodic structures of 1 to 96 atoms; several have the same size."""
    rng = np.random.default_rng(3)
    far = Atoms("HH", [[0.0, 0.0, 0.0], [0.0, 0.0, 40.0]])  # no edge at all
    large = structures["molecule32"] + structures["molecule32"] + structures["molecule32"]
    large.positions[32:64] += 9.0
    large.positions[64:] -= 9.0
    many = [structures["ethanol"], slab(), Atoms("N"), structures["water_box"], far, large]
    many += [structures["water"], structures["triclinic"], structures["ethanol"].copy()]
    many += [structures["molecule32"], structures["water"].copy()]
    for atoms in many[-3:]:
        atoms.positions += 0.02 * rng.standard_normal(atoms.positions.shape)
    return many


@pytest.mark.parametrize("memory_mb", [1e-3, 3.0, 1e4])  # each alone, a few together, all in one
def test_batch_equals_single_structures(memory_mb, calculator, structures):
    many = mixture(structures)
    before = [atoms.copy() for atoms in many]
    calculator.batch_memory_mb = memory_mb
    results = calculator.calculate_batch(iter(many))
    calculator.batch_memory_mb = None
    assert len(results) == len(many)
    for atoms, result in zip(many, results, strict=True):
        calculator.get_property("energy", atoms)
        expected = calculator.results
        assert result.keys() == expected.keys(), atoms
        assert result["energy"] == pytest.approx(expected["energy"], abs=ENERGY)
        assert result["energies"] == pytest.approx(expected["energies"], abs=ENERGY)
        assert result["forces"] == pytest.approx(expected["forces"], abs=FORCE)
        if atoms.pbc.any():
            assert result["stress"] == pytest.approx(expected["stress"], abs=1e-6)
    assert many == before


def test_empty_batch_and_single_atom(tiny):
    assert tiny.calculate_batch([]) == []
    (result,) = tiny.calculate_batch([Atoms("N")])
    assert result["energy"] == tiny.get_property("energy", Atoms("N"))
    assert (result["forces"] == 0.0).all()


def test_batches_keep_to_the_memory(structures):
    many = mixture(structures) * 7
    metadata = {"channels": 64, "layers": 2, "cutoff": 5.0}
    for by_edges in (False, True):
        slices = list(within_memory(many, metadata, 3e6, by_edges))
        covered = [k for part in slices for k in range(len(many))[part]]
        assert covered == list(range(len(many)))
        single = [len(list(within_memory(many[part], metadata, 3e6, by_edges))) for part in slices]
        assert set(single) == {1}
        assert 1 < len(slices) < len(many)


def test_batch_is_one_graph(tiny, monkeypatch):
    """200 molecules need one call of the network."""
    molecules = [molecule(name) for name in ("CH3CH2OH", "CH3OCH3", "C3H6_Cs", "CH3CONH2")] * 50
    sizes = []

    def counted(student, graph):
        sizes.append(graph.structures)
        return evaluate_graph(student, graph)

    monkeypatch.setattr("mlff_student.engines.ase.calculator.evaluate_graph", counted)
    tiny.batch_memory_mb = 200.0
    assert len(tiny.calculate_batch(molecules)) == 200
    tiny.batch_memory_mb = None
    assert sizes == [200]


def test_exported_archive(structures, tiny_archive: Path):
    """A file from `export.py` is a model like any other."""
    calculator = StudentForceFieldCalculator(tiny_archive)
    assert calculator.archive.metadata == load_archive(tiny_archive).metadata
    assert np.isfinite(calculator.get_property("energy", structures["ethanol"]))
