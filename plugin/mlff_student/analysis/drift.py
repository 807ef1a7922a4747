"""Measure how well a run conserved its energy, from its log."""

from dataclasses import dataclass

import numpy as np
from ase import units
from numpy.typing import NDArray

from mlff_student.analysis.blocks import mean_of_blocks
from mlff_student.analysis.thermo import Thermo
from mlff_student.core.errors import InputError
from mlff_student.core.figures import Figure, Measured

FEWEST_BLOCKS = 8  # from fewer blocks, a standard error is itself too uncertain


@dataclass(frozen=True)
class Drift(Measured):
    """How well a run conserved its energy, measured over the whole log.

    E is the total energy and N the number of atoms.

    Attributes
    ----------
    drift_mev_per_atom_ps, drift_stderr_mev_per_atom_ps : float
        Least-squares slope of E/N against time and its standard error (`slope_with_error`),
        meV/atom/ps.
    drift_kt_per_ns_per_dof, drift_stderr_kt_per_ns_per_dof : float
        Least-squares slope of E for each degree of freedom and its standard error, kT/ns, where T
        is the mean temperature.
    heating_percent, heating_stderr_percent : float
        Rise of the temperature that the drift makes over the whole log and its standard error, in
        percent of the mean temperature. It holds where half of the energy is kinetic.
    drift_percent : float
        100 (E_last - E_first) / |E_first|.
    max_drift_percent : float
        100 max |E - E_first| / |E_first|.
    conservation_ratio : float
        Standard deviation of the total energy over that of the kinetic energy.
    exchange_ratio : float
        Standard deviation of the total energy over that of the kinetic energy, both about their
        linear trends. At constant energy it is the error of the integrator. With a thermostat it is
        about one (sqrt(2) in the canonical ensemble of a harmonic system), and infinite if the
        thermostat keeps the kinetic energy constant.
    energy_fluctuation_mev_per_atom : float
        Root mean square deviation of E/N from its linear trend, meV/atom.
    temperature_k, temperature_stderr_k, temperature_std_k : float
        Mean temperature, its standard error from blocks, and the standard deviation of the
        temperature, K.
    nonfinite_rows : int
        Number of rows with a NaN or infinite energy or temperature.
    """

    drift_mev_per_atom_ps: float
    drift_stderr_mev_per_atom_ps: float
    drift_kt_per_ns_per_dof: float
    drift_stderr_kt_per_ns_per_dof: float
    heating_percent: float
    heating_stderr_percent: float
    drift_percent: float
    max_drift_percent: float
    conservation_ratio: float
    exchange_ratio: float
    energy_fluctuation_mev_per_atom: float
    temperature_k: float
    temperature_stderr_k: float
    temperature_std_k: float
    nonfinite_rows: int

    def figures(self) -> list[Figure]:
        """Return all figures: those of the energy, then those that apply to any run."""
        return self.of_energy() + self.of_log()

    def of_energy(self) -> list[Figure]:
        """Return the figures that apply to a run at constant energy only.

        With a thermostat, a change of the energy is heat and no error.
        """
        return [
            Figure(
                "drift",
                self.drift_mev_per_atom_ps,
                "meV/atom/ps",
                self.drift_stderr_mev_per_atom_ps,
            ),
            Figure(
                "drift",
                self.drift_kt_per_ns_per_dof,
                "kT/ns/dof",
                self.drift_stderr_kt_per_ns_per_dof,
            ),
            Figure("heating", self.heating_percent, "% of T", self.heating_stderr_percent),
            Figure("drift", self.drift_percent, "%"),
            Figure("max_drift", self.max_drift_percent, "%"),
            Figure("conservation_ratio", self.conservation_ratio),
            Figure("exchange_ratio", self.exchange_ratio),
            Figure("energy_fluctuation", self.energy_fluctuation_mev_per_atom, "meV/atom"),
        ]

    def of_log(self) -> list[Figure]:
        """Return the figures of the log that apply to any run."""
        return [
            Figure("temperature", self.temperature_k, "K", self.temperature_stderr_k),
            Figure("temperature_std", self.temperature_std_k, "K"),
            Figure("nonfinite_rows", self.nonfinite_rows),
        ]


