"""Figures of a finished run: energy drift, temperature, collapsed bonds, judged by one table."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mdtraj
import numpy as np
import yaml
from ase import units
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from .errors import InputError
from .structure import Structure, read_structure
from .trajectory import iterate_frames

THRESHOLDS = Path(__file__).with_name("thresholds.yaml")
FEWEST_ROWS = 10  # of a log
FEWEST_BLOCKS = 8  # below, a standard error says nothing about itself
COLLAPSE = 0.5  # angstrom; used to recognise a permuted trajectory, the verdict's is in the table

# Rows of the drift table: key in a record, what it is, unit.
FIGURES = (
    ("drift_mev_per_atom_ps", "energy drift", "meV/atom/ps"),
    ("drift_kt_per_ns_per_dof", "energy drift", "kT/ns/dof"),
    ("drift_percent", "last - first energy", "%"),
    ("max_drift_percent", "largest excursion", "%"),
    ("energy_fluctuation_mev_per_atom", "energy fluctuation", "meV/atom"),
    ("conservation_ratio", "std total / std kinetic", ""),
    ("temperature_k", "temperature", "K"),
    ("temperature_std_k", "its fluctuation", "K"),
    ("bond_deviation_angstrom", "largest bond deviation", "angstrom"),
    ("bond_deviation_atoms", "of the bond", ""),
    ("nonfinite_rows", "rows that are not finite", ""),
    ("duration_ps", "duration", "ps"),
    ("frames", "frames", ""),
    ("atoms", "atoms", ""),
)


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


class BondDeviation(NamedTuple):
    """The bond that went farthest from its reference length."""

    angstrom: float  # absolute deviation; NaN where a position is
    atoms: str  # the bond's two atoms, empty without bonds
    frame: int  # counted from 0
    frames: int  # read
    bonds: int  # watched


@dataclass(frozen=True)
class Analysis(Drift):
    """All figures of one run; `as_record` is what --json writes."""

    bond_deviation_angstrom: float
    bond_deviation_atoms: str
    bond_deviation_frame: int
    bonds: int
    frames: int
    rows: int
    atoms: int
    degrees_of_freedom: int
    duration_ps: float

    def as_record(self) -> dict[str, float | int | str]:
        """Flat dictionary, units in the keys."""
        return asdict(self)


class Threshold(NamedTuple):
    """Largest absolute value a figure may have."""

    value: float
    unit: str
    source: str


class Check(NamedTuple):
    """One figure held against its threshold."""

    name: str
    value: float
    limit: float
    unit: str
    passed: bool
    source: str


def analyze(
    trajectory: Path, topology: Path, log: Path, *, degrees_of_freedom: int | None = None
) -> Analysis:
    """Figures of the run that wrote these three files.

    Parameters
    ----------
    trajectory : any format that MDTraj streams (DCD, XTC, NetCDF, ...).
    topology : structure file with the trajectory's atoms in its order; its coordinates are the
        reference for bonds.
    log : CSV of `read_thermo`.
    degrees_of_freedom : 3N - 3 unless given.

    Raises
    ------
    InputError : a file that cannot be used, or files of different runs.
    """
    thermo = read_thermo(log)
    structure = _read_topology(topology)
    atoms = len(structure.atoms)
    if degrees_of_freedom is None:
        degrees_of_freedom = 3 * atoms - 3
    drift = fit_drift(thermo, atoms, degrees_of_freedom=degrees_of_freedom)
    bond = _bond_deviation(Path(trajectory), structure)
    _check_same_run(thermo, log, atoms, trajectory, bond.frames)
    return Analysis(
        **asdict(drift),
        bond_deviation_angstrom=bond.angstrom,
        bond_deviation_atoms=bond.atoms,
        bond_deviation_frame=bond.frame,
        bonds=bond.bonds,
        frames=bond.frames,
        rows=len(thermo.time_ps),
        atoms=atoms,
        degrees_of_freedom=degrees_of_freedom,
        duration_ps=float(thermo.time_ps[-1] - thermo.time_ps[0]),
    )


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


def bond_deviation(trajectory: Path, topology: Path, *, chunk: int = 100) -> BondDeviation:
    """Largest deviation of a bond from its length in the topology file, read in chunks of frames.

    Bonds are the topology file's, or perceived from its coordinates where it lists none. Distances
    are to the nearest image where the cell is thicker than two bonds (what is thinner is taken for
    the bounding box that LAMMPS writes for an open system).

    Raises
    ------
    InputError : a missing, unreadable or empty file, another number of atoms, or another order.
    """
    return _bond_deviation(Path(trajectory), _read_topology(topology), chunk)


def _bond_deviation(path: Path, structure: Structure, chunk: int = 100) -> BondDeviation:
    members = list(structure.topology.atoms)
    pairs = np.array([(a.index, b.index) for a, b in structure.topology.bonds], int).reshape(-1, 2)
    positions = structure.atoms.positions[None]
    cell = structure.atoms.cell.array[None] if structure.atoms.pbc.all() else None
    reference = _bond_lengths(positions, cell, pairs)[0]  # (B,)
    worst = BondDeviation(0.0, "", 0, 0, len(pairs))
    frames = 0
    for part in _read_chunks(path, structure.topology, chunk):
        if len(pairs):
            cells = None if part.unitcell_vectors is None else part.unitcell_vectors * units.nm
            lengths = _bond_lengths(part.xyz * units.nm, cells, pairs, longest=reference.max())
            deviation = np.abs(lengths - reference)  # (F, B)
            if frames == 0:
                _check_order(path, part.xyz[0] * units.nm, positions[0], deviation[0])
            frame, bond = divmod(int(deviation.argmax()), len(pairs))  # a NaN counts as largest
            value = float(deviation[frame, bond])
            if not np.isnan(worst.angstrom) and not value <= worst.angstrom:
                names = f"{members[pairs[bond, 0]]} {members[pairs[bond, 1]]}"
                worst = BondDeviation(value, names, frames + frame, 0, len(pairs))
        frames += len(part)
    if frames == 0:
        raise InputError(f"{path} has no frames")
    return worst._replace(frames=frames)


def _bond_lengths(
    positions: NDArray[Any], cells: NDArray[Any] | None, pairs: NDArray[Any], longest: float = 0.0
) -> NDArray[Any]:
    """Lengths (F, B) of bonds in positions (F, N, 3) and cells (F, 3, 3), angstrom."""
    vectors = positions[:, pairs[:, 1]] - positions[:, pairs[:, 0]]  # (F, B, 3)
    if cells is not None:
        faces = np.cross(np.roll(cells, -1, axis=1), np.roll(cells, -2, axis=1))  # (F, 3, 3)
        with np.errstate(all="ignore"):
            heights = np.abs(np.linalg.det(cells))[:, None] / np.linalg.norm(faces, axis=2)
        if (heights > 2.0 * longest).all():
            vectors -= np.round(vectors @ np.linalg.inv(cells)) @ cells
    return np.linalg.norm(vectors, axis=2)


def _read_topology(path: Path) -> Structure:
    if not Path(path).is_file():
        raise InputError(f"no topology file {path}")
    return read_structure(str(path))


def _read_chunks(path: Path, topology: mdtraj.Topology, chunk: int) -> Iterator[mdtraj.Trajectory]:
    """Pieces of a trajectory, each with the topology's number of atoms."""
    if not path.is_file():
        raise InputError(f"no trajectory file {path}")
    try:
        for part in iterate_frames(path, topology, chunk):
            if part.n_atoms != topology.n_atoms:
                raise InputError(_other_atoms(path, part.n_atoms, topology.n_atoms))
            yield part
    except InputError:
        raise
    except Exception as error:  # MDTraj's readers raise whatever they run into
        found = _count_atoms(path)
        if found not in (None, topology.n_atoms):
            raise InputError(_other_atoms(path, found, topology.n_atoms)) from error
        raise InputError(f"cannot read the trajectory {path}: {error}") from error


