"""Frames as graphs and batches, references and losses, and errors against labels."""

import math
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from frames import atoms_of, periodic_water
from typer.testing import CliRunner
from vesin import NeighborList

import mlff_student.distill.quick as quickly
import mlff_student.distill.train as training
from mlff_student import cli
from mlff_student.analysis.forces import force_errors
from mlff_student.archive.registry import load_student
from mlff_student.core.errors import InputError
from mlff_student.distill.dataset import (
    LabelledFrames,
)
from mlff_student.distill.evaluate import (
    evaluate_student,
)
from mlff_student.distill.graphs import (
    Batch,
    Graphs,
    Shape,
    build_graphs,
    displaced_batch,
    draw_displacements,
    fit_references,
    join_batches,
    join_graphs,
    make_batch,
    predict,
    predict_frames,
)
from mlff_student.distill.muon import Muon, orthogonalized
from mlff_student.distill.recipe import ORGANIC_RECIPE, read_recipe
from mlff_student.distill.step import loss_of
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.model.elements import ELEMENTS
from mlff_student.model.student import PRESETS, Student

PRESET = "ultra_tiny"


# --- Graphs -------------------------------------------------------------------------------------


def frames_of(several: list[Atoms], **columns: torch.Tensor) -> LabelledFrames:
    """Unlabelled frames, each a structure of its own; `columns` replace some of them."""
    count, rows = len(several), sum(len(atoms) for atoms in several)
    frames = LabelledFrames(
        names=[str(k) for k in range(count)],
        identities=[str(k) for k in range(count)],
        kinds=["small"] * count,
        molecule=torch.arange(count),
        methods=["md"] * count,
        start=torch.tensor(np.cumsum([0, *map(len, several)])),
        atomic_numbers=torch.tensor(np.concatenate([atoms.numbers for atoms in several])).long(),
        positions=torch.tensor(np.concatenate([atoms.positions for atoms in several])).float(),
        forces=torch.zeros(rows, 3),
        energies=torch.zeros(count, dtype=torch.float64),
        temperatures=torch.full((count,), 300.0),
        cells=torch.tensor(np.array([atoms.cell.array for atoms in several])).float(),
        pbc=torch.tensor(np.array([atoms.pbc for atoms in several])),
        stresses=torch.full((count, 6), torch.nan),
    )
    return frames._replace(**columns)


@pytest.fixture
def mixed(structures: dict[str, Atoms]) -> list[Atoms]:
    """Open, periodic and partly periodic structures, and single atoms."""
    slab = structures["ethanol"].copy()
    slab.set_cell([6.0, 7.0, 0.0])
    slab.pbc = (True, True, False)
    chain = Atoms("C", cell=[2.0, 9.0, 9.0], pbc=[True, False, False])
    return [*structures.values(), slab, Atoms("O"), chain, periodic_water(), Atoms("Cl")]


def test_edges_are_those_of_vesin(mixed: list[Atoms], random_student: Callable[..., Student]):
    frames = frames_of(mixed)
    graphs = build_graphs(frames, random_student(PRESET))
    for k in range(len(mixed)):
        atoms = atoms_of(frames, k)
        finder = NeighborList(cutoff=PRESETS[PRESET].cutoff, full_list=True)
        i, j, vectors = finder.compute(atoms.positions, atoms.cell.array, atoms.pbc, "ijD")
        rows = slice(int(graphs.edge_start[k]), int(graphs.edge_start[k + 1]))
        found = np.column_stack([graphs.edge_index[:, rows].T, graphs.edge_vectors[rows]])
        expected = np.column_stack([i, j, vectors])
        assert len(found) == len(expected), k

        def in_order(edges: np.ndarray) -> np.ndarray:
            return edges[np.lexsort(edges.round(3).T)]

        # Vectors of up to 5 angstrom are kept in float32.
        np.testing.assert_allclose(in_order(found), in_order(expected), atol=1e-6)
        assert all(index < len(atoms) for index in found[:, :2].flatten())
    own = graphs.edge_index[0] == graphs.edge_index[1]
    assert own.any()


def test_predictions_are_those_of_the_calculator(mixed: list[Atoms], tiny_checkpoint: Path):
    frames = frames_of(mixed)
    student, _ = load_student(tiny_checkpoint, torch.float64)
    energies, forces, virials = predict_frames(student, frames, batch=4)
    calculator = StudentForceFieldCalculator(tiny_checkpoint, dtype=torch.float64)
    for k in range(len(mixed)):
        atoms = atoms_of(frames, k)
        archive_answer = calculator.archive.module(
            torch.tensor(atoms.positions),
            torch.tensor(atoms.numbers),
            torch.tensor(atoms.cell.array),
            torch.tensor(atoms.pbc),
        )
        rows = slice(int(frames.start[k]), int(frames.start[k + 1]))
        # Edge vectors are rounded to 2e-7 angstrom: times forces of a few eV/angstrom an edge, and
        # times curvatures of up to 100 eV/angstrom^2.
        assert abs(float(energies[k]) - float(archive_answer[0])) < 1e-6 * max(len(atoms), 10)
        torch.testing.assert_close(forces[rows], archive_answer[1], rtol=0, atol=3e-5)
        torch.testing.assert_close(virials[k], archive_answer[2], rtol=0, atol=3e-4)
        if k == 1:
            atoms.calc = calculator
            assert atoms.get_potential_energy() == float(archive_answer[0])


def test_references_and_repulsion_are_subtracted_from_labels(
    mixed: list[Atoms], random_student: Callable[..., Student]
):
    """The prediction of the network plus what was subtracted is the prediction of the student."""
    squeezed = [molecule("H2O"), molecule("CH4"), periodic_water()]
    for atoms in squeezed:
        atoms.set_cell(0.6 * atoms.cell.array, scale_atoms=False)
        atoms.positions *= 0.6
    frames = frames_of([*squeezed, *mixed])
    student = random_student(PRESET, torch.float32)
    graphs = build_graphs(frames, student)
    energies, forces, _ = predict(
        student.network, make_batch(graphs, list(range(len(frames.energies))))
    )
    taken = frames.energies - graphs.energies.double(), frames.forces - graphs.forces
    assert taken[1].abs().max() > 20.0
    whole = predict_frames(student, frames)
    # Labels without references are float32: 1e-7 of up to 1000 eV and of 100 eV/angstrom.
    torch.testing.assert_close(energies.double() + taken[0], whole[0], rtol=1e-6, atol=1e-4)
    torch.testing.assert_close((forces + taken[1]).double(), whole[1], rtol=1e-5, atol=1e-4)


