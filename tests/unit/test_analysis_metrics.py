"""Each metric of the analysis on data whose answer is known."""

from pathlib import Path

import mdtraj
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.geometry.cell import cellpar_to_cell
from scipy.signal import lfilter
from scipy.spatial.transform import Rotation

from mlff_student.analysis.blocks import Stretches, mean_of_blocks, mean_of_runs
from mlff_student.analysis.drift import fit_drift
from mlff_student.analysis.ensemble import (
    AMU_ANGSTROM2_PER_PS2,
    convergence,
    equipartition,
    kinetic_energies,
)
from mlff_student.analysis.forces import evaluate_trajectory, trajectory_force_errors
from mlff_student.analysis.rdf import Rdf, compare_rdf, measure_rdf, measure_suitable_rdf
from mlff_student.analysis.spectrum import compare_spectra, measure_spectrum
from mlff_student.analysis.stability import measure_stability
from mlff_student.analysis.thermo import Thermo
from mlff_student.analysis.transport import infinite_box, measure_density, measure_diffusion
from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.core.figures import Threshold, figures_of
from mlff_student.core.units import KB
from mlff_student.reporting.verdict import judge
from mlff_student.structures.checks import perceive_bonds
from mlff_student.structures.reading import Structure, make_topology
from mlff_student.structures.trajectories import Frames, every_nth, make_whole


def structure_of(atoms: Atoms) -> Structure:
    return Structure(atoms, make_topology(atoms, perceive_bonds(atoms)))


def pieces(frames: Frames, size: int = 37) -> list[Frames]:
    """The frames as a reader gives them, in pieces."""
    return [
        Frames(**{k: None if v is None else v[i : i + size] for k, v in vars(frames).items()})
        for i in range(0, len(frames), size)
    ]


def gas(count: int, frames: int, cell: np.ndarray, seed: int = 0) -> tuple[Structure, Frames]:
    """Ideal gas of argon: no atom knows of another."""
    rng = np.random.default_rng(seed)
    atoms = Atoms(f"Ar{count}", positions=np.zeros((count, 3)), cell=cell, pbc=True)
    positions = rng.random((frames, count, 3)) @ cell
    structure = Structure(atoms, make_topology(atoms, []))
    return structure, Frames(positions, np.tile(cell, (frames, 1, 1)))


# --- averages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 7, 16, 17, 100, 1003])
def test_stretches_of_a_run_average_to_its_mean(frames: int) -> None:
    values = np.random.default_rng(1).random((frames, 3))
    stretches = Stretches(8)
    for value in values:
        stretches.add(value)
    means, weights = stretches.means()
    np.testing.assert_allclose(weights @ means, values.mean(axis=0))
    assert weights.sum() == pytest.approx(1.0)
    assert min(frames, 8) <= len(means) <= 16


def test_error_by_blocks_covers_the_mean_of_correlated_series() -> None:
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(200):
        series = lfilter([1.0], [1.0, -0.9], rng.normal(size=2500))[500:]
        mean = mean_of_blocks(series)
        covered.append(abs(mean.value) < 2 * mean.stderr)
    assert 0.85 < np.mean(covered)  # two standard errors of ten blocks: 0.92, of 200 such: +- 0.02


# --- a thermostat ---------------------------------------------------------------------------------


def harmonic_log(friction_per_ps: float, rows: int = 4000, modes: int = 60) -> Thermo:
    """Oscillators, whose energy a thermostat of that friction exchanges (exact propagation)."""
    rng = np.random.default_rng(3)
    dt, kt = 0.002, KB * 300.0
    x, v = rng.normal(size=(2, modes)) * np.sqrt(kt)
    turn = np.exp(1j * 2 * np.pi * rng.uniform(5.0, 100.0, modes) * dt)
    damp = np.exp(-friction_per_ps * dt)
    kick = np.sqrt(kt * (1 - damp**2))
    potential, kinetic = np.empty((2, rows))
    for row in range(rows):
        z = (x + 1j * v) * turn
        x, v = z.real, z.imag * damp + kick * rng.normal(size=modes)
        potential[row], kinetic[row] = 0.5 * (x @ x), 0.5 * (v @ v)
    temperature = 2 * kinetic / (modes * KB)
    return Thermo(dt * np.arange(rows), potential, kinetic, potential + kinetic, temperature)


@pytest.mark.parametrize("friction_per_ps", [0.1, 1.0, 10.0])
def test_a_thermostat_left_on_makes_the_total_energy_move_as_the_kinetic_does(
    friction_per_ps: float,
) -> None:
    drift = fit_drift(harmonic_log(friction_per_ps), 21, degrees_of_freedom=60)
    assert drift.exchange_ratio > 0.3  # its threshold is 0.1
    assert fit_drift(harmonic_log(0.0), 21, degrees_of_freedom=60).exchange_ratio < 1e-6


# --- ensemble -------------------------------------------------------------------------------------


