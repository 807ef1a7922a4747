"""Labels of GFN2-xTB: how structures are sampled, and how a stopped labelling resumes."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule as g2
from ase.constraints import FixAtoms
from ase.io import write
from tblite.ase import TBLite

from mlff_student.core.errors import ArchiveError, InputError
from mlff_student.core.units import KB
from mlff_student.distill import label as labelling
from mlff_student.distill import sources as places
from mlff_student.distill.dataset import (
    SPLITS,
    LabelledStructure,
    open_dataset,
    read_frames,
    read_summary,
)
from mlff_student.distill.label import label, label_sources
from mlff_student.distill.recipe import (
    MD,
    Augmentation,
    HeldOut,
    Methods,
    NormalModes,
    Recipe,
    StructureRecipe,
)
from mlff_student.distill.sample import (
    CONTACT_SCALES,
    Labeller,
    label_source,
    thermal_displacements,
)
from mlff_student.distill.sources import (
    Source,
    build,
    read_generated,
)
from mlff_student.structures.smiles import embed
from mlff_student.teachers import make_teacher

# Two self-consistent solutions from different guesses differ by tblite's convergence, 1e-6 hartree.
SCF_ENERGY, SCF_FORCE = 5e-5, 1e-3  # eV, eV/angstrom
GFN2 = "gfn2-xtb"


# --- Sampling -----------------------------------------------------------------------------------


def source_of(smiles: str, conformers: int = 1) -> Source:
    return Source(smiles, smiles, "small", "molecule", "train", (smiles,), conformers)


def source_with_start(atoms: Atoms) -> Source:
    return Source("given", "given", "file", "file", "train", starts=(atoms,))


def sampled(source: Source, methods: Methods, largest_force: float = 30.0) -> LabelledStructure:
    return Labeller(source, make_teacher(GFN2), largest_force, seed=1).run(methods)


def geometries(structure: LabelledStructure) -> Iterator[Atoms]:
    for positions, cell, pbc in zip(
        structure.positions, structure.cells, structure.pbc, strict=True
    ):
        yield Atoms(
            structure.atomic_numbers, positions.astype(float), cell=cell.astype(float), pbc=pbc
        )


def assert_labels_are_the_teachers(structure: LabelledStructure) -> None:
    for k, atoms in enumerate(geometries(structure)):
        atoms.calc = make_teacher(GFN2)
        assert atoms.get_potential_energy() == pytest.approx(structure.energies[k], abs=SCF_ENERGY)
        np.testing.assert_allclose(atoms.get_forces(), structure.forces[k], atol=SCF_FORCE)
        if atoms.pbc.all():
            np.testing.assert_allclose(atoms.get_stress(), structure.stresses[k], atol=1e-5)


ALL_METHODS = Methods(
    starts=True,
    rattle=0.05,
    md=MD([300.0, 900.0], frames=2, interval=3, equilibration=2),
    normal_modes=NormalModes(300.0, frames=3, largest=6),
    augment=Augmentation(frames=2, temperature_K=1000.0),
    contacts=2,
)


def test_every_method_gives_its_number_of_frames_with_labels_of_the_teacher():
    structure = sampled(source_of("CO", conformers=2), ALL_METHODS)
    assert structure.failure == ""
    counts = {"start": 1, "contact": 2, "augment": 2, "normal_modes": 3, "md": 4}
    assert Counter(structure.methods) == {method: 2 * count for method, count in counts.items()}
    assert structure.attempted == len(structure.energies) == 24
    md = [
        t
        for t, method in zip(structure.temperatures, structure.methods, strict=True)
        if method == "md"
    ]
    assert md == [300.0, 300.0, 900.0, 900.0] * 2
    thermal = np.isin(structure.methods, ("md", "normal_modes"))
    assert (np.isnan(structure.temperatures) == ~thermal).all()
    assert np.isnan(structure.stresses).all()
    assert_labels_are_the_teachers(structure)
    first = structure.positions[np.flatnonzero(np.array(structure.methods) == "md")]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in itertools.combinations(first, 2))


def test_a_student_moves_the_atoms_and_the_teacher_labels():
    md = MD([300.0], frames=2, interval=5, equilibration=5)
    by_student = sampled(source_of("CO"), Methods(md=replace(md, by="ultra_tiny")))
    by_teacher = sampled(source_of("CO"), Methods(md=md))
    assert by_student.methods == by_teacher.methods == ["md", "md"]
    moved = np.abs(by_student.positions - by_teacher.positions).max()
    assert 1e-5 < moved < 0.1  # one random start, two force fields: alike, not the same
    assert_labels_are_the_teachers(by_student)
    with pytest.raises(ArchiveError, match="no_such_student"):
        sampled(source_of("CO"), Methods(md=replace(md, by="no_such_student")))


def test_constraints_of_a_file_fix_neither_atoms_nor_labels(tmp_path: Path):
    """ASE sets the forces of fixed atoms to zero, and writes FixAtoms as move_mask."""
    water = g2("H2O")
    water.rattle(0.05, seed=1)
    water.set_constraint(FixAtoms([0, 1]))
    write(tmp_path / "fixed.extxyz", water)
    (source,) = read_generated(tmp_path / "fixed.extxyz")
    assert source.starts[0].constraints
    structure = sampled(source, replace(ALL_METHODS, contacts=0))
    assert structure.failure == ""
    assert_labels_are_the_teachers(structure)
    # Bonds between the fixed atoms change in every frame: these are no rigid displacements.
    lengths = np.linalg.norm(structure.positions[:, 0] - structure.positions[:, 1], axis=1)
    assert np.abs(np.diff(lengths)).min() > 1e-4
    labelled = next(geometries(structure))
    labelled.set_constraint(FixAtoms([0, 1]))
    labelled.info["REF_energy"] = structure.energies[0]
    labelled.arrays["REF_forces"] = structure.forces[0].astype(float)
    write(tmp_path / "labelled.extxyz", labelled)
    (source,) = read_generated(tmp_path / "labelled.extxyz")
    teacher = make_teacher(f"file:{tmp_path}/labelled.extxyz")
    as_read = Labeller(source, teacher, 50.0, seed=1).run(Methods(starts=True))
    np.testing.assert_allclose(as_read.forces, structure.forces[:1], atol=1e-6)


def test_larger_molecules_get_no_normal_modes():
    small = replace(Methods(), normal_modes=NormalModes(300.0, frames=1, largest=5))
    assert sampled(source_of("CO"), small).methods == []


def test_labels_do_not_depend_on_what_was_labelled_before():
    """A process keeps its calculator, and earlier structures do not change the labels."""
    recipe = recipe_of({"molecule": Methods(starts=True, contacts=1)})
    first = label_source(source_of("CO"), recipe, seed=1)
    label_source(source_of("O"), recipe, seed=2)
    again = label_source(source_of("CO"), recipe, seed=1)
    np.testing.assert_array_equal(first.forces, again.forces)
    np.testing.assert_array_equal(first.energies, again.energies)


class Unrattled(Labeller):
    """Labeller without the small displacement of all atoms that is added to a contact."""

    def _rattled(self, atoms: Atoms, width: float) -> Atoms:
        return atoms.copy()


def lengths(atoms: Atoms) -> np.ndarray:
    return np.array([atoms.get_distance(i, j, mic=True) for i, j in places.perceive_bonds(atoms)])


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_contact_changes_one_bond_only(wrapped: bool):
    """A molecule may cross the wall of its cell."""
    atoms = embed("CCO")[0]
    if wrapped:
        atoms.set_cell([9.0, 9.0, 9.0])
        atoms.pbc = True
        atoms.wrap()
    labeller = Unrattled(source_with_start(atoms), make_teacher(GFN2), 30.0, seed=2)
    bonds = places.perceive_bonds(atoms)
    before = lengths(atoms)
    for _ in range(20):
        moved = labeller._with_contact(atoms)
        after = np.array([moved.get_distance(i, j, mic=True) for i, j in bonds])
        ratios = after / before
        (different,) = np.flatnonzero(abs(ratios - 1.0) > 1e-9)
        assert CONTACT_SCALES[0] <= ratios[different] <= CONTACT_SCALES[1]


def test_a_bond_of_a_ring_moves_one_atom():
    atoms = embed("C1CC1")[0]
    labeller = Unrattled(source_with_start(atoms), make_teacher(GFN2), 30.0, seed=2)
    for _ in range(20):
        moved = np.linalg.norm(labeller._with_contact(atoms).positions - atoms.positions, axis=1)
        assert (moved > 1e-9).sum() == 1


def relaxed(name: str) -> Atoms:
    from ase.optimize import BFGS

    atoms = g2(name)
    atoms.calc = make_teacher(GFN2)
    BFGS(atoms, logfile=None).run(fmax=1e-3, steps=100)
    return atoms


def hessian(atoms: Atoms, step: float = 0.002) -> np.ndarray:
    """Hessian by central differences of the teacher's forces, (3 N, 3 N) eV/angstrom^2."""
    rows = []
    for k in range(3 * len(atoms)):
        sides = []
        for sign in (1, -1):
            displaced = atoms.copy()
            displaced.positions.flat[k] += sign * step
            displaced.calc = make_teacher(GFN2)
            sides.append(displaced.get_forces().ravel())
        rows.append((sides[1] - sides[0]) / (2 * step))
    return np.array(rows)


