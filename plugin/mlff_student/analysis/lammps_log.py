"""Read the tables of a LAMMPS log, of what LAMMPS prints on the screen, or of its YAML output."""

import re
import shlex
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mlff_student.analysis.log_tables import ENERGIES, FACTORS, Log, LogTable, columns_of, field_of
from mlff_student.core.errors import InputError
from mlff_student.core.units import LAMMPS_UNITS

# Keywords of the columns of thermo_style one, which thermo_modify colname can number.
STYLE_ONE = ["step", "temp", "epair", "emol", "etotal", "press"]
# First part of the style of fixes that integrate, thermostat or change the pressure.
INTEGRATORS = {"nve", "nvt", "npt", "nph", "nvk", "langevin", "temp", "press", "rigid", "deform"}
PERFORMANCE = re.compile(r"Performance: (\S+) ns/day, \S+ hours/ns, (\S+) timesteps/s")
STYLES = {"lj", "real", "metal", "si", "cgs", "electron", "micro", "nano"}  # of the command units
# What shows that a file is a log of LAMMPS; only the first stands at its begin in each log.
MARKS = re.compile(
    r"LAMMPS \(|Per MPI rank memory|Memory usage per processor|keywords:|-+ Step\s|Loop time of "
    r"|(thermo_style|thermo|pair_style|units|dump|run|minimize|log)\s+[\w./*]+|Unit style\s+:"
    r"|\s*Step\s.*\b(PotEng|KinEng|TotEng|E_pair|Temp)\s"
)


def is_lammps(line: str) -> bool:
    """Return whether a line shows that its file is a log of LAMMPS."""
    return MARKS.match(line) is not None


def read_lammps(
    path: Path, lines: Iterable[str], units: str | None, units_of_dump: str = ""
) -> Log:
    """Read all tables of a log of LAMMPS.

    Parameters
    ----------
    path : Path
        File, for error messages.
    lines : Iterable[str]
        Lines of the file.
    units : str or None
        Unit style that the user says, "metal" or "real".
    units_of_dump : str
        Unit style in the dump of the run, for a log that does not have it.

    Returns
    -------
    Log
        Tables; those without rows are left out.

    Raises
    ------
    InputError
        The units are not known, or not those that the user says.
    """
    reader = _Reader(path, units)
    for line in lines:
        if not line.endswith("\n") and not line.startswith("..."):
            break  # the last line of a killed run is cut off
        try:
            reader.read(line)
        except InputError:
            raise
        except (IndexError, ValueError) as error:
            raise InputError(
                f"{path}: cannot read the line {line.strip()[:80]!r}: {error}"
            ) from error
    reader.end_table()
    style = reader.units or units_of_dump
    if reader.tables and style not in LAMMPS_UNITS:
        raise InputError(
            f"{path}: the units are {style or 'not in the file'}; "
            f"{'they must be' if style else 'give the option --units'} {' or '.join(LAMMPS_UNITS)}"
        )
    tables = tuple(table.in_units(style, reader.newest) for table in reader.tables)
    return Log(path, tables, style, reader.continued)


@dataclass
class _RawTable:
    """A table in LAMMPS's units, with the state of LAMMPS while it was written."""

    kind: str  # empty: the log does not say
    names: list[str]
    timestep: float | None
    default_timestep: bool
    varying_timestep: bool
    per_atom: bool
    dumps: dict[str, tuple[str, int]]
    integrators: frozenset[str]
    rows: "array[float]" = field(default_factory=lambda: array("d"))
    ended: bool = False
    performance: tuple[float, float] | None = None  # ns/day and steps/s, as LAMMPS prints them

    def contradicts(self, timestep_ps: float) -> bool:
        """Return whether the speed that LAMMPS prints after a run shows another timestep."""
        if self.performance is None or self.varying_timestep:
            return False
        per_day, per_second = self.performance
        rounding = 1e-3 + 1e-3 / per_day + 1e-3 / per_second  # three decimals are printed
        return abs(1e3 * per_day / (86400.0 * per_second * timestep_ps) - 1.0) > rounding

    def in_units(self, style: str, newest: dict[str, int]) -> LogTable:
        """Return the table in the units of `Thermo`; `newest` says which dump wrote each file."""
        energy, time, default_ps = LAMMPS_UNITS[style]
        units = {"time_ps": time, **dict.fromkeys(ENERGIES, energy)}
        names = [f"{name} ({units.get(field_of(name)[0], '')})" for name in self.names]
        timestep = (
            self.timestep * FACTORS[time]
            if self.timestep
            else default_ps * self.default_timestep or None
        )
        table = LogTable(
            self.kind or "run",
            columns_of(names, self.rows),
            ", ".join(self.names),
            # A command that the log does not show (`echo none`) may have changed it.
            None if timestep and self.contradicts(timestep) else timestep,
            self.varying_timestep,
            self.per_atom,
            self.ended,
            frozenset(name for name, opened in self.dumps.values() if newest[name] == opened),
            self.integrators,
        )
        # Without the commands, a minimisation shows by energies that fall while nothing moves.
        potential, kinetic = (
            table.columns.get(names[0], table.columns.get(names[1], np.empty(0)))
            for names in (("potential_ev", "e_pair"), ("temperature_k", "kinetic_ev"))
        )
        still = len(kinetic) > 2 and np.ptp(kinetic) == 0
        if not self.kind and still and (np.diff(potential) <= 0).all() and np.ptp(potential) > 0:
            return replace(table, kind="minimize")
        return table