def canonical(temperature: float, phi: float, rows: int = 20_000, dof: int = 24) -> np.ndarray:
    """Kinetic energies of correlated canonical velocities."""
    noise = np.random.default_rng(4).normal(size=(rows + 1000, dof)) * np.sqrt(1 - phi**2)
    velocities = lfilter([1.0], [1.0, -phi], noise, axis=0)[1000:]
    return 0.5 * KB * temperature * (velocities**2).sum(axis=1)


@pytest.mark.parametrize("phi", [0.0, 0.98], ids=["independent", "correlated"])
def test_canonical_kinetic_energies_pass_and_hot_ones_do_not(phi: float) -> None:
    right, hot = (
        kinetic_energies(canonical(t, phi), degrees_of_freedom=24, temperature_K=300.0)
        for t in (300.0, 340.0)
    )
    assert right.kinetic_mean_sigma < 3 and right.kinetic_width_sigma < 3
    assert right.kinetic_ks_p_value > 0.01
    assert hot.kinetic_mean_sigma > 5 and hot.kinetic_ks_p_value < 1e-3
    for found, percent in ((right, 0.0), (hot, 100.0 * 40 / 300)):
        assert abs(found.kinetic_mean_percent - percent) < 3 * found.kinetic_mean_stderr_percent
        assert abs(found.kinetic_width_percent - percent) < 3 * found.kinetic_width_stderr_percent
        assert 0.1 < found.kinetic_mean_stderr_percent < 3.0
    assert right.temperature_from_width_k == pytest.approx(300.0, rel=0.05)


def test_kinetic_energy_held_by_a_wrong_thermostat_has_too_narrow_a_distribution() -> None:
    """As a Berendsen thermostat's: the mean is right, and the fluctuation is not."""
    kinetic = canonical(300.0, 0.0)
    squeezed = kinetic.mean() + 0.7 * (kinetic - kinetic.mean())
    found = kinetic_energies(squeezed, degrees_of_freedom=24, temperature_K=300.0)
    assert found.kinetic_mean_sigma < 3 and found.kinetic_width_sigma > 5
    assert found.kinetic_width_percent == pytest.approx(-30.0, abs=3.0)
    assert found.temperature_from_width_k == pytest.approx(210.0, rel=0.05)


def test_too_few_kinetic_energies_are_refused() -> None:
    with pytest.raises(InputError, match=r"independent kinetic energies.* needs 20"):
        kinetic_energies(canonical(300.0, 0.99, 300), degrees_of_freedom=24, temperature_K=300.0)


@pytest.mark.parametrize("kinetic", [np.ones(300), np.array([1.0, np.nan] * 150)])
def test_kinetic_energies_without_a_distribution_are_refused(kinetic: np.ndarray) -> None:
    with pytest.raises(InputError, match="kinetic energy is constant, or not finite"):
        kinetic_energies(kinetic, degrees_of_freedom=24, temperature_K=300.0)


def maxwell(structure: Structure, temperatures: np.ndarray, frames: int = 800) -> Frames:
    """Frames of a still molecule with random velocities, the centre of mass at rest."""
    masses = structure.atoms.get_masses()
    width = np.sqrt(KB * temperatures / masses / AMU_ANGSTROM2_PER_PS2)
    rng = np.random.default_rng(5)
    velocities = width[:, None] * rng.normal(size=(frames, len(masses), 3))
    velocities -= np.tensordot(velocities, masses / masses.sum(), (1, 0))[:, None]
    return Frames(np.tile(structure.atoms.positions, (frames, 1, 1)), None, velocities)


def test_equipartition_finds_hot_hydrogens() -> None:
    structure = structure_of(molecule("CH3CH2OH"))
    numbers = structure.atoms.numbers
    even = equipartition(pieces(maxwell(structure, np.full(9, 300.0))), structure)
    for name, temperature in even.temperatures_k.items():
        assert abs(temperature - 300.0) < 4 * even.temperature_stderrs_k[name]
    assert even.equipartition_sigma < 4
    hot = equipartition(pieces(maxwell(structure, np.where(numbers == 1, 340.0, 280.0))), structure)
    assert hot.temperatures_k["H"] == pytest.approx(340.0, rel=0.03)
    assert hot.equipartition_deviation_percent > 8
    record = hot.as_record()
    assert record["temperature_H_k"] == hot.temperatures_k["H"]
    few = equipartition([maxwell(structure, np.full(9, 300.0), frames=19)], structure)
    assert few.equipartition_sigma is None and "equipartition_sigma" not in few.as_record()


def test_convergence_tells_a_second_order_integrator_from_a_first_order_one() -> None:
    time = 0.01 * np.arange(2000)
    noise = np.sin(70.0 * time)

    def deviation(order: int) -> float:
        runs = {
            dt: (time, -100.0 + 1e-4 * time + 1e-3 * dt**order * noise) for dt in (2.0, 0.5, 1.0)
        }
        found = convergence(runs, atoms=9)
        assert found.timesteps_fs == (0.5, 1.0, 2.0)
        return found.convergence_deviation

    assert deviation(2) < 1e-6
    assert deviation(1) == pytest.approx(0.5)
    with pytest.raises(InputError, match="two or more"):
        convergence({1.0: (time, noise)}, atoms=9)


