"""The native kernels: the portable student's numbers, whatever the threads; refused input."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from mlff_student.archive import native
from mlff_student.archive.archive import ArchiveModule, load_archive
from mlff_student.archive.native import native_student, unavailable, with_backend
from mlff_student.archive.registry import archive_of, available_models, load_student
from mlff_student.core.errors import ArchiveError, InputError, MissingDependencyError
from mlff_student.core.installation import build_command
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.model.neighbours import neighbour_edges
from mlff_student.model.repulsion import envelope
from mlff_student.model.student import PRESETS, Student, StudentConfig, squeeze_distances

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

CUTOFF = 5.0
RandomStudent = Callable[..., Student]
STUDENTS = [("random", preset) for preset in PRESETS]
STUDENTS += [("shipped", name) for name in available_models()]


class Outcome(NamedTuple):
    """What a student says of a structure."""

    energies: Tensor  # (N,), eV
    forces: Tensor  # (N, 3), eV/angstrom
    virial: Tensor  # (3, 3), eV


def arguments(atoms: Atoms) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.tensor(atoms.positions),
        torch.tensor(atoms.numbers),
        torch.tensor(atoms.cell.array),
        torch.tensor(atoms.pbc),
    )


def outcome(student: Any, atoms: Atoms) -> Outcome:
    return Outcome(*student.evaluate(*arguments(atoms)))


def edges_of(atoms: Atoms) -> tuple[Tensor, Tensor]:
    positions, _, cell, pbc = arguments(atoms)
    return neighbour_edges(positions, cell, pbc, CUTOFF)


@pytest.fixture
def pair(random_student: RandomStudent) -> Callable[[str, str], tuple[Any, ArchiveModule]]:
    """Factory `(origin, model)` of the native student and the portable one in float64, which has
    the portable one in float32 as its attribute `single`.
    """

    def make(origin: str, model: str) -> tuple[Any, ArchiveModule]:
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
        return native_student(single), portable

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
    assert all(part.dtype == torch.float64 for part in found)
    largest = float(expected.forces.abs().max())
    error = found.forces - expected.forces
    assert error.abs().max() < 2e-5 * margin * max(1.0, largest / 10.0)
    assert error.norm() <= 1e-5 * margin * max(expected.forces.norm(), 1e-2)
    energy = abs(float(found.energies.sum() - expected.energies.sum()))
    assert energy < 1e-6 * margin * atoms * max(1.0, largest / 10.0)
    # A virial adds up forces times distances.
    virial = float((found.virial - expected.virial).abs().max())
    assert virial < 1e-5 * margin * max(1.0, largest) * atoms


def margin_far_from_data(portable: ArchiveModule, atoms: Atoms) -> float:
    """16 times what float32 costs the portable student: large features cancel there.

    The portable student has several partial sums of each product, and the kernels have one.
    """
    single, double = outcome(portable.single, atoms), outcome(portable, atoms)
    force = float((single.forces - double.forces).abs().max()) / 2e-5
    energy = float((single.energies - double.energies).abs().max()) / 1e-6
    return max(1.0, 16.0 * force, 16.0 * energy)


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
    order = torch.randperm(index.shape[1], generator=torch.Generator().manual_seed(0))
    vectors, index = vectors[order], index[:, order]
    numbers = torch.tensor(atoms.numbers)
    for n_local in {len(atoms), len(atoms) // 2, 0}:
        energies, gradient = native.from_edges(vectors, index, numbers, n_local)
        exact = portable.from_edges(vectors, index, numbers, n_local)
        assert energies.shape == (n_local,)
        torch.testing.assert_close(energies, exact[0], rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(gradient, exact[1], rtol=1e-5, atol=2e-5)


def test_edges_of_a_few_receivers_alone(pair: Callable, structures: dict[str, Atoms]):
    """As an engine's ghosts: they send and receive nothing."""
    native, portable = pair("random", "tiny")
    atoms = structures["molecule32"]
    vectors, index = edges_of(atoms)
    local = index[0] < 5
    given = (vectors[local], index[:, local], torch.tensor(atoms.numbers), 5)
    for found, expected in zip(native.from_edges(*given), portable.from_edges(*given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


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
    largest = max(1.0, float(found.forces.abs().max()))
    assert found.forces.sum(0).abs().max() < 1e-12 * largest * len(atoms)
    atoms.positions += [1.0, -2.0, 3.0]
    again = outcome(native, atoms)
    error = (again.forces - found.forces).norm() / found.forces.norm()
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
    found = outcome(native_student(single), atoms)
    expected = outcome(ArchiveModule(double.requires_grad_(False), config, "", ""), atoms)
    assert_same(found, expected, len(atoms))


@pytest.mark.parametrize("name", ["generic", "avx2", "avx512"])
@pytest.mark.parametrize("model", PRESETS)
def test_every_instruction_set(model: str, name: str, pair: Callable, structures: dict[str, Atoms]):
    native, portable = pair("random", model)
    best = torch.ops.mlff_student.instruction_set()
    try:
        torch.ops.mlff_student.use_instruction_set(name)
    except Exception as refusal:
        pytest.skip(str(refusal).splitlines()[0])
    try:
        assert torch.ops.mlff_student.instruction_set() == name
        atoms = structures["triclinic"]
        margin = 2.0 if name == "generic" else 1.0  # it rounds products before it adds them
        assert_same(outcome(native, atoms), outcome(portable, atoms), len(atoms), margin)
    finally:
        torch.ops.mlff_student.use_instruction_set(best)


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


def exact_filter(student: Student, layer: int, distances: Tensor) -> tuple[Tensor, Tensor]:
    """W and dW/dr of a float64 student at distances (D,), (D, 3F) each."""
    r, squeezing = squeeze_distances(distances[:, None], student.limits[0])
    radial, radial_derivative = student.basis(r)
    fade, fade_derivative = envelope(r / student.cutoff)
    linear = student.blocks[layer].filter
    bare = linear(radial)
    slope = radial_derivative @ linear.weight.T
    return bare * fade, (slope * fade + bare * fade_derivative / student.cutoff) * squeezing


@pytest.mark.parametrize("model", PRESETS)
def test_error_of_the_tabulated_filters(model: str, random_student: RandomStudent):
    """It falls as the fifth power of the spacing down to the rounding of float32.

    The knots lie at both ends of the squeezed distances, whose third derivative jumps there.
    """
    single, double = random_student(model, torch.float32), random_student(model)

    def error(knots: int, shortest: float, longest: float) -> tuple[float, float]:
        distances = torch.linspace(shortest, longest, 1500, dtype=torch.float64)
        found = native_student(single, knots).filters(1, distances)
        exact = exact_filter(double, 1, distances)
        return tuple(float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))

    coarse, fine = error(24, 1.0, CUTOFF), error(48, 1.0, CUTOFF)
    assert fine[0] < coarse[0] / 20.0
    assert fine[1] < coarse[1] / 12.0
    chosen = error(0, 0.88, CUTOFF)  # weights and values are float32: 6e-8
    assert chosen[0] < 2e-7
    assert chosen[1] < 1.5e-6
    squeezed = error(0, 0.4, 0.88)
    assert squeezed[0] < 6e-7
    assert squeezed[1] < 1.5e-5


def test_filters_end_at_the_cutoff(random_student: RandomStudent):
    native = native_student(random_student("tiny", torch.float32))
    value, slope = native.filters(1, torch.tensor([CUTOFF, 5.5, 100.0]))
    assert (value == 0.0).all()
    assert (slope == 0.0).all()


# --- Reproducible, reentrant ---------------------------------------------------------------------


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["molecule32", "lattice343"])
@pytest.mark.parametrize("model", PRESETS)
def test_same_bits_on_any_number_of_threads(
    model: str, name: str, threads: Callable, pair: Callable, structures: dict[str, Atoms]
):
    native, _ = pair("random", model)
    atoms = system(name, structures)
    threads(1)
    one = outcome(native, atoms)
    for count in (2, 3):
        threads(count)
        for found, expected in zip(outcome(native, atoms), one, strict=True):
            assert torch.equal(found, expected)


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
            assert torch.equal(found, expected)


def test_models_in_turn_and_threads_at_once(pair: Callable, structures: dict[str, Atoms]):
    students = {model: pair("random", model)[0] for model in PRESETS}
    names = ["ethanol", "molecule32", "water_box", "triclinic"]
    jobs = [(model, name) for name in names for model in PRESETS] * 20
    alone = {job: outcome(pair("random", job[0])[0], structures[job[1]]) for job in set(jobs)}
    given = {name: arguments(structures[name]) for name in names}

    def run(job: tuple[str, str]) -> bool:
        found = students[job[0]].evaluate(*given[job[1]])
        return all(torch.equal(a, b) for a, b in zip(found, alone[job], strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, jobs))


class Holder(torch.nn.Module):
    """What an engine that takes TorchScript is given."""

    def __init__(self, native: Any) -> None:
        super().__init__()
        self.native = native

    def forward(
        self, positions: Tensor, numbers: Tensor, cell: Tensor, pbc: Tensor
    ) -> tuple[Tensor, Tensor]:
        energies, forces, _ = self.native.evaluate(positions, numbers, cell, pbc)
        return energies.sum(), forces


def test_survives_torchscript(pair: Callable, structures: dict[str, Atoms], tmp_path: Path):
    native, _ = pair("random", "ultra_tiny")
    atoms = structures["ethanol"]
    torch.jit.script(Holder(native)).save(str(tmp_path / "native.pt"))
    energy, forces = torch.jit.load(str(tmp_path / "native.pt"))(*arguments(atoms))
    expected = outcome(native, atoms)
    assert torch.equal(energy, expected.energies.sum())
    assert torch.equal(forces, expected.forces)


def test_an_exported_archive_gives_its_weights(tiny_archive: Path, structures: dict[str, Atoms]):
    module = load_archive(tiny_archive).module
    atoms = structures["molecule32"]
    assert_same(outcome(native_student(module), atoms), outcome(module, atoms), len(atoms))


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
    native._log_choice.cache_clear()
    with caplog.at_level("INFO"):
        assert with_backend(with_backend(archive)._replace(module=archive.module)) != archive
        assert [record.levelname for record in caplog.records] == ["INFO"]
        assert "backend native" in caplog.text
        monkeypatch.setattr(native, "unavailable", lambda: "it rains")
        assert with_backend(archive) is with_backend(archive) is archive
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert "it rains" in caplog.text


def test_backends_that_cannot_be_had(tiny_archive: Path, monkeypatch: pytest.MonkeyPatch):
    archive = load_archive(tiny_archive)
    with pytest.raises(InputError, match="no backend 'fast'; expected auto, native, portable"):
        with_backend(archive, "fast")
    with pytest.raises(MissingDependencyError, match="on the CPU, not on cuda"):
        with_backend(archive, "native", "cuda")
    double = archive_of("ultra_tiny", torch.float64)
    with pytest.raises(MissingDependencyError, match="in float32, the archive in float64"):
        with_backend(double, "native")
    assert with_backend(double) is double
    wrong = archive.metadata["self_check"] | {"energy": 0.0}
    with pytest.raises(ArchiveError, match="the native backend fails its self-check"):
        with_backend(archive._replace(metadata=archive.metadata | {"self_check": wrong}))


# --- Errors --------------------------------------------------------------------------------------


def test_bad_input_is_refused(pair: Callable, structures: dict[str, Atoms]):
    native, _ = pair("random", "ultra_tiny")
    positions, numbers, cell, pbc = arguments(structures["water"])
    for bad in (float("nan"), float("inf")):
        broken = positions.clone()
        broken[1, 2] = bad
        with pytest.raises(ValueError, match="position of atom 1 is NaN or infinite"):
            native.evaluate(broken, numbers, cell, pbc)
    for far in (1e6, -1e30):
        with pytest.raises(Exception, match="atom 2 is more than 100000 angstrom from the origin"):
            native.evaluate(
                positions.index_put((torch.tensor(2),), torch.tensor(far).double()),
                numbers,
                cell,
                pbc,
            )
    with pytest.raises(Exception, match=r"number 79 \(Au\) is unknown .* 1 \(H\), 6 \(C\)"):
        native.evaluate(positions, torch.tensor([8, 79, 1]), cell, pbc)
    with pytest.raises(Exception, match=r"atomic number -1 \(no element\)"):
        native.evaluate(positions, torch.tensor([8, -1, 1]), cell, pbc)
    with pytest.raises(ValueError, match="3 positions, but 2 atomic numbers"):
        native.evaluate(positions, numbers[:2], cell, pbc)
    with pytest.raises(ValueError, match="do two atoms coincide"):
        native.evaluate(positions[[0, 0, 1]], numbers, cell, pbc)
    with pytest.raises(Exception, match=r"has the volume 0\.0"):
        native.evaluate(positions, numbers, cell, torch.tensor([True, True, True]))

    vectors, index = edges_of(structures["water"])
    with pytest.raises(Exception, match="edge vector 0 is NaN or infinite"):
        native.from_edges(vectors * float("nan"), index, numbers, 3)
    with pytest.raises(ValueError, match="names atom 3 of 3"):
        native.from_edges(vectors, index + 1, numbers, 3)
    with pytest.raises(ValueError, match="n_local is 4, expected 0 to 3"):
        native.from_edges(vectors, index, numbers, 4)
    # And the next call is none the worse for it.
    assert torch.isfinite(native.evaluate(positions, numbers, cell, pbc)[1]).all()


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
        torch.testing.assert_close(part, same, rtol=1e-6, atol=1e-6)


def test_a_cell_with_too_many_images_is_refused(pair: Callable, structures: dict[str, Atoms]):
    native, _ = pair("random", "tiny")
    atoms = structures["water"]
    atoms.set_cell([[5.0, 0.0, 0.0], [1e5, 5.0, 0.0], [0.0, 0.0, 5.0]])
    atoms.pbc = True
    with pytest.raises(ValueError, match="thin or skewed"):
        outcome(native, atoms)


def test_no_atoms(pair: Callable):
    native, _ = pair("random", "ultra_tiny")
    found = outcome(native, Atoms())
    assert found.energies.shape == (0,)
    assert found.forces.shape == (0, 3)
    assert (found.virial == 0.0).all()


def test_float64_weights_are_refused(random_student: RandomStudent):
    with pytest.raises(MissingDependencyError, match=r"float32, the weights are torch\.float64"):
        native_student(random_student("tiny"))


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MLFF_STUDENT_NATIVE", str(tmp_path / "none.so"))
    unavailable.cache_clear()
    try:
        assert "none.so, which is no file; correct or unset it" in str(unavailable())
        monkeypatch.setenv("MLFF_STUDENT_NATIVE", "off")
        unavailable.cache_clear()
        assert unavailable() == "MLFF_STUDENT_NATIVE is set to off"
        monkeypatch.delenv("MLFF_STUDENT_NATIVE")
        unavailable.cache_clear()
        monkeypatch.setattr(native, "build_record", lambda: {"torch": "2.4"})
        release = ".".join(torch.__version__.split(".")[:2])
        assert f"was built for torch 2.4, found torch {release}; to build" in str(unavailable())
        monkeypatch.setattr(native, "library_path", lambda: tmp_path / "none.so")
        unavailable.cache_clear()
        assert "none.so does not exist); to build them: " in str(unavailable())
        assert str(unavailable()).endswith(build_command())
    finally:
        monkeypatch.undo()
        unavailable.cache_clear()
