"""Read the text dumps of LAMMPS (styles atom and custom), with any columns."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import units as ase_units
from ase.calculators.lammps import convert
from ase.data import atomic_numbers
from numpy.typing import NDArray

from mlff_student.core.errors import InputError
from mlff_student.core.units import LAMMPS_UNITS
from mlff_student.structures.compressed import text_lines

PS = 1e3 * ase_units.fs  # picosecond in ASE's unit of time
# Columns of positions: as they are, scaled by the cell, and both without wrapping.
CARTESIAN = (("x", "y", "z"), ("xu", "yu", "zu"))
SCALED = (("xs", "ys", "zs"), ("xsu", "ysu", "zsu"))
VELOCITIES, FORCES = ("vx", "vy", "vz"), ("fx", "fy", "fz")


@dataclass(frozen=True)
class DumpFrame:
    """One frame of a dump as text.

    Attributes
    ----------
    step : int
        Timestep.
    time : float or None
        Time in LAMMPS's unit, if the dump has it (dump_modify time yes).
    units : str
        Unit style that the dump says (dump_modify units yes), else empty.
    cell : NDArray[np.float64]
        (3, 3), lattice vectors as rows.
    origin : NDArray[np.float64]
        (3,), corner of the cell.
    periodic : bool
        Whether the box is periodic in any direction.
    columns : list of str
        Names of the columns.
    rows : list of str
        A line for each atom.
    """

    step: int
    time: float | None
    units: str
    cell: NDArray[np.float64]
    origin: NDArray[np.float64]
    periodic: bool
    columns: list[str]
    rows: list[str]


@dataclass(frozen=True)
class DumpedAtoms:
    """Atoms of one frame, sorted by their ids; None stands for columns that the dump lacks.

    Attributes
    ----------
    positions : NDArray[np.float64]
        (N, 3), angstrom.
    velocities : NDArray[np.float64] or None
        (N, 3), angstrom/ps.
    forces : NDArray[np.float64] or None
        (N, 3), eV/angstrom.
    numbers : NDArray[np.int_] or None
        (N,), atomic numbers. 0 stands for a name that is no element.
    """

    positions: NDArray[np.float64]
    velocities: NDArray[np.float64] | None
    forces: NDArray[np.float64] | None
    numbers: NDArray[np.int_] | None


def dump_frames(path: Path) -> Iterator[DumpFrame | None]:
    """Yield the frames of a dump, and None for each frame that a killed run cut off.

    Parameters
    ----------
    path : Path
        Dump, possibly compressed by gzip.

    Yields
    ------
    DumpFrame or None
        Frame as text.

    Raises
    ------
    InputError
        A header is not what a dump has there, or a frame has more atoms than its header says.
    """
    units = ""
    header: dict[str, list[str]] = {}  # lines below each ITEM, and the words of two of them
    for words, body in _items(path):
        item = words[0] if words else ""
        if item == "UNITS":
            units = "".join(body).strip()
            continue
        if item in header:
            yield None
            header = {}
        header |= {item: body, f"{item} words": words[1:]}
        if item == "ATOMS":
            yield _frame(path, header, units)
            header = {}
    if header:
        yield None


def _items(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the words after each ITEM: and the lines below it."""
    words: list[str] | None = None
    body: list[str] = []
    for line in text_lines(path):
        at = line.rfind("ITEM:")
        if at < 0:
            body.append(line)
            continue
        if at:  # a restarted run appended to a line that was cut off
            body.append(line[:at])
        if words is not None:
            yield words, body
        words, body = line[at:].split()[1:], []
    if words is not None:
        yield words, body


def _frame(path: Path, header: dict[str, list[str]], units: str) -> DumpFrame | None:
    """Return a frame, or None if it was cut off."""
    rows = header["ATOMS"]
    while rows and rows[-1].isspace():
        rows.pop()
    if not {"TIMESTEP", "NUMBER", "BOX"} <= set(header):
        return None
    try:
        step, atoms = int(header["TIMESTEP"][0]), int(header["NUMBER"][0])
        time = float(header["TIME"][0]) if "TIME" in header else None
        cell, origin, periodic = _box(header["BOX words"][1:], header["BOX"])
    except (IndexError, ValueError) as error:
        lines = [line.strip() for item in ("TIMESTEP", "NUMBER", "BOX") for line in header[item]]
        raise InputError(
            f"{path}: a frame begins with {', '.join(lines)[:120]!r}, expected a timestep, a "
            f"number of atoms and the bounds of the box: {error}"
        ) from error
    if len(rows) == atoms + 1 and not rows[-1].endswith("\n"):
        rows.pop()  # a part of the next header
    if len(rows) > atoms:
        raise InputError(
            f"{path}: the frame of step {step} has {len(rows)} lines for {atoms} atoms; the file "
            "is damaged"
        )
    if len(rows) < atoms or (rows and not rows[-1].endswith("\n")):
        return None
    columns = header["ATOMS words"]
    return DumpFrame(step, time, units, cell, origin, periodic, columns, rows)