def _count_atoms(path: Path) -> int | None:
    try:
        with mdtraj.open(str(path)) as file:
            data = file.read(n_frames=1)
        return int((data[0] if isinstance(data, tuple) else data).shape[-2])
    except Exception:
        return None


def _other_atoms(path: Path, found: int, expected: int) -> str:
    return (
        f"{path} has {found} atoms, the topology has {expected}. Give the topology that the run "
        "started from"
    )


def _check_order(
    path: Path, first: NDArray[Any], reference: NDArray[Any], deviation: NDArray[Any]
) -> None:
    """Refuse a first frame that is the reference with its atoms in another order.

    Most bonds are then far off, yet the distances from each atom to its nearest are the
    reference's; those of a molecule that fell apart are not.
    """
    from scipy.spatial import cKDTree

    if np.isfinite(first).all() and np.mean(deviation > COLLAPSE) > 0.5:
        nearest = [np.sort(cKDTree(x).query(x, k=2)[0][:, 1]) for x in (first, reference)]
        if np.abs(nearest[0] - nearest[1]).max() < 0.3:  # angstrom, three thermal amplitudes
            raise InputError(
                f"{path} has the topology's atoms in another order: {np.sum(deviation > COLLAPSE)} "
                f"of {len(deviation)} bonds are broken in its first frame, though no atom is alone"
            )


