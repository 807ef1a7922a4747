"""Labelled frames of many structures in one HDF5 file that grows a structure at a time.

Arrays lie end to end: `structures/` has a row a structure, `frames/` a row a frame, `atoms/` a row
an atom of a frame. A structure's row is written last and says where its frames and atoms end, so
what a killed writer left behind it does not count. The writer works in HDF5's single-writer mode,
in which the file can be read whenever the writer dies; the next writer copies what counts.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..files import atomic_write

SPLITS = ("train", "validation", "test")
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
        self.names = set(file["structures/name"].asstr()[:])
        self.frames = len(file["frames/energy"])
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
        first_atom = len(self.file["atoms/position"])
        rows = {
            "atoms": {
                "atomic_number": np.tile(one.atomic_numbers, frames),
                "position": one.positions.reshape(-1, 3),
                "force": one.forces.reshape(-1, 3),
                "probe": one.probes.reshape(-1, 3),
                "product": one.products.reshape(-1, 3),
            },
            "frames": {
                "structure": np.full(frames, len(self.names)),
                "start": first_atom + atoms * np.arange(frames),
                "atoms": np.full(frames, atoms),
                "method": np.array(one.methods, "S16"),
                "energy": one.energies,
                "temperature": one.temperatures,
                "cell": one.cells,
                "pbc": one.pbc,
                "stress": one.stresses,
            },
            "structures": {
                key: [getattr(one, key)[:240].encode() if kind[0] == "S" else getattr(one, key)]
                for key, (kind, _) in ROWS["structures"].items()
                if not key.endswith("_end")
            }
            | {"frames_end": [self.frames + frames], "atoms_end": [first_atom + frames * atoms]},
        }
        try:
            for table, columns in rows.items():  # the structure's own row comes last
                for key, values in columns.items():
                    column = self.file[f"{table}/{key}"]
                    column.resize(len(column) + len(values), 0)
                    if len(values):
                        column[-len(values) :] = values
                    column.flush()
        except OSError as error:
            raise InputError(
                f"cannot write {self.path}: {error}. What was labelled before is safe"
            ) from error
        self.names.add(one.name)
        self.frames += frames
        self.attempted += one.attempted


@contextmanager
def open_dataset(path: Path, **attributes: Any) -> Iterator[Writer]:
    """Dataset to append to, made if there is none.

    Parameters
    ----------
    attributes : what the dataset is of (teacher, seed ...); must be equal to those of the file.

    Raises
    ------
    InputError : not a dataset of this format, cut short, or made with other attributes.
    """
    if not path.exists():
        with atomic_write(path) as temporary, h5py.File(temporary, "w", libver="latest") as file:
            file.attrs.update(attributes | {"format": FORMAT})
            _create(file)
    else:
        with _open(path) as old:
            for key, value in attributes.items():
                if old.attrs.get(key) != value:
                    raise InputError(
                        f"{path} was made with {key} {old.attrs.get(key)!r}, the recipe says "
                        f"{value!r}; give another --data folder"
                    )
            # A file that was closed well is copied too: a fresh one bears no mark of its writer.
            with atomic_write(path) as temporary, h5py.File(temporary, "w", libver="latest") as new:
                new.attrs.update(old.attrs)
                _create(new)
                for table, end in _committed(old).items():
                    for key in ROWS[table]:
                        new[f"{table}/{key}"].resize(end, 0)
                        new[f"{table}/{key}"][:] = old[f"{table}/{key}"][:end]
    with h5py.File(path, "r+", libver="latest") as file:
        file.swmr_mode = True
        yield Writer(file, path)


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
def _open(path: Path) -> Iterator[h5py.File]:
    """Dataset to read from, also while it is being written and after its writer was killed."""
    if not path.is_file():
        raise InputError(f"no dataset {path}; run `mlff-student distill sample` first")
    try:
        file = h5py.File(path, "r", swmr=True)
    except OSError as error:
        raise InputError(
            f"{path} is not a whole HDF5 file ({error}); a copy cut short, perhaps: copy it again, "
            "or move it away and run `mlff-student distill sample` again"
        ) from error
    with file:
        found = file.attrs.get("format")
        if found != FORMAT or any(table not in file for table in ROWS):
            raise InputError(f"{path} is no dataset of format {FORMAT} (found format {found})")
        yield file


def _committed(file: h5py.File) -> dict[str, int]:
    """Number of rows of each table that count."""
    structures = min(len(file[f"structures/{key}"]) for key in ROWS["structures"])
    if not structures:
        return dict.fromkeys(("structures", "frames", "atoms"), 0)
    return {
        "structures": structures,
        "frames": int(file["structures/frames_end"][structures - 1]),
        "atoms": int(file["structures/atoms_end"][structures - 1]),
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
        end = _committed(file)["structures"]
        table = {key: file[f"structures/{key}"][:end] for key in ROWS["structures"]}
        text = {
            k: [str(v, "utf8") for v in table[k]]
            for k, (t, _) in ROWS["structures"].items()
            if t[0] == "S"
        }
        return Summary(
            text["name"],
            text["identity"],
            text["kind"],
            text["split"],
            table["attempted"],
            np.diff(table["frames_end"], prepend=0),
            text["failure"],
            dict(file.attrs),
        )


def read_frames(path: Path, split: str | None = None) -> Frames:
    """All frames of one split, or of the whole dataset, in memory.

    Raises
    ------
    InputError : no dataset, one cut short or of another format, or a split that is not there.
    """
    if split not in (None, *SPLITS):
        raise InputError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    summary = read_summary(path)
    with _open(path) as file:
        end = _committed(file)
        frame = {key: file[f"frames/{key}"][: end["frames"]] for key in ROWS["frames"]}
        atom = {key: file[f"atoms/{key}"][: end["atoms"]] for key in ROWS["atoms"]}
    members = np.array([split in (None, one) for one in summary.splits], bool)
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


def sha256(path: Path) -> str:
    """Hash of a file, as `sha256sum` prints it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