# --- forces ---------------------------------------------------------------------------------------


def test_force_errors_are_those_put_in() -> None:
    rng = np.random.default_rng(6)
    numbers = np.array([6, 1, 1, 8])
    teacher = rng.normal(size=(200, 4, 3)) * 2.0
    error = 0.1 * rng.normal(size=teacher.shape)
    error[:, 3] *= 3.0
    error[..., 2] *= 0.0
    error[-50:] *= 2.0
    error[7, 0] = [3.0, 4.0, 0.0]
    found = trajectory_force_errors(teacher + error, teacher, numbers)
    rms = lambda part: pytest.approx(np.sqrt(np.mean(part**2)))  # noqa: E731
    assert found.force_rmse_ev_per_angstrom == rms(error)
    assert found.force_mae_ev_per_angstrom == pytest.approx(np.abs(error).mean())
    assert found.force_max_error_ev_per_angstrom == pytest.approx(5.0)
    assert found.force_r2 == pytest.approx(
        1 - (error**2).sum() / ((teacher - teacher.mean()) ** 2).sum()
    )
    record = found.as_record()
    assert record["force_rmse_z_ev_per_angstrom"] == 0.0
    assert record["force_rmse_O_ev_per_angstrom"] == rms(error[:, 3])
    assert record["force_rmse_H_ev_per_angstrom"] == rms(error[:, 1:3])
    assert record["force_rmse_q4_ev_per_angstrom"] == rms(error[150:])
    assert record["force_mae_O_ev_per_angstrom"] == pytest.approx(np.abs(error[:, 3]).mean())
    assert record["force_mae_q1_ev_per_angstrom"] == pytest.approx(np.abs(error[:50]).mean())
    x = teacher[..., 0]
    assert record["force_r2_x"] == pytest.approx(
        1 - (error[..., 0] ** 2).sum() / ((x - x.mean()) ** 2).sum()
    )
    assert record["force_r2_z"] == 1.0
    assert record["force_angle_O_deg"] > 2.0 * record["force_angle_H_deg"] > 0.0
    assert "force_angle_x_deg" not in record  # one component has no direction
    assert record["force_frames"] == 200
    np.testing.assert_allclose(found.rmse_of_frames[12], np.sqrt(np.mean(error[12] ** 2)))


def test_angle_between_forces_is_that_of_the_rotation() -> None:
    rng = np.random.default_rng(7)
    teacher = np.zeros((50, 3, 3))
    teacher[..., :2] = rng.normal(size=(50, 3, 2)) + 3.0
    turned = teacher @ Rotation.from_euler("z", 10.0, degrees=True).as_matrix().T
    found = trajectory_force_errors(turned, teacher, np.array([1, 1, 8]))
    assert found.force_angle_deg == pytest.approx(10.0)


def test_error_of_the_force_error_is_its_scatter() -> None:
    rng = np.random.default_rng(8)
    teacher = np.zeros((60, 5, 3))
    estimates = [
        trajectory_force_errors(
            teacher + 0.1 * rng.normal(size=teacher.shape), teacher, np.full(5, 6)
        )
        for _ in range(100)
    ]
    scatter = np.std([one.force_rmse_ev_per_angstrom for one in estimates])
    claimed = np.mean([one.force_rmse_stderr_ev_per_angstrom for one in estimates])
    assert claimed == pytest.approx(scatter, rel=0.25)


def test_forces_of_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be compared"):
        trajectory_force_errors(np.zeros((5, 3, 3)), np.zeros((4, 3, 3)), np.array([1, 1, 8]))


def test_a_calculator_is_evaluated_on_each_frame(structures) -> None:
    water = structure_of(structures["water"])
    frames = Frames(
        water.atoms.positions + 0.05 * np.random.default_rng(9).normal(size=(3, 3, 3)), None
    )
    energies, forces = evaluate_trajectory(frames, water, EMT())
    for positions, energy, force in zip(frames.positions, energies, forces, strict=True):
        atoms = Atoms(water.atoms.numbers, positions, calculator=EMT())
        assert energy == pytest.approx(atoms.get_potential_energy())
        np.testing.assert_allclose(force, atoms.get_forces())


# --- structure ------------------------------------------------------------------------------------


def test_hydrogen_lost_is_counted_and_ends_the_stable_time() -> None:
    ethanol = structure_of(molecule("CH3CH2OH"))
    frames = np.tile(ethanol.atoms.positions, (40, 1, 1))
    bond = next(b for b in ethanol.topology.bonds if {a.element.symbol for a in b} == {"C", "H"})
    carbon, hydrogen = sorted((a.index for a in bond), key=lambda i: ethanol.atoms.numbers[i] == 1)
    away = ethanol.atoms.positions[hydrogen] - ethanol.atoms.positions[carbon]
    frames[25:, hydrogen] += 2.0 * away / np.linalg.norm(away)
    kept = measure_stability(pieces(Frames(frames, None), 9), ethanol, Path("run"))
    assert (kept.hydrogens_lost, kept.stable_frames, kept.frames) == (1, 25, 40)
    assert kept.hydrogen_distance_angstrom == pytest.approx(np.linalg.norm(away) + 2.0)


