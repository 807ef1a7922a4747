"""How well a run kept its energy, from its log."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import units
from numpy.typing import NDArray

from ..errors import InputError

FEWEST_ROWS = 10  # of a log
FEWEST_BLOCKS = 8  # below, a standard error says nothing about itself


class Thermo(NamedTuple):
    """Log of a run, each (rows,) float64. Time is finite and increases; energies may be NaN."""

    time_ps: NDArray[np.float64]
    potential_ev: NDArray[np.float64]
    kinetic_ev: NDArray[np.float64]
    total_ev: NDArray[np.float64]
    temperature_k: NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """How well a run kept its energy, of the whole log.

    Attributes
    ----------
    drift_mev_per_atom_ps, drift_stderr_mev_per_atom_ps : least-squares slope of E(t)/N and its
        standard error (`slope_with_error`).
    drift_kt_per_ns_per_dof, drift_stderr_kt_per_ns_per_dof : the same for each degree of freedom,
        with the mean temperature.
    drift_percent : 100 (E_last - E_first) / |E_first|.
    max_drift_percent : 100 max |E - E_first| / |E_first|.
    conservation_ratio : standard deviation of the total energy over that of the kinetic energy.
    energy_fluctuation_mev_per_atom : root mean square of E/N about its linear trend.
    temperature_k, temperature_std_k : mean and standard deviation.
    nonfinite_rows : rows with a NaN or infinite energy or temperature.
    """

    drift_mev_per_atom_ps: float
    drift_stderr_mev_per_atom_ps: float
    drift_kt_per_ns_per_dof: float
    drift_stderr_kt_per_ns_per_dof: float
    drift_percent: float
    max_drift_percent: float
    conservation_ratio: float
    energy_fluctuation_mev_per_atom: float
    temperature_k: float
    temperature_std_k: float
    nonfinite_rows: int


def read_thermo(path: Path) -> Thermo:
    """Log of a run: CSV with the columns of `Thermo` by name, in any order, others ignored.

    Raises
    ------
    InputError : no such file, missing columns, a field that is not a number, fewer than 10 rows, or
        time that does not increase. NaN and infinite energies are results, not errors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no log file {path}")
    rows: list[list[float]] = []
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.reader(file)
        try:
            header = [name.strip() for name in next(reader, [])]
            if missing := [name for name in Thermo._fields if name not in header]:
                raise InputError(
                    f"{path} lacks the column(s) {', '.join(missing)}; its first line is "
                    f"{','.join(header)[:120]!r}, expected {','.join(Thermo._fields)}"
                )
            columns = [header.index(name) for name in Thermo._fields]
            for fields in filter(None, reader):
                if len(fields) != len(header):
                    raise InputError(
                        f"{path}, line {reader.line_num}: {len(fields)} fields, expected "
                        f"{len(header)}. Was the log cut off? Delete the line"
                    )
                rows.append([float(fields[column]) for column in columns])
        except (ValueError, csv.Error) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}, line {reader.line_num}: {error}") from error
    if len(rows) < FEWEST_ROWS:
        raise InputError(f"{path} has {len(rows)} rows; a drift needs at least {FEWEST_ROWS}")
    thermo = Thermo(*np.array(rows).T)
    increasing = np.isfinite(thermo.time_ps[1:]) & (np.diff(thermo.time_ps) > 0)
    if not increasing.all():
        row = int(increasing.argmin())
        raise InputError(
            f"{path}: time_ps goes from {thermo.time_ps[row]} to {thermo.time_ps[row + 1]} in row "
            f"{row + 2}; it must increase. Are these two runs in one file?"
        )
    return thermo


def fit_drift(thermo: Thermo, atoms: int, *, degrees_of_freedom: int | None = None) -> Drift:
    """Drift and its companions; NaN where the log is not finite.

    Raises
    ------
    InputError : no degrees of freedom.
    """
    dof = 3 * atoms - 3 if degrees_of_freedom is None else degrees_of_freedom
    if dof <= 0:
        raise InputError(f"{atoms} atom(s) with {dof} degrees of freedom; expected one or more")
    time, energy, kinetic = thermo.time_ps, thermo.total_ev, thermo.kinetic_ev
    with np.errstate(all="ignore"):  # NaN and infinities are figures here; the verdict fails them
        per_atom = 1e3 * energy / atoms  # meV
        slope, error = slope_with_error(time, per_atom)
        residual = per_atom - per_atom.mean() - slope * (time - time.mean())
        temperature = thermo.temperature_k.mean()
        kt_per_dof = atoms / dof / (units.kB * temperature)  # of meV/atom/ps, which is eV/atom/ns
        excursion = 100.0 * (energy - energy[0]) / abs(energy[0])
        figures = (
            slope,
            error,
            slope * kt_per_dof,
            error * kt_per_dof,
            excursion[-1],
            np.abs(excursion).max(),
            energy.std() / kinetic.std(),
            np.sqrt(np.mean(residual**2)),
            temperature,
            thermo.temperature_k.std(),
        )
    nonfinite = int((~np.isfinite(np.stack(thermo))).any(0).sum())
    return Drift(*map(float, figures), nonfinite_rows=nonfinite)


def slope_with_error(time: NDArray[np.float64], value: NDArray[np.float64]) -> tuple[float, float]:
    """Least-squares slope of a series with correlated noise, and the slope's standard error.

    The error is that of a line through block averages (Flyvbjerg and Petersen 1989,
    doi:10.1063/1.457480), whose noise is white once a block of B rows outlasts the correlation. B
    doubles until B^3 > 2 n (error_B / error_1)^4, where bias and scatter of the error balance (Lee
    et al. 2011, doi:10.1103/PhysRevE.83.066706), or 8 blocks are left: then the largest error found
    is returned, a lower bound, since the run is only some tens of correlation times long.
    """
    rows = len(time)
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
        if size**3 > 2 * rows * (error / errors[0]) ** 4:
            return slope_of_rows, error
        size *= 2
    return slope_of_rows, max(errors)


def _line(t: NDArray[np.float64], v: NDArray[np.float64]) -> tuple[float, float]:
    """Least-squares slope of points with white noise, and its standard error."""
    t, v = t - t.mean(), v - v.mean()
    slope = t @ v / (t @ t)
    residual = v - slope * t
    return float(slope), float(np.sqrt(residual @ residual / (len(t) - 2) / (t @ t)))
