"""The log of a run, whichever program wrote it, as one table with the same columns and units."""

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

FEWEST_ROWS = 10  # of a log
# How far a total energy may be from potential + kinetic, about a constant: rounding of six digits,
# or so little of the kinetic energy's fluctuation that it is no exchange of energy.
ROUNDING, OF_KINETIC = 2e-6, 0.1

# Name of a column, in small letters and without its unit, to the field that it fills.
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
    """Log of a run, each (rows,) float64, or None where the log has no such column. Time is finite
    and increases; the rest may be NaN.
    """

    time_ps: NDArray[np.float64]
    potential_ev: NDArray[np.float64]
    kinetic_ev: NDArray[np.float64]
    total_ev: NDArray[np.float64]
    temperature_k: NDArray[np.float64]
    volume_angstrom3: NDArray[np.float64] | None = None
    density_g_per_cm3: NDArray[np.float64] | None = None
    pressure_gpa: NDArray[np.float64] | None = None  # of this project's logs alone


class _Table(NamedTuple):
    """A log as its program wrote it, in our units."""

    columns: dict[str, NDArray[np.float64]]
    seen: str  # names of all columns in the file
    timestep_ps: float | None


def read_thermo(
    path: Path,
    *,
    degrees_of_freedom: int | None = None,
    lammps_units: str | None = None,
    timestep_fs: float | None = None,
) -> Thermo:
    """Log of a run: this project's run.csv, a CSV of OpenMM's StateDataReporter, a LAMMPS log
    (thermo_style one, multi, custom or yaml) or the YAML thermo output by itself, or a log of
    ASE's MDLogger.

    Columns may be any subset that the others follow from: total, kinetic and potential energy from
    two of them; temperature and kinetic energy from each other by the degrees of freedom (never the
    total energy, which a wrong number of them would make drift); time from steps and the timestep.
    Of a LAMMPS log with several runs, the last is read.

    Parameters
    ----------
    degrees_of_freedom : int | None
        Of the run; needed where temperature or kinetic energy is missing.
    lammps_units : str | None
        "metal" or "real", where a LAMMPS file does not say.
    timestep_fs : float | None
        Where the log has steps only and does not say.

    Raises
    ------
    InputError
        No such file, missing columns, a field that is not a number, fewer than 10 rows, time that
        does not increase, or a total energy that is not potential + kinetic. NaN and infinite
        energies are results, not errors.
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
    """Comma or tab separated values with names and units in the first line."""
    delimiter = "\t" if "\t" in file.readline() else ","
    file.seek(0)
    reader = csv.reader(file, delimiter=delimiter)
    rows = array("d")
    try:
        header = [name.strip().lstrip('#"').rstrip('"') for name in next(reader, [])]
        if not any(_field(name)[0] for name in header):
            raise InputError(
                f"{path} lacks the column(s) time_ps, total_ev, ...; its first line is "
                f"{','.join(header)[:120]!r}. Expected a log of mlff-student, OpenMM, LAMMPS or ASE"
            )
        wanted = [index for index, name in enumerate(header) if _field(name)[0]]
        for fields in filter(None, reader):
            if len(fields) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(fields)} fields, expected "
                    f"{len(header)}. Was the log cut off? Delete the line"
                )
            rows.extend(float(fields[index]) for index in wanted)
    except (ValueError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error
    return _table([header[index] for index in wanted], rows, ", ".join(header))


def _read_ase(path: Path, file: TextIO) -> _Table:
    """Log of ASE's MDLogger: five columns, then perhaps a stress."""
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
        raise InputError(f"{path}: {error}. Are these two runs in one file?") from error


def _read_lammps(path: Path, file: TextIO, style: str | None) -> _Table:
    """Last run in a LAMMPS log, or in YAML thermo output by itself."""
    names: list[str] = []
    rows = array("d")
    runs = 0
    timestep: str | None = None
    may_default = False  # of the timestep: where all commands of the run are in the file
    for what, words in _lammps_lines(file):
        match what:
            case "log":
                may_default = True
            case "read_restart":
                may_default = False
            case "units" if style not in (None, words[0]):
                raise InputError(f"{path} is in units {words[0]}, {style} was asked for")
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
            f"{path} has {runs} runs, of which the last is read: it has {count} rows, a drift "
            f"needs at least {FEWEST_ROWS}. Delete the runs after the one that is meant"
        )
    if style not in LAMMPS_UNITS:
        raise InputError(
            f"{path}: units {style or 'are not in the file'}; expected {' or '.join(LAMMPS_UNITS)}"
            + ("" if style else ", given by the option --units")
        )
    energy, time, default_ps = LAMMPS_UNITS[style]
    units = {"time_ps": time, **dict.fromkeys(ENERGIES, energy)}
    full = [f"{name} ({units.get(_field(name)[0], '')})" for name in names]
    timestep_ps = float(timestep) * FACTORS[time] if timestep else default_ps * may_default or None
    return _table(full, rows, ", ".join(names))._replace(timestep_ps=timestep_ps)