@pytest.mark.parametrize(("name", "modes"), [("N2", 1), ("H2O", 3)])
def test_normal_modes_have_half_kt_of_energy_each(name: str, modes: int):
    """Equipartition, with a Hessian that does not use the modes: <d H d / 2> = modes kT / 2."""
    atoms, count = relaxed(name), 20_000
    settings = NormalModes(300.0, count, 9)
    rng = np.random.default_rng(5)
    steps = np.array(list(thermal_displacements(atoms, settings, rng))).reshape(count, -1)
    energies = 0.5 * np.einsum("ti,ij,tj->t", steps, hessian(atoms), steps)
    # The mean of 20 000 is known to 0.7 %; the two Hessians differ by their steps, 1 %.
    assert energies.mean() == pytest.approx(0.5 * modes * KB * 300.0, rel=0.03)
    if modes == 1:  # the variance of a bond is kT / k
        axis = atoms.positions[1] - atoms.positions[0]
        axis /= np.linalg.norm(axis)
        stretch = (steps[:, 3:] - steps[:, :3]) @ axis
        k = axis @ hessian(atoms)[3:, 3:] @ axis
        assert stretch.var() == pytest.approx(KB * 300.0 / k, rel=0.04)


class Unreliable(TBLite):
    """GFN2-xTB that fails in every fifth call and gives NaN in every seventh."""

    calls = 0

    def calculate(self, *arguments: Any, **keywords: Any) -> None:
        self.calls += 1
        super().calculate(*arguments, **keywords)
        if self.calls % 5 == 0:
            raise RuntimeError("the queue was full")
        if self.calls % 7 == 0:
            self.results["forces"] = np.full_like(self.results["forces"], np.nan)


