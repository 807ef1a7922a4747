"""Read the log of any supported program into tables."""

import re
from array import array
from collections.abc import Iterator
from pathlib import Path

from mlff_student.analysis.lammps_log import is_lammps, read_lammps
from mlff_student.analysis.log_tables import Log, LogTable, columns_of, field_of
from mlff_student.core.errors import InputError
from mlff_student.structures.compressed import text_lines

KNOWN = "Give a log of mlff-student, OpenMM, LAMMPS or ASE"


def read_log(path: Path, *, lammps_units: str | None = None, units_of_dump: str = "") -> Log:
    """Read all tables of a log.

    Lines before the first table are skipped. A CSV file may have any separator, and its header more
    than once. Files may be compressed by gzip.

    Parameters
    ----------
    path : Path
        Log file.
    lammps_units : str | None
        Unit style of LAMMPS, "metal" or "real", that the user says.
    units_of_dump : str
        Unit style in the dump of the run, for a log of LAMMPS that does not have it.

    Returns
    -------
    Log
        Tables in the order of the file.

    Raises
    ------
    InputError
        There is no such file, it has no table, or a table cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no log file {path}")
    log = _read(path, lammps_units, units_of_dump)
    if not log.tables:
        raise InputError(
            f"{path} has no table of a run"
            + (f"; LAMMPS continued its log in {log.continued}: give that" if log.continued else "")
        )
    return log


def _read(path: Path, lammps_units: str | None, units_of_dump: str) -> Log:
    first = ""
    for number, line in enumerate(text_lines(path)):
        first = first or line.strip()
        if is_lammps(line):
            return read_lammps(path, text_lines(path), lammps_units, units_of_dump)
        if line.startswith("Time[ps]"):
            return Log(path, tuple(_ase_tables(path, number)))
        if _csv_header(line):
            return Log(path, tuple(_csv_tables(path, number)))
    if not first:
        raise InputError(f"{path} is empty. {KNOWN}")
    raise InputError(
        f"{path} lacks the column(s) time_ps, total_ev, ...; its first line is {first[:120]!r}. "
        f"{KNOWN}"
    )


def _csv_header(line: str) -> tuple[str | None, list[str]] | None:
    """Return the separator and the names in the header of a CSV file; None if it is no header.

    The separator None stands for white space.
    """
    text = line.strip().lstrip("#").strip()
    if match := re.match(r'"[^"]*"([^"]+)"', text):  # OpenMM writes names in quotes
        separator = match.group(1) if match.group(1).strip() or "\t" in match.group(1) else None
        layouts = [(separator, re.findall(r'"([^"]*)"', text))]
    else:
        layouts = [(separator, text.split(separator)) for separator in (",", "\t", ";", "|", None)]
    known = [sum(bool(field_of(name)[0]) for name in names) for _, names in layouts]
    return layouts[known.index(max(known))] if max(known) > 1 else None


def _csv_tables(path: Path, start: int) -> Iterator[LogTable]:
    """Read values that any separator separates, with names and units in the line of number `start`.

    A program that appends to a file may write the header again.
    """
    separator: str | None = None
    header: list[str] = []
    wanted: list[int] = []  # columns of known fields

    def table() -> LogTable:
        columns = columns_of([header[index] for index in wanted], rows)
        return LogTable("run", columns, ", ".join(header))

    rows = array("d")
    for number, line in enumerate(text_lines(path)):
        if number < start or not line.strip():
            continue
        fields = [text.strip(' "') for text in line.strip("\n\r").split(separator)]
        try:
            if len(fields) != len(header):
                raise ValueError(
                    f"{len(fields)} fields, expected {len(header)}. If the log was cut off there, "
                    "delete the line"
                )
            rows.extend([float(fields[index]) for index in wanted])
        except ValueError as error:
            layout = _csv_header(line)
            if layout is None:
                raise InputError(f"{path}, line {number + 1}: {error}") from error
            if rows:
                yield table()
            separator, header = layout
            wanted = [index for index, name in enumerate(header) if field_of(name)[0]]
            rows = array("d")
    if rows:
        yield table()


def _ase_tables(path: Path, start: int) -> Iterator[LogTable]:
    """Read a log of ASE's MDLogger: five columns, then possibly a stress."""
    header: list[str] = []
    rows = array("d")
    for number, line in enumerate(text_lines(path)):
        if number < start or not line.strip():
            continue
        fields = line.split()[:5]
        if line.startswith("Time[ps]"):
            if rows:
                yield LogTable("run", columns_of(header, rows), ", ".join(header))
            header, rows = fields, array("d")
            if any("/N" in name for name in header):
                raise InputError(f"{path} has energies per atom; write the log with peratom=False")
            continue
        try:
            if len(fields) != len(header):
                raise ValueError(f"{len(fields)} fields, expected {len(header)}")
            rows.extend([float(field) for field in fields])
        except ValueError as error:
            raise InputError(f"{path}, line {number + 1}: {error}") from error
    if rows:
        yield LogTable("run", columns_of(header, rows), ", ".join(header))
