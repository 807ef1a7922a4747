"""ASE calculator over an archive."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from .archive import Archive
from .checkpoints import archive_of
from .native import with_backend
from .structure import check_structure


def evaluate(archive: Archive, atoms: Atoms, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Energy of each atom (N,), forces (N, 3) and virial (3, 3); see `ArchiveModule.evaluate`."""
    return archive.module.evaluate(
        torch.tensor(atoms.positions, dtype=torch.float64, device=device),
        torch.tensor(atoms.numbers, dtype=torch.int64, device=device),
        torch.tensor(atoms.cell.array, dtype=torch.float64, device=device),
        torch.tensor(atoms.pbc, device=device),
    )


class StudentForceFieldCalculator(Calculator):
    """Energy, forces, stress and per-atom energies of a student.

    Parameters
    ----------
    model : name of a shipped model, or path of a checkpoint or archive.
    device : torch device.
    dtype : torch.float32 or torch.float64, where a checkpoint is compiled.
    backend : kernels, "native", "portable" or "auto"; see `mlff_student.native.with_backend`.

    Raises
    ------
    ArchiveError : the model cannot be found or read.
    MissingDependencyError : the native kernels cannot be used, and "native" was asked for.
    InputError : on calculation, a structure the student must not be given.
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy",
        "free_energy",
        "forces",
        "stress",
        "energies",
    ]

    def __init__(
        self,
        model: str | Path = "original",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.device = device
        self.archive = with_backend(archive_of(model, dtype, device), backend, device)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill `results`; called by ASE."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        changed = {"numbers", "cell", "pbc"} & set(system_changes)
        if changed or not np.isfinite(self.atoms.positions).all():
            check_structure(self.atoms, self.archive.metadata["elements"])
        energies, forces, virial = evaluate(self.archive, self.atoms, self.device)
        energy = float(energies.sum())
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": energies.cpu().numpy(),
            "forces": forces.cpu().numpy(),
        }
        if self.atoms.pbc.all():
            stress = -virial.cpu().numpy() / self.atoms.get_volume()
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress)
