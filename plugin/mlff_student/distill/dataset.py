"""Labelled frames of many structures: one HDF5 file, and one small file a structure while they are
being labelled.

In the HDF5 file arrays lie end to end: `structures/` has a row for each structure, `frames/` one
for each frame, and `atoms/` one for each atom of a frame. While labelling runs, each structure is
written to a file of its own (a shard) in the folder `<dataset>.shards`, under a temporary name that
is renamed when it is complete. At the end all shards are packed into the HDF5 file, in the same
way. So a killed run loses at most its unfinished structures, and readers read the file and the
shards at any time.
"""

import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from mlff_student.core.errors import InputError
from mlff_student.core.files import atomic_write, only_writer, sha256

SPLITS = ("train", "validation", "test")
REMEDY = "wait for it, or give another --data folder"  # where two would write the same dataset
FORMAT = 1
TEXTS = {"name": "S96", "identity": "S240", "kind": "S32", "split": "S12", "failure": "S240"}
# Columns; `LabelledStructure` says what they are. In the HDF5 file `structures` has `frames_end`
# and `atoms_end` in place of `frames`, and `frames` also `structure` (row) and `start` (first
# atom). Other columns are ignored: earlier versions wrote `atoms/probe` and `atoms/product`.
TABLES = {
    "structures": np.dtype([*TEXTS.items(), ("frames", "i8"), ("attempted", "i8")]),
    "frames": np.dtype(
        [
            *(("atoms", "i4"), ("method", "S16"), ("energy", "f8"), ("temperature", "f4")),
            *(("cell", "f4", (3, 3)), ("pbc", "?", (3,)), ("stress", "f4", (6,))),
        ]
    ),
    "atoms": np.dtype([("atomic_number", "u1"), ("position", "f4", (3,)), ("force", "f4", (3,))]),
}
# Columns of numbers, with the fields of `LabelledStructure` and `LabelledFrames` that hold them.
FRAME_FIELDS = {
    **{"energy": "energies", "temperature": "temperatures", "cell": "cells", "pbc": "pbc"},
    "stress": "stresses",
}
ATOM_FIELDS = {"position": "positions", "force": "forces"}
Tables = dict[str, np.ndarray]  # structured arrays, of some or all of `TABLES`


class LabelledStructure(NamedTuple):
    """T frames of one structure of N atoms, as the teacher labelled them."""

    name: str
    identity: str  # what may be in one split only
    kind: str
    split: str
    attempted: int  # frames asked of the teacher
    failure: str  # why some are missing, or nothing
    atomic_numbers: np.ndarray  # (N,) uint8
    methods: list[str]  # (T,)
    positions: np.ndarray  # (T, N, 3) float32, angstrom
    forces: np.ndarray  # (T, N, 3) float32, eV/angstrom
    energies: np.ndarray  # (T,) float64, eV
    temperatures: np.ndarray  # (T,) float32, kelvin, NaN where no thermostat was
    cells: np.ndarray  # (T, 3, 3) float32, angstrom
    pbc: np.ndarray  # (T, 3) bool
    stresses: np.ndarray  # (T, 6) float32, eV/angstrom^3, xx yy zz yz xz xy, NaN: not labelled


class LabelledFrames(NamedTuple):
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


class Writer:
    """Adds structures to an open dataset; made by `open_dataset`."""

    def __init__(self, path: Path, structures: np.ndarray) -> None:
        self.path = path
        self.names = set(_texts(structures["name"]))
        self.frames = int(structures["frames"].sum())

    def append(self, structure: LabelledStructure, number: int | None = None) -> None:
        """Write one structure with its frames to a shard of its own.

        Parameters
        ----------
        number : int, optional
            Place among the structures that are packed together; by default behind those that the
            dataset holds. With it the packed file does not depend on which was labelled first.

        Raises
        ------
        InputError
            If the disk is full; everything that was appended before is safe.
        """
        number = len(self.names) if number is None else number
        code = hashlib.sha256(structure.name.encode()).hexdigest()[:16]
        content = io.BytesIO()
        tables: dict[str, Any] = _tables_of(structure)
        np.savez(content, **tables)
        _write(_shards(self.path) / f"{number:08d}_{code}.npz", content)
        self.names.add(structure.name)
        self.frames += len(structure.energies)


