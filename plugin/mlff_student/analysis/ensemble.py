"""Whether a run samples what it should: kinetic energies, equipartition, the integrator's order.

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

FEWEST_SAMPLES = 20
BLOCKS = (10, 20, 40)
VELOCITIES_KEPT = 3_000_000  # numbers
AMU_ANGSTROM2_PER_PS2 = 1e-2 * KJ_PER_MOL  # eV


@dataclass(frozen=True)
class KineticEnergies(Measured):
    """Kinetic energies of a run with a thermostat against the canonical distribution.

    Attributes
    ----------
    kinetic_samples : int
        Independent ones among the rows (`independent_samples`); 0 where they are too few to test,
        and the figures NaN, which fails.
    kinetic_mean_percent, kinetic_width_percent : float
        How far mean and standard deviation are from those at the thermostat's temperature, with
        standard errors.
    kinetic_mean_sigma, kinetic_width_sigma : float
        The same in standard errors, by physical_validation.
    kinetic_ks_p_value : float
        Kolmogorov-Smirnov probability that a right run is as far off.
    temperature_from_width_k : float
        That at which the canonical width is the one found.
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
        """All figures."""
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
    """How the kinetic energy is shared out.

    Attributes
    ----------
    temperatures_k, temperature_stderrs_k : dict[str, float]
        Of each element's atoms.
    equipartition_deviation_percent : float
        Of the element farthest from the mean temperature.
    equipartition_sigma : float | None
        Largest deviation that physical_validation finds between the temperatures of translation,
        rotation and internal motion of molecules and their mean, in standard errors; None of fewer
        than 20 independent frames.
    """

    temperatures_k: dict[str, float]
    temperature_stderrs_k: dict[str, float]
    equipartition_deviation_percent: float
    equipartition_sigma: float | None

    def figures(self) -> list[Figure]:
        """All figures; no `equipartition_sigma` where it is None."""
        figures = [Figure("equipartition_deviation", self.equipartition_deviation_percent, "%")]
        if self.equipartition_sigma is not None:
            figures.append(Figure("equipartition", self.equipartition_sigma, "standard errors"))
        return figures + [
            Figure(f"temperature_{name}", kelvin, "K", self.temperature_stderrs_k[name])
            for name, kelvin in self.temperatures_k.items()
        ]


@dataclass(frozen=True)
class Convergence(Measured):
    """Fluctuation of the total energy by timestep.

    Attributes
    ----------
    timesteps_fs, fluctuations_mev_per_atom : tuple[float, ...]
        Of each run, about its linear trend.
    convergence_deviation : float
        Largest deviation of a ratio of fluctuations from that of dt^2, minus one
        (`physical_validation.integrator.convergence`).
    """

    timesteps_fs: tuple[float, ...]
    fluctuations_mev_per_atom: tuple[float, ...]
    convergence_deviation: float

    def figures(self) -> list[Figure]:
        """The deviation, and the fluctuation with each timestep."""
        runs = zip(self.timesteps_fs, self.fluctuations_mev_per_atom, strict=True)
        return [Figure("convergence_deviation", self.convergence_deviation)] + [
            Figure(f"energy_fluctuation_{dt:g}_fs", value, "meV/atom") for dt, value in runs
        ]