def _check_same_run(thermo: Thermo, log: Path, atoms: int, trajectory: Path, frames: int) -> None:
    """Refuse a log whose rows or kinetic energy cannot be this trajectory's."""
    rows = len(thermo.time_ps)
    few, many = sorted((rows, frames))
    ratio = round(many / few)
    if abs(many - ratio * few) > ratio:  # one row or frame more or less: the start, or a kill
        raise InputError(
            f"{log} has {rows} rows and {trajectory} has {frames} frames, neither a multiple of "
            "the other: they are of different runs"
        )
    with np.errstate(all="ignore"):
        dof = np.median(2.0 * thermo.kinetic_ev / (units.kB * thermo.temperature_k))
    if dof > 1.02 * 3 * atoms:  # 2 % for rounding in the log
        raise InputError(
            f"{log} belongs to a larger system, or its energies are not in eV: kinetic energy and "
            f"temperature imply {dof:.0f} degrees of freedom, {atoms} atoms have {3 * atoms}"
        )


def load_thresholds(path: Path = THRESHOLDS) -> dict[str, Threshold]:
    """Thresholds by the name of the figure they bound.

    Raises
    ------
    InputError : not such a table.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text())
        table = {name: Threshold(**entry) for name, entry in entries.items()}
        return {name: entry._replace(value=float(entry.value)) for name, entry in table.items()}
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"cannot read thresholds from {path} (name: value, unit, source): {error}"
        ) from error


def verdict(record: Mapping[str, Any], thresholds: Mapping[str, Threshold]) -> list[Check]:
    """One check for each threshold whose figure is in the record, passed at or below the limit.

    A figure that is not finite fails.

    Raises
    ------
    InputError : the record has none of the figures; nothing would be judged.
    """
    checks = []
    for name, (limit, unit, source) in thresholds.items():
        if name in record:
            value = float(record[name])
            checks.append(Check(name, value, limit, unit, abs(value) <= limit, source))
    if not checks:
        raise InputError(f"none of the figures {', '.join(thresholds)} is there to judge")
    return checks


def drift_table(
    records: Mapping[str, Mapping[str, Any]], checks: Mapping[str, list[Check]]
) -> Table:
    """Table with one column a run and one row a figure; records and checks by the run's label."""
    table = Table("figure", "unit")
    for label in records:
        table.add_column(Text(label), justify="right")
    outcome = {(label, c.name): c.passed for label, of_run in checks.items() for c in of_run}
    for key, title, unit in FIGURES:
        cells = []
        for label, record in records.items():
            stderr = record.get("drift_stderr_" + key.removeprefix("drift_"), np.nan)
            text = Text(with_error(record[key], stderr) if key in record else "-")
            if (label, key) in outcome:
                text.append_text(_mark(outcome[label, key]))
            cells.append(text)
        table.add_row(title, unit, *cells)
    table.add_section()
    table.add_row(
        "verdict", "", *(_mark(all(c.passed for c in checks[label])) for label in records)
    )
    return table


def _mark(passed: bool) -> Text:
    return Text(" pass", style="green") if passed else Text(" FAIL", style="bold red")


def with_error(value: float | str, stderr: float = np.nan) -> str:
    """Number as text, to two digits of its standard error where it has one."""
    if isinstance(value, str):
        return value
    if np.isfinite(value) and np.isfinite(stderr) and stderr > 0:
        decimals = max(0, 1 - int(np.floor(np.log10(stderr))))
        return f"{value:.{decimals}f} ± {stderr:.{decimals}f}"
    return f"{value:.4g}"