@contextmanager
def open_dataset(path: Path, **attributes: Any) -> Iterator[Writer]:
    """Dataset to append to, made if there is none, and packed at the end of a block without error.

    Parameters
    ----------
    path : Path
        HDF5 file.
    attributes : str or float
        What the dataset is of (teacher, seed ...); must be equal to those of an existing file.

    Raises
    ------
    InputError
        If the file is not a dataset of this format, is cut short, was made with other attributes or
        is being written by another process, or if the disk is full.
    """
    with only_writer(path, REMEDY):
        if path.exists():
            existing = _read_packed(path, ())[0]
            for key, value in attributes.items():
                if existing.get(key, value) != value:
                    raise InputError(
                        f"{path} was made with {key} {existing.get(key)!r}, the recipe says "
                        f"{value!r}; give another --data folder"
                    )
        elif _shards(path).exists():
            raise InputError(
                f"{_shards(path)} holds structures, but its dataset {path} is missing; put that "
                "back, or move the folder away"
            )
        else:
            empty = {name: np.zeros(0, columns) for name, columns in TABLES.items()}
            _write(path, _packed({"format": FORMAT} | attributes, empty))
        yield Writer(path, _read(path, ("structures",))[1]["structures"])
        if _shards(path).exists():
            _write(path, _packed(*_read(path)))
            shutil.rmtree(_shards(path), ignore_errors=True)


def read_summary(path: Path) -> Summary:
    """What a dataset holds, without its frames.

    Raises
    ------
    InputError
        As `read_dataset`.
    """
    attributes, tables = _read(path, ("structures",))
    return _summary(attributes, tables["structures"])


def read_frames(
    path: Path, split: str | None = None, *, structures: int = 0, seed: int = 0
) -> LabelledFrames:
    """All frames of one split, or of the whole dataset, in memory.

    Parameters
    ----------
    path : Path
        HDF5 file, also of a dataset that is being labelled.
    split : str, optional
        One of `SPLITS`.
    structures : int
        Read this many structures alone, drawn by the seed; 0: all.
    seed : int
        Of the draw.

    Raises
    ------
    InputError
        As `read_dataset`, and for a split that does not exist.
    """
    if split not in (None, *SPLITS):
        raise InputError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    tables = _read(path)[1]
    members = np.ones(len(tables["structures"]), bool)
    if split:
        members = tables["structures"]["split"] == split.encode()
    if structures:
        drawn = np.random.default_rng(seed).permutation(np.flatnonzero(members))[:structures]
        members = np.isin(np.arange(len(members)), drawn)
    return _frames(_selected(tables, members))


def read_dataset(path: Path) -> tuple[Summary, LabelledFrames]:
    """All structures with all their frames, read at one moment.

    Raises
    ------
    InputError
        If there is no dataset, or it is cut short or of another format.
    """
    attributes, tables = _read(path)
    return _summary(attributes, tables["structures"]), _frames(tables)


def dataset_sha256(path: Path) -> str:
    """Hash of a dataset: that of its file, or of this and its shards while it is being labelled."""
    hashes = []
    for part in (*_shard_files(path), path):
        with suppress(FileNotFoundError):  # a shard that is packed meanwhile
            hashes.append(sha256(part))
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _shards(path: Path) -> Path:
    return path.with_name(f"{path.name}.shards")


def _shard_files(path: Path) -> list[Path]:
    return sorted(_shards(path).glob("*.npz"))


def _write(path: Path, content: io.BytesIO) -> None:
    """Replace a file, or leave it as it was."""
    try:
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
    except (OSError, InputError) as error:
        reason = getattr(error.__cause__ or error, "strerror", None) or error
        raise InputError(
            f"cannot write {path}: {reason}. What was labelled before is safe; make room and run "
            "the same command again"
        ) from error


def _tables_of(structure: LabelledStructure) -> Tables:
    """One structure as rows of all tables."""
    count, atoms = structure.positions.shape[:2]
    rows = {"structures": 1, "frames": count, "atoms": count * atoms}
    tables = {name: np.zeros(rows[name], columns) for name, columns in TABLES.items()}
    for key, kind in TEXTS.items():
        tables["structures"][key] = _cut(getattr(structure, key), int(kind[1:]))
    tables["structures"]["frames"], tables["structures"]["attempted"] = count, structure.attempted
    tables["frames"]["atoms"], tables["frames"]["method"] = atoms, structure.methods
    tables["atoms"]["atomic_number"] = np.tile(structure.atomic_numbers, count)
    for name, fields in (("frames", FRAME_FIELDS), ("atoms", ATOM_FIELDS)):
        for key, field in fields.items():
            column = tables[name][key]
            column[:] = getattr(structure, field).reshape(column.shape)
    return tables


def _cut(text: str, most: int) -> bytes:
    """UTF-8 of a text, no longer than a column has room for, whole characters only."""
    return text.encode()[:most].decode(errors="ignore").encode()


def _texts(column: np.ndarray) -> list[str]:
    return [str(value, "utf8") for value in column]


