"""Test whether a run samples its ensemble: kinetic energies, equipartition, convergence.

The tests are those of physical_validation (Merz and Shirts 2018, doi:10.1371/journal.pone.0202764).
"""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, fields
from io import StringIO
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mlff_student.analysis.blocks import mean_of_blocks
from mlff_student.analysis.bonds import bond_pairs
from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.core.figures import Figure, Measured
from mlff_student.core.units import KB, KJ_PER_MOL
from mlff_student.structures.checks import connected_fragments
from mlff_student.structures.reading import Structure
from mlff_student.structures.trajectories import Frames

FEWEST_SAMPLES = 20  # independent kinetic energies that a test needs
BLOCKS = (10, 20, 40)  # numbers of blocks whose largest standard error is taken
VELOCITIES_KEPT = 3_000_000  # most velocity components in memory
AMU_ANGSTROM2_PER_PS2 = 1e-2 * KJ_PER_MOL  # 1 amu angstrom^2/ps^2 in eV


@dataclass(frozen=True)
class KineticEnergies(Measured):
    """Kinetic energies of a run with a thermostat, compared with the canonical distribution.

    Attributes
    ----------
    kinetic_samples : int
        Number of independent kinetic energies among the rows (`independent_samples`). It is 0 if
        they are too few to test; the other figures are then NaN, which fails.
    kinetic_mean_percent, kinetic_mean_stderr_percent : float
        Deviation of the mean from that at the thermostat's temperature, and its standard error,
        percent.
    kinetic_width_percent, kinetic_width_stderr_percent : float
        Deviation of the standard deviation from that at the thermostat's temperature, and its
        standard error, percent.
    kinetic_mean_sigma, kinetic_width_sigma : float
        Deviations of mean and standard deviation in standard errors, by physical_validation.
    kinetic_ks_p_value : float
        Probability that a correct run deviates as much, by the Kolmogorov-Smirnov test.
    temperature_from_width_k : float
        Temperature at which the canonical standard deviation is the measured one, K.
    """

    kinetic_samples: int
    kinetic_mean_percent: float
    kinetic_mean_stderr_percent: float
    kinetic_width_percent: float
    kinetic_width_stderr_percent: float
    kinetic_mean_sigma: float
    kinetic_width_sigma: float
    kinetic_ks_p_value: float
    temperature_from_width_k: float

    def figures(self) -> list[Figure]:
        """Return all figures."""
        return [
            Figure("kinetic_samples", self.kinetic_samples),
            Figure(
                "kinetic_mean", self.kinetic_mean_percent, "%", self.kinetic_mean_stderr_percent
            ),
            Figure(
                "kinetic_width", self.kinetic_width_percent, "%", self.kinetic_width_stderr_percent
            ),
            Figure("kinetic_mean", self.kinetic_mean_sigma, "standard errors"),
            Figure("kinetic_width", self.kinetic_width_sigma, "standard errors"),
            Figure("kinetic_ks_p_value", self.kinetic_ks_p_value),
            Figure("temperature_from_width", self.temperature_from_width_k, "K"),
        ]


@dataclass(frozen=True)
class Equipartition(Measured):
    """How the kinetic energy is distributed over elements and kinds of motion.

    Attributes
    ----------
    temperatures_k, temperature_stderrs_k : dict[str, float]
        Temperature of the atoms of each element and its standard error, K.
    equipartition_deviation_percent : float
        Largest deviation of an element's temperature from that of all atoms, percent.
    equipartition_sigma : float | None
        Largest deviation of the temperatures of translation, rotation and internal motion of
        molecules from their mean, in standard errors, by physical_validation. None if there are
        fewer than 20 independent frames.
    """

    temperatures_k: dict[str, float]
    temperature_stderrs_k: dict[str, float]
    equipartition_deviation_percent: float
    equipartition_sigma: float | None

    def figures(self) -> list[Figure]:
        """Return all figures, without `equipartition_sigma` if it is None."""
        figures = [Figure("equipartition_deviation", self.equipartition_deviation_percent, "%")]
        if self.equipartition_sigma is not None:
            figures.append(Figure("equipartition", self.equipartition_sigma, "standard errors"))
        return figures + [
            Figure(f"temperature_{name}", kelvin, "K", self.temperature_stderrs_k[name])
            for name, kelvin in self.temperatures_k.items()
        ]


