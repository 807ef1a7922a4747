"""The native kernels: the portable student's numbers, whatever the threads; refused input."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from ase import Atoms

from mlff_student.archive import backends
from mlff_student.archive.archive import Archive, load_archive, make_archive, pack_archive
from mlff_student.archive.backends import evaluator, unavailable
from mlff_student.archive.core import CoreStudent, core_library
from mlff_student.archive.registry import archive_of, available_models, load_student
from mlff_student.archive.scripting import ArchiveModule
from mlff_student.core.errors import ArchiveError, InputError, MissingDependencyError
from mlff_student.core.installation import build_command
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.model.neighbours import neighbour_edges
from mlff_student.model.repulsion import envelope
from mlff_student.model.student import PRESETS, Student, StudentConfig, squeeze_distances

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

HERE = Path(__file__).parent
CUTOFF = 5.0
RandomStudent = Callable[..., Student]
STUDENTS = [("random", preset) for preset in PRESETS]
STUDENTS += [("shipped", name) for name in available_models()]


class Outcome(NamedTuple):
    """What a student says of a structure."""

    energies: np.ndarray  # (N,), eV
    forces: np.ndarray  # (N, 3), eV/angstrom
    virial: np.ndarray  # (3, 3), eV


def arguments(atoms: Atoms) -> tuple[np.ndarray, ...]:
    return atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc


def outcome(student: CoreStudent | ArchiveModule, atoms: Atoms) -> Outcome:
    if isinstance(student, CoreStudent):
        return Outcome(*student.evaluate(*arguments(atoms))[:3])
    tensors = (torch.tensor(array) for array in arguments(atoms))
    return Outcome(*(part.numpy() for part in student.evaluate(*tensors)))


def edges_of(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    positions, _, cell, pbc = (torch.tensor(array) for array in arguments(atoms))
    return tuple(part.numpy() for part in neighbour_edges(positions, cell, pbc, CUTOFF))


def from_edges(portable: ArchiveModule, *given: np.ndarray | int) -> list[np.ndarray]:
    """The portable student's energies and gradient."""
    tensors = (torch.tensor(part) for part in given[:-1])
    return [part.numpy() for part in portable.from_edges(*tensors, given[-1])]


def archive_of_student(student: Student, config: StudentConfig) -> Archive:
    weights = {name: value.numpy() for name, value in student.state_dict().items()}
    return make_archive(config, weights, "random", {}, "float32")


def native_student(student: Student, config: StudentConfig) -> CoreStudent:
    return CoreStudent("random", archive_of_student(student, config).content)


@pytest.fixture
def pair(random_student: RandomStudent) -> Callable[[str, str], tuple[CoreStudent, ArchiveModule]]:
    """Factory `(origin, model)` of the native student and the portable one in float64, which has
    the portable one in float32 as its attribute `single`.
    """

    def make(origin: str, model: str) -> tuple[CoreStudent, ArchiveModule]:
        if origin == "random":
            single, double = random_student(model, torch.float32), random_student(model)
        else:
            path = available_models()[model]
            single, double = (
                load_student(path / "model.pt", dtype)[0]
                for dtype in (torch.float32, torch.float64)
            )
        portable = ArchiveModule(double, PRESETS[model], model, "none")
        portable.single = ArchiveModule(single, PRESETS[model], model, "none")
        return native_student(single, PRESETS[model]), portable

    return make


@cache
def _lattice(count: int, density: float) -> Atoms:
    """Atoms of four elements near the points of a cubic lattice, atoms/angstrom^3, periodic."""
    rng = np.random.default_rng(3)
    edge = round(count ** (1 / 3))
    spacing = density ** (-1 / 3)
    points = np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), -1).reshape(-1, 3)
    atoms = Atoms(
        rng.choice([1, 6, 7, 8], len(points)),
        positions=spacing * points + rng.normal(0.0, 0.1 * spacing, points.shape),
        cell=[edge * spacing] * 3,
        pbc=True,
    )
    return atoms


SYSTEMS = [
    "water",
    "ethanol",
    "molecule32",
    "water_box",
    "triclinic",
    "slab",
    "wire",
    "own_neighbour",
    "compressed",
    "collapsed",
    "one_atom",
    "two_atoms",
    "no_neighbours",
    "lattice343",
]
FAR_FROM_DATA = ["compressed", "collapsed", "one_atom", "no_neighbours", "lattice343"]