@pytest.mark.parametrize("lost", [False, True], ids=["whole", "lost"])
def test_slab_is_periodic_along_its_face_alone(lost: bool) -> None:
    """A molecule across the face is whole; a hydrogen that left for the vacuum has not come round
    to the other side.
    """
    ethanol = molecule("CH3CH2OH", vacuum=4.0)
    ethanol.pbc = (True, True, False)
    cell = ethanol.cell.array
    ethanol.positions[:, :2] -= ethanol.positions[0, :2]  # an atom at the corner
    structure = structure_of(ethanol)
    ethanol.wrap(pbc=(True, True, False))
    assert np.ptp(ethanol.positions[:, 0]) > 0.5 * cell[0, 0]
    frames = np.tile(ethanol.positions, (10, 1, 1))
    if lost:
        frames[5:, -1] += cell[2]
    cells = np.tile(cell, (10, 1, 1))
    kept = measure_stability([Frames(frames, cells)], structure, Path("run"))
    assert (kept.stable_frames, kept.hydrogens_lost) == ((5, 1) if lost else (10, 0))
    assert lost or kept.rmsd_max_angstrom < 2e-3  # single precision in mdtraj.rmsd


def test_atom_without_bonds_that_is_lost_ends_the_stable_time() -> None:
    argon = Atoms("Ar2", positions=[[0, 0, 0], [4, 0, 0]])
    frames = np.tile(argon.positions, (10, 1, 1))
    frames[6:, 1] = np.nan
    kept = measure_stability([Frames(frames, None)], structure_of(argon), Path("run"))
    assert (kept.stable_frames, kept.frames, kept.bonds) == (6, 10, 0)


def test_rmsd_sees_deformation_and_no_rotation() -> None:
    ethanol = structure_of(molecule("CH3CH2OH"))
    start = ethanol.atoms.positions
    turns = Rotation.random(30, rng=np.random.default_rng(10)).as_matrix()
    still = measure_stability([Frames(start @ turns + 5.0, None)], ethanol, Path("run"))
    assert still.rmsd_max_angstrom < 2e-3  # single precision in mdtraj.rmsd
    heavy = ethanol.atoms.numbers > 1
    frames = np.tile(start, (30, 1, 1))
    frames[10] += 0.1 * np.random.default_rng(11).normal(size=start.shape)
    moved = measure_stability([Frames(frames @ turns, None)], ethanol, Path("run"))
    fitted, _ = Rotation.align_vectors(
        *(x[heavy] - x[heavy].mean(axis=0) for x in (start, frames[10]))
    )
    centred = [x[heavy] - x[heavy].mean(axis=0) for x in (frames[10], start)]
    expected = np.sqrt(((fitted.apply(centred[0]) - centred[1]) ** 2).sum(axis=1).mean())
    assert moved.rmsd_max_angstrom == pytest.approx(expected, rel=0.01)


def test_permuted_atoms_are_refused_even_if_only_two_changed_places() -> None:
    ethanol = structure_of(molecule("CH3CH2OH"))
    bonds = {frozenset((a.index, b.index)) for a, b in ethanol.topology.bonds}
    rng = np.random.default_rng(12)
    frames = ethanol.atoms.positions + 0.03 * rng.normal(size=(5, 9, 3))

    def neighbours(i: int) -> set[int]:
        return {j for pair in bonds if i in pair for j in pair if j != i}

    refused = 0
    for i in range(9):
        for j in range(i):
            order = np.arange(9)
            order[[i, j]] = j, i
            swapped = [Frames(frames[:, order], None)]
            # Two hydrogens of one carbon are the same: nothing is wrong after they change places.
            if neighbours(i) == neighbours(j):
                measure_stability(swapped, ethanol, Path("run"))
                continue
            with pytest.raises(InputError, match="in another order"):
                measure_stability(swapped, ethanol, Path("run"))
            refused += 1
    assert refused == 36 - 4  # pairs in a methyl group: 3, in a methylene group: 1


@pytest.mark.parametrize("name", ["water_box", "triclinic"])
def test_molecules_are_made_whole_in_any_cell(structures, name: str) -> None:
    box = structures[name]
    structure = structure_of(box)
    pairs = np.array([(a.index, b.index) for a, b in structure.topology.bonds])
    cell = box.cell.array
    scattered = box.positions @ np.linalg.inv(cell) + 0.37
    wrapped = (scattered % 1.0) @ cell
    assert np.linalg.norm(np.diff(wrapped[pairs], axis=1)[:, 0], axis=1).max() > 3.0
    (whole,) = make_whole(wrapped[None], cell[None], pairs)
    np.testing.assert_allclose(
        np.linalg.norm(np.diff(whole[pairs], axis=1)[:, 0], axis=1),
        [box.get_distance(i, j, mic=True) for i, j in pairs],
    )
    shifts = (whole - wrapped) @ np.linalg.inv(cell)
    np.testing.assert_allclose(shifts, np.round(shifts), atol=1e-9)


