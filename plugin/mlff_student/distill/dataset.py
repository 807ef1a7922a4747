"""Labelled frames of many structures in one HDF5 file that grows a structure at a time.

Arrays lie end to end: `structures/` has a row a structure, `frames/` a row a frame, `atoms/` a row
an atom of a frame. A structure's row is written last and says where its frames and atoms end, so
what a killed writer left behind it does not count. The writer works in HDF5's single-writer mode,
in which the file can be read whenever the writer dies; the next writer copies what counts.
"""

import io
import os
import re
import shutil
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from mlff_student.core.errors import InputError
from mlff_student.core.files import atomic_write, is_being_written, only_writer

SPLITS = ("train", "validation", "test")
REMEDY = "wait for it, or give another --data folder"  # where two would write one
FORMAT = 1
ROWS = {
    "structures": {
        "name": ("S96", ()),
        "identity": ("S240", ()),  # what may be in one split only
        "kind": ("S32", ()),
        "split": ("S12", ()),
        "frames_end": ("i8", ()),
        "atoms_end": ("i8", ()),
        "attempted": ("i8", ()),  # frames asked of the teacher
        "failure": ("S240", ()),  # why some are missing, or nothing
    },
    "frames": {
        "structure": ("i4", ()),
        "start": ("i8", ()),  # first atom
        "atoms": ("i4", ()),
        "method": ("S16", ()),
        "energy": ("f8", ()),  # eV
        "temperature": ("f4", ()),  # kelvin, NaN where no thermostat was
        "cell": ("f4", (3, 3)),  # angstrom
        "pbc": ("?", (3,)),
        "stress": ("f4", (6,)),  # eV/angstrom^3, xx yy zz yz xz xy, NaN where not labelled
    },
    "atoms": {
        "atomic_number": ("u1", ()),
        "position": ("f4", (3,)),  # angstrom
        "force": ("f4", (3,)),  # eV/angstrom
        "probe": ("f4", (3,)),  # v, NaN where there is no product
        "product": ("f4", (3,)),  # H v, eV/angstrom^2 for v in angstrom
    },
}
SPARE_BYTES = 32_000_000  # left free on a disk, so that a file can always be closed


class LabelledStructure(NamedTuple):
    """T frames of one structure of N atoms, as the teacher labelled them."""

    name: str
    identity: str
    kind: str
    split: str
    attempted: int
    failure: str
    atomic_numbers: np.ndarray  # (N,) uint8
    methods: list[str]  # (T,)
    positions: np.ndarray  # (T, N, 3) float32, angstrom
    forces: np.ndarray  # (T, N, 3) float32, eV/angstrom
    energies: np.ndarray  # (T,) float64, eV
    temperatures: np.ndarray  # (T,) float32, kelvin
    cells: np.ndarray  # (T, 3, 3) float32, angstrom
    pbc: np.ndarray  # (T, 3) bool
    stresses: np.ndarray  # (T, 6) float32, eV/angstrom^3
    probes: np.ndarray  # (T, N, 3) float32
    products: np.ndarray  # (T, N, 3) float32


class Writer:
    """Appends structures to an open dataset; made by `open_dataset`."""

    def __init__(self, file: h5py.File, path: Path) -> None:
        self.path = path
        self.file = file
        self.names = {str(name, "utf8") for name in file["structures/name"][:]}
        self.structures = len(file["structures/name"])
        self.frames = len(file["frames/energy"])
        self.atoms = len(file["atoms/position"])
        self.attempted = int(file["structures/attempted"][:].sum())

    def append(self, one: LabelledStructure) -> None:
        """Write one structure with its frames and flush it to the system.

        Raises
        ------
        InputError : the disk is (nearly) full; everything appended before is safe.
        """
        frames, atoms = one.positions.shape[:2]
        if shutil.disk_usage(self.path.parent).free < SPARE_BYTES + 64 * frames * atoms:
            raise InputError(
                f"the disk of {self.path} is full: less than {SPARE_BYTES / 1e6:.0f} MB are left. "
                "What was labelled is safe; make room and run the same command again"
            )
        rows = {
            "atoms": {
                "atomic_number": np.tile(one.atomic_numbers, frames),
                "position": one.positions.reshape(-1, 3),
                "force": one.forces.reshape(-1, 3),
                "probe": one.probes.reshape(-1, 3),
                "product": one.products.reshape(-1, 3),
            },
            "frames": {
                "structure": np.full(frames, self.structures),
                "start": self.atoms + atoms * np.arange(frames),
                "atoms": np.full(frames, atoms),
                "method": np.array(one.methods, "S16"),
                "energy": one.energies,
                "temperature": one.temperatures,
                "cell": one.cells,
                "pbc": one.pbc,
                "stress": one.stresses,
            },
            "structures": {
                key: [_cut(getattr(one, key), kind) if kind[0] == "S" else getattr(one, key)]
                for key, (kind, _) in ROWS["structures"].items()
                if not key.endswith("_end")
            }
            | {
                "frames_end": [self.frames + frames],
                "atoms_end": [self.atoms + frames * atoms],
            },
        }
        ends = {"atoms": self.atoms, "frames": self.frames, "structures": self.structures}
        try:
            for table, columns in rows.items():  # the structure's own row comes last
                for key, values in columns.items():
                    column = self.file[f"{table}/{key}"]
                    column.resize(ends[table] + len(values), 0)
                    if len(values):
                        column[ends[table] :] = values
                    column.flush()
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"cannot write {self.path}: {_reason(error)}. What was labelled before is safe; "
                "make room and run the same command again"
            ) from error
        self.names.add(one.name)
        self.structures += 1
        self.frames += frames
        self.atoms += frames * atoms
        self.attempted += one.attempted