def system(name: str, structures: dict[str, Atoms]) -> Atoms:
    if name == "slab":
        atoms = structures["ethanol"]
        atoms.set_cell([[6.0, 0.0, 0.0], [1.5, 5.5, 0.0], [0.0, 0.0, 0.0]])
        atoms.pbc = (True, True, False)
        return atoms
    if name == "wire":  # periodic along a direction that no axis has
        atoms = structures["ethanol"]
        atoms.set_cell([[0.0, 0.0, 0.0], [1.0, 6.0, -2.0], [0.0, 0.0, 0.0]])
        atoms.pbc = (False, True, False)
        return atoms
    if name == "own_neighbour":
        atoms = structures["water"]
        atoms.set_cell([[3.2, 0.0, 0.0], [0.7, 3.4, 0.0], [-0.5, 0.4, 3.6]])
        atoms.positions += atoms.cell.array[0] * np.array([[0], [3], [-2]])  # not wrapped
        atoms.pbc = True
        return atoms
    if name == "compressed":  # so that the repulsion acts as well
        atoms = structures["ethanol"]
        atoms.positions *= 0.75
        return atoms
    if name == "collapsed":  # as a minimiser's first trial step may leave it
        atoms = structures["ethanol"]
        atoms.positions *= 0.5
        return atoms
    if name == "one_atom":
        return Atoms("O", positions=[[1.0, 2.0, 3.0]])
    if name == "two_atoms":
        return Atoms("CO", positions=[[0.0, 0.0, 0.0], [0.3, 0.2, 1.1]])
    if name == "no_neighbours":
        return Atoms("OCH", positions=[[0.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, -8.0, 4.0]])
    if name == "lattice343":
        return _lattice(343, 0.08).copy()
    return structures[name]


# --- The same numbers as the portable student ----------------------------------------------------


def assert_same(found: Outcome, expected: Outcome, atoms: int, margin: float = 1.0) -> None:
    """Rounding of float32: 2e-7 of what is added up, whatever cancels in the sum."""
    __tracebackhide__ = True
    assert all(part.dtype == np.float64 for part in found)
    largest = float(abs(expected.forces).max())
    error = found.forces - expected.forces
    assert abs(error).max() < 2e-5 * margin * max(1.0, largest / 10.0)
    norm = np.linalg.norm(expected.forces)
    assert np.linalg.norm(error) <= 1e-5 * margin * max(norm, 1e-2)
    energy = abs(float(found.energies.sum() - expected.energies.sum()))
    assert energy < 1e-6 * margin * atoms * max(1.0, largest / 10.0)
    # A virial adds up forces times distances.
    virial = float(abs(found.virial - expected.virial).max())
    assert virial < 1e-5 * margin * max(1.0, largest) * atoms


def margin_far_from_data(portable: ArchiveModule, atoms: Atoms) -> float:
    """Twice what float32 costs the portable student: large features cancel there."""
    single, double = outcome(portable.single, atoms), outcome(portable, atoms)
    force = float(abs(single.forces - double.forces).max()) / 2e-5
    energy = float(abs(single.energies - double.energies).max()) / 1e-6
    return max(1.0, 2.0 * force, 2.0 * energy)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize(("origin", "model"), STUDENTS)
def test_evaluate_equals_the_portable_student(
    origin: str, model: str, name: str, pair: Callable, structures: dict[str, Atoms]
):
    native, portable = pair(origin, model)
    atoms = system(name, structures)
    margin = margin_far_from_data(portable, atoms) if name in FAR_FROM_DATA else 1.0
    assert_same(outcome(native, atoms), outcome(portable, atoms), len(atoms), margin)