def test_every_nth_frame_does_not_depend_on_the_pieces() -> None:
    frames = Frames(np.arange(50.0)[:, None, None] * np.ones((1, 2, 3)), None)
    for size in (1, 7, 50):
        kept = np.concatenate([p.positions[:, 0, 0] for p in every_nth(pieces(frames, size), 7)])
        np.testing.assert_array_equal(kept, np.arange(0, 50, 7))


# --- radial distribution --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell", [np.diag([9.0, 10.0, 11.0]), cellpar_to_cell([10, 11, 9, 70, 80, 105])]
)
def test_ideal_gas_has_g_of_one_beyond_half_the_cell(cell: np.ndarray) -> None:
    structure, frames = gas(60, 400, cell)
    rdf = measure_rdf(pieces(frames), structure, r_max=8.0, bin_width=0.25)
    far = rdf.r > 1.0
    deviation = (rdf.g[0] - 1.0)[far] / rdf.stderr[0, far]
    # Atoms' own images are left out of the count of pairs: 1/60 beyond the cell's edge.
    assert np.abs(rdf.g[0, far] - 1.0).max() < 0.05
    assert np.sqrt(np.mean(deviation[: len(deviation) // 2] ** 2)) < 2.0


def test_first_shell_of_a_crystal_has_twelve_atoms() -> None:
    crystal = bulk("Cu", cubic=True).repeat(3)
    structure = Structure(crystal, make_topology(crystal, []))
    frames = Frames(np.tile(crystal.positions, (2, 1, 1)), np.tile(crystal.cell.array, (2, 1, 1)))
    rdf = measure_rdf([frames], structure, r_max=3.2, bin_width=0.1)
    density = len(crystal) / crystal.get_volume()
    shells = 4 / 3 * np.pi * ((rdf.r + 0.05) ** 3 - (rdf.r - 0.05) ** 3)
    pairs = (len(crystal) - 1) / len(crystal)
    assert (rdf.g[0] * shells).sum() * density * pairs == pytest.approx(12.0)


def test_g_of_r_is_that_of_mdtraj(structures) -> None:
    box = structures["triclinic"]
    structure = structure_of(box)
    rng = np.random.default_rng(13)
    positions = box.positions + 0.1 * rng.normal(size=(20, len(box), 3))
    frames = Frames(positions, np.tile(box.cell.array, (20, 1, 1)))
    rdf = measure_rdf([frames], structure, r_max=3.5, bin_width=0.1)
    reference = mdtraj.Trajectory(positions / 10.0, structure.topology)
    reference.unitcell_vectors = frames.cells / 10.0
    numbers = box.numbers
    pairs = structure.topology.select_pairs("element O", "element O")
    r, g = mdtraj.compute_rdf(reference, pairs, r_range=(0.0, 0.35), bin_width=0.01)
    assert sum(numbers == 8) > 4
    np.testing.assert_allclose(10.0 * r, rdf.r, atol=1e-6)
    # MDTraj counts each frame's pairs in single precision: an edge of a bin may fall elsewhere.
    difference = np.abs(g - rdf.g[rdf.pairs.index("O-O")]).sum() / g.sum()
    assert difference < 0.02


def test_intermolecular_distribution_has_no_bonds(structures) -> None:
    box = structures["water_box"]
    structure = structure_of(box)
    frames = Frames(np.tile(box.positions, (2, 1, 1)), np.tile(box.cell.array, (2, 1, 1)))
    every, between = (
        measure_rdf([frames], structure, r_max=4.0, intermolecular=flag) for flag in (False, True)
    )
    bond = (every.r > 0.8) & (every.r < 1.2)
    pair = every.pairs.index("H-O")
    assert every.g[pair, bond].max() > 5.0
    assert between.g[pair, bond].max() == 0.0
    outer = every.r > 2.0  # of 8 waters, 16 of the 128 pairs are bonds
    np.testing.assert_allclose(every.g[pair, outer], between.g[pair, outer] * 112 / 128)


def test_liquids_are_compared_between_molecules_up_to_half_the_box(structures) -> None:
    """What `analyze` and `validate` measure, so that one threshold judges one quantity."""
    structure = structure_of(structures["water_box"])
    frames = Frames(
        np.tile(structure.atoms.positions, (2, 1, 1)),
        np.tile(structure.atoms.cell.array, (2, 1, 1)),
    )
    rdf = measure_suitable_rdf([frames], structure)
    half = 0.5 * structure.atoms.cell.lengths().min()
    assert half - 0.2 < rdf.r[-1] + 0.1 <= half and rdf.r[1] - rdf.r[0] == pytest.approx(0.2)
    bonded = rdf.r < 1.2  # no hydrogen bond is as short
    assert rdf.g[rdf.pairs.index("H-O"), bonded].max() == 0.0
    water = structure_of(structures["water"])
    positions = np.tile(water.atoms.positions, (2, 1, 1))
    single = measure_suitable_rdf([Frames(positions, None)], water)
    assert single.g[single.pairs.index("H-O"), single.r < 1.2].max() > 0.0


def test_open_molecule_has_a_density_of_distances_of_integral_one() -> None:
    ethanol = structure_of(molecule("CH3CH2OH"))
    frames = Frames(np.tile(ethanol.atoms.positions, (3, 1, 1)), None)
    rdf = measure_rdf([frames], ethanol, r_max=10.0, bin_width=0.05)
    np.testing.assert_allclose(rdf.g.sum(axis=1) * 0.05, 1.0)


def test_pair_that_the_teacher_never_has_is_an_infinite_error() -> None:
    r, flat = 0.1 * np.arange(1, 31), np.ones((4, 2, 30))
    closed = flat * np.array([1.0, 0.0])[None, :, None]  # no N-N within 3 angstrom
    teacher, student = (Rdf(r, ("H-H", "N-N"), g, np.full(4, 0.25)) for g in (closed, flat))
    found = compare_rdf(student, teacher)
    assert found.rdf_error_percent == np.inf and found.rdf_error_pair == "N-N"
    (check,) = judge(found.figures(), {"rdf_error_percent": Threshold(5.0, "%", "")})
    assert not check.passed and check.resolved
    assert compare_rdf(teacher, teacher).rdf_error_percent == 0.0, "neither has it"


@pytest.mark.parametrize("stderr", [None, np.nan])
def test_figure_whose_error_is_not_known_is_not_resolved(stderr) -> None:
    """As of one frame; a figure that has no standard error by its nature is judged without."""
    limits = {"force_rmse_ev_per_angstrom": Threshold(0.2, "eV/angstrom", "")}
    record = {"force_rmse_ev_per_angstrom": 0.1}
    assert judge(figures_of(record), limits)[0].passed
    (check,) = judge(figures_of(record | {"force_rmse_stderr_ev_per_angstrom": stderr}), limits)
    assert not check.passed and not check.resolved and "unknown standard error" in str(check)


def test_mean_of_runs_knows_their_scatter() -> None:
    """Two chains that each stay near a value of their own are no better known than the two."""
    noise = np.random.default_rng(3).normal(size=(2, 1000))
    apart = mean_of_runs([noise[0] - 1.0, noise[1] + 1.0])
    assert apart.value == pytest.approx(0.0, abs=0.1) and apart.stderr == pytest.approx(
        1.0, abs=0.1
    )
    together = mean_of_runs(noise)
    assert together.stderr == pytest.approx(1.0 / np.sqrt(2000), rel=0.6)
    assert mean_of_runs(noise[:1]) == mean_of_blocks(noise[0])


@pytest.mark.parametrize("error", [MemoryError, OSError, MissingDependencyError])
def test_faults_of_the_machine_are_no_models(error) -> None:
    class Starved(EMT):
        def calculate(self, *arguments, **options):
            raise error("not here")

    water = structure_of(molecule("H2O"))
    with pytest.raises(error, match="not here"):
        evaluate_trajectory(Frames(water.atoms.positions[None], None), water, Starved())


def test_rdf_error_is_the_one_put_in_for_the_worst_pair() -> None:
    rng = np.random.default_rng(14)
    r = np.arange(0.05, 10.0, 0.1)
    g = np.array([1.0 - np.exp(-(r**2)), 1.0 + np.sin(r) / r])
    noise = lambda: 1e-4 * rng.normal(size=(8, 2, len(r)))  # noqa: E731
    weights = np.full(8, 1 / 8)
    teacher = Rdf(r, ("C-C", "C-O"), g + noise(), weights)
    student = Rdf(r, ("C-C", "C-O"), g * np.array([[1.03], [0.93]]) + noise(), weights)
    found = compare_rdf(student, teacher)
    assert found.rdf_error_pair == "C-O"
    assert found.rdf_error_percent == pytest.approx(7.0, rel=0.01)
    assert found.by_pair["C-C"] == pytest.approx(3.0, rel=0.01)
    assert 3.0 < found.rdf_mean_error_percent < 7.0
    assert found.rdf_noise_percent < 0.1
    assert found.rdf_error_stderr_percent < 0.1


@pytest.mark.parametrize("width", [0.1, 0.4, 1.2])
def test_noise_is_what_runs_of_one_potential_differ_by(width: float) -> None:
    """Of the student's run a third to four times as noisy as the teacher's, on average."""
    rng = np.random.default_rng(16)
    g, weights = np.ones((1, 40)), np.full(8, 1 / 8)
    errors, noises = [], []
    for _ in range(50):
        runs = [
            Rdf(np.arange(40.0), ("O-O",), g + w * rng.normal(size=(8, 1, 40)), weights)
            for w in (width, 0.3)
        ]
        found = compare_rdf(*runs)
        errors.append(found.rdf_error_percent)
        noises.append(found.rdf_noise_percent)
    assert 0.95 < np.mean(noises) / np.mean(errors) < 1.2


def test_noise_floor_tells_two_runs_of_one_liquid_from_two_liquids() -> None:
    cell = np.diag([10.0, 10.0, 10.0])
    runs = []
    for seed in (1, 2):
        structure, frames = gas(40, 150, cell, seed)
        runs.append(measure_rdf([frames], structure, r_max=5.0, bin_width=0.25))
    same = compare_rdf(*runs)
    assert same.rdf_error_percent < 1.5 * same.rdf_noise_percent
    structure, _ = gas(40, 1, cell)
    lattice = np.stack(np.meshgrid(*[np.arange(4)] * 3), -1).reshape(-1, 3)[:40] * 2.5
    rng = np.random.default_rng(15)
    ordered = Frames(lattice + 0.2 * rng.normal(size=(150, 40, 3)), np.tile(cell, (150, 1, 1)))
    other = compare_rdf(measure_rdf([ordered], structure, r_max=5.0, bin_width=0.25), runs[1])
    assert other.rdf_error_percent > 5 * other.rdf_noise_percent
    assert other.rdf_error_percent - 5 * other.rdf_error_stderr_percent > 5.0


def test_runs_that_cannot_be_compared_are_refused() -> None:
    structure, frames = gas(10, 4, np.eye(3) * 8.0)
    short, long = (measure_rdf([frames], structure, r_max=r) for r in (3.0, 4.0))
    with pytest.raises(InputError, match="differ in elements or distances"):
        compare_rdf(short, long)
    with pytest.raises(InputError, match="two frames"):
        measure_rdf([Frames(frames.positions[:1], frames.cells[:1])], structure)
    frames.positions[2, 1] = np.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        measure_rdf([frames], structure)


# --- transport ------------------------------------------------------------------------------------


def test_density_and_its_drift_are_those_put_in() -> None:
    """Water at 1 g/cm^3 that swells by 2 % in a nanosecond."""
    mass = 100 * 18.01528
    rng = np.random.default_rng(16)
    time = np.linspace(0.0, 1000.0, 2000)
    density = 1.0 - 0.02 * (time - 500.0) / 1000.0 + 0.01 * rng.normal(size=2000)
    volume = mass / 6.02214076e23 * 1e24 / density
    found = measure_density(time, volume, mass)
    assert found.density_g_per_cm3 == pytest.approx(1.0, abs=0.002)
    off = found.density_drift_percent_per_ns + 2.0
    assert abs(off) < 4 * found.density_drift_stderr_percent_per_ns
    assert found.density_drift_stderr_percent_per_ns < 0.3


def random_walk(diffusion: float, frames: int, wrapped: str, frame_ps: float = 0.5):
    """Water molecules that walk, angstrom^2/ps, in a cell, wrapped in one of three ways."""
    cell = cellpar_to_cell([20, 21, 22, 80, 95, 100])
    rng = np.random.default_rng(17)
    count = 64
    water = molecule("H2O")
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3), -1).reshape(-1, 3) / 4.0 @ cell
    atoms = Atoms(cell=cell, pbc=True)
    for corner in grid:
        one = water.copy()
        one.positions += corner - one.positions.mean(0)
        atoms += one
    steps = np.sqrt(2 * diffusion * frame_ps) * rng.normal(size=(frames, count, 3))
    steps[0] = 0.0
    centres = np.cumsum(steps, axis=0)
    positions = atoms.positions + np.repeat(centres, 3, axis=1)
    if wrapped == "atoms":
        positions = (positions @ np.linalg.inv(cell) % 1.0) @ cell
    elif wrapped == "molecules":
        first = np.repeat(positions[:, ::3], 3, axis=1)
        positions -= np.floor(first @ np.linalg.inv(cell)) @ cell
    return structure_of(atoms), Frames(positions, np.tile(cell, (frames, 1, 1))), frame_ps


@pytest.mark.parametrize("wrapped", ["not", "molecules", "atoms"])
def test_diffusion_of_a_random_walk_is_its_own(wrapped: str) -> None:
    structure, frames, frame_ps = random_walk(0.25, 600, wrapped)
    found = measure_diffusion(pieces(frames, 100), structure, frame_ps=frame_ps)
    # Relative to the centre of mass of 64 molecules, each has 1/64 less.
    expected = 0.25e-4 * 63 / 64
    assert abs(found.diffusion_cm2_per_s - expected) < 3 * found.diffusion_stderr_cm2_per_s
    assert 0.01 < found.diffusion_stderr_cm2_per_s / expected < 0.15
    assert found.msd_exponent == pytest.approx(1.0, abs=0.15)


def test_molecules_that_fly_are_told_by_the_exponent() -> None:
    structure, frames, frame_ps = random_walk(0.0, 100, "not")
    velocity = np.random.default_rng(18).normal(size=(64, 3))
    moves = 0.1 * np.arange(100)[:, None, None] * np.repeat(velocity, 3, axis=0)
    flying = Frames(frames.positions + moves, frames.cells)
    assert measure_diffusion([flying], structure, frame_ps=frame_ps).msd_exponent == pytest.approx(
        2
    )


def test_infinite_box_adds_the_drag_of_the_images() -> None:
    """KT = 4.1164e-21 J, 6 pi eta L = 3.3552e-11 kg/s for water of 0.89 mPa s in 2 nm."""
    corrected = infinite_box(2e-5, temperature_K=298.15, viscosity_mpa_s=0.89, edge=20.0)
    assert corrected - 2e-5 == pytest.approx(1e4 * 2.837297 * 4.1164e-21 / 3.3552e-11, rel=1e-3)


def test_short_runs_have_no_diffusion() -> None:
    structure, frames, frame_ps = random_walk(0.1, 20, "not")
    with pytest.raises(InputError, match="20 frames"):
        measure_diffusion([frames], structure, frame_ps=frame_ps)


# --- spectrum -------------------------------------------------------------------------------------

PER_CM = 0.0299792458  # 1/ps


def oscillators(
    wavenumbers: list[float], *, velocities: bool, frame_ps: float = 0.002, frames: int = 20_000
) -> tuple[Structure, Frames]:
    """Free atoms that vibrate with equal energies, one wavenumber an atom, in three directions."""
    rng = np.random.default_rng(19)
    atoms = Atoms(
        f"C{len(wavenumbers)}", positions=4.0 * np.arange(len(wavenumbers))[:, None] * [1, 0, 0]
    )
    omega = 2 * np.pi * PER_CM * np.array(wavenumbers)[:, None]  # 1/ps
    phase = rng.uniform(0, 2 * np.pi, (len(wavenumbers), 3))
    angle = omega * (frame_ps * np.arange(frames))[:, None, None] + phase
    positions = atoms.positions + np.sin(angle) / omega
    return structure_of(atoms), Frames(positions, None, np.cos(angle) if velocities else None)


@pytest.mark.parametrize("velocities", [True, False], ids=["velocities", "positions"])
def test_spectrum_has_the_oscillators_peaks_with_equal_areas(velocities: bool) -> None:
    structure, frames = oscillators([500.0, 1700.0, 3000.0], velocities=velocities)
    spectrum = measure_spectrum(pieces(frames, 3000), structure, frame_ps=0.002)
    nu, power = spectrum.frequency_per_cm, spectrum.power
    for wavenumber in (500.0, 1700.0, 3000.0):
        near = np.abs(nu - wavenumber) < 60.0
        assert nu[near][power[near].argmax()] == pytest.approx(wavenumber, abs=6.0)  # half a bin
        area = power[near].sum() * (nu[1] - nu[0])
        # Differences over 2 fs weaken 3000 1/cm by 3 %, and this is taken out again.
        assert area == pytest.approx(1 / 3, rel=0.01)


def test_shifted_spectrum_is_shifted_by_what_was_put_in() -> None:
    teacher, shifted, far = (
        measure_spectrum([frames], structure, frame_ps=0.002)
        for structure, frames in (
            oscillators([scale * 1000.0, scale * 3000.0], velocities=True)
            for scale in (1.0, 1.02, 1.2)
        )
    )
    same = compare_spectra(teacher, teacher)
    assert same.spectrum_overlap_percent == pytest.approx(100.0)
    assert same.spectrum_shift_per_cm == pytest.approx(0.0, abs=1e-6)
    assert same.spectrum_overlap_noise_percent > 99.0 and same.spectrum_shift_noise_per_cm < 1.0
    assert (same.spectrum_peak_shift_per_cm, same.spectrum_peaks_missing) == (0.0, 0)
    near, gone = (compare_spectra(one, teacher) for one in (shifted, far))
    assert near.spectrum_shift_per_cm == pytest.approx(40.0, abs=2.0)  # of 20 and 60
    assert near.spectrum_peak_shift_per_cm == pytest.approx(40.0, abs=1.0)
    assert (near.spectrum_peaks, near.spectrum_peaks_missing) == (2, 0)
    assert gone.spectrum_overlap_percent < 1.0
    assert gone.spectrum_peaks_missing == 2 and np.isnan(gone.spectrum_peak_shift_per_cm)


def test_vibrations_across_the_cell_are_no_jumps() -> None:
    structure, frames = oscillators([800.0], velocities=False)
    cell = np.eye(3) * 5.0
    periodic = structure._replace(atoms=Atoms(structure.atoms, cell=cell, pbc=True))
    wrapped = Frames((frames.positions + 0.001) % 5.0, np.tile(cell, (len(frames), 1, 1)))
    assert np.ptp(wrapped.positions) > 4.0
    free, boxed = (
        measure_spectrum([f], s, frame_ps=0.002)
        for f, s in ((frames, structure), (wrapped, periodic))
    )
    np.testing.assert_allclose(free.power, boxed.power, atol=1e-9)


def test_frames_that_alias_stretches_are_refused() -> None:
    structure, frames = oscillators([1000.0], velocities=True, frames=100)
    with pytest.raises(InputError, match=r"every 10 fs resolve 1668 1/cm.* a frame every 4 fs"):
        measure_spectrum([frames], structure, frame_ps=0.010)
    with pytest.raises(InputError, match="shorter than the 1668 frames"):
        measure_spectrum([frames], structure, frame_ps=0.002)
