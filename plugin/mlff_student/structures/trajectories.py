"""Read the frames of a trajectory of any program in chunks that fit into memory."""

import ctypes
import gzip
import os
import re
import shutil
import struct
import sys
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from ase import Atoms, units
from ase.data import chemical_symbols
from ase.geometry.cell import cellpar_to_cell
from ase.io import iread
from ase.io.trajectory import Trajectory
from numpy.typing import NDArray

from mlff_student.core.errors import InputError
from mlff_student.core.files import ascii_path
from mlff_student.core.processes import signal_of
from mlff_student.structures.checks import connected_fragments
from mlff_student.structures.compressed import is_gzipped, text_lines
from mlff_student.structures.lammps_dumps import dump_frames, dumped_atoms
from mlff_student.structures.reading import Structure, read_structure
from mlff_student.structures.text import check_counts

if TYPE_CHECKING:
    import mdtraj

ATOMS_AT_ONCE = 300_000  # in all frames of a chunk: 7 MB for the positions
PS = 1e3 * units.fs  # picosecond in ASE's unit of time
FRAGILE = (".trr", ".h5", ".hdf5")  # formats whose libraries end the process on some damaged files
_sound: set[tuple[str, int, int]] = set()  # path, time and size of fragile files that can be read
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


@dataclass(frozen=True)
class FrameSteps:
    """Timesteps of the frames of a trajectory that LAMMPS wrote.

    Attributes
    ----------
    steps : NDArray[np.int_]
        (F,), timestep of each frame.
    time : NDArray[np.float64] or None
        (F,), time of each frame in LAMMPS's unit. None if the file does not have it.
    units : str
        Unit style, if the file says it, else empty.
    cut_off : int
        Number of frames that are not whole, because the run was killed. They are left out.
    counted : bool
        Whether the timesteps are counted from the first, as those of a DCD file.
    """

    steps: NDArray[np.int_]
    time: NDArray[np.float64] | None = None
    units: str = ""
    cut_off: int = 0
    counted: bool = False


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

    LAMMPS text dumps may have any columns with positions, and are sorted by id; their frames that a
    killed run cut off are left out. ASE reads its trajectories and extended XYZ; h5py reads
    MDTraj's HDF5; MDTraj reads DCD, XTC, TRR, NetCDF and all other formats that it knows. Each may
    be compressed by gzip. The topology decides whether the frames are periodic. If it is open,
    boxes in the trajectory are left out: LAMMPS writes bounds around open systems as well. If it is
    periodic and the trajectory has no cells, all frames have the cell of the topology.

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
    file = path
    try:
        with _decompressed(path) as file:
            _check_fragile(file, structure, chunk)
            for part in _reader(file, lammps_units)(file, structure, chunk):
                if part.positions.shape[1] != atoms:
                    raise InputError(_other_atoms(path, part.positions.shape[1], atoms))
                count += len(part)
                yield replace(part, cells=_cells(part, structure.atoms))
    except InputError as error:
        raise InputError(str(error).replace(str(file), str(path))) from error
    except Exception as error:  # the readers raise errors of any kind
        stored = _count_atoms(path)
        if stored not in (None, atoms):
            raise InputError(_other_atoms(path, stored, atoms)) from error
        raise InputError(f"cannot read the trajectory {path}: {error}") from error
    if not count:
        raise InputError(f"{path} has no frames")


def read_steps(trajectory: Path) -> FrameSteps | None:
    """Read the timesteps of the frames of a trajectory that LAMMPS wrote.

    Text dumps, XYZ and extended XYZ have them in each frame, DCD has them in its header.

    Parameters
    ----------
    trajectory : Path
        Trajectory file.

    Returns
    -------
    FrameSteps or None
        Timesteps; None if the file is of another program, or has no timesteps.

    Raises
    ------
    InputError
        A dump is damaged, or has no frames.
    """
    path = Path(trajectory)
    try:
        with _open(path) as file:
            start = file.read(200)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read the trajectory {path}: {error}") from error
    if start.startswith(b"ITEM:"):
        frames = list(_step_times(path))
        whole = [frame for frame in frames if frame is not None]
        if not whole:
            raise InputError(f"{path} has no whole frame")
        steps, times, units = zip(*whole, strict=True)
        known = None if None in times else np.array(times, np.float64)
        return FrameSteps(np.array(steps), known, max(units), len(frames) - len(whole))
    if start[4:8] == b"CORD" and b"Written by LAMMPS" in start:
        claimed, first, every = struct.unpack("<3i", start[8:20])
        count = _count_frames(path)  # fewer if the run was killed
        if min(count, every) < 1:
            return None
        cut_off = int(claimed > count)
        return FrameSteps(first + every * np.arange(count), cut_off=cut_off, counted=True)
    if path.name.lower().removesuffix(".gz").endswith("xyz"):
        return _steps_of_xyz(path)
    return None


def _step_times(path: Path) -> Iterator[tuple[int, float | None, str] | None]:
    for frame in dump_frames(path):
        yield None if frame is None else (frame.step, frame.time, frame.units)


def _steps_of_xyz(path: Path) -> FrameSteps | None:
    """Read "Timestep: 10" or "Timestep=10" in the second line of each frame."""
    lines = text_lines(path)
    steps: list[int] = []
    for line in lines:
        match = re.search(r"\bTimestep[:=]\s*(\d+)", next(lines, ""))
        if match is None or not (line.strip().isdecimal() and len(line) < 12):
            return None
        steps.append(int(match.group(1)))
        for _ in islice(lines, int(line)):
            pass
    return FrameSteps(np.array(steps)) if steps else None


