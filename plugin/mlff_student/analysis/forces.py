"""Compare the forces along a trajectory with those of a teacher on the same frames."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import chemical_symbols
from numpy.typing import ArrayLike, NDArray

from mlff_student.analysis.blocks import mean_of_blocks
from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.core.figures import Figure, Measured
from mlff_student.structures.reading import Structure
from mlff_student.structures.trajectories import Frames

COMPONENTS = "xyz"
PERIODS = 4  # equal parts of the trajectory whose errors are reported each by itself
SHORTEST = 1e-8  # (eV/angstrom)^2; of the product of two forces whose angle is computed
LARGE_ANGLE_FLOOR = 0.1  # eV/angstrom; the direction of a smaller force is noise


class ForceErrors(NamedTuple):
    """Errors of forces over a set of atoms.

    Attributes
    ----------
    atoms : int
        Number of forces compared.
    force_rmse_ev_per_angstrom, force_mae_ev_per_angstrom : float
        Root mean square error and mean absolute error of the force components, eV/angstrom.
    force_r2 : float
        Coefficient of determination of the force components.
    force_angle_deg : float
        Mean angle between a force and the teacher's, degrees, over the teacher's forces above
        0.1 eV/angstrom.
    """

    atoms: int
    force_rmse_ev_per_angstrom: float
    force_mae_ev_per_angstrom: float
    force_r2: float
    force_angle_deg: float


def force_errors(forces: ArrayLike, label: ArrayLike) -> ForceErrors:
    """Return the errors of forces compared with the teacher's.

    Parameters
    ----------
    forces, label : ArrayLike
        Forces of the model and of the teacher, (A, 3), eV/angstrom.

    Returns
    -------
    ForceErrors
        Errors over all A forces.
    """
    forces, label = np.asarray(forces, dtype=np.float64), np.asarray(label, dtype=np.float64)
    error, large = forces - label, np.linalg.norm(label, axis=1) > LARGE_ANGLE_FLOOR
    lengths = np.linalg.norm(forces[large], axis=1) * np.linalg.norm(label[large], axis=1)
    cosine = (forces * label)[large].sum(1) / np.maximum(lengths, SHORTEST)
    angles = np.rad2deg(np.arccos(cosine.clip(-1.0, 1.0)))
    residual, spread = np.square(error).sum(), np.square(label - label.mean()).sum()
    return ForceErrors(
        atoms=len(label),
        force_rmse_ev_per_angstrom=float(np.sqrt(np.square(error).mean())),
        force_mae_ev_per_angstrom=float(abs(error).mean()),
        force_r2=float(1.0 - residual / spread) if spread else float("nan"),
        force_angle_deg=float(angles.mean()) if large.any() else float("nan"),
    )


@dataclass(frozen=True)
class TrajectoryForceErrors(Measured):
    """Errors of forces along a trajectory.

    Attributes
    ----------
    force_rmse_ev_per_angstrom, force_rmse_stderr_ev_per_angstrom : float
        Root mean square error of the force components and its standard error from blocks of
        frames, eV/angstrom.
    force_mae_ev_per_angstrom : float
        Mean absolute error of the force components, eV/angstrom.
    force_max_error_ev_per_angstrom : float
        Largest length of an atom's error vector, eV/angstrom.
    force_r2 : float
        Coefficient of determination of the force components.
    force_angle_deg : float
        Mean angle between a force and the teacher's, degrees, over the teacher's forces above
        0.1 eV/angstrom.
    force_frames : int
        Number of frames compared.
    parts : dict[str, ForceErrors]
        Errors of each component ("x"), element ("H") and quarter of the trajectory ("q1").
    rmse_of_frames : NDArray[np.float64]
        Root mean square error of each frame, (frames,), eV/angstrom.
    """

    force_rmse_ev_per_angstrom: float
    force_rmse_stderr_ev_per_angstrom: float
    force_mae_ev_per_angstrom: float
    force_max_error_ev_per_angstrom: float
    force_r2: float
    force_angle_deg: float
    force_frames: int
    parts: dict[str, ForceErrors]
    rmse_of_frames: NDArray[np.float64] = field(repr=False)

    def figures(self) -> list[Figure]:
        """Return all figures: those of all forces, then those of each part."""
        figures = [
            Figure(
                "force_rmse",
                self.force_rmse_ev_per_angstrom,
                "eV/angstrom",
                self.force_rmse_stderr_ev_per_angstrom,
            ),
            Figure("force_mae", self.force_mae_ev_per_angstrom, "eV/angstrom"),
            Figure("force_max_error", self.force_max_error_ev_per_angstrom, "eV/angstrom"),
            Figure("force_r2", self.force_r2),
            Figure("force_angle", self.force_angle_deg, "degrees"),
            Figure("force_frames", self.force_frames),
        ]
        for name, part in self.parts.items():
            figures += [
                Figure(f"force_rmse_{name}", part.force_rmse_ev_per_angstrom, "eV/angstrom"),
                Figure(f"force_mae_{name}", part.force_mae_ev_per_angstrom, "eV/angstrom"),
                Figure(f"force_r2_{name}", part.force_r2),
            ]
            if name not in COMPONENTS:
                figures.append(Figure(f"force_angle_{name}", part.force_angle_deg, "degrees"))
        return figures


def trajectory_force_errors(
    forces: NDArray[np.float64], teacher: NDArray[np.float64], numbers: NDArray[np.int_]
) -> TrajectoryForceErrors:
    """Return the errors of the forces along a trajectory compared with the teacher's.

    Parameters
    ----------
    forces, teacher : NDArray[np.float64]
        Forces of the run and of the teacher, (F, N, 3), eV/angstrom.
    numbers : NDArray[np.int_]
        Atomic numbers, (N,).

    Returns
    -------
    TrajectoryForceErrors
        Errors of all forces and of their parts.

    Raises
    ------
    InputError
        If the shapes differ, or there are no frames.
    """
    if forces.shape != teacher.shape or forces.shape[1:] != (len(numbers), 3) or not len(forces):
        raise InputError(
            f"the run's forces {forces.shape} and the teacher's {teacher.shape} cannot be compared "
            f"for {len(numbers)} atoms; expected two arrays of the same shape, (frames, atoms, 3)"
        )
    square = (forces - teacher) ** 2
    total = _errors(forces, teacher)
    of_frames = square.mean(axis=(1, 2))
    mean = mean_of_blocks(of_frames)
    selections: dict[str, Any] = {name: np.s_[..., k : k + 1] for k, name in enumerate(COMPONENTS)}
    selections |= {chemical_symbols[z]: np.s_[:, numbers == z] for z in np.unique(numbers)}
    quarters = np.array_split(np.arange(len(forces)), PERIODS)
    selections |= {f"q{k + 1}": part for k, part in enumerate(quarters) if len(part)}
    return TrajectoryForceErrors(
        force_rmse_ev_per_angstrom=total.force_rmse_ev_per_angstrom,
        force_rmse_stderr_ev_per_angstrom=float(mean.stderr / (2.0 * np.sqrt(mean.value))),
        force_mae_ev_per_angstrom=total.force_mae_ev_per_angstrom,
        force_max_error_ev_per_angstrom=float(np.sqrt(square.sum(axis=2).max())),
        force_r2=total.force_r2,
        force_angle_deg=total.force_angle_deg,
        force_frames=len(forces),
        parts={name: _errors(forces[part], teacher[part]) for name, part in selections.items()},
        rmse_of_frames=np.sqrt(of_frames),
    )


def _errors(forces: NDArray[np.float64], teacher: NDArray[np.float64]) -> ForceErrors:
    """Return the errors of forces (F, N, 3), or of a single component (F, N, 1)."""
    return force_errors(*(part.reshape(-1, part.shape[2]) for part in (forces, teacher)))


def frames_as_atoms(frames: Frames, structure: Structure) -> Iterator[Atoms]:
    """Yield the frames as ASE structures with the elements and periodicity of the reference.

    Parameters
    ----------
    frames : Frames
        Frames of a trajectory.
    structure : Structure
        Reference structure with the elements and the periodicity.

    Yields
    ------
    Atoms
        Structure of each frame.
    """
    for index, positions in enumerate(frames.positions):
        atoms = Atoms(structure.atoms.numbers, positions, pbc=structure.atoms.pbc)
        if frames.cells is not None:
            atoms.cell = frames.cells[index]
        yield atoms


def evaluate_trajectory(
    frames: Frames, structure: Structure, calculator: Calculator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the energies and forces of a calculator on each frame.

    Parameters
    ----------
    frames : Frames
        Frames of a trajectory.
    structure : Structure
        Reference structure with the elements and the periodicity.
    calculator : Calculator
        ASE calculator, such as a teacher or a student.

    Returns
    -------
    tuple[NDArray[np.float64], NDArray[np.float64]]
        Energies, (F,), eV, and forces, (F, N, 3), eV/angstrom.

    Raises
    ------
    InputError
        If the calculator fails on a frame.
    OSError, MemoryError, MissingDependencyError
        If the cause is the machine and not the frame.
    """
    energies: list[float] = []
    forces: list[Any] = []
    for index, atoms in enumerate(frames_as_atoms(frames, structure)):
        atoms.calc = calculator
        try:
            forces.append(atoms.get_forces())
            energies.append(atoms.get_potential_energy())
        except (InputError, OSError, MemoryError, MissingDependencyError):
            raise
        except Exception as error:  # calculators raise whatever their programs report
            raise InputError(
                f"{type(calculator).__name__} fails on frame {index} of those compared: {error}"
            ) from error
    return np.array(energies), np.array(forces)