@contextmanager
def open_dataset(path: Path, **attributes: Any) -> Iterator[Writer]:
    """Dataset to append to, made if there is none.

    Parameters
    ----------
    attributes : what the dataset is of (teacher, seed ...); must be equal to those of the file.

    Raises
    ------
    InputError : not a dataset of this format, cut short, made with other attributes, being written
        by another process, or no room to copy it.
    """
    with ExitStack() as stack:
        stack.enter_context(only_writer(path, REMEDY))
        # Under its own name from the moment when it is whole and can be read while it is written.
        with atomic_write(path) as temporary:
            file = stack.enter_context(_closed_quietly(temporary))
            if path.exists():
                # Also a file that was closed well: a fresh one has no mark of its last writer.
                _copy(path, file, attributes)
            else:
                file.attrs.update(attributes | {"format": FORMAT})
                _create(file)
            try:
                file.swmr_mode = True
                file.flush()
                with temporary.open("rb") as written:
                    os.fsync(written.fileno())
            except (OSError, RuntimeError) as error:
                raise InputError(
                    f"cannot write {path}: {_reason(error)}. What it holds already is as it was"
                ) from error
        yield Writer(file, path)


@contextmanager
def _closed_quietly(path: Path) -> Iterator[h5py.File]:
    """New file, whose closing fails only where nothing else has: after a write that failed, HDF5
    tries it again.
    """
    file = h5py.File(path, "w", libver="latest")
    try:
        yield file
    except BaseException:
        with suppress(OSError, RuntimeError):
            file.close()
        raise
    try:
        file.close()
    except (OSError, RuntimeError) as error:
        raise InputError(f"cannot write {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What the system said, of the several lines of an error of HDF5."""
    said = re.search("error message = '([^']*)'", str(error))
    return said[1] if said else (str(error).splitlines() or [repr(error)])[0]


def _copy(path: Path, new: h5py.File, attributes: dict[str, Any]) -> None:
    """Fill a new file with what counts of the dataset at `path`, if it has these attributes."""
    with _open(path, grows=False) as old:
        found = _attributes(old)
        for key, value in attributes.items():
            if found.get(key, value) != value:
                raise InputError(
                    f"{path} was made with {key} {found.get(key)!r}, the recipe says {value!r}; "
                    "give another --data folder"
                )
        new.attrs.update(dict(old.attrs) | attributes)
        _create(new)
        for table, end in _committed(old).items():
            for key in ROWS[table]:
                values = old[f"{table}/{key}"][:end]
                try:
                    new[f"{table}/{key}"].resize(end, 0)
                    new[f"{table}/{key}"][:] = values
                    new[f"{table}/{key}"].flush()
                except (OSError, RuntimeError) as error:
                    raise InputError(
                        f"cannot copy {path} before it grows: {_reason(error)}. What it holds "
                        "already is as it was"
                    ) from error


def _attributes(file: h5py.File) -> dict[str, Any]:
    """Attributes of a dataset as plain Python values."""
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in file.attrs.items()}


def _cut(text: str, kind: str) -> bytes:
    """UTF-8 of a text, no longer than a column's kind has room for, whole characters only."""
    return text.encode()[: int(kind[1:])].decode(errors="ignore").encode()