def _packed(attributes: dict[str, Any], tables: Tables) -> io.BytesIO:
    """Content of the HDF5 file, compressed."""
    structures, frames = tables["structures"], tables["frames"]
    ends = np.cumsum(frames["atoms"], dtype=np.int64)
    last = np.cumsum(structures["frames"])
    derived = {
        "structures/frames_end": last,
        "structures/atoms_end": np.concatenate([[0], ends])[last],
        "frames/structure": np.repeat(np.arange(len(structures), dtype="i4"), structures["frames"]),
        "frames/start": ends - frames["atoms"],
    }
    stored = {
        f"{name}/{key}": rows[key]
        for name, rows in tables.items()
        for key in rows.dtype.names or ()
    }
    del stored["structures/frames"]
    content = io.BytesIO()
    with h5py.File(content, "w", libver="latest") as file:
        file.attrs.update(attributes)
        for key, values in (stored | derived).items():
            options = (
                {"chunks": True, "compression": "gzip", "shuffle": True} if len(values) else {}
            )
            file.create_dataset(key, data=values, **options)
    return content


def _read(path: Path, names: tuple[str, ...] = tuple(TABLES)) -> tuple[dict[str, Any], Tables]:
    """Attributes and tables of a dataset: its HDF5 file's, then those of the shards."""
    # The shards first: what is packed and removed meanwhile is in the file that is read after them.
    shards = [_read_shard(shard, (*names, "structures")) for shard in _shard_files(path)]
    attributes, packed = _read_packed(path, (*names, "structures"))
    known = set(packed["structures"]["name"])
    parts = [packed]
    parts += [shard for shard in shards if shard and shard["structures"]["name"][0] not in known]
    return attributes, {name: np.concatenate([part[name] for part in parts]) for name in names}


def _read_packed(path: Path, names: tuple[str, ...]) -> tuple[dict[str, Any], Tables]:
    if not path.is_file():
        raise InputError(f"no dataset {path}; run `mlff-student distill sample` first")
    try:
        with h5py.File(path, "r") as file:
            plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in file.attrs.items()}
            if plain.get("format") != FORMAT or any(name not in file for name in TABLES):
                raise InputError(
                    f"{path} is no dataset of format {FORMAT} (found format {plain.get('format')})"
                )
            tables: Tables = {}
            for name in names:
                stored = dict(file[name].items())
                if name == "structures":
                    stored["frames"] = np.diff(stored["frames_end"][:], prepend=0)
                columns = {key: stored[key][:] for key in TABLES[name].names or ()}
                tables[name] = np.zeros(len(next(iter(columns.values()))), TABLES[name])
                for key, values in columns.items():
                    tables[name][key] = values
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} is not a whole HDF5 file ({error}); a copy cut short, perhaps: copy it again, "
            "or move it away and run `mlff-student distill sample` again"
        ) from error
    return plain, tables


def _read_shard(path: Path, names: tuple[str, ...]) -> Tables | None:
    """Tables of one structure; None if it was packed meanwhile."""
    try:
        with np.load(path) as file:
            return {name: file[name] for name in names}
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} is damaged ({error}); delete it and run `mlff-student distill sample` again, "
            "which labels this structure anew"
        ) from error


def _summary(attributes: dict[str, Any], structures: np.ndarray) -> Summary:
    return Summary(
        *(_texts(structures[key]) for key in ("name", "identity", "kind", "split")),
        attempted=structures["attempted"],
        labelled=structures["frames"],
        failures=_texts(structures["failure"]),
        attributes=attributes,
    )


def _selected(tables: Tables, members: np.ndarray) -> Tables:
    """The tables of some structures alone, of which `members` (M,) says whether they are meant."""
    frames = np.repeat(members, tables["structures"]["frames"])
    atoms = np.repeat(frames, tables["frames"]["atoms"])
    kept = {"structures": members, "frames": frames, "atoms": atoms}
    return {name: rows[kept[name]] for name, rows in tables.items()}


def _frames(tables: Tables) -> LabelledFrames:
    structures, frames, atoms = (tables[name] for name in TABLES)

    def tensor(column: np.ndarray) -> Tensor:
        return torch.from_numpy(column.copy())  # torch takes no strides of structured arrays

    return LabelledFrames(
        *(_texts(structures[key]) for key in ("name", "identity", "kind")),
        molecule=tensor(np.repeat(np.arange(len(structures)), structures["frames"])),
        methods=_texts(frames["method"]),
        start=tensor(np.cumsum([0, *frames["atoms"]], dtype=np.int64)),
        atomic_numbers=tensor(atoms["atomic_number"]).long(),
        **{field: tensor(frames[key]) for key, field in FRAME_FIELDS.items()},
        **{field: tensor(atoms[key]) for key, field in ATOM_FIELDS.items()},
    )
