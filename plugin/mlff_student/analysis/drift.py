"""How well a run kept its energy, from its log."""

from dataclasses import dataclass

import numpy as np
from ase import units
from numpy.typing import NDArray

from mlff_student.analysis.blocks import mean_of_blocks
from mlff_student.analysis.thermo import Thermo
from mlff_student.core.errors import InputError
from mlff_student.core.figures import Figure, Measured

FEWEST_BLOCKS = 8  # below, a standard error says nothing about itself


@dataclass(frozen=True)
class Drift(Measured):
    """How well a run kept its energy, of the whole log.

    Attributes
    ----------
    drift_mev_per_atom_ps, drift_stderr_mev_per_atom_ps : float
        Least-squares slope of E(t)/N and its standard error (`slope_with_error`).
    drift_kt_per_ns_per_dof, drift_stderr_kt_per_ns_per_dof : float
        The same for each degree of freedom, with the mean temperature.
    heating_percent, heating_stderr_percent : float
        The same over the whole log, in hundredths of kT: the drift has raised the temperature by so
        much, where half of the energy is kinetic.
    drift_percent : float
        100 (E_last - E_first) / |E_first|.
    max_drift_percent : float
        100 max |E - E_first| / |E_first|.
    conservation_ratio : float
        Standard deviation of the total energy over that of the kinetic energy.
    exchange_ratio : float
        The same about linear trends. Energy that only passes between kinetic and potential leaves
        it at the integrator's error; a thermostat makes it about one (harmonic canonical ensemble:
        sqrt(2)), and infinite where it holds the kinetic energy.
    energy_fluctuation_mev_per_atom : float
        Root mean square of E/N about its linear trend.
    temperature_k, temperature_stderr_k, temperature_std_k : float
        Mean, its standard error by blocks, and standard deviation.
    nonfinite_rows : int
        Rows with a NaN or infinite energy or temperature.
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
        """All figures: of the energy, which tell of a run at constant energy, and of the log."""
        return self.of_energy() + self.of_log()

    def of_energy(self) -> list[Figure]:
        """What tells of constant energy alone; of a run with a thermostat it is heat, no error."""
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
        """What tells of any run."""
        return [
            Figure("temperature", self.temperature_k, "K", self.temperature_stderr_k),
            Figure("temperature_std", self.temperature_std_k, "K"),
            Figure("nonfinite_rows", self.nonfinite_rows),
        ]


def fit_drift(thermo: Thermo, atoms: int, *, degrees_of_freedom: int | None = None) -> Drift:
    """Drift and its companions; NaN where the log is not finite.

    Raises
    ------
    InputError
        No degrees of freedom.
    """
    dof = 3 * atoms - 3 if degrees_of_freedom is None else degrees_of_freedom
    if dof <= 0:
        raise InputError(f"{atoms} atom(s) with {dof} degrees of freedom; expected one or more")
    time, energy, kinetic = thermo.time_ps, thermo.total_ev, thermo.kinetic_ev
    with np.errstate(all="ignore"):  # NaN and infinities are figures here; the verdict fails them
        per_atom = 1e3 * energy / atoms  # meV
        slope, error = slope_with_error(time, per_atom)
        fluctuation = _fluctuation(time, per_atom)
        temperature = mean_of_blocks(thermo.temperature_k)
        kt = units.kB * np.float64(temperature.value)  # whose inverse may be infinite
        kt_per_dof = atoms / dof / kt  # of meV/atom/ps, which is eV/atom/ns
        percent = 100.0 * 1e-3 * (time[-1] - time[0])  # of kT/ns/dof
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
    """Least-squares slope of a series with correlated noise, and the slope's standard error.

    The error is that of a line through block averages (Flyvbjerg and Petersen 1989,
    doi:10.1063/1.457480), whose noise is white once a block of B rows outlasts the correlation. B
    doubles until B^3 > 2 n (error_B / error_1)^4, where bias and scatter of the error balance (Lee
    et al. 2011, doi:10.1103/PhysRevE.83.066706), or 8 blocks are left: then the largest error found
    is returned, a lower bound, since the run is only some tens of correlation times long.

    Raises
    ------
    InputError
        Fewer than 8 values.
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
    """Root mean square of a series about its linear trend."""
    slope, _ = _line(time, value)
    residual = value - value.mean() - slope * (time - time.mean())
    return np.sqrt(np.mean(residual**2))  # that a ratio to none is infinite, and no error


def _line(t: NDArray[np.float64], v: NDArray[np.float64]) -> tuple[float, float]:
    """Least-squares slope of points with white noise, and its standard error."""
    t, v = t - t.mean(), v - v.mean()
    slope = t @ v / (t @ t)
    residual = v - slope * t
    return float(slope), float(np.sqrt(residual @ residual / (len(t) - 2) / (t @ t)))