def pack(path: Path) -> None:
    """Rewrite a finished dataset compressed, its structures in the order of their names.

    Labels come in as workers finish; so ordered, the same labels always make the same file. It can
    still be gone on with: the next writer unpacks it.
    """
    with only_writer(path, REMEDY), _open(path, grows=False) as old:
        end = _committed(old)
        table = {
            name: {key: old[f"{name}/{key}"][: end[name]] for key in columns}
            for name, columns in ROWS.items()
        }
        order = np.argsort(table["structures"]["name"], kind="stable")
        for name in ("frames", "atoms"):
            ends = table["structures"][f"{name}_end"]
            counts = np.diff(ends, prepend=0)[order]
            rows = np.repeat(ends[order] - np.cumsum(counts), counts) + np.arange(counts.sum())
            table[name] = {key: values[rows] for key, values in table[name].items()}
            table["structures"][f"{name}_end"] = np.cumsum(counts)[np.argsort(order)]
        table["structures"] = {k: values[order] for k, values in table["structures"].items()}
        frames = table["frames"]
        frames["structure"] = np.argsort(order)[frames["structure"]].astype(np.int32)
        frames["start"] = np.cumsum(frames["atoms"], dtype=np.int64) - frames["atoms"]
        with atomic_write(path) as temporary, h5py.File(temporary, "w", libver="latest") as new:
            new.attrs.update(old.attrs)
            for name, columns in table.items():
                for key, values in columns.items():
                    new.create_dataset(
                        f"{name}/{key}",
                        data=values,
                        chunks=True if len(values) else None,
                        compression="gzip" if len(values) else None,
                        shuffle=True if len(values) else None,
                    )


def _create(file: h5py.File) -> None:
    for table, columns in ROWS.items():
        for key, (dtype, shape) in columns.items():
            file.create_dataset(
                f"{table}/{key}",
                shape=(0, *shape),
                maxshape=(None, *shape),
                dtype=dtype,
                chunks=(1024 if table == "structures" else 8192, *shape),
            )


@contextmanager
def _open(path: Path, grows: bool | None = None) -> Iterator[h5py.File]:
    """Dataset to read from, also while it is being written (it grows, if that is known) and after
    its writer was killed.
    """
    if not path.is_file():
        raise InputError(f"no dataset {path}; run `mlff-student distill sample` first")
    try:
        with _open_file(path, grows) as file:
            found = file.attrs.get("format")
            if found != FORMAT or any(table not in file for table in ROWS):
                raise InputError(f"{path} is no dataset of format {FORMAT} (found format {found})")
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(
            f"{path} is not a whole HDF5 file ({error}); a copy cut short, perhaps: copy it again, "
            "or move it away and run `mlff-student distill sample` again"
        ) from error


def _open_file(path: Path, grows: bool | None) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "already open for" not in str(error):
            raise
    if is_being_written(path) if grows is None else grows:
        return h5py.File(path, "r", swmr=True)
    return h5py.File(_Unmarked(path), "r")


class _Unmarked(io.FileIO):
    """A file that its writer could not close, without the mark of that and with its true length.

    HDF5 reads a marked file in its single-writer mode alone, where what a copy cut short lacks is
    waited for forever, or read as zeros; here it is an error. Of the superblock's 48 bytes (HDF5
    file format specification 3.0, II.A, version 2 and 3) byte 11 holds the mark.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        head = bytearray(self.read(48))
        if len(head) == 48 and head[8] in (2, 3):
            head[11] = 0
            head[28:36] = path.stat().st_size.to_bytes(8, "little")
            head[44:48] = _lookup3(bytes(head[:44])).to_bytes(4, "little")
        self.head = bytes(head)

    def readinto(self, buffer: Any) -> int:
        first = self.tell()
        count = super().readinto(buffer)
        patched = self.head[first : first + count]
        memoryview(buffer)[: len(patched)] = patched
        return count


def _lookup3(data: bytes) -> int:
    """Checksum of HDF5's metadata (Jenkins 2006, http://burtleburtle.net/bob/c/lookup3.c)."""
    a = b = c = 0xDEADBEEF + len(data)
    words = struct.unpack(f"<{len(data) // 4}I", data)  # whole words only, as the superblock has
    words += (0,) * (-len(words) % 3)
    for k in range(0, len(words), 3):
        a, b, c = a + words[k], b + words[k + 1], c + words[k + 2]
        if k < len(words) - 3:
            for turn in (4, 6, 8, 16, 19, 4):
                a = (a - c ^ _rotated(c, turn)) & 0xFFFFFFFF
                c += b
                a, b, c = b, c, a
    for turn in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - _rotated(b, turn)) & 0xFFFFFFFF
        a, b, c = b, c, a
    return b


def _rotated(word: int, turn: int) -> int:
    word &= 0xFFFFFFFF
    return word << turn & 0xFFFFFFFF | word >> (32 - turn)


def _committed(file: h5py.File) -> dict[str, int]:
    """Number of rows of each table that count."""
    structures = min(len(file[f"structures/{key}"]) for key in ROWS["structures"])
    ends = {key: file[f"structures/{key}"][:structures] for key in ("frames_end", "atoms_end")}
    # The last column may have got its row, but not yet the value.
    if structures and ends["frames_end"][-1] and not ends["atoms_end"][-1]:
        structures -= 1
    return {
        "structures": structures,
        "frames": int(ends["frames_end"][structures - 1]) if structures else 0,
        "atoms": int(ends["atoms_end"][structures - 1]) if structures else 0,
    }


