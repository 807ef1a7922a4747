"""Read the frames of a trajectory of any program in chunks that fit into memory."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms, units
from ase.geometry.cell import cellpar_to_cell
from ase.io import iread
from ase.io.lammpsrun import iread_lammps_dump_text
from ase.io.trajectory import Trajectory
from numpy.typing import NDArray

from mlff_student.core.errors import InputError
from mlff_student.core.units import LAMMPS_UNITS
from mlff_student.structures.checks import connected_fragments
from mlff_student.structures.reading import Structure, read_structure

if TYPE_CHECKING:
    import mdtraj

ATOMS_AT_ONCE = 300_000  # in all frames of a chunk: 7 MB for the positions
PS = 1e3 * units.fs  # picosecond in ASE's unit of time
KEEPS_TIME = (".xtc", ".trr", ".nc", ".ncdf", ".netcdf")  # formats whose times MDTraj reads


@dataclass(frozen=True)
class Frames:
    """F consecutive frames of N atoms, float64; None stands for data that the file does not have.

    Attributes
    ----------
    positions : NDArray[np.float64]
        (F, N, 3), angstrom.
    cells : NDArray[np.float64] or None
        (F, 3, 3), lattice vectors as rows, angstrom; None if the structure is not periodic.
    velocities : NDArray[np.float64] or None
        (F, N, 3), angstrom/ps.
    forces : NDArray[np.float64] or None
        (F, N, 3), eV/angstrom.
    time_ps : NDArray[np.float64] or None
        (F,), time, ps.
    """

    positions: NDArray[np.float64]
    cells: NDArray[np.float64] | None
    velocities: NDArray[np.float64] | None = None
    forces: NDArray[np.float64] | None = None
    time_ps: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.positions)


def read_topology(path: Path) -> Structure:
    """Read the reference structure of a trajectory.

    Parameters
    ----------
    path : Path
        File with the structure, as `read_structure` reads it.

    Raises
    ------
    InputError
        There is no such file, or it cannot be read.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no topology file {path}")
    return read_structure(str(path))


