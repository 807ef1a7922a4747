"""Read the log of a run of any supported program into arrays with fixed names and units."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlff_student.analysis.joining import JoinedTables, Part, join_tables
from mlff_student.analysis.log_files import read_log
from mlff_student.analysis.log_tables import FACTORS, Log
from mlff_student.core.errors import InputError
from mlff_student.core.units import KB, LAMMPS_UNITS
from mlff_student.structures.trajectories import FrameSteps

FEWEST_ROWS = 10  # a shorter log is refused
# The total energy may differ from potential + kinetic + a constant by the larger of two numbers:
# rounding to six digits (a share of the total energy), or a share of the fluctuation of the kinetic
# energy that is too small for a thermostat.
ROUNDING, OF_KINETIC = 2e-6, 0.1
REQUIRED = ("potential_ev", "kinetic_ev", "total_ev", "temperature_k")


class Thermo(NamedTuple):
    """Content of a log: the value of each quantity in each row.

    Times are finite and increase. The other values may be NaN or infinite.

    Attributes
    ----------
    time_ps : NDArray[np.float64]
        Time, (rows,), ps.
    potential_ev, kinetic_ev, total_ev : NDArray[np.float64]
        Potential, kinetic and total energy, (rows,), eV.
    temperature_k : NDArray[np.float64]
        Temperature, (rows,), K.
    volume_angstrom3 : NDArray[np.float64] | None
        Volume of the box, (rows,), angstrom^3. None if the log has no volume.
    density_g_per_cm3 : NDArray[np.float64] | None
        Density, (rows,), g/cm^3. None if the log has no density.
    pressure_gpa : NDArray[np.float64] | None
        Pressure, (rows,), GPa. It is read from this project's logs only, else None.
    step : NDArray[np.float64] | None
        Timestep, (rows,). None if the log has no timesteps.
    """

    time_ps: NDArray[np.float64]
    potential_ev: NDArray[np.float64]
    kinetic_ev: NDArray[np.float64]
    total_ev: NDArray[np.float64]
    temperature_k: NDArray[np.float64]
    volume_angstrom3: NDArray[np.float64] | None = None
    density_g_per_cm3: NDArray[np.float64] | None = None
    pressure_gpa: NDArray[np.float64] | None = None
    step: NDArray[np.float64] | None = None


def read_thermo(
    path: Path,
    *,
    degrees_of_freedom: int | None = None,
    lammps_units: str | None = None,
    timestep_fs: float | None = None,
) -> Thermo:
    """Read the log of a run.

    Supported are this project's run.csv, a CSV file of OpenMM's StateDataReporter, a LAMMPS log
    (thermo_style one, multi, custom or yaml), a file with the YAML thermo output of LAMMPS only,
    and a log of ASE's MDLogger. The tables of a LAMMPS log are joined where their timesteps
    continue; minimisations are left out. If the timesteps begin anew, the last run is read;
    `analyze` chooses the run by the timesteps of the trajectory.

    Missing columns are computed from others. A potential, kinetic or total energy follows from the
    other two. Temperature and kinetic energy follow from each other by the number of degrees of
    freedom. Time follows from steps and the timestep. The total energy is never computed from a
    temperature, because a wrong number of degrees of freedom would then make it drift.

    Parameters
    ----------
    path : Path
        Log file.
    degrees_of_freedom : int | None
        Number of degrees of freedom. It is needed if temperature or kinetic energy is missing.
    lammps_units : str | None
        Unit style of LAMMPS, "metal" or "real". It is needed if a LAMMPS file does not have it.
    timestep_fs : float | None
        Timestep, fs. It is needed if the log has only steps and no timestep.

    Returns
    -------
    Thermo
        Values of each row.

    Raises
    ------
    InputError
        If there is no such file, a column is missing, a field is not a number, there are fewer than
        10 rows, time does not increase, or the total energy is not potential + kinetic. NaN and
        infinite energies are results, not errors.
    """
    log = read_log(path, lammps_units=lammps_units)
    return thermo_of(
        log,
        join_tables(log)[-1],
        degrees_of_freedom=degrees_of_freedom,
        timestep_fs=timestep_fs,
    )


def thermo_of(
    log: Log,
    run: JoinedTables,
    *,
    degrees_of_freedom: int | None = None,
    timestep_fs: float | None = None,
    steps: FrameSteps | None = None,
) -> Thermo:
    """Return the energies, temperatures and times of a run in a log.

    Parameters
    ----------
    log : Log
        Log that has the tables.
    run : JoinedTables
        Tables of the run.
    degrees_of_freedom, timestep_fs : int | None, float | None
        As in `read_thermo`.
    steps : FrameSteps | None
        Timesteps of the trajectory. Where it has times, they give those of a log without times.

    Returns
    -------
    Thermo
        Values of each row.

    Raises
    ------
    InputError
        As in `read_thermo`.
    """
    tables = [_complete(log.path, part, degrees_of_freedom) for part in run.parts]
    have = {
        name: np.concatenate([table[name] for table in tables])
        for name in tables[0]
        if all(name in table for table in tables)
    }
    if "time_ps" not in have:
        time = _times(log, run, timestep_fs, steps)
        if time is not None:
            have["time_ps"] = time
    if missing := [name for name in ("time_ps", *REQUIRED) if name not in have]:
        headers = "; ".join(dict.fromkeys(part.table.header for part in run.parts))
        hint = "give --timestep-fs, or " if missing == ["time_ps"] and "step" in have else ""
        raise InputError(
            f"{log.path} lacks the column(s) {', '.join(missing)}, which cannot be computed from "
            f"its columns ({headers[:200]}). To analyze the run, {hint}log time, potential, "
            "kinetic and total energy, and temperature"
        )
    return _checked(
        log.path, Thermo(**{name: have[name] for name in Thermo._fields if name in have})
    )


def _times(
    log: Log, run: JoinedTables, timestep_fs: float | None, steps: FrameSteps | None
) -> NDArray[np.float64] | None:
    """Return the time of each row by its timestep, ps; None if that is not known."""
    if not all("step" in part.table.columns for part in run.parts):
        return None
    clock = run.clock()
    if steps is not None and steps.time is not None:
        chosen = slice(None) if run.chosen_frames is None else run.chosen_frames
        unit = FACTORS[LAMMPS_UNITS[log.lammps_units][1]]
        known_steps, known_times = steps.steps[chosen].astype(float), steps.time[chosen] * unit
        if len(known_steps) > 1:
            return interpolated(clock, known_steps, known_times)
    if any(part.table.varying_timestep for part in run.parts):
        raise InputError(
            f"{log.path}: fix dt/reset changed the timestep during the run, and the log has no "
            "time. Add the keyword time to thermo_style custom, or write the times into the dump "
            "(dump_modify ID time yes)"
        )
    timesteps: list[float | None] = [part.table.timestep_ps for part in run.parts]
    if timestep_fs is not None:
        told = 1e-3 * timestep_fs
        for known in timesteps:
            if known is not None and abs(known / told - 1.0) > 1e-6:
                raise InputError(
                    f"{log.path} has a timestep of {1e3 * known:g} fs, but --timestep-fs is "
                    f"{timestep_fs:g}"
                )
        timesteps = [told] * len(timesteps)
    for index, known in enumerate(timesteps[:-1]):  # a restart keeps the timestep
        timesteps[index + 1] = timesteps[index + 1] or known
    if None in timesteps:
        return None
    lengths = [part.stop - part.start for part in run.parts]
    timestep = np.repeat(np.array(timesteps, np.float64), lengths)  # of each row
    if (timestep == timestep[0]).all():
        return clock * timestep[0]
    return clock[0] * timestep[0] + np.append(0.0, np.cumsum(np.diff(clock) * timestep[1:]))


def interpolated(
    x: NDArray[np.float64], known_x: NDArray[np.float64], known_y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Interpolate linearly, and extrapolate by the first and the last interval.

    Parameters
    ----------
    x : NDArray[np.float64]
        (M,), where values are wanted.
    known_x, known_y : NDArray[np.float64]
        (K,), known values, K > 1. `known_x` increases.

    Returns
    -------
    NDArray[np.float64]
        (M,), values at `x`.
    """
    right = np.clip(np.searchsorted(known_x, x), 1, len(known_x) - 1)
    left = right - 1
    share = (x - known_x[left]) / (known_x[right] - known_x[left])
    return known_y[left] + share * (known_y[right] - known_y[left])