class _Reader:
    """State of LAMMPS while the lines of its log go by."""

    def __init__(self, path: Path, units: str | None) -> None:
        self.path = path
        self.units = units or ""
        self.said_units = units
        self.tables: list[_RawTable] = []
        self.newest: dict[str, int] = {}  # number of the last command that opened each dump file
        self.continued = ""
        self.table: _RawTable | None = None
        self.layout = ""  # of the table that is being read: rows, yaml or multi
        self.header = ""  # line that may be the header of a table
        self.pending: dict[str, str] = {}  # row of the layout multi, which takes several lines
        self.kind = ""
        self.style = STYLE_ONE
        self.names: dict[str, str] = {}  # keyword of each column that thermo_modify renamed
        self.per_atom = False
        self.default_timestep = False  # whether all commands are known up to now
        self.printed = ""  # text of a command print, which is the next line
        self.clear()

    def clear(self) -> None:
        """Forget what the command `clear` deletes, and the begin of another run of LAMMPS."""
        self.timestep: float | None = None
        self.varying: set[str] = set()
        self.dumps: dict[str, tuple[str, int]] = {}
        self.fixes: dict[str, str] = {}
        self.per_atom, self.style, self.names = False, STYLE_ONE, {}

    def read(self, line: str) -> None:
        """Read one line."""
        words = line.split()
        if not words:
            return
        if line.startswith("LAMMPS ("):
            self.end_table()
            self.clear()
            self.header, self.default_timestep = "", False
        elif line.startswith(("Loop time", "ERROR", "...")):
            if self.table is not None:
                self.table.ended = not line.startswith("ERROR")
            self.end_table()
        elif match := PERFORMANCE.match(line):
            if self.tables and self.tables[-1].ended and min(map(float, match.groups())) > 0:
                self.tables[-1].performance = float(match.group(1)), float(match.group(2))
        elif line.strip() == self.printed:
            self.printed = ""
        elif line.startswith("Minimization stats") and self.tables:
            self.tables[-1].kind = "minimize"
        elif words[:2] == ["Unit", "style"]:  # as LAMMPS prints it on the screen
            self.set_units(words[-1])
        elif words[:3] == ["Time", "step", ":"]:
            self.timestep = float(words[-1])
        elif line.startswith("Setting up "):
            self.kind = "minimize" if "minimization" in line else "run"
        elif line.startswith("keywords:"):
            self.begin_table(
                "yaml", [name.strip(" '\"") for name in line[9:].strip(" []\n").split(",")]
            )
        elif self.layout == "yaml" and line.startswith("  - ["):
            values = line.replace(".nan", "nan").replace(".inf", "inf").strip()[3:-1].split(",")
            self.add_row([value for value in values if value.strip()])
        elif match := re.match(r"-+ Step\s+(\d+) -+ CPU", line):
            self.end_row()
            if self.layout != "multi":
                self.begin_table("multi", [])
            self.pending = {"Step": match.group(1)}
        elif self.layout == "multi" and "=" in line:
            self.pending |= dict(re.findall(r"(\S+)\s+=\s+(\S+)", self.by_keyword(line)))
        elif _are_numbers(words):
            if self.layout != "rows" and self.header:
                self.begin_rows(len(words))
            if self.layout == "rows":
                self.add_row(words)
        elif line.startswith(("Per MPI rank memory", "Memory usage per processor")):
            self.end_table()
        elif not self.command(words, line) and not self.layout:
            self.header = line

    def begin_rows(self, columns: int) -> None:
        """Begin a table where numbers follow a line with as many names."""
        header, self.header = self.by_keyword(self.header), ""
        for names in (header.split(), re.split(r"\s{2,}", header.strip())):
            if len(names) == columns > 1 and any(field_of(name)[0] for name in names):
                self.begin_table("rows", names)
                return

    def by_keyword(self, line: str) -> str:
        """Return a line in which columns have the keyword in place of the name a user gave."""
        for name, keyword in self.names.items():
            line = re.sub(rf"(?<!\S){re.escape(name)}(?!\S)", keyword, line)
        return line

    def begin_table(self, layout: str, names: list[str]) -> None:
        self.end_table()
        self.layout = layout
        self.table = _RawTable(
            self.kind,
            [self.names.get(name, name) for name in names if name],
            self.timestep,
            self.default_timestep,
            bool(self.varying),
            self.per_atom,
            dict(self.dumps),
            frozenset(self.fixes.values()),
        )

    def add_row(self, words: list[str]) -> None:
        if self.table is not None and len(words) == len(self.table.names):
            if not _are_numbers(words):
                raise InputError(f"{self.path}: a row has a field that is not a number: {words}")
            self.table.rows.extend(map(float, words))

    def end_row(self) -> None:
        """Store a row of the layout multi."""
        if self.pending and self.table is not None:
            if not self.table.names:
                self.table.names = list(self.pending)
            self.add_row(list(self.pending.values()))
        self.pending = {}

    def end_table(self) -> None:
        self.end_row()
        if self.table is not None and self.table.rows:
            self.tables.append(self.table)
            self.kind = ""  # of the next table
        self.table, self.layout = None, ""

    def set_units(self, style: str) -> None:
        if self.said_units not in (None, style):
            raise InputError(f"{self.path} is in units {style}, but --units is {self.said_units}")
        self.units = style

    def command(self, words: list[str], line: str) -> bool:
        """Follow a command that LAMMPS echoed, and return whether the line is one."""
        match words:
            case ["run" | "minimize" | "rerun" as kind, *_]:
                self.kind = kind
            case _ if "$" in line:  # a line with variables is echoed again with their values
                return False
            case ["units", style, *_] if style in STYLES:
                self.set_units(style)
                self.default_timestep = True
            case ["print", *_] if line.count('"') % 2 == line.count("'") % 2 == 0:
                self.printed = " ".join(shlex.split(line)[1:2]).strip()  # the next line repeats it
            case ["timestep", timestep, *rest] if _are_numbers([timestep]):
                if not rest or rest[0].startswith("#"):
                    self.timestep = float(timestep)
            case ["read_restart" | "echo", *rest]:  # a restart file has a timestep
                if words[0] != "echo" or rest[:1] in (["none"], ["screen"]):
                    self.default_timestep = False
            case ["clear"]:
                self.clear()
            case ["log", name, *_]:
                self.continued = name if name != "none" else ""
            case ["fix", name, _, style, *_]:
                self.varying.discard(name)
                self.fixes.pop(name, None)
                if style == "dt/reset":
                    self.varying.add(name)
                if style.split("/")[0] in INTEGRATORS:
                    self.fixes[name] = " ".join(words[2:])
            case ["unfix", name, *_]:
                self.varying.discard(name)
                self.fixes.pop(name, None)
            case ["dump", name, _, _, _, file, *_]:
                self.newest[file] = self.newest.get(file, 0) + 1
                self.dumps[name] = (file, self.newest[file])
            case ["undump", name, *_]:
                self.dumps.pop(name, None)
            case ["dump_modify", name, *options]:
                if name in self.dumps and ["append", "yes"] in _pairs(options):
                    file, _ = self.dumps[name]
                    self.newest[file] = 1
                    self.dumps = {
                        key: (other, 1 if other == file else opened)
                        for key, (other, opened) in self.dumps.items()
                    }
            case ["thermo_style", style, *keywords]:
                self.style = {"custom": keywords, "one": STYLE_ONE}.get(style, [])
                self.names, self.per_atom = {}, False
            case ["thermo_modify", *_] if line.count('"') % 2 == line.count("'") % 2 == 0:
                self.modify(shlex.split(line)[1:])
            case _:
                return False
        return True

    def modify(self, options: list[str]) -> None:
        """Follow the options of thermo_modify."""
        for k, option in enumerate(options):
            if option == "norm":
                self.per_atom = options[k + 1 : k + 2] == ["yes"]
            elif option == "colname" and options[k + 1 : k + 2] == ["default"]:
                self.names = {}
            elif option == "colname":
                column, name = options[k + 1 : k + 3]
                if re.fullmatch(r"-?\d+", column):
                    number, columns = int(column), len(self.style)
                    if "*" in "".join(self.style) or not 0 < abs(number) <= columns:
                        continue  # the column with this number is not known
                    column = self.style[number - 1 if number > 0 else number]
                self.names[name] = column


def _pairs(words: list[str]) -> list[list[str]]:
    return [words[k : k + 2] for k in range(len(words))]


def _are_numbers(words: list[str]) -> bool:
    try:
        [float(word) for word in words]
    except ValueError:
        return False
    return True