def stream_frames(
    trajectory: Path,
    topology: Structure | Path,
    *,
    chunk: int | None = None,
    lammps_units: str = "metal",
) -> Iterator[Frames]:
    """Read the frames of a trajectory in their order, in chunks.

    ASE reads LAMMPS text dumps (sorted by id), ASE trajectories and extended XYZ; h5py reads
    MDTraj's HDF5; MDTraj reads DCD, XTC, TRR, NetCDF and all other formats that it knows. The
    topology decides whether the frames are periodic. If it is open, boxes in the trajectory are
    left out: LAMMPS writes bounds around open systems as well. If it is periodic and the trajectory
    has no cells, all frames have the cell of the topology.

    Parameters
    ----------
    trajectory : Path
        Trajectory file.
    topology : Structure | Path
        Structure with the atoms of the trajectory in the same order, or its file.
    chunk : int | None
        Number of frames in a chunk; the last chunk may have fewer. By default the frames of a chunk
        have up to 300,000 atoms together.
    lammps_units : str
        Units of the velocities and forces in a LAMMPS dump without a line ITEM: UNITS, "metal" or
        "real".

    Yields
    ------
    Frames
        Frames of one chunk.

    Raises
    ------
    InputError
        The file is missing, empty or cannot be read, or it has another number of atoms or other
        elements than the topology.
    """
    path = Path(trajectory)
    structure = topology if isinstance(topology, Structure) else read_topology(topology)
    if not path.is_file():
        raise InputError(f"there is no trajectory file {path}")
    atoms = len(structure.atoms)
    if structure.atoms.pbc.any() and not structure.atoms.get_volume() > 0.0:
        raise InputError(
            f"the topology is periodic along {structure.atoms.pbc.tolist()}, but its cell has no "
            "volume; give each direction a length, vacuum included"
        )
    chunk = chunk or max(1, ATOMS_AT_ONCE // atoms)
    count = 0  # frames
    try:
        for part in _reader(path, lammps_units)(path, structure, chunk):
            if part.positions.shape[1] != atoms:
                raise InputError(_other_atoms(path, part.positions.shape[1], atoms))
            count += len(part)
            yield replace(part, cells=_cells(part, structure.atoms))
    except InputError:
        raise
    except Exception as error:  # the readers raise errors of any kind
        stored = _count_atoms(path)
        if stored not in (None, atoms):
            raise InputError(_other_atoms(path, stored, atoms)) from error
        raise InputError(f"cannot read the trajectory {path}: {error}") from error
    if not count:
        raise InputError(f"{path} has no frames")


def every_nth(frames: Iterable[Frames], n: int) -> Iterator[Frames]:
    """Select every n-th frame, beginning with the first.

    Parameters
    ----------
    frames : Iterable[Frames]
        Chunks of frames.
    n : int
        Distance of the selected frames.

    Yields
    ------
    Frames
        Selected frames of one chunk; chunks without any are left out.
    """
    count = 0
    for part in frames:
        kept = slice(-count % n, None, n)
        count += len(part)
        if len(selected := _select(part, kept)):
            yield selected


def between_frames(frames: Iterable[Frames], first: int, last: int) -> Iterator[Frames]:
    """Select the frames from index `first` up to, but not including, index `last`.

    Parameters
    ----------
    frames : Iterable[Frames]
        Chunks of frames.
    first, last : int
        Indices of frames, counted from 0 over all chunks.

    Yields
    ------
    Frames
        Selected frames of one chunk; chunks without any are left out.
    """
    start = 0  # index of the chunk's first frame
    for part in frames:
        kept = slice(max(0, first - start), max(0, last - start))
        start += len(part)
        if len(selected := _select(part, kept)):
            yield selected
        if start >= last:
            return


def _select(frames: Frames, kept: slice) -> Frames:
    values: dict[str, Any] = {
        key: None if value is None else value[kept] for key, value in vars(frames).items()
    }
    return Frames(**values)


def nearest_image(
    vectors: NDArray[np.float64], cells: NDArray[np.float64], periodic: Sequence[bool]
) -> NDArray[np.float64]:
    """Return the vectors to the nearest images.

    Parameters
    ----------
    vectors : NDArray[np.float64]
        (F, V, 3), V vectors in each frame, angstrom.
    cells : NDArray[np.float64]
        (F, 3, 3), lattice vectors as rows, angstrom.
    periodic : Sequence[bool]
        (3,), directions in which the structure is periodic.

    Returns
    -------
    NDArray[np.float64]
        (F, V, 3), angstrom.
    """
    return vectors - (np.round(vectors @ np.linalg.inv(cells)) * np.asarray(periodic)) @ cells


def make_whole(
    positions: NDArray[np.float64],
    cells: NDArray[np.float64] | None,
    bonds: NDArray[np.int_],
    periodic: Sequence[bool] = (True, True, True),
) -> NDArray[np.float64]:
    """Move atoms by lattice vectors so that no bond goes through a face of the cell.

    From the first atom of each molecule outwards, each atom is moved to the image that is nearest
    to an atom it is bonded to. Bonds must be shorter than half the cell.

    Parameters
    ----------
    positions : NDArray[np.float64]
        (F, N, 3), angstrom.
    cells : NDArray[np.float64] or None
        (F, 3, 3), lattice vectors as rows, angstrom; None for open structures.
    bonds : NDArray[np.int_]
        (B, 2), indices of bonded atoms.
    periodic : Sequence[bool]
        (3,), directions in which the structure is periodic.

    Returns
    -------
    NDArray[np.float64]
        (F, N, 3), angstrom.
    """
    if cells is None or len(bonds) == 0:
        return positions
    positions = positions.copy()
    both = np.concatenate([bonds, bonds[:, ::-1]])
    fragments = connected_fragments(positions.shape[1], bonds.tolist())
    placed = np.zeros(positions.shape[1], bool)
    placed[np.unique(fragments, return_index=True)[1]] = True
    while len(reach := both[placed[both[:, 0]] & ~placed[both[:, 1]]]):
        children, first = np.unique(reach[:, 1], return_index=True)
        parents = positions[:, reach[first, 0]]
        vectors = nearest_image(positions[:, children] - parents, cells, periodic)
        positions[:, children] = parents + vectors
        placed[children] = True
    return positions


def _reader(path: Path, lammps_units: str) -> Callable[[Path, Structure, int], Iterator[Frames]]:
    """Choose the reader of a file by its name and its first lines."""
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        first, second = file.readline(200), file.readline(200)
    if first.startswith(b"ITEM:"):
        return lambda *options: _from_ase(_read_dump(path, lammps_units), *options)
    if suffix in (".traj", ".extxyz") or (suffix == ".xyz" and b"Properties=" in second):
        images = Trajectory(path) if suffix == ".traj" else iread(path, ":")
        return lambda *options: _from_ase(images, *options)
    return _from_hdf5 if suffix in (".h5", ".hdf5") else _from_mdtraj


def _from_mdtraj(path: Path, structure: Structure, chunk: int) -> Iterator[Frames]:
    for part in iterate_frames(path, structure.topology, chunk):
        cells = part.unitcell_vectors
        yield Frames(
            part.xyz.astype(float) * units.nm,
            None if cells is None else cells.astype(float) * units.nm,
            time_ps=part.time.astype(float) if path.suffix.lower() in KEEPS_TIME else None,
        )


def _from_hdf5(path: Path, structure: Structure, chunk: int) -> Iterator[Frames]:
    """Read MDTraj's HDF5 format 1.1 (nm, ps, degrees) with velocities, which MDTraj leaves out."""
    import h5py

    with h5py.File(path) as file:
        for first in range(0, len(file["coordinates"]), chunk):
            part = {
                key: file[key][first : first + chunk].astype(float)
                for key in ("coordinates", "velocities", "cell_lengths", "cell_angles", "time")
                if key in file
            }
            cells = None
            if "cell_lengths" in part:
                sides = np.hstack([part["cell_lengths"] * units.nm, part["cell_angles"]])
                cells = np.array([cellpar_to_cell(row) for row in sides])
            velocities = part.get("velocities")
            yield Frames(
                part["coordinates"] * units.nm,
                cells,
                None if velocities is None else velocities * units.nm,
                time_ps=part.get("time"),
            )


def _read_dump(path: Path, lammps_units: str) -> Iterator[Atoms]:
    """Read the frames of a LAMMPS text dump; atoms have the element X if the dump has none."""
    columns: list[str] = []
    before = ""
    with path.open() as file:
        for line in file:  # up to the first atom; the number of lines in a header varies
            if before.startswith("ITEM: UNITS"):
                lammps_units = line.strip()
            if line.startswith("ITEM: ATOMS"):
                columns = line.split()[2:]
                break
            before = line
    if lammps_units not in LAMMPS_UNITS:
        raise InputError(
            f"{path} has the units {lammps_units}, expected {' or '.join(LAMMPS_UNITS)}"
        )
    with path.open() as file:
        for atoms in iread_lammps_dump_text(file, units=lammps_units):
            if "element" not in columns:  # ASE uses the type as the atomic number
                velocities = atoms.get_velocities()
                atoms.numbers[:] = 0
                if velocities is not None:  # ASE stores momenta, with the element's mass
                    atoms.set_velocities(velocities)
            yield atoms


def _from_ase(
    images: Iterable[Atoms], path: Path, structure: Structure, chunk: int
) -> Iterator[Frames]:
    images = iter(images)
    while part := list(islice(images, chunk)):
        if {len(atoms) for atoms in part} != {len(structure.atoms)}:
            raise InputError(_other_atoms(path, len(part[0]), len(structure.atoms)))
        numbers = part[0].numbers
        if (wrong := np.flatnonzero((numbers != structure.atoms.numbers) & (numbers > 0))).size:
            atom = int(wrong[0])
            raise InputError(
                f"{path} has other elements than the topology, or another order: atom {atom} is "
                f"{part[0].symbols[atom]}, the topology says {structure.atoms.symbols[atom]}"
            )
        results = [atoms.calc.results if atoms.calc else {} for atoms in part]
        yield Frames(
            np.array([atoms.positions for atoms in part]),
            np.array([atoms.cell.array for atoms in part]) if part[0].pbc.any() else None,
            np.array([atoms.get_velocities() for atoms in part]) * PS
            if all(atoms.has("momenta") for atoms in part)
            else None,
            np.array([labels["forces"] for labels in results])
            if all("forces" in labels for labels in results)
            else None,
        )


def _cells(part: Frames, reference: Atoms) -> NDArray[np.float64] | None:
    if not reference.pbc.any():
        return None
    if part.cells is None:
        return np.tile(reference.cell.array, (len(part), 1, 1))
    return part.cells


def _count_atoms(path: Path) -> int | None:
    import mdtraj

    try:
        with mdtraj.open(str(path)) as file:
            data = file.read(n_frames=1)
        return int((data[0] if isinstance(data, tuple) else data).shape[-2])
    except Exception:
        return None


def _other_atoms(path: Path, count: int, expected: int) -> str:
    return (
        f"{path} has {count} atoms, the topology has {expected}; give the topology that the run "
        "started from"
    )


def iterate_frames(
    path: Path, topology: "mdtraj.Topology", chunk: int
) -> Iterator["mdtraj.Trajectory"]:
    """Read a trajectory in chunks with `mdtraj.iterload`, without what it prints to stdout.

    Parameters
    ----------
    path : Path
        Trajectory file in a format that MDTraj reads.
    topology : mdtraj.Topology
        Topology of the trajectory.
    chunk : int
        Largest number of frames in a chunk.

    Yields
    ------
    mdtraj.Trajectory
        Frames of one chunk.
    """
    import mdtraj

    frames = mdtraj.iterload(str(path), top=topology, chunk=chunk)
    while True:
        with _silent_stdout():
            part = next(frames, None)
        if part is None:
            return
        yield part


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """Discard what C code writes to file descriptor 1, as MDTraj's DCD reader does."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # C buffers its output to a file or a pipe
        os.dup2(kept, 1)
        os.close(kept)