def test_frames_without_labels_of_an_unreliable_teacher_are_counted():
    teacher = Unreliable(method="GFN2-xTB", verbosity=0)
    methods = Methods(
        starts=True,
        contacts=11,
        md=MD([300.0, 600.0, 900.0], frames=3, interval=1, equilibration=1),
    )
    structure = Labeller(source_of("O"), teacher, 30.0, seed=1).run(methods)
    assert structure.attempted == 1 + 11 + 9
    assert 5 < len(structure.energies) < structure.attempted
    assert "RuntimeError('the queue was full')" in structure.failure
    assert "labels that are not finite" in structure.failure
    assert np.isfinite(structure.forces).all()
    assert_labels_are_the_teachers(structure)


class Failing(TBLite):
    def calculate(self, *arguments: Any, **keywords: Any) -> None:
        raise OSError("no licence")


def test_teacher_that_always_fails_gives_an_empty_structure_with_the_reason():
    teacher = Failing(method="GFN2-xTB")
    structure = Labeller(source_of("CO"), teacher, 30.0, seed=1).run(ALL_METHODS)
    assert len(structure.energies) == 0
    assert structure.attempted == 1 + 2 + 2 + 3 + 4
    assert structure.failure == "OSError('no licence')"
    assert structure.positions.shape == (0, 6, 3)


def test_large_forces_are_left_out_and_counted():
    structure = sampled(source_of("O"), Methods(starts=True, rattle=0.1), largest_force=1e-3)
    assert (structure.attempted, len(structure.energies)) == (1, 0)
    assert structure.failure.startswith("start: force of ")
    # Rattling ends also if it never gives a frame that is kept.
    methods = Methods(augment=Augmentation(frames=1, temperature_K=300.0))
    stuck = sampled(source_of("O"), methods, largest_force=1e-3)
    assert (stuck.attempted, len(stuck.energies)) == (1, 0)
    assert "too few geometries" in stuck.failure