def _complete(
    path: Path, part: Part, degrees_of_freedom: int | None
) -> dict[str, NDArray[np.float64]]:
    """Return the columns of a table, and energies and temperature that follow from them."""
    if part.table.per_atom:
        raise InputError(f"{path} has energies per atom; use thermo_modify norm no")
    have = {name: part.column(name) for name in part.table.columns}
    if "e_pair" in have and "potential_ev" not in have:
        have["potential_ev"] = have["e_pair"] + have.get("e_mol", 0.0)
    potential, kinetic, total = (
        have.get(f"{kind}_ev") for kind in ("potential", "kinetic", "total")
    )
    if total is not None and potential is not None and kinetic is not None:
        _check_sum(path, potential, kinetic, total)
    elif total is None and potential is not None and kinetic is not None:
        have["total_ev"] = potential + kinetic
    elif potential is None and total is not None and kinetic is not None:
        have["potential_ev"] = total - kinetic
    elif kinetic is None and total is not None and potential is not None:
        have["kinetic_ev"] = total - potential
    if degrees_of_freedom:
        kt_of_kinetic = 2.0 / (degrees_of_freedom * KB)
        if "temperature_k" not in have and "kinetic_ev" in have:
            have["temperature_k"] = have["kinetic_ev"] * kt_of_kinetic
        if "kinetic_ev" not in have and {"total_ev", "temperature_k"} <= set(have):
            have["kinetic_ev"] = have["temperature_k"] / kt_of_kinetic
            have["potential_ev"] = have["total_ev"] - have["kinetic_ev"]
    return have


def _check_sum(
    path: Path,
    potential: NDArray[np.float64],
    kinetic: NDArray[np.float64],
    total: NDArray[np.float64],
) -> None:
    """Refuse a total energy that is not potential + kinetic + a constant."""
    off = total - potential - kinetic
    finite = np.isfinite(off)
    if not finite.any():
        return
    allowed = max(OF_KINETIC * kinetic[finite].std(), ROUNDING * np.abs(total[finite]).mean())
    if (deviation := float(off[finite].std())) > allowed:
        raise InputError(
            f"{path}: the total energy differs from potential + kinetic by {deviation:.3g} eV "
            "(root mean square about a constant). It may be the conserved quantity of a "
            "thermostat, or rounded: delete the column, or log it with more digits"
        )


def _checked(path: Path, thermo: Thermo) -> Thermo:
    """Return the log if it is long enough and its time increases."""
    if len(thermo.time_ps) < FEWEST_ROWS:
        raise InputError(
            f"{path} has {len(thermo.time_ps)} rows; a drift needs at least {FEWEST_ROWS}"
        )
    increasing = np.isfinite(thermo.time_ps[1:]) & (np.diff(thermo.time_ps) > 0)
    if not increasing.all():
        row = int(increasing.argmin())
        raise InputError(
            f"{path}: time_ps goes from {thermo.time_ps[row]} to {thermo.time_ps[row + 1]} in row "
            f"{row + 2}; it must increase. If the file has two runs, keep one of them"
        )
    return thermo