def _lammps_lines(file: TextIO) -> Iterator[tuple[str, list[str]]]:
    """What a LAMMPS log or YAML file says: commands with their arguments, and "names" (of columns)
    and "row" of the tables of its runs.
    """
    table = ""  # style of the table that the line is in
    pending: dict[str, str] = {}  # row of style multi, which takes several lines
    names: list[str] = []
    for line in file:
        words = line.split()
        if not line.endswith("\n") and not line.startswith("..."):
            break  # half a line of a killed run
        if not words:
            continue
        if line.startswith("LAMMPS ("):
            yield "log", words
        elif words[0] in ("units", "timestep", "read_restart", "thermo_modify"):
            if "$" not in line:  # else the line is echoed again with its variables' values
                yield words[0], words[1:]
        elif line.lstrip().startswith(("Unit style", "Time step ")):  # on the screen
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
    """Field that a column fills (empty if none) and its unit, by its name in a log."""
    if name in Thermo._fields:
        return name, ""
    match = re.fullmatch(r"(.*?)\s*(?:[(\[](.*)[)\]])?", name.strip())
    text, unit = match.groups() if match else (name, "")
    return NAMES.get(text.lower(), ""), (unit or "").lower()


def _table(names: list[str], rows: "array[float]", seen: str) -> _Table:
    """Of rows one after another, as small as they can be kept: logs have millions."""
    values = np.array(rows).reshape(len(rows) // max(1, len(names)), len(names))
    columns = {}
    for name, column in zip(names, values.T, strict=True):
        field, unit = _field(name)
        if field:
            if unit not in FACTORS:
                raise InputError(f"column {name!r}: unknown unit; known: {', '.join(FACTORS)}")
            columns[field] = column * FACTORS[unit]
    return _Table(columns, seen, None)


def _complete(path: Path, table: _Table, degrees_of_freedom: int | None) -> Thermo:
    """All columns of `Thermo`, from those that are there."""
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
        hint = "; or say --timestep-fs" if missing == ["time_ps"] and "step" in have else ""
        raise InputError(
            f"{path} lacks the column(s) {', '.join(missing)}, which do not follow from what it "
            f"has ({table.seen[:200]}){hint}. Log time, potential, kinetic and total energy and "
            "temperature"
        )
    return Thermo(**{name: have[name] for name in Thermo._fields if name in have})


def _check_sum(
    path: Path,
    potential: NDArray[np.float64],
    kinetic: NDArray[np.float64],
    total: NDArray[np.float64],
) -> None:
    """Refuse a total energy that does not follow potential + kinetic, but for a constant."""
    off = total - potential - kinetic
    finite = np.isfinite(off)
    if not finite.any():
        return
    allowed = max(OF_KINETIC * kinetic[finite].std(), ROUNDING * np.abs(total[finite]).mean())
    if (found := float(off[finite].std())) > allowed:
        raise InputError(
            f"{path}: the total energy is {found:.3g} eV off potential + kinetic, root mean square "
            "about a constant. Is it a thermostat's conserved quantity, or rounded? Delete the "
            "column, or log it with more digits"
        )


def _checked(path: Path, thermo: Thermo) -> Thermo:
    """`thermo`, if it is long enough and its time increases."""
    if len(thermo.time_ps) < FEWEST_ROWS:
        raise InputError(
            f"{path} has {len(thermo.time_ps)} rows; a drift needs at least {FEWEST_ROWS}"
        )
    increasing = np.isfinite(thermo.time_ps[1:]) & (np.diff(thermo.time_ps) > 0)
    if not increasing.all():
        row = int(increasing.argmin())
        raise InputError(
            f"{path}: time_ps goes from {thermo.time_ps[row]} to {thermo.time_ps[row + 1]} in row "
            f"{row + 2}; it must increase. Are these two runs in one file?"
        )
    return thermo
