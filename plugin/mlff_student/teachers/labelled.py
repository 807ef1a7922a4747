"""The teacher `file:PATH`: labels of a file of structures."""

from collections import defaultdict
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.io import read
from scipy.spatial import KDTree

from mlff_student.core.errors import InputError

SAME_STRUCTURE = 1e-3  # angstrom, largest difference of a coordinate: files round their positions


def labelled_frames(path: Path) -> list[Atoms]:
    """All frames of a file that ASE reads, each with the energy (eV) and forces (eV/angstrom) that
    the file holds in `atoms.calc.results`. Labels that are not finite are returned as they are.

    Raises
    ------
    InputError
        No such file, not readable, no frames, or a frame without a finite geometry, an energy or
        forces.
    """
    if not path.is_file():
        raise InputError(f"no file of labelled structures {path}")
    try:
        frames = read(path, index=":")
    except Exception as error:  # ASE's readers raise whatever their parsers run into
        raise InputError(f"cannot read {path}: {error}") from error
    if not frames:
        raise InputError(f"{path} holds no structures")
    for index, atoms in enumerate(frames):
        labels = atoms.calc.results if atoms.calc else {}
        missing = [key for key in ("energy", "forces") if key not in labels]
        if missing:
            other = [*labels, *atoms.info, *(set(atoms.arrays) - {"numbers", "positions"})]
            raise InputError(
                f"{path}, frame {index} (the first is 0): no {' and no '.join(missing)}. Expected "
                "are energy (eV) and forces (eV/angstrom) under these names; others, as REF_energy "
                f"and REF_forces, must be renamed. Found: {', '.join(other) or 'no labels'}"
            )
        if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
            raise InputError(f"{path}, frame {index} (the first is 0): positions are not finite")
    return frames


class LabelledFile(Calculator):
    """The labels of a file, for the structures in it: those with the same atoms in the same order,
    and positions and periodic cell vectors within `SAME_STRUCTURE`.

    Parameters
    ----------
    path : Path
        As `labelled_frames` reads it, with the same exceptions.
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
        """Look the structure up; InputError if the file does not hold it."""
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
            f"{self.path} holds no such structure of {atoms.get_chemical_formula()} "
            f"({len(frames)} of the same atoms, none within {SAME_STRUCTURE} angstrom); sampling "
            "new ones needs a teacher that computes, such as gfn2-xtb"
        )


def _kind(atoms: Atoms) -> tuple[bytes, bytes]:
    return atoms.numbers.tobytes(), atoms.pbc.tobytes()


def _geometry(atoms: Atoms) -> np.ndarray:
    """Positions and the cell vectors that matter, (3 N + 9,) angstrom."""
    return np.concatenate([atoms.positions, atoms.cell.array * atoms.pbc[:, None]]).ravel()