def test_structure_that_cannot_be_built_is_counted(tmp_path: Path):
    impossible = "C1#CC1C23C4C2C34"  # RDKit embeds neither this nor its like
    structure = sampled(replace_smiles(impossible), Methods(starts=True))
    if len(structure.energies) == 0:
        assert structure.attempted == 1
    broken = sampled(replace_smiles("C("), Methods(starts=True))
    assert (broken.attempted, len(broken.energies)) == (1, 0)
    assert "not a SMILES string" in broken.failure
    with open_dataset(tmp_path / "data.h5") as writer:
        writer.append(broken)
    assert read_summary(tmp_path / "data.h5").failures == [broken.failure]


def replace_smiles(smiles: str) -> Source:
    return Source("odd", "odd", "small", "molecule", "train", (smiles,))


def test_periodic_structures_have_stress():
    (box,) = build(Source("l", "l", "liquid", "liquid", "train", ("O",) * 2), seed=2)
    structure = sampled(source_with_start(box), Methods(starts=True, rattle=0.02, contacts=1))
    assert structure.failure == ""
    assert structure.pbc.all()
    assert np.isfinite(structure.stresses).all()
    assert_labels_are_the_teachers(structure)


def test_molecules_keep_their_shape_at_other_volumes():
    (box,) = build(Source("l", "l", "liquid", "liquid", "train", ("O",) * 2), seed=2)
    structure = sampled(source_with_start(box), Methods(starts=True, volumes=3))
    assert structure.methods == ["start", *["volume"] * 3]
    factors = np.linalg.det(structure.cells) / box.cell.volume
    assert factors[0] == pytest.approx(1.0)
    assert len(set(factors.round(4))) == 4
    assert (factors > 0.8).all()
    assert (factors < 2.0).all()
    inside = np.linalg.norm(
        structure.positions[:, [0, 0, 3, 3]] - structure.positions[:, [1, 2, 4, 5]], axis=2
    )
    between = np.linalg.norm(structure.positions[:, 0] - structure.positions[:, 3], axis=1)
    np.testing.assert_allclose(inside, inside[:1].repeat(4, 0), atol=1e-5)
    # Centres of molecules, not oxygens, move with the box.
    np.testing.assert_allclose(between, between[0] * factors ** (1 / 3), rtol=0.05)
    assert_labels_are_the_teachers(structure)


def test_slab_is_not_labelled():
    """GFN2-xTB in tblite would compute it as a crystal."""
    slab = g2("H2O")
    slab.set_cell([5.0, 5.0, 5.0])
    slab.pbc = (True, True, False)
    structure = sampled(source_with_start(slab), Methods(starts=True, contacts=1))
    assert (structure.attempted, len(structure.energies)) == (1, 0)
    assert "periodic along" in structure.failure


# --- Labelling ----------------------------------------------------------------------------------


METHODS = Methods(starts=True, contacts=2)
SOURCES = [
    source_of(smiles)._replace(split=split)
    for smiles, split in zip(
        ("O", "N", "C#N", "OO", "C=O", "CO", "CN", "CF", "C"), SPLITS * 3, strict=True
    )
]


def recipe_of(sampling: dict[str, Methods]) -> Recipe:
    held_out = HeldOut(validation=0.0, test=0.0)
    return Recipe(GFN2, 4, StructureRecipe(0, 9, held_out), sampling, training={})