@pytest.mark.parametrize("name", ["molecule32", "triclinic", "own_neighbour", "one_atom"])
@pytest.mark.parametrize("model", PRESETS)
def test_from_edges_equals_the_portable_student_in_any_order_of_edges(
    model: str, name: str, pair: Callable, structures: dict[str, Atoms]
):
    native, portable = pair("random", model)
    atoms = system(name, structures)
    vectors, index = edges_of(atoms)
    order = np.random.default_rng(0).permutation(index.shape[1])
    vectors, index = vectors[order], index[:, order]
    for n_local in {len(atoms), len(atoms) // 2, 0}:
        energies, gradient = native.evaluate_edges(vectors, index, atoms.numbers, n_local)
        exact = from_edges(portable, vectors, index, atoms.numbers, n_local)
        assert energies.shape == (n_local,)
        np.testing.assert_allclose(energies, exact[0], rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(gradient, exact[1], rtol=1e-5, atol=2e-5)


def test_edges_of_a_few_receivers_alone(pair: Callable, structures: dict[str, Atoms]):
    """As an engine's ghosts: they send and receive nothing."""
    native, portable = pair("random", "tiny")
    atoms = structures["molecule32"]
    vectors, index = edges_of(atoms)
    local = index[0] < 5
    given = (vectors[local], index[:, local], atoms.numbers, 5)
    for found, expected in zip(
        native.evaluate_edges(*given), from_edges(portable, *given), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("model", PRESETS)
def test_two_thousand_atoms(model: str, pair: Callable):
    native, portable = pair("shipped", model)
    atoms = _lattice(2197, 0.05).copy()
    found = outcome(native, atoms)
    # In float64 the portable student needs minutes for this; in pieces it is as good.
    part = Atoms(atoms.numbers[:50], positions=atoms.positions[:50])
    margin = margin_far_from_data(portable, part)
    assert_same(outcome(native, part), outcome(portable, part), 50, margin)
    # Newton's third law, and the same crystal in another place.
    largest = max(1.0, float(abs(found.forces).max()))
    assert abs(found.forces.sum(0)).max() < 1e-12 * largest * len(atoms)
    atoms.positions += [1.0, -2.0, 3.0]
    again = outcome(native, atoms)
    error = np.linalg.norm(again.forces - found.forces) / np.linalg.norm(found.forces)
    assert error < 1e-5  # rounding: this is no molecule, and large features cancel


@pytest.mark.parametrize("channels", [16, 32, 48, 64, 80])
def test_any_multiple_of_sixteen_channels(channels: int, structures: dict[str, Atoms]):
    config = StudentConfig(channels=channels, layers=3, radial_functions=8)
    double = Student(config, torch.float64)
    generator = torch.Generator().manual_seed(channels)
    with torch.no_grad():
        for weight in double.parameters():
            scale = 0.5 * weight.shape[-1] ** -0.5
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    single = Student(config)
    single.load_state_dict(double.state_dict())
    atoms = structures["triclinic"]
    found = outcome(native_student(single, config), atoms)
    expected = outcome(ArchiveModule(double.requires_grad_(False), config, "", ""), atoms)
    assert_same(found, expected, len(atoms))


@pytest.mark.parametrize("name", ["generic", "avx2", "avx512"])
@pytest.mark.parametrize("model", PRESETS)
def test_every_instruction_set(model: str, name: str, pair: Callable, structures: dict[str, Atoms]):
    native, portable = pair("random", model)
    library = core_library()
    if library.mlff_student_use_instruction_set(name.encode()):
        pytest.skip(library.mlff_student_error().decode())
    try:
        assert library.mlff_student_instruction_set().decode() == name
        atoms = structures["triclinic"]
        assert_same(outcome(native, atoms), outcome(portable, atoms), len(atoms))
    finally:
        library.mlff_student_use_instruction_set(b"")


# --- Derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["molecule32", "triclinic", "compressed"])
@pytest.mark.parametrize("model", PRESETS)
def test_forces_equal_finite_differences_of_the_native_energy(
    model: str, name: str, pair: Callable, structures: dict[str, Atoms]
):
    native, _ = pair("random" if name in FAR_FROM_DATA else "shipped", model)
    atoms = system(name, structures)
    forces = outcome(native, atoms).forces

    def energy(atom: int, axis: int, step: float) -> float:
        moved = atoms.copy()
        moved.positions[atom, axis] += step
        return float(outcome(native, moved).energies.sum())

    # A float32 network's energy is rounded by some 1e-6 eV; the five-point stencil multiplies that
    # by 1.5 / step. Its own error grows as step^4 and is below that; the repulsion is steeper.
    step = 2e-3 if name == "compressed" else 1e-2
    for atom, axis in [(0, 0), (1, 1), (len(atoms) - 1, 2)]:
        near = energy(atom, axis, step) - energy(atom, axis, -step)
        far = energy(atom, axis, 2 * step) - energy(atom, axis, -2 * step)
        found = -(8.0 * near - far) / (12.0 * step)
        assert found == pytest.approx(float(forces[atom, axis]), abs=1e-5 / step)


def exact_filter(student: Student, layer: int, distances: np.ndarray) -> tuple[np.ndarray, ...]:
    """W and dW/dr of a float64 student at distances (D,), (D, 3F) each."""
    r, squeezing = squeeze_distances(torch.tensor(distances)[:, None], student.limits[0])
    radial, radial_derivative = student.basis(r)
    fade, fade_derivative = envelope(r / student.cutoff)
    linear = student.blocks[layer].filter
    bare = linear(radial)
    slope = radial_derivative @ linear.weight.T
    derivative = (slope * fade + bare * fade_derivative / student.cutoff) * squeezing
    return (bare * fade).numpy(), derivative.numpy()


@pytest.fixture(scope="module")
def filters(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The library of filters.cpp."""
    if not shutil.which("c++"):
        pytest.skip("no C++ compiler")
    csrc = HERE.parents[1] / "plugin" / "csrc"
    library = tmp_path_factory.mktemp("filters") / "filters.so"
    sources = [HERE / "filters.cpp", csrc / "radial_table.cpp"]
    command = ["c++", "-std=c++17", "-O2", "-shared", "-fPIC", f"-I{csrc}", *sources, "-o", library]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def tabulated_filter(
    filters: ctypes.CDLL, student: Student, layer: int, distances: np.ndarray, knots: int
) -> tuple[np.ndarray, ...]:
    """W and dW/dr as the kernels compute them, (D, 3F) each."""
    linear, channels = student.blocks[layer].filter, student.embedding.weight.shape[1]
    weight, bias = (part.numpy().astype(np.float64) for part in (linear.weight, linear.bias))
    values = [np.empty((len(distances), len(bias)), np.float32) for _ in range(2)]
    count = filters.tabulated_filter(
        *(array.ctypes.data_as(ctypes.c_void_p) for array in (weight, bias)),
        *(channels, len(bias) // channels, weight.shape[1]),
        *(ctypes.c_double(student.cutoff), ctypes.c_double(float(student.limits[0]))),
        *(ctypes.c_int64(knots), ctypes.c_int64(len(distances))),
        *(array.ctypes.data_as(ctypes.c_void_p) for array in (distances, *values)),
    )
    assert count == len(distances)
    return tuple(values)


def knots_of(student: CoreStudent) -> int:
    return core_library().mlff_student_describe(student._handle).knots


@pytest.mark.parametrize("model", PRESETS)
def test_error_of_the_tabulated_filters(
    model: str, random_student: RandomStudent, filters: ctypes.CDLL
):
    """It falls as the fifth power of the spacing down to the rounding of float32.

    The knots lie at both ends of the squeezed distances, whose third derivative jumps there.
    """
    single, double = random_student(model, torch.float32), random_student(model)
    chosen = knots_of(native_student(single, PRESETS[model]))

    def error(knots: int, shortest: float, longest: float) -> tuple[float, ...]:
        distances = np.linspace(shortest, longest, 1500)
        found = tabulated_filter(filters, single, 1, distances, knots)
        exact = exact_filter(double, 1, distances)
        norm = np.linalg.norm
        return tuple(float(norm(a - b) / norm(b)) for a, b in zip(found, exact, strict=True))

    coarse, fine = error(24, 1.0, CUTOFF), error(48, 1.0, CUTOFF)
    assert fine[0] < coarse[0] / 20.0
    assert fine[1] < coarse[1] / 12.0
    shipped = error(chosen, 0.88, CUTOFF)  # weights and values are float32: 6e-8
    assert shipped[0] < 2e-7
    assert shipped[1] < 1.5e-6
    squeezed = error(chosen, 0.4, 0.88)
    assert squeezed[0] < 6e-7
    assert squeezed[1] < 1.5e-5


def test_filters_end_at_the_cutoff(random_student: RandomStudent, filters: ctypes.CDLL):
    student, distances = random_student("tiny", torch.float32), np.array([CUTOFF, 5.5, 100.0])
    value, slope = tabulated_filter(filters, student, 1, distances, 126)
    assert (value == 0.0).all()
    assert (slope == 0.0).all()


# --- Reproducible, reentrant ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["molecule32", "lattice343"])
@pytest.mark.parametrize("model", PRESETS)
def test_same_bits_on_any_number_of_threads(
    model: str, name: str, pair: Callable, structures: dict[str, Atoms]
):
    native, _ = pair("random", model)
    atoms = system(name, structures)
    alone = outcome(native, atoms)
    for native.threads in (2, 3):
        for found, expected in zip(outcome(native, atoms), alone, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_history_does_not_matter(pair: Callable, structures: dict[str, Atoms]):
    """Neighbours are searched with a skin; the numbers are those of a first call."""
    native, _ = pair("shipped", "tiny")
    rng = np.random.default_rng(0)
    atoms = structures["triclinic"]
    for step in range(30):
        atoms.positions += rng.normal(0.0, 0.03, atoms.positions.shape)
        if step == 20:
            atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)
        fresh, _ = pair("shipped", "tiny")
        for found, expected in zip(outcome(native, atoms), outcome(fresh, atoms), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_models_in_turn_and_threads_at_once(pair: Callable, structures: dict[str, Atoms]):
    students = {model: pair("random", model)[0] for model in PRESETS}
    names = ["ethanol", "molecule32", "water_box", "triclinic"]
    jobs = [(model, name) for name in names for model in PRESETS] * 20
    alone = {job: outcome(pair("random", job[0])[0], structures[job[1]]) for job in set(jobs)}
    given = {name: arguments(structures[name]) for name in names}

    def run(job: tuple[str, str]) -> bool:
        found = students[job[0]].evaluate(*given[job[1]])[:3]
        return all(np.array_equal(a, b) for a, b in zip(found, alone[job], strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, jobs))


def test_an_exported_archive_gives_its_weights(tiny_archive: Path, structures: dict[str, Atoms]):
    archive = load_archive(tiny_archive)
    atoms, native = structures["molecule32"], CoreStudent("tiny", archive.content)
    assert_same(outcome(native, atoms), outcome(archive.module, atoms), len(atoms))


# --- Layers --------------------------------------------------------------------------------------


def test_calculator_gives_the_same_by_either_backend(structures: dict[str, Atoms]):
    found = {}
    for backend in ("auto", "native", "portable"):
        atoms = structures["triclinic"].copy()
        atoms.calc = StudentForceFieldCalculator("tiny", backend=backend)
        found[backend] = atoms.get_forces(), atoms.get_potential_energies(), atoms.get_stress()
    for auto, chosen, portable in zip(*found.values(), strict=True):
        np.testing.assert_array_equal(auto, chosen)
        np.testing.assert_allclose(chosen, portable, rtol=1e-5, atol=2e-5)
        assert (chosen != portable).any()  # else the same kernels ran


def test_auto_says_once_what_it_took(
    tiny_archive: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    archive = load_archive(tiny_archive)
    backends._log_choice.cache_clear()
    with caplog.at_level("INFO"):
        assert [evaluator(archive).backend for _ in range(2)] == ["native", "native"]
        assert [record.levelname for record in caplog.records] == ["INFO"]
        assert "backend native" in caplog.text
        monkeypatch.setattr(backends, "unavailable", lambda: "it rains")
        assert [evaluator(archive).backend for _ in range(2)] == ["portable", "portable"]
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert "it rains" in caplog.text


def test_backends_that_cannot_be_had(tiny_archive: Path):
    archive = load_archive(tiny_archive)
    with pytest.raises(InputError, match="no backend 'fast'; expected auto, native, portable"):
        evaluator(archive, "fast")
    for threads in (0, 1025, 1.5, "2", True):
        with pytest.raises(InputError, match=f"threads must be a whole .* got {threads!r}"):
            evaluator(archive, "native", threads=threads)
    if torch.cuda.is_available():
        with pytest.raises(MissingDependencyError, match="on the CPU, not on cuda"):
            evaluator(archive, "native", "cuda")
    double = archive_of("ultra_tiny", "float64")
    with pytest.raises(MissingDependencyError, match="in float32, the archive in float64"):
        evaluator(double, "native")
    assert evaluator(double).backend == "portable"
    wrong = archive.metadata["self_check"] | {"energy": 0.0}
    damaged = pack_archive(archive.metadata | {"self_check": wrong}, archive.tensors)
    with pytest.raises(ArchiveError, match="self-check"):
        evaluator(damaged, "native")


# --- Errors --------------------------------------------------------------------------------------


def test_bad_input_is_refused(pair: Callable, structures: dict[str, Atoms]):
    native, _ = pair("random", "ultra_tiny")
    positions, numbers, cell, pbc = arguments(structures["water"])
    for bad in (np.nan, np.inf):
        broken = positions.copy()
        broken[1, 2] = bad
        with pytest.raises(InputError, match="position of atom 1 is NaN or infinite"):
            native.evaluate(broken, numbers, cell, pbc)
    for far in (1e6, -1e30):
        broken = positions.copy()
        broken[2] = far
        with pytest.raises(InputError, match="atom 2 is more than 100000 angstrom from the origin"):
            native.evaluate(broken, numbers, cell, pbc)
    with pytest.raises(InputError, match=r"number 79 \(Au\) is unknown .* 1 \(H\), 6 \(C\)"):
        native.evaluate(positions, [8, 79, 1], cell, pbc)
    with pytest.raises(InputError, match=r"atomic number -1 \(no element\)"):
        native.evaluate(positions, [8, -1, 1], cell, pbc)
    with pytest.raises(InputError, match="3 positions, but 2 atomic numbers"):
        native.evaluate(positions, numbers[:2], cell, pbc)
    with pytest.raises(InputError, match="do two atoms coincide"):
        native.evaluate(positions[[0, 0, 1]], numbers, cell, pbc)
    with pytest.raises(InputError, match=r"has the volume 0\.0"):
        native.evaluate(positions, numbers, cell, [True, True, True])

    vectors, index = edges_of(structures["water"])
    with pytest.raises(InputError, match="edge vector 0 is NaN or infinite"):
        native.evaluate_edges(vectors * np.nan, index, numbers, 3)
    with pytest.raises(InputError, match="names atom 3 of 3"):
        native.evaluate_edges(vectors, index + 1, numbers, 3)
    with pytest.raises(InputError, match="4"):
        native.evaluate_edges(vectors, index, numbers, 4)
    # And the next call is none the worse for it.
    assert np.isfinite(native.evaluate(positions, numbers, cell, pbc).forces).all()


@pytest.mark.parametrize(
    "cell",
    [[1e6, 1e6, 1e6], [1e6, 1e6, 12.0], [2000.0, 2000.0, 12.0], [20_000.0, 200.0, 12.0]],
    ids=str,
)
def test_a_molecule_in_a_huge_cell(cell: list[float], pair: Callable, structures: dict):
    """It is alone there. The grid of vesin would have no cell in the thin direction."""
    native, _ = pair("random", "tiny")
    atoms = structures["water"]
    expected = outcome(native, atoms)
    atoms.set_cell(cell)
    atoms.pbc = True
    for part, same in zip(outcome(native, atoms), expected, strict=True):
        np.testing.assert_allclose(part, same, rtol=1e-6, atol=1e-6)


def test_a_cell_with_too_many_images_is_refused(pair: Callable, structures: dict[str, Atoms]):
    native, _ = pair("random", "tiny")
    atoms = structures["water"]
    atoms.set_cell([[5.0, 0.0, 0.0], [1e5, 5.0, 0.0], [0.0, 0.0, 5.0]])
    atoms.pbc = True
    with pytest.raises(InputError, match="thin or skewed"):
        outcome(native, atoms)


def test_no_atoms(pair: Callable):
    native, _ = pair("random", "ultra_tiny")
    found = outcome(native, Atoms())
    assert found.energies.shape == (0,)
    assert found.forces.shape == (0, 3)
    assert (found.virial == 0.0).all()


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MLFF_STUDENT_NATIVE", str(tmp_path / "none.so"))
    unavailable.cache_clear()
    try:
        assert "none.so, which is no file; correct or unset it" in str(unavailable())
        monkeypatch.setenv("MLFF_STUDENT_NATIVE", "off")
        unavailable.cache_clear()
        assert unavailable() == "MLFF_STUDENT_NATIVE is set to off"
        monkeypatch.delenv("MLFF_STUDENT_NATIVE")
        monkeypatch.setattr(backends, "library_path", lambda: tmp_path / "none.so")
        unavailable.cache_clear()
        assert "none.so does not exist); to build them: " in str(unavailable())
        assert str(unavailable()).endswith(build_command())
    finally:
        monkeypatch.undo()
        unavailable.cache_clear()