def select_frames(frames: Iterable[Frames], chosen: NDArray[np.bool_]) -> Iterator[Frames]:
    """Select frames by a mask.

    Parameters
    ----------
    frames : Iterable[Frames]
        Chunks of frames.
    chosen : NDArray[np.bool_]
        (F,), whether each frame is selected.

    Yields
    ------
    Frames
        Selected frames of one chunk; chunks without any are left out.
    """
    start = 0
    for part in frames:
        if len(selected := _select(part, np.flatnonzero(chosen[start : start + len(part)]))):
            yield selected
        start += len(part)


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


def _select(frames: Frames, kept: slice | NDArray[np.int_]) -> Frames:
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


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb") if is_gzipped(path) else path.open("rb"))


@contextmanager
def _decompressed(path: Path) -> Iterator[Path]:
    """Give the file itself, or a decompressed copy where its reader does not decompress."""
    with _open(path) as packed:
        if not is_gzipped(path) or packed.read(5) == b"ITEM:":
            yield path
            return
        packed.seek(0)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / path.name.removesuffix(".gz")
            with copy.open("wb") as file:
                shutil.copyfileobj(packed, file)
            yield copy


def _reader(path: Path, lammps_units: str) -> Callable[[Path, Structure, int], Iterator[Frames]]:
    """Choose the reader of a file by its name and its first lines."""
    suffix = path.suffix.lower()
    with _open(path) as file:
        first, second = file.readline(200), file.readline(200)
    if first.startswith(b"ITEM:"):
        return lambda *options: _from_dump(*options, lammps_units)
    if suffix == ".bin" or second.startswith(b"creator: LAMMPS"):
        raise InputError(
            f"{path} is a dump in a format that is not read; write dumps of the style custom, or "
            "convert a binary dump with LAMMPS's binary2txt"
        )
    if suffix in (".traj", ".extxyz") or (suffix == ".xyz" and b"Properties=" in second):
        check_counts(path)
        images = Trajectory(path) if suffix == ".traj" else iread(path, ":")
        return lambda *options: _from_ase(images, *options)
    return _from_hdf5 if suffix in (".h5", ".hdf5") else _from_mdtraj


def _check_fragile(path: Path, structure: Structure, chunk: int) -> None:
    """Refuse a damaged file of a format whose library would end this process."""
    if path.suffix.lower() not in FRAGILE:
        return
    facts = path.stat()
    version = (str(path), facts.st_mtime_ns, facts.st_size)
    if version not in _sound:
        if end := signal_of(lambda: deque(_reader(path, "metal")(path, structure, chunk), 0)):
            raise InputError(f"{path} is damaged: reading it ends a process with {end}")
        _sound.add(version)


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


def _from_dump(path: Path, structure: Structure, chunk: int, lammps_units: str) -> Iterator[Frames]:
    """Read a LAMMPS text dump without its frames that were cut off."""
    frames = filter(None, dump_frames(path))
    first = True
    while part := list(islice(frames, chunk)):
        if other := {len(frame.rows) for frame in part} - {len(structure.atoms)}:
            raise InputError(_other_atoms(path, other.pop(), len(structure.atoms)))
        atoms = [dumped_atoms(path, frame, lammps_units) for frame in part]
        if first and atoms[0].numbers is not None:
            _check_elements(path, atoms[0].numbers, structure)
        first = False
        velocities = [frame.velocities for frame in atoms]
        forces = [frame.forces for frame in atoms]
        yield Frames(
            np.array([frame.positions for frame in atoms]),
            np.array([frame.cell for frame in part]) if part[0].periodic else None,
            None if any(value is None for value in velocities) else np.array(velocities),
            None if any(value is None for value in forces) else np.array(forces),
        )


def _check_elements(path: Path, numbers: NDArray[np.int_], structure: Structure) -> None:
    """Refuse other elements than those of the topology; 0 stands for an unknown element."""
    if (wrong := np.flatnonzero((numbers != structure.atoms.numbers) & (numbers > 0))).size:
        atom = int(wrong[0])
        raise InputError(
            f"{path} has other elements than the topology, or another order: atom {atom} is "
            f"{chemical_symbols[numbers[atom]]}, the topology says {structure.atoms.symbols[atom]}"
        )


def _from_ase(
    images: Iterable[Atoms], path: Path, structure: Structure, chunk: int
) -> Iterator[Frames]:
    images = iter(images)
    while part := list(islice(images, chunk)):
        if {len(atoms) for atoms in part} != {len(structure.atoms)}:
            raise InputError(_other_atoms(path, len(part[0]), len(structure.atoms)))
        _check_elements(path, part[0].numbers, structure)
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
    if path.suffix.lower() in FRAGILE:
        return None
    import mdtraj

    try:
        with ascii_path(path) as name, _silent_stdout(), mdtraj.open(name) as file:
            data = file.read(n_frames=1)
        return int((data[0] if isinstance(data, tuple) else data).shape[-2])
    except Exception:
        return None


def _count_frames(path: Path) -> int:
    """Return the number of frames by the size of the file, or 0 if it cannot be read."""
    import mdtraj

    try:
        with _decompressed(path) as unpacked, ascii_path(unpacked) as name, _silent_stdout():
            with mdtraj.open(name) as file:
                return len(file)
    except Exception:
        return 0


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

    with ascii_path(path) as name:
        frames = mdtraj.iterload(name, top=topology, chunk=chunk)
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
