"""Forces along a trajectory's own frames against a teacher's."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from mlff_student.analysis.blocks import mean_of_blocks
from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.core.figures import Figure, Measured
from mlff_student.structures.reading import Structure
from mlff_student.structures.trajectories import Frames

COMPONENTS = "xyz"
PERIODS = 4  # of the trajectory, whose errors are given apart

LARGE_ANGLE_FLOOR = 0.1  # eV/angstrom; the direction of a smaller force is noise


class ForceErrors(NamedTuple):
    """Errors of forces over a set of atoms."""

    atoms: int
    force_rmse_ev_per_angstrom: float
    force_mae_ev_per_angstrom: float
    force_r2: float
    force_angle_deg: float  # mean, of teacher forces above 0.1 eV/angstrom


def force_errors(found: Tensor, label: Tensor) -> ForceErrors:
    """Errors of forces (A, 3) against the teacher's."""
    error = found - label
    cosine = torch.nn.functional.cosine_similarity(found, label, dim=1)
    angles = torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))
    residual, spread = error.square().sum(), (label - label.mean()).square().sum()
    return ForceErrors(
        atoms=len(label),
        force_rmse_ev_per_angstrom=float(error.square().mean().sqrt()),
        force_mae_ev_per_angstrom=float(error.abs().mean()),
        force_r2=float(1.0 - residual / spread),
        force_angle_deg=float(angles[label.norm(dim=1) > LARGE_ANGLE_FLOOR].mean()),
    )


@dataclass(frozen=True)
class TrajectoryForceErrors(Measured):
    """Errors of forces along a trajectory.

    Attributes
    ----------
    force_rmse_ev_per_angstrom, force_rmse_stderr_ev_per_angstrom, force_mae_ev_per_angstrom,
    force_max_error_ev_per_angstrom, force_r2 : of components; the standard error by blocks of
        frames, the largest error of the length of an atom's error vector.
    force_angle_deg : float
        Mean between the forces, of teacher forces above 0.1 eV/angstrom.
    frames : compared.
    parts : dict[str, ForceErrors]
        The errors of each component ("x"), element ("H") and quarter of the trajectory ("q1").
    rmse_of_frames : NDArray[np.float64]
        (frames,) each frame's RMSE, eV/angstrom.
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
        """All figures: of the whole, then of each part."""
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
    found: NDArray[np.float64], teacher: NDArray[np.float64], numbers: NDArray[np.int_]
) -> TrajectoryForceErrors:
    """Errors of forces (F, N, 3) against the teacher's, in eV/angstrom, of atoms with
    atomic numbers (N,).

    Raises
    ------
    InputError
        Shapes that differ, or no frames.
    """
    if found.shape != teacher.shape or found.shape[1:] != (len(numbers), 3) or not len(found):
        raise InputError(
            f"forces {found.shape} and the teacher's {teacher.shape} of {len(numbers)} atoms "
            "cannot be compared; expected two of the same shape, (frames, atoms, 3)"
        )
    square = (found - teacher) ** 2
    total = _errors(found, teacher)
    of_frames = square.mean(axis=(1, 2))
    mean = mean_of_blocks(of_frames)
    selections: dict[str, Any] = {name: np.s_[..., k : k + 1] for k, name in enumerate(COMPONENTS)}
    selections |= {chemical_symbols[z]: np.s_[:, numbers == z] for z in np.unique(numbers)}
    quarters = np.array_split(np.arange(len(found)), PERIODS)
    selections |= {f"q{k + 1}": part for k, part in enumerate(quarters) if len(part)}
    return TrajectoryForceErrors(
        force_rmse_ev_per_angstrom=total.force_rmse_ev_per_angstrom,
        force_rmse_stderr_ev_per_angstrom=float(mean.stderr / (2.0 * np.sqrt(mean.value))),
        force_mae_ev_per_angstrom=total.force_mae_ev_per_angstrom,
        force_max_error_ev_per_angstrom=float(np.sqrt(square.sum(axis=2).max())),
        force_r2=total.force_r2,
        force_angle_deg=total.force_angle_deg,
        force_frames=len(found),
        parts={name: _errors(found[part], teacher[part]) for name, part in selections.items()},
        rmse_of_frames=np.sqrt(of_frames),
    )


def _errors(found: NDArray[np.float64], teacher: NDArray[np.float64]) -> ForceErrors:
    """Errors of forces (F, N, 3), or of one component (F, N, 1)."""
    pair = (torch.from_numpy(part.reshape(-1, part.shape[2])) for part in (found, teacher))
    return force_errors(*(part.double() for part in pair))


def frames_as_atoms(frames: Frames, structure: Structure) -> Iterator[Atoms]:
    """ASE structures of the frames, with the reference's elements and periodicity."""
    for index, positions in enumerate(frames.positions):
        atoms = Atoms(structure.atoms.numbers, positions, pbc=structure.atoms.pbc)
        if frames.cells is not None:
            atoms.cell = frames.cells[index]
        yield atoms


def evaluate_trajectory(
    frames: Frames, structure: Structure, calculator: Calculator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Energies (F,) in eV and forces (F, N, 3) in eV/angstrom of a calculator on each frame.

    Raises
    ------
    InputError
        A frame that the calculator cannot do.
    OSError, MemoryError, MissingDependencyError
        What the machine is to blame for.
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