@dataclass(frozen=True)
class Convergence(Measured):
    """How the fluctuation of the total energy depends on the timestep.

    Attributes
    ----------
    timesteps_fs : tuple[float, ...]
        Timestep of each run, fs.
    fluctuations_mev_per_atom : tuple[float, ...]
        Standard deviation of the total energy of each run from its linear trend, meV/atom.
    convergence_deviation : float
        Largest relative deviation of a ratio of two fluctuations from the ratio of the squared
        timesteps (`physical_validation.integrator.convergence`).
    """

    timesteps_fs: tuple[float, ...]
    fluctuations_mev_per_atom: tuple[float, ...]
    convergence_deviation: float

    def figures(self) -> list[Figure]:
        """Return the deviation, and the fluctuation with each timestep."""
        runs = zip(self.timesteps_fs, self.fluctuations_mev_per_atom, strict=True)
        return [Figure("convergence_deviation", self.convergence_deviation)] + [
            Figure(f"energy_fluctuation_{dt:g}_fs", value, "meV/atom") for dt, value in runs
        ]


def kinetic_energies(
    kinetic_ev: NDArray[np.float64], *, degrees_of_freedom: int, temperature_K: float
) -> KineticEnergies:
    """Compare the kinetic energies of a run with a thermostat with the canonical distribution.

    The test does not apply at constant energy, where the distribution is narrower. The number of
    independent rows comes from block averages, which contain the slow exchange of energy with the
    thermostat. The thinning of physical_validation contains only the fast vibrations, and its
    standard errors for a molecule are five times too small.

    Parameters
    ----------
    kinetic_ev : NDArray[np.float64]
        Kinetic energies, (rows,), eV.
    degrees_of_freedom : int
        Number of degrees of freedom.
    temperature_K : float
        Temperature of the thermostat, K.

    Returns
    -------
    KineticEnergies
        Deviations of mean and standard deviation.

    Raises
    ------
    InputError
        If there are fewer than 20 independent samples, or the energies do not fluctuate.
    MissingDependencyError
        If physical_validation is not installed.
    """
    validation = _library()
    samples = independent_samples(kinetic_ev)
    independent = kinetic_ev[:: -(-len(kinetic_ev) // samples)]
    data = _simulation(
        validation,
        temperature_K,
        observables={"kinetic_energy": independent / KJ_PER_MOL},
        system={
            "natoms": (degrees_of_freedom + 3) // 3,
            "nconstraints": 3 * ((degrees_of_freedom + 3) // 3) - 3 - degrees_of_freedom,
            "ndof_reduction_tra": 3,
            "ndof_reduction_rot": 0,
        },
    )
    test = validation.kinetic_energy.distribution
    with _quiet():
        of_mean, of_width = test(
            data, strict=False, verbosity=0, bootstrap_seed=1, data_is_uncorrelated=True
        )
        p_value = test(data, strict=True, verbosity=0, data_is_uncorrelated=True)
    # Mean and standard deviation of the canonical distribution, eV.
    mean = 0.5 * degrees_of_freedom * KB * temperature_K
    width = np.sqrt(0.5 * degrees_of_freedom) * KB * temperature_K
    return KineticEnergies(
        kinetic_samples=len(independent),
        kinetic_mean_percent=float(100.0 * (kinetic_ev.mean() / mean - 1.0)),
        kinetic_mean_stderr_percent=float(100.0 * kinetic_ev.std() / np.sqrt(samples) / mean),
        kinetic_width_percent=float(100.0 * (kinetic_ev.std() / width - 1.0)),
        kinetic_width_stderr_percent=float(
            100.0 * kinetic_ev.std() / np.sqrt(2.0 * (samples - 1)) / width
        ),
        kinetic_mean_sigma=float(of_mean),
        kinetic_width_sigma=float(of_width),
        kinetic_ks_p_value=float(p_value),
        temperature_from_width_k=float(np.sqrt(2.0 / degrees_of_freedom) * kinetic_ev.std() / KB),
    )


def independent_samples(series: NDArray[np.float64]) -> int:
    """Return how many independent values a series of correlated kinetic energies is worth.

    It is the number of independent values whose mean has the same standard error. The standard
    error is the largest of those from 10, 20 and 40 blocks, because that from a single number of
    blocks is wrong by a quarter.

    Parameters
    ----------
    series : NDArray[np.float64]
        Kinetic energies, (rows,).

    Returns
    -------
    int
        Number of independent values.

    Raises
    ------
    InputError
        If there are fewer than 20, or the values do not fluctuate.
    """
    if not fluctuates(series):
        raise InputError("the kinetic energy is constant, or not finite")
    error = max(mean_of_blocks(series, blocks).stderr for blocks in BLOCKS)
    samples = int(min(len(series), (series.std() / np.float64(error)) ** 2))
    if samples < FEWEST_SAMPLES:
        raise InputError(
            f"the run has {samples} independent kinetic energies; a test of their distribution "
            f"needs {FEWEST_SAMPLES} or more"
        )
    return samples


def fluctuates(series: NDArray[np.float64]) -> bool:
    """Return whether the values of a series are all finite, and not all the same.

    Parameters
    ----------
    series : NDArray[np.float64]
        Values, (rows,).

    Returns
    -------
    bool
        Whether the series fluctuates.
    """
    return bool(0.0 < np.ptp(series) < np.inf)


def unknown_kinetic_energies() -> KineticEnergies:
    """Return figures that fail, for a long run whose kinetic energies cannot be tested.

    The reason is a drift, so that no rows are independent, or kinetic energies that are constant or
    not finite.
    """
    return KineticEnergies(0, *[np.nan] * (len(fields(KineticEnergies)) - 1))


def equipartition(frames: Iterable[Frames], structure: Structure) -> Equipartition:
    """Measure the temperatures of elements, translation, rotation and vibration from velocities.

    The centre of mass of all atoms must be at rest: an atom of mass m then has 3 (1 - m / M)
    degrees of freedom, where M is the mass of all atoms. Long runs are thinned to evenly spaced
    frames. physical_validation receives independent frames only, as in `kinetic_energies`.

    Parameters
    ----------
    frames : Iterable[Frames]
        Parts of a trajectory with velocities, as `stream_frames` yields them.
    structure : Structure
        Structure of the same atoms, with bonds and masses.

    Returns
    -------
    Equipartition
        Temperatures and their deviations.

    Raises
    ------
    InputError
        If the frames have no velocities.
    MissingDependencyError
        If physical_validation is not installed.
    """
    masses = structure.atoms.get_masses()
    positions, velocities = _sample(frames)
    kinetic = 0.5 * AMU_ANGSTROM2_PER_PS2 * masses * (velocities**2).sum(axis=2)  # (F, N)
    total = kinetic.sum(axis=1)
    freedom = 3.0 * (1.0 - masses / masses.sum())
    temperature = total.mean() / (0.5 * KB * freedom.sum())
    numbers = structure.atoms.numbers
    estimates = {
        chemical_symbols[z]: mean_of_blocks(
            kinetic[:, numbers == z].sum(axis=1) / (0.5 * KB * freedom[numbers == z].sum())
        )
        for z in np.unique(numbers)
    }
    return Equipartition(
        temperatures_k={name: kelvin.value for name, kelvin in estimates.items()},
        temperature_stderrs_k={name: kelvin.stderr for name, kelvin in estimates.items()},
        equipartition_deviation_percent=float(
            100.0 * max(abs(kelvin.value / temperature - 1.0) for kelvin in estimates.values())
        ),
        equipartition_sigma=_equipartition_sigma(positions, velocities, total, structure),
    )


def _equipartition_sigma(
    positions: NDArray[np.float64],
    velocities: NDArray[np.float64],
    kinetic_ev: NDArray[np.float64],
    structure: Structure,
) -> float | None:
    """Return `Equipartition.equipartition_sigma` for frames with these kinetic energies (F,)."""
    try:
        stride = -(-len(kinetic_ev) // independent_samples(kinetic_ev))
    except InputError:
        return None
    masses = structure.atoms.get_masses()
    fragment = connected_fragments(len(masses), bond_pairs(structure.topology).tolist())
    contiguous = bool((np.diff(fragment) >= 0).all())
    starts = np.unique(fragment, return_index=True)[1] if contiguous else np.array([0])
    validation = _library()
    data = _simulation(
        validation,
        2.0 * kinetic_ev.mean() / (3 * (len(masses) - 1) * KB),
        system={
            "natoms": len(masses),
            "nconstraints": 0,
            "ndof_reduction_tra": 3,
            "ndof_reduction_rot": 0,
            "mass": masses,
            "molecule_idx": starts,
            "nconstraints_per_molecule": np.zeros(len(starts)),
        },
        trajectory={
            "position": 0.1 * positions[::stride],
            "velocity": 0.1 * velocities[::stride],
        },
    )
    with _quiet():
        deviations = validation.kinetic_energy.equipartition(
            data, verbosity=0, bootstrap_seed=1, data_is_uncorrelated=True
        )
    return float(np.nanmax(np.abs([of_mean for of_mean, _ in deviations])))


def convergence(
    runs: Mapping[float, tuple[NDArray[np.float64], NDArray[np.float64]]], *, atoms: int
) -> Convergence:
    """Test whether the fluctuation of the total energy grows as the square of the timestep.

    It does for a symplectic integrator and a smooth potential.

    Parameters
    ----------
    runs : Mapping[float, tuple[NDArray[np.float64], NDArray[np.float64]]]
        Times in ps and total energies in eV, (rows,) each, of the same run by its timestep in fs.
        There must be two timesteps or more.
    atoms : int
        Number of atoms.

    Returns
    -------
    Convergence
        Fluctuation with each timestep, and the largest deviation.

    Raises
    ------
    InputError
        If there are fewer than two timesteps.
    MissingDependencyError
        If physical_validation is not installed.
    """
    if len(runs) < 2:
        raise InputError(f"a test of convergence needs two or more timesteps, got {len(runs)}")
    validation = _library()
    detrended = {}
    for timestep_fs, (time, total) in sorted(runs.items()):
        slope = np.polyfit(time, total, 1)[0]
        detrended[timestep_fs] = total - slope * (time - time.mean())
    simulations = [
        _simulation(
            validation,
            None,
            observables={"constant_of_motion": total / KJ_PER_MOL},
            dt=1e-3 * timestep_fs,
        )
        for timestep_fs, total in detrended.items()
    ]
    with _quiet():
        deviation = validation.integrator.convergence(simulations)
    return Convergence(
        timesteps_fs=tuple(detrended),
        fluctuations_mev_per_atom=tuple(float(1e3 * e.std() / atoms) for e in detrended.values()),
        convergence_deviation=float(deviation),
    )


def _sample(frames: Iterable[Frames]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return positions and velocities (F, N, 3) of evenly spaced frames, as many as are kept."""
    kept: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    stride, count = 1, 0
    for part in frames:
        if part.velocities is None:
            raise InputError("the trajectory has no velocities, which equipartition needs")
        for frame in zip(part.positions, part.velocities, strict=True):
            if count % stride == 0:
                kept.append(frame)
                if len(kept) * frame[0].size > VELOCITIES_KEPT:
                    kept, stride = kept[::2], 2 * stride
            count += 1
    positions, velocities = zip(*kept, strict=True)
    return np.array(positions), np.array(velocities)


def _library() -> Any:
    logging.getLogger("pymbar").setLevel(logging.ERROR)  # it warns that JAX is not installed
    try:
        import physical_validation
    except ImportError as error:
        raise MissingDependencyError(
            "tests of the ensemble need physical_validation: "
            f"pip install 'mlff-student[validation]' ({error})"
        ) from error
    return physical_validation


def _simulation(
    validation: Any,
    temperature_K: float | None,
    *,
    system: dict[str, Any] | None = None,
    observables: dict[str, Any] | None = None,
    trajectory: dict[str, Any] | None = None,
    dt: float | None = None,
) -> Any:
    """Return a simulation in the form that physical_validation takes: nm, ps, amu, kJ/mol."""
    data = validation.data
    atoms = (system or {}).get("natoms", 1)
    ensemble = (
        {"ensemble": "NVE"}
        if temperature_K is None
        else {"ensemble": "NVT", "temperature": temperature_K}
    )
    units = data.UnitData(
        kb=KB / KJ_PER_MOL,
        energy_conversion=1.0,
        length_conversion=1.0,
        volume_conversion=1.0,
        temperature_conversion=1.0,
        pressure_conversion=1.0,
        time_conversion=1.0,
    )
    return data.SimulationData(
        units=units,
        dt=dt,
        ensemble=data.EnsembleData(natoms=atoms, volume=1.0, energy=0.0, **ensemble),
        system=data.SystemData(**system) if system else None,
        observables=data.ObservableData(**observables) if observables else None,
        trajectory=data.TrajectoryData(**trajectory) if trajectory else None,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings and printed text of physical_validation."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield
