"""The dataset: labelled frames of many structures in one HDF5 file.

In the file arrays lie end to end: `structures/` has a row for each structure, `frames/` a row for
each frame, and `atoms/` a row for each atom of each frame. While labelling runs, each structure is
written to a small file of its own, a shard, in the folder `<dataset>.shards`. At the end all shards
are packed into the HDF5 file. Every file is written under a temporary name and renamed when it is
complete: a killed run loses only its unfinished structures, and a reader may read at any time.
"""

import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlff_student.core.errors import InputError, InterruptedRunError
from mlff_student.core.files import atomic_write, only_writer, sha256

SPLITS = ("train", "validation", "test")
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
# Columns of numbers, and the fields of `LabelledStructure` and `LabelledFrames` that hold them.
FIELDS = {
    "frames": {
        **{"energy": "energies", "temperature": "temperatures", "cell": "cells", "pbc": "pbc"},
        "stress": "stresses",
    },
    "atoms": {"position": "positions", "force": "forces"},
}
Tables = dict[str, np.ndarray]  # structured arrays, of some or all of `TABLES`


class LabelledStructure(NamedTuple):
    """The labelled frames of one structure: T frames of N atoms.

    Attributes
    ----------
    name : str
        Name of the structure, unique in a dataset.
    identity : str
        What may be in one split only: the canonical SMILES, or a code of the bonds.
    kind : str
        Class of the molecule, or "dimer", "cluster", "liquid", "crystal" or "file".
    split : str
        "train", "validation" or "test".
    attempted : int
        Number of frames that the teacher was asked for.
    failure : str
        Why some frames are missing; empty if none is.
    atomic_numbers : ndarray
        (N,) uint8.
    methods : list of str
        (T,) how each frame was sampled, such as "md".
    positions : ndarray
        (T, N, 3) float32, angstrom.
    forces : ndarray
        (T, N, 3) float32, eV/angstrom.
    energies : ndarray
        (T,) float64, eV.
    temperatures : ndarray
        (T,) float32, kelvin; NaN of a frame that was made without a thermostat.
    cells : ndarray
        (T, 3, 3) float32, angstrom; lattice vectors as rows.
    pbc : ndarray
        (T, 3) bool, whether the cell repeats along each vector.
    stresses : ndarray
        (T, 6) float32, eV/angstrom^3, xx yy zz yz xz xy; NaN if not labelled.
    """

    name: str
    identity: str
    kind: str
    split: str
    attempted: int
    failure: str
    atomic_numbers: np.ndarray
    methods: list[str]
    positions: np.ndarray
    forces: np.ndarray
    energies: np.ndarray
    temperatures: np.ndarray
    cells: np.ndarray
    pbc: np.ndarray
    stresses: np.ndarray


class LabelledFrames(NamedTuple):
    """Labelled frames of M structures, laid end to end: T frames, A atoms in all frames together.

    Attributes
    ----------
    names, identities, kinds : list of str
        (M,) as in `LabelledStructure`.
    molecule : Tensor
        (T,) int64, index of each frame's structure in `names`.
    methods : list of str
        (T,) how each frame was sampled.
    start : Tensor
        (T + 1,) int64, row of the first atom of each frame; the last entry is A.
    atomic_numbers : Tensor
        (A,) int64.
    positions : Tensor
        (A, 3) float32, angstrom.
    forces : Tensor
        (A, 3) float32, eV/angstrom.
    energies : Tensor
        (T,) float64, eV.
    temperatures : Tensor
        (T,) float32, kelvin; NaN of a frame that was made without a thermostat.
    cells : Tensor
        (T, 3, 3) float32, angstrom; lattice vectors as rows.
    pbc : Tensor
        (T, 3) bool, whether the cell repeats along each vector.
    stresses : Tensor
        (T, 6) float32, eV/angstrom^3, xx yy zz yz xz xy; NaN if not labelled.
    """

    names: list[str]
    identities: list[str]
    kinds: list[str]
    molecule: Tensor
    methods: list[str]
    start: Tensor
    atomic_numbers: Tensor
    positions: Tensor
    forces: Tensor
    energies: Tensor
    temperatures: Tensor
    cells: Tensor
    pbc: Tensor
    stresses: Tensor


class Summary(NamedTuple):
    """The M structures of a dataset without their frames.

    Attributes
    ----------
    names, identities, kinds, splits : list of str
        (M,) as in `LabelledStructure`.
    attempted, labelled : ndarray
        (M,) number of frames that the teacher was asked for, and that it labelled.
    failures : list of str
        (M,) why some frames are missing; empty if none is.
    attributes : dict
        What the whole dataset was made with, such as the teacher and the random seed.
    """

    names: list[str]
    identities: list[str]
    kinds: list[str]
    splits: list[str]
    attempted: np.ndarray
    labelled: np.ndarray
    failures: list[str]
    attributes: dict[str, Any]


class Writer:
    """Adds structures to an open dataset; made by `open_dataset`.

    Attributes
    ----------
    names : set of str
        Names of the structures that the dataset holds.
    frames : int
        Number of frames that the dataset holds.
    """

    def __init__(self, path: Path, structures: np.ndarray) -> None:
        self.path = path
        self.names = set(_texts(structures["name"]))
        self.frames = int(structures["frames"].sum())

    def append(self, structure: LabelledStructure, number: int | None = None) -> None:
        """Write one structure with its frames to a shard of its own.

        Parameters
        ----------
        structure : LabelledStructure
            The structure to add.
        number : int, optional
            Place among the structures that are packed together; after those that the dataset holds
            if not given. With it the packed file does not depend on the order of labelling.

        Raises
        ------
        InputError
            The shard cannot be written, for example because the disk is full. Everything that was
            appended before is safe.
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
    """Open a dataset for writing, or make it; pack it when the block ends without an error.

    Parameters
    ----------
    path : Path
        HDF5 file.
    **attributes : str or float
        What the dataset is made with (teacher, seed, ...). An existing dataset must have been made
        with the same.

    Yields
    ------
    Writer
        Adds structures to the dataset.

    Raises
    ------
    InputError
        The file is not a dataset of this format, is damaged, was made with other attributes, is
        being written by another process, or cannot be written.
    """
    with only_writer(path, "wait for it, or give another --data folder"):
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
    """Read which structures a dataset holds, without their frames.

    Parameters
    ----------
    path : Path
        HDF5 file, also of a dataset that is being written.

    Raises
    ------
    InputError
        There is no dataset, it is damaged, or it is of another format.
    """
    attributes, tables = _read(path, ("structures",))
    return _summary(attributes, tables["structures"])


def read_frames(
    path: Path, split: str | None = None, *, structures: int = 0, seed: int = 0
) -> LabelledFrames:
    """Read all frames of one split, or of the whole dataset, into memory.

    Parameters
    ----------
    path : Path
        HDF5 file, also of a dataset that is being written; or a packed dataset (.npz), which is
        read whole.
    split : str, optional
        One of `SPLITS`; all of them if not given.
    structures : int
        Number of structures to read, drawn at random; 0 reads all.
    seed : int
        Random seed of that draw.

    Raises
    ------
    InputError
        There is no such split or dataset, or the dataset is damaged or of another format.
    """
    if split not in (None, *SPLITS):
        raise InputError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    if path.suffix == ".npz":
        from mlff_student.distill.packed import read_packed

        return read_packed(path, split)
    tables = _read(path)[1]
    members = np.ones(len(tables["structures"]), bool)
    if split:
        members = tables["structures"]["split"] == split.encode()
    if structures:
        drawn = np.random.default_rng(seed).permutation(np.flatnonzero(members))[:structures]
        members = np.isin(np.arange(len(members)), drawn)
    frames = np.repeat(members, tables["structures"]["frames"])
    rows = {"structures": members, "frames": frames}
    rows["atoms"] = np.repeat(frames, tables["frames"]["atoms"])
    return _frames({name: table[rows[name]] for name, table in tables.items()})


def read_dataset(path: Path) -> tuple[Summary, LabelledFrames]:
    """Read all structures and all frames, as they are at one moment.

    Parameters
    ----------
    path : Path
        HDF5 file, also of a dataset that is being written.

    Returns
    -------
    Summary
        The structures.
    LabelledFrames
        The frames of all splits.

    Raises
    ------
    InputError
        There is no dataset, it is damaged, or it is of another format.
    """
    attributes, tables = _read(path)
    return _summary(attributes, tables["structures"]), _frames(tables)


def dataset_sha256(path: Path) -> str:
    """Return the SHA-256 of a dataset, as hexadecimal digits.

    It is the hash of the HDF5 file as `sha256sum` prints it. While the dataset is being written it
    is a hash of the file and its shards together.
    """
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
    except (OSError, InputError, InterruptedRunError) as error:
        reason = getattr(error.__cause__ or error, "strerror", None) or error
        raise InputError(
            f"cannot write {path}: {reason}. What was labelled before is safe; make room and run "
            "the same command again"
        ) from error


def _tables_of(structure: LabelledStructure) -> Tables:
    """Return one structure as rows of all tables."""
    count, atoms = structure.positions.shape[:2]
    rows = {"structures": 1, "frames": count, "atoms": count * atoms}
    tables = {name: np.zeros(rows[name], columns) for name, columns in TABLES.items()}
    for key, kind in TEXTS.items():
        # UTF-8, cut to the width of the column, but never within a character.
        cut = getattr(structure, key).encode()[: int(kind[1:])].decode(errors="ignore")
        tables["structures"][key] = cut.encode()
    tables["structures"]["frames"], tables["structures"]["attempted"] = count, structure.attempted
    tables["frames"]["atoms"], tables["frames"]["method"] = atoms, structure.methods
    tables["atoms"]["atomic_number"] = np.tile(structure.atomic_numbers, count)
    for name, fields in FIELDS.items():
        for key, field in fields.items():
            column = tables[name][key]
            column[:] = getattr(structure, field).reshape(column.shape)
    return tables


def _texts(column: np.ndarray) -> list[str]:
    try:
        return [str(value, "utf8") for value in column]
    except UnicodeDecodeError as error:
        raise InputError(f"a text in the dataset is damaged: {error}; copy it again") from error


def _packed(attributes: dict[str, Any], tables: Tables) -> io.BytesIO:
    """Return the content of the HDF5 file, compressed."""
    structures, frames = tables["structures"], tables["frames"]
    ends = np.cumsum(frames["atoms"], dtype=np.int64)
    frames_end = np.cumsum(structures["frames"])
    columns = {
        f"{name}/{key}": table[key]
        for name, table in tables.items()
        for key in table.dtype.names or ()
    }
    del columns["structures/frames"]
    columns |= {
        "structures/frames_end": frames_end,
        "structures/atoms_end": np.concatenate([[0], ends])[frames_end],
        "frames/structure": np.repeat(np.arange(len(structures), dtype="i4"), structures["frames"]),
        "frames/start": ends - frames["atoms"],
    }
    import h5py  # here, because packed datasets are read where it is not installed

    content = io.BytesIO()
    with h5py.File(content, "w", libver="latest") as file:
        file.attrs.update(attributes)
        for key, values in columns.items():
            options = (
                {"chunks": True, "compression": "gzip", "shuffle": True} if len(values) else {}
            )
            file.create_dataset(key, data=values, **options)
    return content


def _read(path: Path, names: tuple[str, ...] = tuple(TABLES)) -> tuple[dict[str, Any], Tables]:
    """Return the attributes of a dataset, and the tables of its HDF5 file and its shards."""
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
    import h5py

    tables: Tables = {}
    try:
        with h5py.File(path, "r") as file:
            plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in file.attrs.items()}
            known = plain.get("format") == FORMAT and all(name in file for name in TABLES)
            for name in names if known else ():
                stored = dict(file[name].items())
                if name == "structures":
                    stored["frames"] = np.diff(stored["frames_end"][:], prepend=0)
                columns = [stored[key][:] for key in TABLES[name].names or ()]
                tables[name] = np.rec.fromarrays(columns, dtype=TABLES[name])
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a whole HDF5 file ({error}); perhaps a copy was cut short: copy "
            "it again, or move it away and run `mlff-student distill sample` again"
        ) from error
    if not known:
        raise InputError(
            f"{path} is no dataset of format {FORMAT} (found format {plain.get('format')}); give "
            "a file that `mlff-student distill sample` wrote"
        )
    return plain, tables


def _read_shard(path: Path, names: tuple[str, ...]) -> Tables | None:
    """Return the tables of one structure; None if it was packed meanwhile."""
    try:
        with np.load(path) as file:
            tables = {name: file[name] for name in names}
        if any(table.ndim != 1 or table.dtype != TABLES[k] for k, table in tables.items()):
            raise ValueError("a table has other columns or dimensions")
        return tables
    except FileNotFoundError:
        return None
    except Exception as error:  # zipfile and numpy raise errors of any kind
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
        **{
            field: tensor(tables[name][key])
            for name, fields in FIELDS.items()
            for key, field in fields.items()
        },
    )
