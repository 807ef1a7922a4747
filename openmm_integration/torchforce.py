"""Makes a student a TorchForce of openmmtorch, which evaluates TorchScript in C++."""

import logging
from contextlib import suppress
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mlff_student.archive.archive import Archive
from mlff_student.archive.operator import torch_module
from mlff_student.archive.scripting import script
from mlff_student.core.errors import MissingDependencyError
from mlff_student.core.units import KJ_PER_MOL, NM

if TYPE_CHECKING:
    import openmm


class TorchForceModule(nn.Module):
    """TorchScript module of a TorchForce; it takes nm and returns kJ/mol and kJ/mol/nm.

    The archive computes its own gradient, so OpenMM uses the forces directly and runs no autograd.
    On OpenMM's CUDA platform TorchForce moves the module to the GPU; native kernels still compute
    on the CPU.

    Parameters
    ----------
    archive : torch.jit.ScriptModule
        Module from `mlff_student.archive.operator.torch_module`.
    atomic_numbers : list[int]
        Atomic numbers of the student's atoms.
    atoms : list[int], optional
        Indices of the student's atoms; None if it acts on all particles.
    periodic : bool
        Whether the system has a box.
    """

    atomic_numbers: Tensor
    pbc: Tensor
    no_cell: Tensor
    atoms: Tensor

    def __init__(
        self,
        archive: Any,
        atomic_numbers: list[int],
        atoms: list[int] | None,
        periodic: bool,
    ) -> None:
        super().__init__()
        self.archive = archive
        self.register_buffer("atomic_numbers", torch.tensor(atomic_numbers))
        self.register_buffer("pbc", torch.full((3,), periodic))
        self.register_buffer("no_cell", torch.zeros(3, 3, dtype=torch.float64))
        self.on_cpu = not hasattr(archive, "student")  # the module of native kernels has no student
        self.is_subset = atoms is not None
        self.register_buffer("atoms", torch.tensor(atoms or range(len(atomic_numbers))))
        self.angstrom_per_nm = NM
        self.kj_per_mol_per_ev = 1.0 / KJ_PER_MOL

    def forward(self, positions: Tensor, boxvectors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return energy () and forces (N, 3) at positions (N, 3) and box vectors (3, 3)."""
        device = torch.device("cpu") if self.on_cpu else self.atomic_numbers.device
        own = positions[self.atoms.to(positions.device)] if self.is_subset else positions
        cell = self.no_cell
        if boxvectors is not None:
            cell = boxvectors.to(device, torch.float64) * self.angstrom_per_nm
        with torch.no_grad():  # TorchForce always asks for a graph, also when it needs none
            energy, forces, _ = self.archive(
                own.to(device, torch.float64) * self.angstrom_per_nm,
                self.atomic_numbers.to(device),
                cell.to(device),
                self.pbc.to(device),
            )
        forces = forces * (self.kj_per_mol_per_ev * self.angstrom_per_nm)
        if self.is_subset:
            of_all = torch.zeros(positions.shape, dtype=torch.float64, device=device)
            forces = of_all.index_copy(0, self.atoms.to(device), forces)
        energy = energy * self.kj_per_mol_per_ev
        return energy.to(positions.device), forces.to(positions).contiguous()


def torch_force(
    archive: Archive,
    atomic_numbers: list[int],
    atoms: list[int] | None,
    periodic: bool,
    backend: str,
    device: str,
    threads: int | None,
) -> "openmm.Force":
    """Return a student as a TorchForce.

    Parameters
    ----------
    archive : Archive
        The student.
    atomic_numbers : list[int]
        Atomic numbers of the student's atoms.
    atoms : list[int], optional
        Indices of the student's atoms; None if it acts on all particles.
    periodic : bool
        Whether the system has a box.
    backend, device, threads : str, str, int | None
        As for `mlff_student.archive.operator.torch_module`.

    Raises
    ------
    MissingDependencyError
        openmmtorch or the backend cannot be used.
    """
    student = torch_module(archive, backend, device, threads)
    module = TorchForceModule(student, atomic_numbers, atoms, periodic)
    force = import_openmmtorch().TorchForce(script(module.to(device)))
    force.setOutputsForces(True)
    return force


@cache
def import_openmmtorch() -> ModuleType:
    """Import openmmtorch and run one step, once: built for another torch, either of them fails."""
    level_before = logging.root.manager.disable
    try:
        from openmm import OpenMMException, Platform

        # openmmtorch logs a warning about its own import of openmm under the old name.
        logging.disable(max(level_before, logging.WARNING))
        import openmmtorch

        # If openmm was imported before torch (MDTraj does so too), the kernels of TorchForce found
        # no libtorch and failed to load. Torch is loaded now, so they are loaded again.
        for failure in Platform.getPluginLoadFailures():
            library = failure.removeprefix("Error loading library ").split(": ")[0]
            if "OpenMMTorch" in library:
                with suppress(OpenMMException):  # the OpenCL kernels need OpenCL
                    Platform.loadPluginLibrary(library)
        _one_step(openmmtorch.TorchForce(script(_NoForce())))
    except Exception as error:
        raise MissingDependencyError(
            f"TorchForce does not work ({str(error).strip().splitlines()[0]}); take PythonForce, "
            "which gives the same numbers with any torch, or pip install "
            "'mlff-student[torchforce]' for openmmtorch 1.5 and the torch it needs, 2.9 for CUDA"
        ) from error
    finally:
        logging.disable(level_before)
    return openmmtorch


class _NoForce(nn.Module):
    def forward(self, positions: Tensor) -> Tensor:
        return positions.sum() * 0.0


def _one_step(force: "openmm.Force") -> None:
    import openmm

    system = openmm.System()
    system.addParticle(1.0)
    system.addForce(force)
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions([openmm.Vec3(0, 0, 0)])
    context.getIntegrator().step(1)
