"""Hybrid Monte Carlo samples the target's ensemble, whatever proposes its moves."""

import json
from dataclasses import replace
from itertools import pairwise

import mdtraj
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.harmonic import SpringCalculator
from ase.calculators.lj import LennardJones
from scipy.stats import gamma

from mlff_student.analysis.thermo import read_thermo
from mlff_student.core.errors import InputError
from mlff_student.core.units import KB
from mlff_student.engines.ase import run as ase_engine
from mlff_student.engines.protocol import MDSettings
from mlff_student.engines.run import run_md
from mlff_student.structures.checks import connected_fragments, perceive_bonds
from mlff_student.structures.reading import Structure, make_topology
from mlff_student.validation.protocol import Box
from mlff_student.validation.reference_monte_carlo import (
    HybridMonteCarlo,
    run_reference_monte_carlo,
    scale_molecules,
    whole_molecules,
)
from mlff_student.validation.tasks import write_box

TARGET, PROPOSAL = 2.0, 3.0  # eV/angstrom^2, springs of the atoms to their places
PLACES = 3.0 * np.arange(24.0).reshape(8, 3)
T = 300.0


def springs(constant: float) -> SpringCalculator:
    return SpringCalculator(PLACES, constant)


def moves(count: int, proposal: float) -> tuple[list[bool], np.ndarray, np.ndarray]:
    """What was accepted, displacements from the centre's (count, 8, 3), and kinetic energies."""
    atoms = Atoms("Ar8", PLACES)
    atoms.calc = springs(TARGET)
    dynamics = HybridMonteCarlo(
        atoms,
        springs(proposal),
        20.0 * units.fs,
        temperature_K=T,
        rng=np.random.default_rng(3),
    )
    accepted, displacements, kinetic = [], [], []
    for _ in range(count):
        accepted.append(dynamics.run(8))
        displacements.append(atoms.positions - PLACES)
        kinetic.append(atoms.get_kinetic_energy())
        assert atoms.get_potential_energy() == pytest.approx(
            0.5 * TARGET * (displacements[-1] ** 2).sum()
        )
    return accepted, np.array(displacements), np.array(kinetic)