def fit_drift(thermo: Thermo, atoms: int, *, degrees_of_freedom: int | None = None) -> Drift:
    """Return how well a run conserved its energy. Figures are NaN where the log is not finite.

    Parameters
    ----------
    thermo : Thermo
        Log of the run.
    atoms : int
        Number of atoms.
    degrees_of_freedom : int | None
        Number of degrees of freedom. None: 3 atoms - 3.

    Returns
    -------
    Drift
        Drift, fluctuations and temperature.

    Raises
    ------
    InputError
        If there are no degrees of freedom, or the log has fewer than 8 rows.
    """
    dof = 3 * atoms - 3 if degrees_of_freedom is None else degrees_of_freedom
    if dof <= 0:
        raise InputError(f"{atoms} atom(s) with {dof} degrees of freedom; expected one or more")
    time, energy, kinetic = thermo.time_ps, thermo.total_ev, thermo.kinetic_ev
    with np.errstate(all="ignore"):  # the verdict fails figures that are NaN or infinite
        per_atom = 1e3 * energy / atoms  # meV
        slope, error = slope_with_error(time, per_atom)
        fluctuation = _fluctuation(time, per_atom)
        temperature = mean_of_blocks(thermo.temperature_k)
        kt = units.kB * np.float64(
            temperature.value
        )  # a NumPy number: 1 / 0 is infinite and no error
        kt_per_dof = atoms / dof / kt  # converts meV/atom/ps, which is eV/atom/ns
        percent = 100.0 * 1e-3 * (time[-1] - time[0])  # converts kT/ns/dof
        excursion = 100.0 * (energy - energy[0]) / abs(energy[0])
        figures = (
            slope,
            error,
            slope * kt_per_dof,
            error * kt_per_dof,
            slope * kt_per_dof * percent,
            error * kt_per_dof * percent,
            excursion[-1],
            np.abs(excursion).max(),
            energy.std() / kinetic.std(),
            fluctuation / _fluctuation(time, 1e3 * kinetic / atoms),
            fluctuation,
            *temperature,
            thermo.temperature_k.std(),
        )
    nonfinite = int((~np.isfinite(np.stack(thermo[:5]))).any(0).sum())
    return Drift(*map(float, figures), nonfinite_rows=nonfinite)


def slope_with_error(time: NDArray[np.float64], value: NDArray[np.float64]) -> tuple[float, float]:
    """Return the least-squares slope of a series with correlated noise, and its standard error.

    The standard error is that of a line through block averages (Flyvbjerg and Petersen 1989,
    doi:10.1063/1.457480). Their noise is white if a block of B rows is longer than the correlation
    time. B is doubled until B^3 > 2 n (error_B / error_1)^4 for n rows, where bias and scatter of
    the error are equal (Lee et al. 2011, doi:10.1103/PhysRevE.83.066706). If 8 blocks are reached
    before, the run is only some tens of correlation times long, and the largest of the errors is
    returned, which is a lower bound.

    Parameters
    ----------
    time : NDArray[np.float64]
        Times, (rows,).
    value : NDArray[np.float64]
        Values, (rows,).

    Returns
    -------
    tuple[float, float]
        Slope and standard error, in the unit of the values over that of the times.

    Raises
    ------
    InputError
        If there are fewer than 8 values.
    """
    rows = len(time)
    if rows < FEWEST_BLOCKS:
        raise InputError(f"{rows} values; a trend and its error need {FEWEST_BLOCKS}")
    errors: list[float] = []
    size = 1
    while rows // size >= FEWEST_BLOCKS:
        starts = np.linspace(0, rows, rows // size + 1).astype(int)
        counts = np.diff(starts)
        t, v = (np.add.reduceat(x, starts[:-1]) / counts for x in (time, value))
        slope, error = _line(t, v)
        if size == 1:
            slope_of_rows = slope
        errors.append(error)
        if size**3 * errors[0] ** 4 > 2 * rows * error**4:
            return slope_of_rows, error
        size *= 2
    return slope_of_rows, max(errors)


def _fluctuation(time: NDArray[np.float64], value: NDArray[np.float64]) -> np.float64:
    """Return the root mean square deviation of a series from its linear trend."""
    slope, _ = _line(time, value)
    residual = value - value.mean() - slope * (time - time.mean())
    return np.sqrt(np.mean(residual**2))  # a NumPy number: a ratio to zero is infinite, no error


def _line(t: NDArray[np.float64], v: NDArray[np.float64]) -> tuple[float, float]:
    """Return the least-squares slope of points with white noise, and its standard error."""
    t, v = t - t.mean(), v - v.mean()
    slope = t @ v / (t @ t)
    residual = v - slope * t
    return float(slope), float(np.sqrt(residual @ residual / (len(t) - 2) / (t @ t)))