def test_virial_is_minus_the_derivative_by_strain(tiny_checkpoint: Path):
    """The virial is -dE/dstrain by central differences, and so is the label without repulsion."""
    student, _ = load_student(tiny_checkpoint, torch.float64)
    several = [molecule("H2O"), periodic_water(), periodic_water()]
    several[2].set_cell(0.6 * several[2].cell.array, scale_atoms=True)  # within the repulsion
    calculator = StudentForceFieldCalculator(tiny_checkpoint, dtype=torch.float64)
    stresses = torch.full((3, 6), torch.nan)
    for k, atoms in enumerate(several[1:], 1):
        atoms.calc = calculator
        stresses[k] = torch.tensor(atoms.get_stress())
    graphs = build_graphs(frames_of(several, stresses=stresses), student)
    assert graphs.virials[0].isnan().all()
    batch = make_batch(graphs, [0, 1, 2])
    batch = batch._replace(vectors=batch.vectors.double())
    found = predict(student.network, batch).virials
    for a, b in np.ndindex(3, 3):
        strain = torch.zeros(3, 3).double()
        strain[a, b] = 1e-5
        more, less = (
            predict(student.network, batch._replace(vectors=batch.vectors + moved)).energies
            for moved in (batch.vectors @ strain, -batch.vectors @ strain)
        )
        slope = (more - less) / 2e-5
        torch.testing.assert_close(found[1:, b, a], -slope[1:], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(graphs.virials[1:].double(), found[1:], rtol=1e-4, atol=1e-4)


def same_batch(one: Batch, other: Batch) -> None:
    for name, mine, theirs in zip(Batch._fields, one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True, msg=name)


def test_batch_gives_the_same_as_its_frames_alone(
    mixed: list[Atoms], random_student: Callable[..., Student]
):
    """Frames may be in any order, and a frame may occur twice."""
    student = random_student(PRESET)
    graphs = build_graphs(frames_of(mixed), student)
    graphs = graphs._replace(edge_vectors=graphs.edge_vectors.double())
    alone = [predict(student.network, make_batch(graphs, [k])) for k in range(len(graphs.energies))]
    for chosen in ([0], [6], [7, 6], [3, 0, 9, 6, 1], [2, 2], list(range(len(alone)))):
        batch = make_batch(graphs, chosen)
        energies, forces, _ = predict(student.network, batch)
        # Matrix products of other shapes round differently: 1e-13 of 100 eV.
        torch.testing.assert_close(
            energies, torch.cat([alone[k][0] for k in chosen]), rtol=0, atol=1e-11
        )
        torch.testing.assert_close(
            forces, torch.cat([alone[k][1] for k in chosen]), rtol=0, atol=1e-11
        )
        same_batch(join_batches([make_batch(graphs, [k]) for k in chosen]), batch)


@pytest.mark.parametrize("chosen", [[3, 4], [0, 1], [5, 5], [2]])
def test_frames_of_one_kind_alone_give_the_same_graphs(
    chosen: list[int], mixed: list[Atoms], random_student: Callable[..., Student]
):
    """Only periodic frames, only open frames, only single atoms, or one frame."""
    student = random_student(PRESET)
    kinds = [*mixed[:5], Atoms("O")]
    whole = predict_frames(student, frames_of(kinds))
    start = frames_of(kinds).start
    energies, forces, _ = predict_frames(student, frames_of([kinds[k] for k in chosen]))
    torch.testing.assert_close(energies, whole[0][chosen], rtol=0, atol=1e-10)
    expected = torch.cat([whole[1][start[k] : start[k + 1]] for k in chosen])
    torch.testing.assert_close(forces, expected, rtol=0, atol=1e-10)


def test_no_frames_make_empty_graphs(random_student: Callable[..., Student]):
    frames = frames_of([molecule("H2O")])
    nothing = LabelledFrames(
        *(value[:1] if name == "start" else value[:0] for name, value in frames._asdict().items())
    )
    graphs = build_graphs(nothing, random_student(PRESET))
    assert graphs.edge_index.shape == (2, 0)
    assert len(graphs.energies) == 0


def test_unknown_elements_are_refused(random_student: Callable[..., Student]):
    with pytest.raises(InputError, match="atomic number 14, unknown"):
        build_graphs(frames_of([molecule("H2O"), molecule("SiH4")]), random_student(PRESET))


def displaced(graphs: Graphs, k: int, seed: list[int], cutoff: float) -> Batch:
    """One displaced frame."""
    return displaced_batch(graphs, draw_displacements(graphs, [k], [seed]), cutoff, padded=False)


def test_displaced_frames_have_the_documented_displacements(
    mixed: list[Atoms], random_student: Callable[..., Student]
):
    student = random_student(PRESET)
    frames = frames_of(mixed)
    graphs = build_graphs(frames, student)
    chosen = list(range(len(mixed)))
    drawn = draw_displacements(graphs, chosen, [[1, k] for k in chosen])
    is_open = [k for k in chosen if not mixed[k].pbc.any()]
    assert drawn.chosen.tolist() == is_open
    assert len(is_open) > 1
    for k in is_open:
        batch = displaced(graphs, k, [1, k], student.cutoff)
        assert torch.equal(batch.vectors, displaced(graphs, k, [1, k], student.cutoff).vectors)
        assert batch.displaced.all()
        assert batch.energies == graphs.energies[k]
        # Where each atom was and where its edges say that it is now, but for a shift of all.
        rows = slice(int(frames.start[k]), int(frames.start[k + 1]))
        before = frames.positions[rows].double()
        i, j = batch.edge_index
        moved = (batch.vectors - (before[j] - before[i])).norm(dim=1)
        reach = max(10.0, 0.5 * len(before) ** 0.5)
        assert (moved <= 2.0 * reach).all()
        assert not len(moved) or moved.max() > 0.1  # one atom has no edges
        other = displaced(graphs, k, [2, k], student.cutoff)
        assert len(before) == 1 or not torch.equal(batch.vectors[:1], other.vectors[:1])


def test_padding_changes_neither_loss_nor_gradient(
    mixed: list[Atoms], random_student: Callable[..., Student]
):
    """Batches of a fixed shape, as a GPU needs them, against batches without padding."""
    student = deepcopy(random_student(PRESET)).requires_grad_()
    student.limits[1] = -torch.inf
    rng = np.random.default_rng(3)
    frames = frames_of(mixed, stresses=torch.from_numpy(rng.normal(size=(len(mixed), 6))).float())
    frames = frames._replace(forces=torch.from_numpy(rng.normal(size=frames.forces.shape)).float())
    graphs = build_graphs(frames, student)
    graphs = graphs._replace(edge_vectors=graphs.edge_vectors.double())
    settings = replace(read_recipe(ORGANIC_RECIPE).training[PRESET], displaced_weight=0.5)
    chosen = list(range(len(mixed)))[::-1]
    total = Shape(len(chosen) + 2, len(frames.forces) + 5, len(graphs.edge_vectors) + 7, 9, 40)
    answers = []
    for shape in (None, total):
        drawn = draw_displacements(graphs, chosen[::2], [[k] for k in chosen[::2]], shape)
        filled = torch.tensor(chosen + [-1] * (2 if shape else 0))
        batch = join_batches(
            [
                make_batch(graphs, filled, shape) if shape else make_batch(graphs, chosen),
                displaced_batch(graphs, drawn, student.cutoff, padded=bool(shape)),
            ]
        )
        student.zero_grad()
        loss = loss_of(student.network, batch, settings, len(chosen), len(frames.forces), 1.0)
        loss.total.backward()
        gradient = [w.grad for w in student.parameters() if w.grad is not None]
        answers.append([loss.total, loss.squared, loss.components, *gradient])
    assert answers[0][2] == frames.forces.numel()
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-5, atol=1e-7)