def kinetic_energies(
    kinetic_ev: NDArray[np.float64], *, degrees_of_freedom: int, temperature_K: float
) -> KineticEnergies:
    """Test the kinetic energies (rows,) of a run that a thermostat held at a temperature.

    At constant energy the distribution is a narrower one: the test does not apply. The rows are
    thinned to independent ones by blocks, which see the slow exchange with the thermostat;
    physical_validation's own thinning sees the fast vibrations alone, and its errors of a molecule
    are five times too small.

    Raises
    ------
    InputError
        A run of fewer than 20 independent samples, or energies that do not fluctuate.
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
    mean = 0.5 * degrees_of_freedom * KB * temperature_K  # of the canonical distribution
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
    """Independent ones among correlated values: as many as would give their mean the largest of its
    errors by `BLOCKS` blocks, since one count alone errs by a quarter.

    Raises
    ------
    InputError
        Fewer than 20, or values that do not fluctuate.
    """
    if not fluctuates(series):
        raise InputError("the kinetic energy is constant, or not finite")
    error = max(mean_of_blocks(series, blocks).stderr for blocks in BLOCKS)
    samples = int(min(len(series), (series.std() / np.float64(error)) ** 2))
    if samples < FEWEST_SAMPLES:
        raise InputError(
            f"the run has {samples} independent kinetic energies; their distribution needs "
            f"{FEWEST_SAMPLES}"
        )
    return samples


def fluctuates(series: NDArray[np.float64]) -> bool:
    """Whether all of a series is finite, and not all of it the same."""
    return bool(0.0 < np.ptp(series) < np.inf)


def unknown_kinetic_energies() -> KineticEnergies:
    """Of a run long enough to be tested that cannot be: it drifts, so that no rows of it are
    independent, or its kinetic energies are held, or not finite.
    """
    return KineticEnergies(0, *[np.nan] * (len(fields(KineticEnergies)) - 1))


def equipartition(frames: Iterable[Frames], structure: Structure) -> Equipartition:
    """Temperatures of the elements, and of translation, rotation and vibration, from velocities.

    The centre of mass of all atoms is at rest: an atom of mass m then has 3 (1 - m / M) degrees of
    freedom. Of long runs, every k-th frame is taken; of these, physical_validation is given
    independent ones, as in `kinetic_energies`.

    Raises
    ------
    InputError
        Frames without velocities.
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
        temperatures_k={name: one.value for name, one in estimates.items()},
        temperature_stderrs_k={name: one.stderr for name, one in estimates.items()},
        equipartition_deviation_percent=float(
            100.0 * max(abs(one.value / temperature - 1.0) for one in estimates.values())
        ),
        equipartition_sigma=_equipartition_sigma(positions, velocities, total, structure),
    )


def _equipartition_sigma(
    positions: NDArray[np.float64],
    velocities: NDArray[np.float64],
    kinetic_ev: NDArray[np.float64],
    structure: Structure,
) -> float | None:
    """As of `Equipartition`, of frames with these kinetic energies."""
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
        found = validation.kinetic_energy.equipartition(
            data, verbosity=0, bootstrap_seed=1, data_is_uncorrelated=True
        )
    return float(np.nanmax(np.abs([mean for mean, _ in found])))


def convergence(
    runs: Mapping[float, tuple[NDArray[np.float64], NDArray[np.float64]]], *, atoms: int
) -> Convergence:
    """Whether the total energy fluctuates by dt^2, as that of a symplectic integrator of a smooth
    potential does.

    Parameters
    ----------
    runs : Mapping[float, tuple[NDArray[np.float64], NDArray[np.float64]]]
        Time in ps and total energy in eV of the same run by its timestep in fs, two or more.

    Raises
    ------
    InputError
        Fewer than two timesteps.
    """
    if len(runs) < 2:
        raise InputError(f"{len(runs)} timestep; convergence needs two or more")
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
    """Positions and velocities (F, N, 3) of as many evenly spaced frames as are kept."""
    kept: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    stride, count = 1, 0
    for part in frames:
        if part.velocities is None:
            raise InputError("the trajectory has no velocities; equipartition needs them")
        for frame in zip(part.positions, part.velocities, strict=True):
            if count % stride == 0:
                kept.append(frame)
                if len(kept) * frame[0].size > VELOCITIES_KEPT:
                    kept, stride = kept[::2], 2 * stride
            count += 1
    positions, velocities = zip(*kept, strict=True)
    return np.array(positions), np.array(velocities)


def _library() -> Any:
    logging.getLogger("pymbar").setLevel(logging.ERROR)  # it advertises another package
    try:
        import physical_validation
    except ImportError as error:
        raise MissingDependencyError(
            f"tests of the ensemble need: pip install 'mlff-student[validation]' ({error})"
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
    """A simulation as physical_validation takes it: nm, ps, amu, kJ/mol."""
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
    """Without the warnings and prints of the tests, whose results are returned."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield
