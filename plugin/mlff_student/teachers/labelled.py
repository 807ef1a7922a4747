"""The teacher `file:PATH`, which returns the labels that a file of structures contains."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import read
from scipy.spatial import KDTree

from mlff_student.core.errors import InputError
from mlff_student.structures.text import check_counts
from mlff_student.teachers.labels import labels_of_frames

SAME_STRUCTURE = 1e-3  # largest difference of a coordinate, angstrom; files round their positions
# Frames this close, in angstrom, are one structure whose energies, in eV, must be the same.
SAME_POSITIONS, SAME_ENERGY = 1e-6, 1e-3


def labelled_frames(path: Path, method: str | None = None) -> list[Atoms]:
    """Read all frames of a file with their labels.

    Parameters
    ----------
    path : Path
        File that ASE reads.
    method : str or None
        Method whose labels to take, if the file has those of several; see `labels_of_frames`.

    Returns
    -------
    list[Atoms]
        Frames with the energy (eV), the forces (N, 3) in eV/angstrom and, if the file has it, the
        stress (6,) in eV/angstrom^3 in `atoms.calc.results`. Labels that are not finite are
        returned as they are.

    Raises
    ------
    InputError
        There is no such file, it cannot be read or has no frames; a frame has positions or a cell
        that are not finite; or a frame has no energy or no forces, see `labels_of_frames`.
    """
    if not path.is_file():
        raise InputError(f"there is no file of labelled structures {path}")
    check_counts(path)
    try:
        if path.suffix == ".db":
            frames, metadata = _read_database(path)
        else:
            frames, metadata = read(path, ":", do_not_split_by_at_sign=True), {}
    except Exception as error:  # ASE's readers raise errors of any kind
        raise InputError(f"cannot read {path}: {error}") from error
    if not frames:
        raise InputError(f"{path} contains no structures")
    for index, atoms in enumerate(frames):
        if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
            raise InputError(
                f"{path}, frame {index} (the first is 0): positions are not finite, or the cell"
            )
    for atoms, labels in zip(
        frames, labels_of_frames(frames, str(path), method, metadata), strict=True
    ):
        results = {key: value for key, value in labels._asdict().items() if value is not None}
        atoms.calc = SinglePointCalculator(atoms, **results)
    return frames


class LabelledFile(Calculator):
    """ASE calculator that returns the labels of a file for the structures in that file.

    A structure is in the file if a frame has the same atoms in the same order, and positions and
    periodic cell vectors that differ by less than `SAME_STRUCTURE`.

    Parameters
    ----------
    path : Path
        File of labelled structures, as `labelled_frames` reads it.
    method : str or None
        Method whose labels to take, if the file has those of several.

    Raises
    ------
    InputError
        The file cannot be used; see `labelled_frames`.
    """

    def __init__(self, path: Path, method: str | None = None):
        super().__init__()
        self.path = path
        groups: dict[tuple[bytes, bytes], list[Atoms]] = defaultdict(list)
        for frame in labelled_frames(path, method):
            groups[_kind(frame)].append(frame)
        self._groups = {
            kind: (KDTree([_geometry(frame) for frame in frames]), frames)
            for kind, frames in groups.items()
        }
        for tree, frames in self._groups.values():
            for i, j in tree.query_pairs(SAME_POSITIONS, p=np.inf):
                energies = [frames[k].calc.results["energy"] for k in (i, j)]
                if abs(energies[0] - energies[1]) > SAME_ENERGY:
                    raise InputError(
                        f"{path} contains a structure of {frames[i].get_chemical_formula()} twice, "
                        f"with the energies {energies[0]:.6f} and {energies[1]:.6f} eV; remove one"
                    )
        boxes = [frame for frames in groups.values() for frame in frames if frame.pbc.any()]
        with_stress = boxes and all("stress" in box.calc.results for box in boxes)
        self.implemented_properties = ["energy", "forces", *(["stress"] if with_stress else [])]

    def calculate(
        self,
        atoms: Atoms,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Find the structure in the file and set its labels as results.

        Parameters
        ----------
        atoms : Atoms
            Structure to find.
        properties : list[str] or None
            Not used; all labels of the file are set.
        system_changes : list[str]
            Changes since the last call, as ASE passes them.

        Raises
        ------
        InputError
            The structure is not in the file.
        """
        super().calculate(atoms, properties, system_changes)
        tree, frames = self._groups.get(_kind(atoms), (None, []))
        if tree is not None:
            distance, index = tree.query(
                _geometry(atoms), p=np.inf, distance_upper_bound=SAME_STRUCTURE
            )
            if np.isfinite(distance):
                self.results = dict(frames[index].calc.results)
                return
        raise InputError(
            f"{self.path} contains no such structure of {atoms.get_chemical_formula()} "
            f"({len(frames)} frames have the same atoms, none of them within {SAME_STRUCTURE} "
            "angstrom); new structures need a teacher that computes, such as gfn2-xtb"
        )


def _read_database(path: Path) -> tuple[list[Atoms], dict[str, Any]]:
    """Return the frames of an ASE database, with each row's data in `info`, and its metadata."""
    database = connect(path)
    frames = [row.toatoms(add_additional_information=True) for row in database.select()]
    return frames, database.metadata


def _kind(atoms: Atoms) -> tuple[bytes, bytes]:
    return atoms.numbers.tobytes(), atoms.pbc.tobytes()


def _geometry(atoms: Atoms) -> np.ndarray:
    """Return positions and periodic cell vectors as one array (3 N + 9,), angstrom."""
    return np.concatenate([atoms.positions, atoms.cell.array * atoms.pbc[:, None]]).ravel()