def test_joined_graphs_give_the_batches_of_each(
    mixed: list[Atoms], random_student: Callable[..., Student]
):
    student = random_student(PRESET)
    first, second = frames_of(mixed[:3]), frames_of(mixed[3:])
    joined = join_graphs([build_graphs(first, student), build_graphs(second, student)])
    whole = build_graphs(frames_of(mixed), student)
    chosen = [4, 0, len(mixed) - 1, 2, 4]
    for mine, other in zip(make_batch(joined, chosen), make_batch(whole, chosen), strict=True):
        torch.testing.assert_close(mine, other, equal_nan=True)


def test_displaced_frame_adds_to_the_loss_only_if_its_energy_is_too_low(
    mixed: list[Atoms], random_student: Callable[..., Student]
):
    student = deepcopy(random_student(PRESET, torch.float32)).requires_grad_()
    student.limits[1] = -torch.inf
    graphs = build_graphs(frames_of(mixed), student)
    plain = make_batch(graphs, [0])
    thrown = displaced(graphs, 0, [1], student.cutoff)
    (energy,), *_ = predict(student.network, thrown)
    settings = replace(read_recipe(ORGANIC_RECIPE).training[PRESET], displaced_weight=0.5)

    def loss(bound: torch.Tensor) -> torch.Tensor:
        joined = join_batches([plain, thrown._replace(energies=bound[None])])
        return loss_of(student.network, joined, settings, 1, len(plain.species), 1.0).total

    alone = loss_of(student.network, plain, settings, 1, len(plain.species), 1.0).total
    assert loss(energy.detach() - 1.0).item() == pytest.approx(alone.item(), rel=1e-5)
    below = 3.0 / len(plain.species)
    expected = alone.item() + 0.5 * math.log(1.0 + below)
    assert loss(energy.detach() + 3.0).item() == pytest.approx(expected, rel=1e-4)
    loss(energy.detach() + 3.0).backward()
    assert all(w.grad is None or w.grad.isfinite().all() for w in student.parameters())


# --- References and loss ------------------------------------------------------------------------


def synthetic_frames(energies_of: dict[int, float], count: int = 40) -> LabelledFrames:
    """Frames of atoms at random places; the energy is the sum of a number for each element."""
    rng = np.random.default_rng(0)
    several = [
        Atoms(numbers, positions=4.0 * rng.random((len(numbers), 3)))
        for numbers in (rng.choice(list(energies_of), rng.integers(3, 12)) for _ in range(count))
    ]
    energies = [sum(energies_of[number] for number in atoms.numbers) for atoms in several]
    return frames_of(several, energies=torch.tensor(energies, dtype=torch.float64))


