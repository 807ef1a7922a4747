"""A student as an OpenMM TorchForce."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mlff_student.checkpoints import archive_of
from mlff_student.errors import InputError, MissingDependencyError
from mlff_student.native import with_backend
from mlff_student.units import KJ_PER_MOL, NM

if TYPE_CHECKING:
    import openmmtorch
    from openmm.app import Topology


class TorchForceModule(nn.Module):
    """What TorchForce calls: nanometres in; kJ/mol and contiguous kJ/mol/nm out.

    The archive computes its own gradient, so OpenMM takes the forces as they are and runs no
    autograd.
    """

    def __init__(
        self,
        archive: torch.jit.ScriptModule,
        atomic_numbers: Tensor,
        atoms: Tensor | None,
        periodic: bool,
    ) -> None:
        super().__init__()
        self.archive = archive
        self.register_buffer("atomic_numbers", atomic_numbers)
        self.register_buffer("pbc", torch.full((3,), periodic))
        self.register_buffer("no_cell", torch.zeros(3, 3, dtype=torch.float64))
        self.is_subset = atoms is not None
        self.register_buffer("atoms", torch.arange(len(atomic_numbers)) if atoms is None else atoms)
        self.angstrom_per_nm = NM
        self.kj_per_mol_per_ev = 1.0 / KJ_PER_MOL

    def forward(self, positions: Tensor, boxvectors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Positions (N, 3) of all particles, box vectors (3, 3); energy () and forces (N, 3)."""
        ours = positions[self.atoms] if self.is_subset else positions
        cell = self.no_cell
        if boxvectors is not None:
            cell = boxvectors.to(torch.float64) * self.angstrom_per_nm
        with torch.no_grad():  # TorchForce asks for a graph, whether or not it needs one
            energy, forces, _ = self.archive(
                ours.to(torch.float64) * self.angstrom_per_nm, self.atomic_numbers, cell, self.pbc
            )
        forces = forces * (self.kj_per_mol_per_ev * self.angstrom_per_nm)
        if self.is_subset:
            every = torch.zeros_like(positions, dtype=torch.float64)
            forces = every.index_copy(0, self.atoms, forces)
        return energy * self.kj_per_mol_per_ev, forces.to(positions.dtype).contiguous()


def student_force(
    topology: "Topology",
    model: str | Path = "original",
    *,
    atoms: Sequence[int] | None = None,
    periodic: bool | None = None,
    dtype: torch.dtype = torch.float32,
    force_group: int = 0,
    backend: str = "auto",
) -> "openmmtorch.TorchForce":
    """Energy and forces of a student as a TorchForce, for `System.addForce`.

    Parameters
    ----------
    topology : OpenMM topology; its elements choose the species, its box the periodicity.
    model : shipped name, or path of a checkpoint or archive.
    atoms : indices the student acts on; all if None.
    periodic : overrides what the topology says.
    dtype : of the network, where a checkpoint is compiled.
    force_group : OpenMM force group.
    backend : kernels, "native", "portable" or "auto"; see `mlff_student.native.with_backend`.

    Raises
    ------
    MissingDependencyError : openmmtorch is not installed or does not load; the native kernels
        cannot be used, and "native" was asked for.
    InputError : empty topology, element unknown to the student, index out of range.
    ArchiveError : unusable model.
    """
    openmmtorch = _import_openmmtorch()
    archive = with_backend(archive_of(model, dtype), backend)
    members = list(topology.atoms())
    chosen = list(range(len(members))) if atoms is None else [int(index) for index in atoms]
    if not chosen:
        raise InputError("no atoms for the student: the topology or the subset is empty")
    if min(chosen) < 0 or max(chosen) >= len(members) or len(set(chosen)) != len(chosen):
        raise InputError(f"atoms must be distinct indices from 0 to {len(members) - 1}")
    known = archive.metadata["elements"]
    for index in chosen:
        element = members[index].element
        if element is None or element.symbol not in known:
            found = "no element" if element is None else element.symbol
            raise InputError(
                f"atom {index} ({members[index].name}) is {found}; "
                f"the student knows {', '.join(known)}"
            )
    if periodic is None:
        periodic = topology.getPeriodicBoxVectors() is not None
    module = TorchForceModule(
        archive.module,
        torch.tensor([members[index].element.atomic_number for index in chosen]),
        None if atoms is None else torch.tensor(chosen),
        periodic,
    )
    force = openmmtorch.TorchForce(torch.jit.script(module))
    force.setOutputsForces(True)
    force.setUsesPeriodicBoundaryConditions(periodic)
    force.setForceGroup(force_group)
    force.setName(f"mlff-student {archive.metadata['name']}")
    return force


@cache
def _import_openmmtorch() -> ModuleType:
    logging_was = logging.root.manager.disable
    try:
        from openmm import OpenMMException, Platform

        # It warns that it imports openmm by its old name.
        logging.disable(max(logging_was, logging.WARNING))
        import openmmtorch
    except Exception as error:  # a plug-in built for another torch fails in its own ways
        raise MissingDependencyError(
            f"TorchForce does not load ({str(error).strip().splitlines()[0]}); "
            "pip install 'mlff-student[openmm]', and `mlff-student doctor` tells what is wrong"
        ) from error
    finally:
        logging.disable(logging_was)
    # Where openmm was imported before torch (MDTraj does so too), the kernels of TorchForce found
    # no libtorch to link to. It is loaded by now.
    for failure in Platform.getPluginLoadFailures():
        library = failure.removeprefix("Error loading library ").split(": ")[0]
        if "OpenMMTorch" in library:
            with suppress(OpenMMException):  # the OpenCL one, where there is no OpenCL
                Platform.loadPluginLibrary(library)
    return openmmtorch
