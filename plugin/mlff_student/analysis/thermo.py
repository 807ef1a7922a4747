"""Read the log of a run of any supported program into a table with fixed columns and units."""

import csv
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import yaml
from ase import units as ase_units
from numpy.typing import NDArray

from mlff_student.core.errors import InputError
from mlff_student.core.units import KB, KJ_PER_MOL, LAMMPS_UNITS

FEWEST_ROWS = 10  # a shorter log is refused
# The total energy may differ from potential + kinetic + a constant by the larger of two numbers:
# rounding to six digits (a share of the total energy), or a share of the fluctuation of the kinetic
# energy that is too small for a thermostat.
ROUNDING, OF_KINETIC = 2e-6, 0.1

# Field that a column fills, by the column's name in small letters and without its unit.
NAMES = {
    "time": "time_ps",
    "step": "step",
    # OpenMM's StateDataReporter
    "potential energy": "potential_ev",
    "kinetic energy": "kinetic_ev",
    "total energy": "total_ev",
    "temperature": "temperature_k",
    "box volume": "volume_angstrom3",
    "density": "density_g_per_cm3",
    # ASE's MDLogger
    "epot": "potential_ev",
    "ekin": "kinetic_ev",
    "etot": "total_ev",
    "t": "temperature_k",
    # LAMMPS
    "poteng": "potential_ev",
    "kineng": "kinetic_ev",
    "toteng": "total_ev",
    "temp": "temperature_k",
    "volume": "volume_angstrom3",
    "e_pair": "e_pair",
    "e_mol": "e_mol",
}
FACTORS = {
    "": 1.0,
    "ps": 1.0,
    "fs": 1e-3,
    "ns": 1e3,
    "ev": 1.0,
    "kj/mol": KJ_PER_MOL,
    "kj/mole": KJ_PER_MOL,
    "kcal/mol": ase_units.kcal / ase_units.mol,
    "k": 1.0,
    "a^3": 1.0,
    "nm^3": 1e3,
    "g/ml": 1.0,
    "g/cm^3": 1.0,
}
ENERGIES = ("potential_ev", "kinetic_ev", "total_ev", "e_pair", "e_mol")


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
    """

    time_ps: NDArray[np.float64]
    potential_ev: NDArray[np.float64]
    kinetic_ev: NDArray[np.float64]
    total_ev: NDArray[np.float64]
    temperature_k: NDArray[np.float64]
    volume_angstrom3: NDArray[np.float64] | None = None
    density_g_per_cm3: NDArray[np.float64] | None = None
    pressure_gpa: NDArray[np.float64] | None = None


class _Table(NamedTuple):
    """Columns of a log as its program wrote them, in the units of `Thermo`."""

    columns: dict[str, NDArray[np.float64]]
    header: str  # names of all columns in the file
    timestep_ps: float | None


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
    and a log of ASE's MDLogger. If a LAMMPS log has several runs, the last run is read.

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
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no log file {path}")
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        first = file.readline()
        file.seek(0)
        if first.startswith(("LAMMPS (", "---", "keywords:")) or "thermo_style" in first:
            table = _read_lammps(path, file, lammps_units)
        elif first.startswith("Time[ps]"):
            table = _read_ase(path, file)
        else:
            table = _read_csv(path, file)
    if timestep_fs is not None:
        table = table._replace(timestep_ps=1e-3 * timestep_fs)
    return _checked(path, _complete(path, table, degrees_of_freedom))


def _read_csv(path: Path, file: TextIO) -> _Table:
    """Read values separated by commas or tabs, with names and units in the first line."""
    delimiter = "\t" if "\t" in file.readline() else ","
    file.seek(0)
    reader = csv.reader(file, delimiter=delimiter)
    rows = array("d")
    try:
        header = [name.strip().lstrip('#"').rstrip('"') for name in next(reader, [])]
        if not any(_field(name)[0] for name in header):
            raise InputError(
                f"{path} lacks the column(s) time_ps, total_ev, ...; its first line is "
                f"{','.join(header)[:120]!r}. Give a log of mlff-student, OpenMM, LAMMPS or ASE"
            )
        wanted = [index for index, name in enumerate(header) if _field(name)[0]]
        for fields in filter(None, reader):
            if len(fields) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(fields)} fields, expected "
                    f"{len(header)}. If the log was cut off there, delete the line"
                )
            rows.extend(float(fields[index]) for index in wanted)
    except (ValueError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error
    return _table([header[index] for index in wanted], rows, ", ".join(header))


def _read_ase(path: Path, file: TextIO) -> _Table:
    """Read a log of ASE's MDLogger: five columns, then possibly a stress."""
    header = file.readline().split()[:5]
    if any("/N" in name for name in header):
        raise InputError(f"{path} has energies per atom; write the log with peratom=False")
    try:
        rows = array("d")
        for line in filter(str.strip, file):
            fields = line.split()[:5]
            if len(fields) != len(header):
                raise ValueError(f"{len(fields)} fields, expected {len(header)}")
            rows.extend(map(float, fields))
        return _table(header, rows, ", ".join(header))
    except ValueError as error:
        raise InputError(f"{path}: {error}. If the file has two runs, keep one of them") from error