LABELLING = recipe_of({"molecule": METHODS})


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset of all sources, by two workers."""
    path = tmp_path_factory.mktemp("labelled") / "data.h5"
    label_sources(SOURCES, LABELLING, path, workers=2)
    return path


def assert_same_labels(path: Path, other: Path, names: list[str]) -> None:
    """Assert that these structures have equal labels in both files, in any order."""
    mine, theirs = read_frames(path), read_frames(other)
    for name in names:
        first, second = (
            (frames.molecule == frames.names.index(name)).numpy() for frames in (mine, theirs)
        )
        assert first.sum() == second.sum() == 3
        np.testing.assert_array_equal(mine.energies[first], theirs.energies[second])
        rows = [
            np.repeat(chosen, np.diff(frames.start))
            for chosen, frames in ((first, mine), (second, theirs))
        ]
        np.testing.assert_array_equal(mine.positions[rows[0]], theirs.positions[rows[1]])
        np.testing.assert_array_equal(mine.forces[rows[0]], theirs.forces[rows[1]])


NAMES = [source.name for source in SOURCES]


def test_every_structure_is_labelled_in_its_split(labelled: Path):
    summary = read_summary(labelled)
    splits = {source.name: source.split for source in SOURCES}
    assert dict(zip(summary.names, summary.splits, strict=True)) == splits
    assert len(summary.names) == len(splits)


def test_nothing_is_labelled_twice(labelled: Path, tmp_path: Path):
    path = Path(shutil.copy(labelled, tmp_path / "data.h5"))
    before = read_summary(path)
    label_sources(SOURCES, LABELLING, path, workers=1)
    assert read_summary(path).names == before.names
    assert_same_labels(labelled, path, NAMES)


@pytest.fixture(scope="module")
def dask_scheduler() -> Iterator[str]:
    """Address of a cluster in this process, of one worker with two threads."""
    distributed = pytest.importorskip("dask.distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, protocol="tcp"
    ) as cluster:
        yield cluster.scheduler_address


def test_cluster_gives_the_same_labels(labelled: Path, dask_scheduler: str, tmp_path: Path):
    """Threads of a worker share a process, but each has its own calculator."""
    label_sources(SOURCES, LABELLING, tmp_path / "data.h5", 1, dask_scheduler)
    assert_same_labels(labelled, tmp_path / "data.h5", NAMES)


# What `number` stops: all sources, then many more, by one worker, in a process of its own (a fork
# would share the threads of the Dask cluster here).
SCRIPT = """
import sys
from pathlib import Path

from test_labelling import LABELLING, SOURCES, source_of
from mlff_student.distill.label import label, label_sources

if __name__ == "__main__":
    more = [source_of("CCO")._replace(name=f"later {k}") for k in range(300)]
    label_sources(SOURCES[:5] + more, LABELLING, Path(sys.argv[1]), workers=1)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_labelling_resumes(
    number: signal.Signals, labelled: Path, dask_scheduler: str, tmp_path: Path
):
    """One worker begins and a cluster finishes: the labels are those of two workers."""
    path, script = tmp_path / "data.h5", tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script, path],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        start_new_session=True,
        # A job in the background ignores Ctrl-C, and so do its children.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (path.exists() and read_summary(path).names):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)  # as a terminal does
    process.communicate(timeout=60)
    assert process.returncode not in (None, 0)
    done = read_summary(path).names
    assert 1 <= len(done) < 300
    assert len(read_frames(path).energies) == 3 * len(done)
    label_sources(SOURCES, LABELLING, path, 1, dask_scheduler)
    assert sorted(read_summary(path).names) == sorted({*done, *NAMES})
    assert_same_labels(labelled, path, NAMES)


def test_scheduler_that_does_not_answer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(labelling, "SCHEDULER_TIMEOUT_S", 1.0)
    for address in ("tcp://127.0.0.1:9", "nonsense://"):
        with pytest.raises(InputError, match=f"no Dask scheduler answers at {address}"):
            label_sources(SOURCES, LABELLING, tmp_path / "data.h5", 1, address)


def test_unknown_teacher_is_refused(dask_scheduler: str, tmp_path: Path):
    recipe = replace(LABELLING, teacher="gfn9-xtb")
    with pytest.raises(InputError, match="unknown teacher 'gfn9-xtb'"):
        label_sources(SOURCES, recipe, tmp_path / "data.h5", 1, dask_scheduler)


def test_charged_molecules_need_a_teacher_that_reads_charges(tmp_path: Path):
    recipe = recipe_of({})
    recipe = replace(
        recipe, teacher="mace-off", structures=replace(recipe.structures, charged=True)
    )
    with pytest.raises(InputError, match=r"'mace-off' computes every .* neutral.* use gfn2-xtb"):
        label(recipe, tmp_path / "data.h5", workers=1)
    assert not (tmp_path / "data.h5").exists()


def test_no_frame_at_all_is_an_error(dask_scheduler: str, tmp_path: Path):
    recipe = replace(LABELLING, largest_force=1e-9)
    path = tmp_path / "data.h5"
    with pytest.raises(InputError, match="no structure gave a frame"):
        label_sources(SOURCES[:2], recipe, path, 1, dask_scheduler)
    assert all("force of" in failure for failure in read_summary(path).failures)