def test_references_recover_exact_energies_of_elements():
    exact = {1: -13.1, 6: -1030.5, 8: -2043.25, 17: -12500.125}
    student = Student(PRESETS[PRESET])
    fit_references(synthetic_frames(exact), student)
    for symbol, (number, _) in ELEMENTS.items():
        found = float(student.references[list(ELEMENTS).index(symbol)])
        # Of an element that is not in the data nothing can be said: the smallest solution is 0.
        assert found == pytest.approx(exact.get(number, 0.0), abs=1e-7), symbol


def test_every_frame_is_seen_once_per_epoch_also_when_resumed():
    batches = training.shuffled([1] * 10, 3, 0, seed=1, step=0)
    whole = [next(batches) for _ in range(9)]  # three epochs of three batches
    for epoch in range(3):
        seen = [k for batch in whole[3 * epoch : 3 * epoch + 3] for k in batch]
        assert len(seen) == len(set(seen)) == 9
    assert whole[:3] != whole[3:6]
    for step in range(9):
        assert next(training.shuffled([1] * 10, 3, 0, seed=1, step=step)) == whole[step]
    assert sorted(next(training.shuffled([1, 1], 5, 0, seed=1, step=7))) == [0, 1]


def test_a_batch_has_as_many_frames_as_its_edges_allow():
    edges = [5, 100, 20, 30, 1, 60, 40, 20, 9, 200] * 3
    draws = training.shuffled(edges, 4, 90, seed=2, step=0)
    batches = [next(draws) for _ in range(40)]
    for batch, following in pairwise(batches[:13]):
        total = sum(edges[k] for k in batch)
        assert len(batch) == 1 or total <= 90
        assert len(batch) == 4 or total + edges[following[0]] > 90
    resumed = training.shuffled(edges, 4, 90, seed=2, step=37)
    assert [next(resumed) for _ in range(3)] == batches[37:]


def test_frames_of_one_structure_are_drawn_in_pairs():
    structures = np.array([0] * 4 + [1] * 3 + [2] * 5 + [3])
    draws = training.shuffled([1] * len(structures), 4, 0, 3, 0, structures)
    batches = [next(draws) for _ in range(12)]
    for batch in batches:
        alone = [k for k, n in Counter(structures[batch]).items() if n % 2]
        assert all(structures.tolist().count(k) % 2 for k in alone)
        places = [k for k in range(len(batch)) if structures[batch[k]] not in alone]
        for k in places[::2]:
            assert structures[batch[k]] in structures[np.delete(batch, k)]
    assert len({frozenset(batch) for batch in batches}) == len(batches)  # other pairs each epoch
    first = [k for batch in batches[:3] for k in batch]
    assert len(first) == len(set(first))


def test_energy_differences_of_one_structure_are_in_the_loss(
    mixed: list[Atoms], random_student: Callable[..., Student]
):
    student = random_student(PRESET)
    graphs = build_graphs(frames_of(mixed[:3]), student)
    graphs = graphs._replace(edge_vectors=graphs.edge_vectors.double())
    settings = read_recipe(ORGANIC_RECIPE).training[PRESET]
    # Frames 0 and 2 are taken as frames of one structure; only the pair (0, 2) is adjacent.
    batch = make_batch(graphs, [1, 0, 2])._replace(structures=torch.tensor([4, 7, 7]))
    plain = loss_of(student.network, batch, settings, 3, 100, 0.5).total
    weighted = replace(settings, difference_weight=5.0)
    error = predict(student.network, batch).energies - batch.energies
    expected = plain + 0.5 * 5.0 * (error[2] - error[1]) ** 2 / batch.atoms[2] / 3
    torch.testing.assert_close(
        loss_of(student.network, batch, weighted, 3, 100, 0.5).total, expected
    )