def mean_and_error(samples: np.ndarray) -> tuple[float, float]:
    blocks = samples[: len(samples) // 14 * 14].reshape(14, -1).mean(1)
    return float(blocks.mean()), float(blocks.std(ddof=1) / np.sqrt(14))


def test_ensemble_is_the_targets():
    """Equipartition: k <x^2> = kT in the target's springs; in the proposal's it would be 2/3 of it.
    The centre of mass stays at rest, and so do 3 of the 24 degrees of freedom.
    """
    accepted, displacements, kinetic = moves(1500, PROPOSAL)
    assert 0.2 < np.mean(accepted) < 0.9
    potential = 0.5 * TARGET * (displacements[100:] ** 2).sum((1, 2))
    for energies in (potential, kinetic[100:]):
        mean, error = mean_and_error(energies / (0.5 * 21 * KB * T))
        assert error < 0.05
        assert mean == pytest.approx(1.0, abs=4 * error)


def test_a_perfect_proposal_is_nearly_always_accepted():
    assert np.mean(moves(200, TARGET)[0]) > 0.9
    assert np.mean(moves(200, 4 * TARGET)[0]) < 0.5


def test_the_targets_stress_is_kept_and_not_the_proposals():
    box = Atoms("Ar8", 3.8 * np.indices((2, 2, 2)).reshape(3, 8).T)
    box.set_cell(3 * [7.6])
    box.pbc = True
    box.calc = LennardJones(sigma=3.4, epsilon=0.01, rc=7.0)
    dynamics = HybridMonteCarlo(
        box,
        LennardJones(sigma=3.4, epsilon=0.02, rc=7.0),
        10.0 * units.fs,
        temperature_K=T,
        rng=np.random.default_rng(3),
    )
    for _ in range(5):
        dynamics.run(8)
        again = box.copy()
        again.calc = LennardJones(sigma=3.4, epsilon=0.01, rc=7.0)
        assert box.get_stress() == pytest.approx(again.get_stress(), rel=1e-6)


class Fragile(SpringCalculator):
    """Springs that refuse what a student would refuse: here, an atom too far to one side."""

    def calculate(self, *arguments, **options) -> None:
        super().calculate(*arguments, **options)
        if self.atoms.positions[0, 0] > 0.12:
            raise InputError("too far")


def test_a_move_to_where_a_calculator_fails_is_rejected():
    """In 200 moves of springs, half of which pass 0.12 angstrom somewhere on their way."""
    atoms = Atoms("Ar8", PLACES)
    atoms.calc = springs(TARGET)
    proposal = Fragile(PLACES, TARGET)
    rng = np.random.default_rng(3)
    dynamics = HybridMonteCarlo(atoms, proposal, 20.0 * units.fs, temperature_K=T, rng=rng)
    accepted, places = [], []
    for _ in range(200):
        accepted.append(dynamics.run(8))
        places.append(atoms.positions[0, 0])
    assert 0.2 < np.mean(accepted) < 0.9 and max(places) <= 0.12


def test_a_rejected_move_leaves_the_atoms_where_they_were():
    accepted, displacements, _ = moves(50, 4 * TARGET)
    stayed = [np.array_equal(a, b) for a, b in pairwise(displacements)]
    assert stayed == [not moved for moved in accepted[1:]]


MOVES = MDSettings(
    engine="ase", model="tiny", structure="O", steps=96, timestep_fs=0.5, temperature_K=T,
    ensemble="nvt", every=8, thermalise_steps=20, friction_per_ps=10.0, seed=1, threads=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of twelve moves of a water molecule by one student on another's trajectories."""
    folder = tmp_path_factory.mktemp("moves") / "run"
    run_reference_monte_carlo(MOVES, "ultra_tiny", folder, quiet=True)
    return folder


def test_run_says_what_proposed_it(finished):
    record = json.loads((finished / "run.json").read_text())
    assert (record["model"], record["proposal_model"]) == ("tiny", "ultra_tiny")
    potential = read_thermo(finished / "run.csv").potential_ev
    assert len(potential) == 12
    assert len(np.unique(potential)) > 2, "accepted moves change the energy"


def test_finished_run_is_another_with_another_proposal_or_as_md(finished):
    assert run_reference_monte_carlo(MOVES, "ultra_tiny", finished)["steps"] == MOVES.steps
    with pytest.raises(InputError, match=r"another run .*proposal_model"):
        run_reference_monte_carlo(MOVES, "tiny", finished)
    with pytest.raises(InputError, match=r"another run .*proposal_model"):
        run_md(MOVES, finished, quiet=True)


class Killed(BaseException):
    """Ends a run as Ctrl-C does."""


def test_killed_run_resumes_with_the_same_random_numbers(finished, tmp_path, monkeypatch):
    write, segments = ase_engine.write_segment, []

    def killing(*arguments):
        segments.append(arguments)
        if len(segments) == 5:
            raise Killed
        write(*arguments)

    monkeypatch.setattr(ase_engine, "write_segment", killing)
    with pytest.raises(Killed):
        run_reference_monte_carlo(MOVES, "ultra_tiny", tmp_path / "run", quiet=True)
    run_reference_monte_carlo(MOVES, "ultra_tiny", tmp_path / "run", quiet=True)
    assert len(segments) == 13
    whole = read_thermo(finished / "run.csv")
    assert (tmp_path / "run" / "run.csv").read_bytes() == (finished / "run.csv").read_bytes()
    assert len(np.unique(whole.potential_ev)) > 2


@pytest.mark.parametrize("other", [{"engine": "openmm"}, {"ensemble": "nve"}])
def test_other_engines_and_ensembles_are_refused(other, tmp_path):
    with pytest.raises(InputError, match="needs ensemble nvt or npt and engine ase"):
        run_reference_monte_carlo(replace(MOVES, **other), "ultra_tiny", tmp_path / "run")
    assert not (tmp_path / "run").exists()


KT = KB * T


class Quick(Calculator):
    """A calculator without ASE's slow comparison of all that could have changed."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, strength: float, length: float) -> None:
        super().__init__()
        self.strength, self.length = strength, length

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        known = self.atoms
        same = known is not None and np.array_equal(known.positions, atoms.positions)
        return [] if same and np.array_equal(known.cell.array, atoms.cell.array) else all_changes

    def calculate(self, atoms, properties=None, system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.results = dict(zip(("energy", "forces"), self.compute(self.atoms), strict=True))


class Dumbbells(Quick):
    """Molecules of two atoms with a spring of a length, which do not interact."""

    def compute(self, atoms: Atoms) -> tuple[float, np.ndarray]:
        vectors = atoms.positions[1::2] - atoms.positions[::2]
        lengths = np.linalg.norm(vectors, axis=1)
        stretch = lengths - self.length
        forces = np.empty((len(atoms), 3))
        forces[1::2] = -(self.strength * stretch / lengths)[:, None] * vectors
        forces[::2] = -forces[1::2]
        return 0.5 * self.strength * float((stretch**2).sum()), forces


class Delicate(Dumbbells):
    """Dumbbells that fail in a cell that is too small for them."""

    def compute(self, atoms: Atoms) -> tuple[float, np.ndarray]:
        if atoms.get_volume() < 1600.0:
            raise InputError("the cell is too small")
        return super().compute(atoms)


class SoftSpheres(Quick):
    """Two atoms whose images all repel each other by strength * exp(-r^2 / 2 length^2)."""

    def compute(self, atoms: Atoms) -> tuple[float, np.ndarray]:
        edge = atoms.cell.array[0, 0]
        vector = atoms.positions[1] - atoms.positions[0]
        along = (vector - edge * np.round(vector / edge))[:, None] + edge * np.arange(-4, 5)
        parts = np.exp(-0.5 * (along / self.length) ** 2)
        sums = parts.sum(1)
        energy = self.strength * float(sums.prod())
        force = energy * (along * parts).sum(1) / sums / self.length**2
        return energy, np.array([-force, force])


def volumes(
    atoms: Atoms, proposal: Calculator, pressure: float, *, count: int, timestep_fs: float
) -> tuple[list[bool], np.ndarray, np.ndarray]:
    """What was accepted, volumes (count,) and positions (count, N, 3) of a chain.

    The bonds are those of the first positions, and the volume steps are those for a gas.
    """
    structure = Structure(atoms, make_topology(atoms, perceive_bonds(atoms)))
    structure, molecules = whole_molecules(structure)
    atoms.positions = structure.atoms.positions
    dynamics = HybridMonteCarlo(
        atoms,
        proposal,
        timestep_fs * units.fs,
        temperature_K=T,
        rng=np.random.default_rng(3),
        pressure=pressure,
        molecules=molecules,
        volume_step=2.0,
    )
    accepted, sizes, positions = [], [], []
    for _ in range(count):
        accepted.append(dynamics.run(3))
        sizes.append(atoms.get_volume())
        positions.append(atoms.positions.copy())
        assert dynamics.record["volume_angstrom3"] == sizes[-1]
    return accepted, np.array(sizes), np.array(positions)


def is_close_to(samples: np.ndarray, expected: float, most_error: float) -> None:
    """Assert that a mean is as expected within 4 standard errors, which are small enough."""
    mean, error = mean_and_error(samples)
    assert error < most_error
    assert mean == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize(("target", "least"), [(Dumbbells, 0.0), (Delicate, 1600.0)])
def test_gas_of_molecules_has_the_volumes_of_an_ideal_gas(target, least):
    """V^N exp(-P V / kT) of N = 4 molecules of two atoms, in which some are cut by a face. With 8
    atoms as bodies, or without the 1 of N + 1, the mean would be 9 or 4 kT / P. The bonds are those
    of the target's springs. A target that fails in small cells cuts the distribution off.
    """
    middles = np.random.default_rng(1).uniform(0.0, 12.6, (4, 3))
    positions = np.repeat(middles, 2, axis=0)
    positions[1::2, 0] += 1.5
    atoms = Atoms("C8", positions, cell=[12.6] * 3, pbc=True)
    atoms.wrap()
    assert np.abs(np.diff(atoms.positions[:, 0])[::2]).max() > 10.0, "a molecule is cut"
    atoms.calc = target(5.0, 1.5)
    pressure = KT / 400.0
    accepted, sizes, positions = volumes(
        atoms, Dumbbells(15.0, 1.5), pressure, count=700, timestep_fs=8.0
    )
    assert 0.3 < np.mean(accepted) < 0.9
    cut = gamma.cdf(least * pressure / KT, 5)
    share = (gamma.cdf(sizes * pressure / KT, 5) - cut) / (1.0 - cut)
    expected = 5.0 * gamma.sf(least * pressure / KT, 6) / gamma.sf(least * pressure / KT, 5)
    is_close_to(sizes * pressure / KT, expected, 0.24)
    is_close_to(share, 1 / 2, 0.03)
    is_close_to(share**2, 1 / 3, 0.03)
    stretch = np.linalg.norm(positions[:, 1::2] - positions[:, ::2], axis=2) - 1.5
    x = np.linspace(-1.0, 1.0, 4001)
    weight = (1.5 + x) ** 2 * np.exp(-0.5 * 5.0 * x**2 / KT)
    is_close_to((stretch**2).mean(1), (weight * x**2).sum() / weight.sum(), 6e-4)


def test_repelling_pair_has_the_volumes_of_the_integral_over_its_distance():
    """V^2 <exp(-U / kT)> exp(-P V / kT), where the mean over all places in the cell is a sum on a
    grid. Without repulsion the mean volume would be 900, with the proposal's 1381 angstrom^3.
    """
    pressure, strength, length = KT / 300.0, 20.0 * KT, 3.0
    edges = np.linspace(2.5, 36.0, 300)
    boltzmann = []
    for edge in edges:
        x = (np.arange(24) + 0.5) / 48.0 * edge
        along = np.exp(-0.5 * ((x[:, None] + edge * np.arange(-4, 5)) / length) ** 2).sum(1)
        energy = strength * along[:, None, None] * along[:, None] * along
        boltzmann.append(np.exp(-energy / KT).mean())
    weight = edges**8 * boltzmann * np.exp(-pressure * edges**3 / KT)  # dV = 3 L^2 dL
    expected = (weight * edges**3).sum() / weight.sum()
    assert expected == pytest.approx(1939.0, abs=5.0)
    atoms = Atoms("Ar2", [[0.0, 0.0, 0.0], [6.0, 0.0, 0.0]], cell=[12.0] * 3, pbc=True)
    atoms.calc = SoftSpheres(strength, length)
    accepted, sizes, _ = volumes(
        atoms, SoftSpheres(strength, 2.2), pressure, count=900, timestep_fs=100.0
    )
    assert 0.3 < np.mean(accepted) < 0.7
    is_close_to(sizes, expected, 80.0)


def test_molecules_that_a_face_cuts_stay_rigid(structures):
    """Scaled by 1 % of the length, with atoms wrapped one by one, in a triclinic cell too."""
    for name in ("water_box", "triclinic"):
        atoms = structures[name]
        bonds = perceive_bonds(atoms)
        i, j = np.array(bonds).T
        atoms.positions -= atoms.positions[[i[0], j[0]]].mean(0)  # a bond's middle in the corner
        atoms.wrap()
        before = atoms.get_all_distances(mic=True)
        assert (atoms.get_all_distances() - before)[i[0], j[0]] > 1.0, "a face cuts the bond"
        whole, molecules = whole_molecules(Structure(atoms, make_topology(atoms, bonds)))
        assert (molecules == connected_fragments(len(atoms), bonds)).all()
        scaled = whole.atoms.copy()
        scale_molecules(scaled, molecules, 1.01)
        assert scaled.get_volume() == pytest.approx(1.01**3 * atoms.get_volume())
        same = molecules[:, None] == molecules
        distances = whole.atoms.get_all_distances()
        np.testing.assert_allclose(scaled.get_all_distances()[same], distances[same], atol=1e-9)
        np.testing.assert_allclose(distances[i, j], before[i, j], atol=1e-9)
        for k in range(molecules.max() + 1):
            ratio = scaled[molecules == k].get_center_of_mass()
            centre = whole.atoms[molecules == k].get_center_of_mass()
            np.testing.assert_allclose(ratio, 1.01 * centre, atol=1e-9)


def test_structures_without_molecules_that_can_be_moved_are_refused(structures):
    diamond = bulk("C", "diamond", 3.57, cubic=True) * 2
    crystal = Structure(diamond, make_topology(diamond, perceive_bonds(diamond)))
    with pytest.raises(InputError, match="bonded to its own periodic image"):
        whole_molecules(crystal)
    water = structures["water"]
    with pytest.raises(InputError, match="npt needs a periodic box"):
        whole_molecules(Structure(water, make_topology(water, perceive_bonds(water))))


@pytest.fixture(scope="module")
def box(tmp_path_factory) -> str:
    """PDB file of eight waters."""
    path = tmp_path_factory.mktemp("box") / "water.pdb"
    write_box(Box("O", 8), path)
    return str(path)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"structure": "O"}, "npt needs a periodic box"),
        ({"pressure_bar": 0.0}, "needs a positive pressure, got 0 bar"),
        ({"structure": "CBr", "ensemble": "nvt"}, "the structure has Br"),
        ({"model": "python:ase.calculators.calculator:Calculator"}, "energy and forces, found"),
    ],
)
def test_chains_that_cannot_be_run_are_refused_before_anything_is_written(
    other, words, box, tmp_path
):
    settings = replace(MOVES, model="so3lr", structure=box, ensemble="npt")
    with pytest.raises(InputError, match=words):
        run_reference_monte_carlo(replace(settings, **other), "tiny", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_real_teachers_chain_resumes_bit_by_bit(box, tmp_path, monkeypatch):
    """Eight waters of SO3LR on the trajectories of a student, killed in its fifth move."""
    settings = replace(MOVES, model="so3lr", structure=box, ensemble="npt", steps=80)
    run_reference_monte_carlo(settings, "tiny", tmp_path / "whole", quiet=True)
    write, segments = ase_engine.write_segment, []

    def killing(*arguments):
        write(*arguments)
        segments.append(arguments)
        if len(segments) == 5:
            raise Killed

    with monkeypatch.context() as context:
        context.setattr(ase_engine, "write_segment", killing)
        with pytest.raises(Killed):
            run_reference_monte_carlo(settings, "tiny", tmp_path / "run", quiet=True)
    run_reference_monte_carlo(settings, "tiny", tmp_path / "run", quiet=True)
    folders = tmp_path / "run", tmp_path / "whole"
    logs = [(folder / "run.csv").read_bytes() for folder in folders]
    assert logs[0] == logs[1]
    chains = [mdtraj.load(str(path / "run.dcd"), top=str(path / "run.pdb")) for path in folders]
    assert (chains[0].xyz == chains[1].xyz).all()
    assert (chains[0].unitcell_lengths == chains[1].unitcell_lengths).all()
    header, *rows = (tmp_path / "run" / "run.csv").read_text().splitlines()
    columns = dict(zip(header.split(","), np.array([r.split(",") for r in rows]).T, strict=True))
    accepted = columns["accepted"].astype(float)
    sizes = columns["volume_angstrom3"].astype(float)
    moved = np.diff(columns["potential_ev"].astype(float)) != 0.0
    assert (moved == accepted[1:].astype(bool)).all() and 0 < accepted.sum()
    np.testing.assert_allclose(1e3 * chains[0].unitcell_volumes, sizes, rtol=1e-5)
    density = 8 * 18.015 / units.mol * 1e24 / sizes
    np.testing.assert_allclose(columns["density_g_per_cm3"].astype(float), density, rtol=1e-3)
    assert np.isfinite(columns["pressure_gpa"].astype(float)).all()
    assert len(np.unique(sizes)) > 1