def _box(
    words: list[str], lines: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
    """Return the vectors of a box, its corner, and whether it is periodic in any direction.

    The words are "xy xz yz pp pp pp" or "pp pp pp", and "abc origin pp pp pp" for a box in general
    orientation. Old versions of LAMMPS leave the boundaries out.
    """
    bounds = np.array([[float(word) for word in line.split()] for line in lines[:3]])
    periodic = any("p" in word for word in words[-3:]) or words in ([], ["xy", "xz", "yz"])
    if words[:1] == ["abc"]:
        return bounds[:, :3], bounds[:, 3], periodic
    low, high = bounds[:, 0], bounds[:, 1]
    xy, xz, yz = bounds[:, 2] if bounds.shape[1] > 2 else np.zeros(3)
    low = low - [min(0.0, xy, xz, xy + xz), min(0.0, yz), 0.0]
    high = high - [max(0.0, xy, xz, xy + xz), max(0.0, yz), 0.0]
    cell = np.diag(high - low)
    cell[1, 0], cell[2, 0], cell[2, 1] = xy, xz, yz
    return cell, low, periodic


def dumped_atoms(path: Path, frame: DumpFrame, units: str) -> DumpedAtoms:
    """Read the atoms of a frame.

    Parameters
    ----------
    path : Path
        Dump, for error messages.
    frame : DumpFrame
        Frame as text.
    units : str
        Unit style, "metal" or "real", if the dump does not say it.

    Returns
    -------
    DumpedAtoms
        Atoms sorted by id. Without ids they have the order of the dump.

    Raises
    ------
    InputError
        There are no positions, or a field is not a number.
    """
    units = frame.units or units
    if units not in LAMMPS_UNITS:
        raise InputError(f"{path} has the units {units}, expected {' or '.join(LAMMPS_UNITS)}")
    where = f"{path}, step {frame.step}"
    columns = frame.columns
    positions = next((names for names in CARTESIAN + SCALED if set(names) <= set(columns)), None)
    if positions is None:
        raise InputError(
            f"{where}: the columns are {' '.join(columns)}; expected positions such as x y z or "
            "xs ys zs"
        )

    vectors = [names for names in (positions, VELOCITIES, FORCES) if set(names) <= set(columns)]
    wanted = [name for names in vectors for name in names] + ["id"] * ("id" in columns)
    try:
        values = np.loadtxt(
            frame.rows, usecols=[columns.index(name) for name in wanted], ndmin=2, comments=None
        )
    except (ValueError, IndexError) as error:
        raise InputError(f"{where}: {error}") from error
    order = values[:, -1].argsort(kind="stable") if "id" in columns else np.arange(len(values))
    values = values[order]
    if "id" in columns and (np.diff(values[:, -1]) <= 0).any():
        raise InputError(f"{where}: two atoms have the same id")
    read = {names: values[:, 3 * k : 3 * k + 3] for k, names in enumerate(vectors)}
    if positions in SCALED:
        read[positions] = read[positions] @ frame.cell + frame.origin
    velocities, forces = read.get(VELOCITIES), read.get(FORCES)
    numbers = None
    if "element" in columns:
        column = columns.index("element")
        symbols = [row.split()[column] for row in frame.rows]
        if set(symbols) != {"C"}:  # LAMMPS writes C for every type unless dump_modify says more
            numbers = np.array([atomic_numbers.get(symbol, 0) for symbol in symbols])[order]
    return DumpedAtoms(
        read[positions],
        None if velocities is None else convert(velocities, "velocity", units, "ASE") * PS,
        None if forces is None else convert(forces, "force", units, "ASE"),
        numbers,
    )
