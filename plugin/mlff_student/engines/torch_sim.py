"""Model interface of torch-sim: many structures in one batched simulation."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from mlff_student.archive.backends import sum_by
from mlff_student.archive.graph import evaluate_graph, join, structure_virials
from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.structures.checks import (
    FARTHEST,
    allows_charges,
    check_cell,
    check_electrons,
    check_structure,
)

try:
    from torch_sim.models.interface import ModelInterface
    from torch_sim.state import SimState
except ImportError as error:
    raise MissingDependencyError(
        f"torch-sim cannot be imported ({error}): pip install torch-sim-atomistic"
    ) from error


class TorchSimModel(ModelInterface):
    """Student as a model of torch-sim (`torch_sim.models.interface.ModelInterface`).

    A system is checked (`mlff_student.structures.checks.check_structure`) when the model first sees
    its atomic numbers. Later only what cannot be evaluated is an error, as during a run with the
    ASE calculator. Neighbours are searched on the CPU.

    Parameters
    ----------
    model : str, Path or StudentForceFieldCalculator
        Shipped name, path of a checkpoint or an archive, or a calculator with options of its own.
    device : torch.device or str
        Device of the network and of the results; not used with a calculator, which has its own.
    dtype : torch.dtype
        Precision of the results. Distances and energies are in float64 in any case, and the
        precision of the network is an option of the calculator.
    compute_forces, compute_stress : bool
        Whether the results include forces and stress.

    Raises
    ------
    ArchiveError
        The model cannot be found or read.
    InputError
        torch has no such device on this machine.
    """

    def __init__(
        self,
        model: str | Path | StudentForceFieldCalculator = "original",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
        *,
        compute_forces: bool = True,
        compute_stress: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(model, StudentForceFieldCalculator):
            model = StudentForceFieldCalculator(model, device=str(device))
        self.calculator = model
        self._device = torch.device(model.device)
        self._dtype = dtype
        self._compute_forces = compute_forces
        self._compute_stress = compute_stress
        self._seen: set[bytes] = set()  # atomic numbers of the systems that were checked

    @ModelInterface.compute_stress.setter
    def compute_stress(self, compute_stress: bool) -> None:
        """Set whether the results include the stress."""
        self._compute_stress = compute_stress

    @ModelInterface.compute_forces.setter
    def compute_forces(self, compute_forces: bool) -> None:
        """Set whether the results include the forces."""
        self._compute_forces = compute_forces

    def forward(self, state: Any, **_: Any) -> dict[str, Tensor]:
        """Evaluate all systems of a state.

        Parameters
        ----------
        state : SimState
            State of S systems with N atoms in all; positions and cells in angstrom.

        Returns
        -------
        dict[str, Tensor]
            "energy" (S,) in eV, "forces" (N, 3) in eV/angstrom and "stress" (S, 3, 3) in
            eV/angstrom^3. The stress of a system without a cell is NaN.

        Raises
        ------
        InputError
            A system cannot be evaluated; the message contains its number.
        """
        structures = _structures(state if isinstance(state, SimState) else SimState(**state))
        self._check(structures)
        batches = [self._evaluate(structures[b]) for b in self.calculator.batches(structures)]
        energy, forces, stress = (torch.cat(parts) for parts in zip(*batches, strict=True))
        if not (finite := torch.isfinite(energy)).all():
            raise InputError(
                f"system {int((~finite).nonzero()[0])}: the energy is not finite; do two atoms "
                "coincide?"
            )
        results = {"energy": energy}
        if self.compute_forces:
            results["forces"] = forces
        if self.compute_stress:
            results["stress"] = stress
        return {name: value.to(self.device, self.dtype) for name, value in results.items()}

    def _check(self, structures: list[Atoms]) -> None:
        metadata = self.calculator.archive.metadata
        charged = allows_charges(metadata)
        for number, atoms in enumerate(structures):
            placed = np.abs(atoms.positions).max(initial=0.0) < FARTHEST  # False for NaN
            try:
                if placed and atoms.numbers.tobytes() in self._seen:
                    check_cell(atoms)
                    check_electrons(atoms, charged=charged)
                else:
                    check_structure(atoms, metadata["elements"], charged=charged)
            except InputError as error:
                raise InputError(f"system {number}: {error}") from error
        self._seen.update(atoms.numbers.tobytes() for atoms in structures)

    def _evaluate(self, structures: list[Atoms]) -> tuple[Tensor, Tensor, Tensor]:
        """Return energies (S,), forces (N, 3) and stresses (S, 3, 3) of one batch."""
        graph = join(structures, self.calculator.archive.metadata["cutoff"])
        energies, forces, gradient = evaluate_graph(self.calculator.evaluator, graph)
        volumes = [
            atoms.get_volume() if atoms.pbc.any() and atoms.cell.rank == 3 else np.nan
            for atoms in structures
        ]
        stresses = -structure_virials(graph, gradient) / np.array(volumes)[:, None, None]
        energies = sum_by(energies, graph.owner, len(structures))
        energies, forces, stresses = map(torch.from_numpy, (energies, forces, stresses))
        return energies, forces, stresses


def _structures(state: SimState) -> list[Atoms]:
    """Return the systems of a state as ASE structures."""
    owner = state.system_idx.cpu().numpy()
    first = np.flatnonzero(np.diff(owner)) + 1
    positions = np.split(state.positions.detach().cpu().double().numpy(), first)
    numbers = np.split(state.atomic_numbers.cpu().numpy(), first)
    cells = state.row_vector_cell.detach().cpu().double().numpy()
    pbc = np.broadcast_to(torch.as_tensor(state.pbc).cpu().numpy(), 3)
    structures = [
        Atoms(z, x, cell=cell, pbc=pbc)
        for z, x, cell in zip(numbers, positions, cells, strict=True)
    ]
    for key in ("charge", "spin"):
        if (values := getattr(state, key, None)) is not None:
            for atoms, value in zip(structures, values.tolist(), strict=True):
                atoms.info[key] = value
    return structures