def _read_lammps(path: Path, file: TextIO, style: str | None) -> _Table:
    """Read the last run in a LAMMPS log, or in a file with YAML thermo output."""
    names: list[str] = []
    rows = array("d")
    runs = 0
    timestep: str | None = None
    all_commands = False  # whether the file has all commands, so that a default timestep is known
    for kind, words in _lammps_lines(file):
        match kind:
            case "log":
                all_commands = True
            case "read_restart":
                all_commands = False
            case "units" if style not in (None, words[0]):
                raise InputError(f"{path} is in units {words[0]}, but --units is {style}")
            case "units":
                style = words[0]
            case "timestep":
                timestep = words[0]
            case "names":
                names, rows, runs = words, array("d"), runs + 1
            case "row" if len(words) == len(names):
                rows.extend(map(float, words))
            case "thermo_modify" if {"norm", "yes"} <= set(words):
                raise InputError(f"{path} has energies per atom; use thermo_modify norm no")
    count = len(rows) // max(1, len(names))
    if count < FEWEST_ROWS and runs > 1:
        raise InputError(
            f"{path} has {runs} runs. The last is read; it has {count} rows, and a drift "
            f"needs at least {FEWEST_ROWS}. Delete the runs after the run that you want to analyze"
        )
    if style not in LAMMPS_UNITS:
        raise InputError(
            f"{path}: the units are {style or 'not in the file'}; "
            f"{'they must be' if style else 'give the option --units'} {' or '.join(LAMMPS_UNITS)}"
        )
    energy, time, default_ps = LAMMPS_UNITS[style]
    units = {"time_ps": time, **dict.fromkeys(ENERGIES, energy)}
    full = [f"{name} ({units.get(_field(name)[0], '')})" for name in names]
    timestep_ps = float(timestep) * FACTORS[time] if timestep else default_ps * all_commands or None
    return _table(full, rows, ", ".join(names))._replace(timestep_ps=timestep_ps)


def _lammps_lines(file: TextIO) -> Iterator[tuple[str, list[str]]]:
    """Yield the kind and the words of each useful line of a LAMMPS log or YAML file.

    A kind is a command, whose words are its arguments, "names" (of columns) or "row" in the table
    of a run, or "log" for the first line of a log.
    """
    table = ""  # style of the table that the line is in
    pending: dict[str, str] = {}  # row of thermo_style multi, which takes several lines
    names: list[str] = []
    for line in file:
        words = line.split()
        if not line.endswith("\n") and not line.startswith("..."):
            break  # the last line of a killed run is cut off
        if not words:
            continue
        if line.startswith("LAMMPS ("):
            yield "log", words
        elif words[0] in ("units", "timestep", "read_restart", "thermo_modify"):
            if "$" not in line:  # a line with variables is echoed again with their values
                yield words[0], words[1:]
        elif line.lstrip().startswith(
            ("Unit style", "Time step ")
        ):  # as LAMMPS prints it on the screen
            yield ("units" if words[0] == "Unit" else "timestep"), [words[-1]]
        elif line.startswith("Per MPI rank memory"):
            table = "header"
        elif line.startswith("keywords:"):
            table = "yaml"
            yield "names", list(yaml.safe_load(line)["keywords"])
        elif table == "yaml" and line.startswith("  - ["):
            yield "row", [str(value) for value in yaml.safe_load(line)[0]]
        elif line.startswith(("Loop time", "...")) and table:
            if pending:
                yield "row", list(pending.values())
            table, pending, names = "", {}, []
        elif step := re.match(r"-+ Step\s+(\d+) -+ CPU", line):
            if pending:
                if not names:
                    names = list(pending)
                    yield "names", names
                yield "row", list(pending.values())
            table, pending = "multi", {"Step": step.group(1)}
        elif table == "multi":
            pending |= dict(re.findall(r"(\S+)\s+=\s+(\S+)", line))
        elif table == "header" and not line.startswith("---"):
            table = "rows"
            yield "names", words
        elif table == "rows" and _all_numbers(words):
            yield "row", words
    if pending and names:
        yield "row", list(pending.values())


def _all_numbers(words: list[str]) -> bool:
    try:
        [float(word) for word in words]
    except ValueError:
        return False
    return True


def _field(name: str) -> tuple[str, str]:
    """Return the field that a column of this name fills (empty: none), and the column's unit."""
    if name in Thermo._fields:
        return name, ""
    match = re.fullmatch(r"(.*?)\s*(?:[(\[](.*)[)\]])?", name.strip())
    text, unit = match.groups() if match else (name, "")
    return NAMES.get(text.lower(), ""), (unit or "").lower()


def _table(names: list[str], rows: "array[float]", header: str) -> _Table:
    """Return the columns of rows that follow each other in an array, which needs little memory."""
    values = np.array(rows).reshape(len(rows) // max(1, len(names)), len(names))
    columns = {}
    for name, column in zip(names, values.T, strict=True):
        field, unit = _field(name)
        if field:
            if unit not in FACTORS:
                known = ", ".join(filter(None, FACTORS))
                raise InputError(f"column {name!r}: unknown unit; known units: {known}")
            columns[field] = column * FACTORS[unit]
    return _Table(columns, header, None)


def _complete(path: Path, table: _Table, degrees_of_freedom: int | None) -> Thermo:
    """Return all columns of `Thermo`, computed from those in the table."""
    have = dict(table.columns)
    if "time_ps" not in have and "step" in have and table.timestep_ps:
        have["time_ps"] = have["step"] * table.timestep_ps
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
    if missing := [name for name in Thermo._fields[:5] if name not in have]:
        hint = "give --timestep-fs, or " if missing == ["time_ps"] and "step" in have else ""
        raise InputError(
            f"{path} lacks the column(s) {', '.join(missing)}, which cannot be computed from its "
            f"columns ({table.header[:200]}). To analyze the run, {hint}log time, potential, "
            "kinetic and total energy, and temperature"
        )
    return Thermo(**{name: have[name] for name in Thermo._fields if name in have})


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
