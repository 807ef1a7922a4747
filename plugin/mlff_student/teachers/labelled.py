"""The teacher `file:PATH`, which returns the labels that a file of structures contains."""

from collections import defaultdict
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.io import read
from scipy.spatial import KDTree

from mlff_student.core.errors import InputError

SAME_STRUCTURE = 1e-3  # largest difference of a coordinate, angstrom; files round their positions


def labelled_frames(path: Path) -> list[Atoms]:
    """Read all frames of a file with their labels.

    Parameters
    ----------
    path : Path
        File that ASE reads.

    Returns
    -------
    list[Atoms]
        Frames with the energy (eV) and forces (N, 3) in eV/angstrom of the file in
        `atoms.calc.results`. Labels that are not finite are returned as they are.

    Raises
    ------
    InputError
        There is no such file, it cannot be read or has no frames, or a frame has no energy, no
        forces, or positions or a cell that are not finite.
    """
    if not path.is_file():
        raise InputError(f"there is no file of labelled structures {path}")
    try:
        frames = read(path, index=":")
    except Exception as error:  # ASE's readers raise errors of any kind
        raise InputError(f"cannot read {path}: {error}") from error
    if not frames:
        raise InputError(f"{path} contains no structures")
    for index, atoms in enumerate(frames):
        labels = atoms.calc.results if atoms.calc else {}
        missing = [key for key in ("energy", "forces") if key not in labels]
        if missing:
            other = [*labels, *atoms.info, *(set(atoms.arrays) - {"numbers", "positions"})]
            raise InputError(
                f"{path}, frame {index} (the first is 0): no {' and no '.join(missing)}. Expected "
                "are energy (eV) and forces (eV/angstrom) under these names; others, such as "
                f"REF_energy and REF_forces, must be renamed. Found: "
                f"{', '.join(other) or 'no labels'}"
            )
        if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
            raise InputError(
                f"{path}, frame {index} (the first is 0): positions are not finite, or the cell"
            )
    return frames


class LabelledFile(Calculator):
    """ASE calculator that returns the labels of a file for the structures in that file.

    A structure is in the file if a frame has the same atoms in the same order, and positions and
    periodic cell vectors that differ by less than `SAME_STRUCTURE`.

    Parameters
    ----------
    path : Path
        File of labelled structures, as `labelled_frames` reads it.

    Raises
    ------
    InputError
        The file cannot be used; see `labelled_frames`.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        groups: dict[tuple[bytes, bytes], list[Atoms]] = defaultdict(list)
        for frame in labelled_frames(path):
            groups[_kind(frame)].append(frame)
        self._groups = {
            kind: (KDTree([_geometry(frame) for frame in frames]), frames)
            for kind, frames in groups.items()
        }
        with_stress = all(
            "stress" in frame.calc.results for frames in groups.values() for frame in frames
        )
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


def _kind(atoms: Atoms) -> tuple[bytes, bytes]:
    return atoms.numbers.tobytes(), atoms.pbc.tobytes()


def _geometry(atoms: Atoms) -> np.ndarray:
    """Return positions and periodic cell vectors as one array (3 N + 9,), angstrom."""
    return np.concatenate([atoms.positions, atoms.cell.array * atoms.pbc[:, None]]).ravel()