class Frames(NamedTuple):
    """Frames laid end to end: M structures, T frames, A atoms in all frames together."""

    names: list[str]  # (M,)
    identities: list[str]  # (M,)
    kinds: list[str]  # (M,)
    molecule: Tensor  # (T,) int64, index into names
    methods: list[str]  # (T,)
    start: Tensor  # (T + 1,) int64, first atom of each frame
    atomic_numbers: Tensor  # (A,) int64
    positions: Tensor  # (A, 3) float32, angstrom
    forces: Tensor  # (A, 3) float32, eV/angstrom
    energies: Tensor  # (T,) float64, eV
    temperatures: Tensor  # (T,) float32, kelvin, NaN where no thermostat was
    cells: Tensor  # (T, 3, 3) float32, angstrom
    pbc: Tensor  # (T, 3) bool
    stresses: Tensor  # (T, 6) float32, eV/angstrom^3, NaN where not labelled
    probes: Tensor  # (A, 3) float32, NaN where there is no product
    products: Tensor  # (A, 3) float32, eV/angstrom^2


class Summary(NamedTuple):
    """The structures of a dataset, one entry each, and how many frames were asked for."""

    names: list[str]
    identities: list[str]
    kinds: list[str]
    splits: list[str]
    attempted: np.ndarray  # (M,)
    labelled: np.ndarray  # (M,)
    failures: list[str]
    attributes: dict[str, Any]


def read_summary(path: Path) -> Summary:
    """What a dataset holds, without its frames."""
    with _open(path) as file:
        return _summary(file, _committed(file)["structures"])


def _summary(file: h5py.File, end: int) -> Summary:
    table = {key: file[f"structures/{key}"][:end] for key in ROWS["structures"]}
    text = {
        key: [str(value, "utf8") for value in table[key]]
        for key, (kind, _) in ROWS["structures"].items()
        if kind[0] == "S"
    }
    return Summary(
        text["name"],
        text["identity"],
        text["kind"],
        text["split"],
        table["attempted"],
        np.diff(table["frames_end"], prepend=0),
        text["failure"],
        _attributes(file),
    )


def read_frames(
    path: Path, split: str | None = None, *, structures: int = 0, seed: int = 0
) -> Frames:
    """All frames of one split, or of the whole dataset, in memory.

    Parameters
    ----------
    structures : read this many structures alone, drawn by the seed; 0: all.

    Raises
    ------
    InputError : no dataset, one cut short or of another format, or a split that is not there.
    """
    if split not in (None, *SPLITS):
        raise InputError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    with _open(path) as file:
        end = _committed(file)
        summary = _summary(file, end["structures"])
        frame = {key: file[f"frames/{key}"][: end["frames"]] for key in ROWS["frames"]}
        atom = {key: file[f"atoms/{key}"][: end["atoms"]] for key in ROWS["atoms"]}
    members = np.array([split in (None, one) for one in summary.splits], bool)
    if structures:
        drawn = np.random.default_rng(seed).permutation(np.flatnonzero(members))[:structures]
        members = np.isin(np.arange(len(members)), drawn)
    kept = members[frame["structure"]] if len(members) else np.zeros(0, bool)
    rows = np.repeat(kept, frame["atoms"])
    number = np.cumsum(members) - 1  # of a structure among the split's
    names, identities, kinds = (
        [text for text, member in zip(texts, members, strict=True) if member]
        for texts in (summary.names, summary.identities, summary.kinds)
    )
    frame = {key: values[kept] for key, values in frame.items()}
    tensor = {key: torch.from_numpy(values[rows]) for key, values in atom.items()}
    return Frames(
        names=names,
        identities=identities,
        kinds=kinds,
        molecule=torch.from_numpy(number[frame["structure"]].astype(np.int64)),
        methods=[str(method, "utf8") for method in frame["method"]],
        start=torch.from_numpy(np.cumsum([0, *frame["atoms"]], dtype=np.int64)),
        atomic_numbers=tensor["atomic_number"].long(),
        positions=tensor["position"],
        forces=tensor["force"],
        energies=torch.from_numpy(frame["energy"]),
        temperatures=torch.from_numpy(frame["temperature"]),
        cells=torch.from_numpy(frame["cell"]),
        pbc=torch.from_numpy(frame["pbc"]),
        stresses=torch.from_numpy(frame["stress"]),
        probes=tensor["probe"],
        products=tensor["product"],
    )