def test_muon_in_float32_takes_the_steps_of_torch():
    """Those of torch are rounded to bfloat16, 1 part in 256, in each of 15 products."""
    shapes = [(12, 5), (5, 12), (8, 8), (8, 8)]
    mine, theirs = ([torch.nn.Parameter(torch.zeros(shape)) for shape in shapes] for _ in range(2))
    library = torch.optim.Muon(theirs, 0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    optimizer = Muon(mine, 0.02)
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        for weight, other in zip(mine, theirs, strict=True):
            weight.grad = torch.randn(weight.shape, generator=generator)
            other.grad = weight.grad.clone()
        optimizer.step()
        library.step()
    for weight, other in zip(mine, theirs, strict=True):
        assert (weight - other).norm() < 0.02 * weight.norm()
    optimizer.load_state_dict(library.state_dict())
    values = torch.linalg.svdvals(orthogonalized(torch.randn(2, 9, 4, generator=generator)))
    assert 0.5 < values.min() and values.max() < 1.5


# --- Evaluation and checkpoint ------------------------------------------------------------------


def test_force_errors_of_known_answers():
    label = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.05]]).double()
    exact = force_errors(label, label)
    assert exact.force_rmse_ev_per_angstrom == exact.force_mae_ev_per_angstrom == 0.0
    assert exact.force_r2 == 1.0
    assert exact.force_angle_deg == pytest.approx(0.0, abs=1e-4)
    # A quarter turn in the plane of x and y; the third is too small to have a direction.
    turned = label[:, [1, 0, 2]] * torch.tensor([1.0, -1.0, -1.0])
    found = force_errors(turned, label)
    assert found.atoms == 3
    assert found.force_angle_deg == pytest.approx(90.0)
    assert found.force_mae_ev_per_angstrom == pytest.approx((1 + 1 + 2 + 2 + 0.1) / 9)
    assert found.force_rmse_ev_per_angstrom == pytest.approx(np.sqrt((2 + 8 + 0.01) / 9))
    spread = 5.0025 - 3.05**2 / 9  # sum of squares less nine times the square of the mean
    assert found.force_r2 == pytest.approx(1.0 - 10.01 / spread)


def test_without_single_molecules_all_frames_are_measured(random_student: Callable[..., Student]):
    """A student of a crystal is measured on the crystal."""
    student = random_student(PRESET, torch.float32)
    crystals = frames_of([periodic_water()] * 3)._replace(kinds=["crystal"] * 3)
    crystals.forces.normal_(generator=torch.Generator().manual_seed(1))
    virials = predict_frames(student, crystals).virials
    volume = crystals.cells[0].double().det()
    # The teacher's pressure is 1 and 3 GPa below the student's, and unknown in the third frame.
    trace = virials.diagonal(dim1=1, dim2=2).sum(1) / (3.0 * volume)
    lower = torch.tensor([1.0, 3.0, torch.nan]) * units.GPa
    crystals.stresses[:, :3] = (lower - trace)[:, None].float()
    measured = evaluate_student(student, crystals)
    assert measured["frames"] == measured["complexes"]["crystal"]["frames"] == 3
    warm = measured["complexes_by_temperature_K"]["crystal"]["300"]
    assert warm["pressure_error_gpa"] == pytest.approx(2.0, rel=1e-4)
    assert warm["pressure_rmse_gpa"] == pytest.approx(5.0**0.5, rel=1e-4)
    without_md = frames_of([molecule("H2O")])._replace(
        methods=["start"], temperatures=torch.full((1,), torch.nan)
    )
    assert evaluate_student(student, without_md)["by_temperature_K"] == {}


# --- The quick way ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"molecule": "nothing.sdf"}, "no file nothing.sdf"),
        ({"molecule": "[SiH4]"}, "does not know Si"),
        ({"molecule": "C1CC"}, "not a SMILES string"),
        ({"teacher": "gfn3-xtb"}, "gfn3-xtb"),
        ({"preset": "tinny"}, "no preset 'tinny'; there are original, tiny, ultra_tiny"),
    ],
)
def test_quick_refuses_input_before_it_writes(
    changes: dict[str, str], message: str, tmp_path: Path
):
    given = {"molecule": "O", "preset": PRESET, "teacher": "gfn2-xtb"} | changes
    with pytest.raises(InputError) as raised:
        quickly.quick(**given, output=tmp_path / "output", workers=1)
    assert message in str(raised.value)
    assert not (tmp_path / "output").exists()


# --- Command line -------------------------------------------------------------------------------


COMMANDS = [command.name for command in cli.distill_app.registered_commands]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str):
    shown = CliRunner().invoke(cli.app, ["distill", command, "--help"])
    assert shown.exit_code == 0
    assert f"mlff-student distill {command} " in " ".join(shown.output.replace("│", " ").split())
