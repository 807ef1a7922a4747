"""A student as a force of OpenMM: TorchForce (C++) or PythonForce (any torch)."""

import logging
from collections.abc import Collection, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlff_student.archive.archive import Archive, load_archive, save_archive
from mlff_student.archive.native import with_backend
from mlff_student.archive.registry import archive_of
from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.core.units import KJ_PER_MOL, NM

if TYPE_CHECKING:
    import openmm
    from openmm.app import Topology
    from openmm.app.topology import Atom

logger = logging.getLogger(__name__)

FORCE_NAME = "mlff-student "  # and the model's
INTERFACES = ("auto", "TorchForce", "PythonForce")


class TorchForceModule(nn.Module):
    """What TorchForce calls: nanometres in; kJ/mol and contiguous kJ/mol/nm out.

    The archive computes its own gradient, so OpenMM takes the forces as they are and runs no
    autograd. On OpenMM's CUDA platform TorchForce moves the module to the GPU; native kernels
    compute on the CPU all the same.
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
        self.on_cpu = not hasattr(archive, "student")  # native kernels hold no module
        self.is_subset = atoms is not None
        self.register_buffer("atoms", torch.arange(len(atomic_numbers)) if atoms is None else atoms)
        self.angstrom_per_nm = NM
        self.kj_per_mol_per_ev = 1.0 / KJ_PER_MOL

    def forward(self, positions: Tensor, boxvectors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Positions (N, 3) of all particles, box vectors (3, 3); energy () and forces (N, 3)."""
        device = torch.device("cpu") if self.on_cpu else self.atomic_numbers.device
        ours = positions[self.atoms.to(positions.device)] if self.is_subset else positions
        cell = self.no_cell
        if boxvectors is not None:
            cell = boxvectors.to(device, torch.float64) * self.angstrom_per_nm
        with torch.no_grad():  # TorchForce asks for a graph, whether or not it needs one
            energy, forces, _ = self.archive(
                ours.to(device, torch.float64) * self.angstrom_per_nm,
                self.atomic_numbers.to(device),
                cell.to(device),
                self.pbc.to(device),
            )
        forces = forces * (self.kj_per_mol_per_ev * self.angstrom_per_nm)
        if self.is_subset:
            every = torch.zeros(positions.shape, dtype=torch.float64, device=device)
            forces = every.index_copy(0, self.atoms.to(device), forces)
        energy = energy * self.kj_per_mol_per_ev
        return energy.to(positions.device), forces.to(positions).contiguous()


class PythonForceComputation:
    """What PythonForce calls: a State in; kJ/mol and kJ/mol/nm out, for the student's atoms alone.

    It pickles with its archive inside: a serialised System needs no other file, but this package
    where it is read.
    """

    def __init__(
        self,
        archive: Archive,
        atomic_numbers: list[int],
        periodic: bool,
        backend: str,
        device: str,
    ) -> None:
        self.archive, self.backend, self.device = archive, backend, device
        self.atomic_numbers, self.periodic = atomic_numbers, periodic
        self._prepare()

    def _prepare(self) -> None:
        self._module = with_backend(self.archive, self.backend, self.device).module
        self._numbers = torch.tensor(self.atomic_numbers, device=self.device)
        self._pbc = torch.full((3,), self.periodic, device=self.device)
        self._no_cell = torch.zeros(3, 3, dtype=torch.float64, device=self.device)

    def __call__(self, state: "openmm.State") -> tuple[float, NDArray[np.float64]]:
        """Energy and forces (N, 3) of the positions of a State."""
        cell = self._no_cell
        if self.periodic:
            cell = self._tensor(state.getPeriodicBoxVectors(asNumpy=True)._value) * NM
        with torch.no_grad():
            energy, forces, _ = self._module(
                self._tensor(state.getPositions(asNumpy=True)._value) * NM,
                self._numbers,
                cell,
                self._pbc,
            )
        return float(energy) / KJ_PER_MOL, forces.cpu().numpy() * (NM / KJ_PER_MOL)

    def _tensor(self, values: NDArray[np.float64]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        with TemporaryDirectory() as folder:
            path = Path(folder) / "archive.pt"
            save_archive(self.archive, path)
            return kept | {"archive": path.read_bytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "archive.pt"
            path.write_bytes(state["archive"])
            vars(self).update(state, archive=load_archive(path, state["device"]))
        self._prepare()


def student_force(
    topology: "Topology",
    model: str | Path = "original",
    *,
    atoms: Iterable[int] | None = None,
    periodic: bool | None = None,
    dtype: torch.dtype | None = None,
    force_group: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    backend: str = "auto",
    interface: str = "auto",
) -> "openmm.Force":
    """Energy and forces of a student as a Force, for `System.addForce`.

    Do not `copy.deepcopy` or read back from XML (`XmlSerializer`) a System with a TorchForce: the
    process dies of a segmentation fault in openmmtorch 1.5, whatever is in the force. With
    interface="PythonForce" both work.

    Parameters
    ----------
    topology : OpenMM topology; its elements choose the species, its box the periodicity.
    model : shipped name, or path of a checkpoint or archive.
    atoms : indices the student acts on; all if None.
    periodic : overrides what the topology says.
    dtype : of the network, where a checkpoint is compiled (None: float32). An exported archive has
        its own; another is refused.
    force_group : OpenMM force group.
    device : torch device of the student; "cuda" with OpenMM's CUDA platform, where "auto" then
        takes the portable kernels. With "cpu" there, native kernels stay on the CPU and every step
        copies positions and forces; portable ones in a TorchForce follow the platform to its GPU.
    threads : for torch and the native kernels, set for the whole process; None leaves them.
    backend : kernels, "native", "portable" or "auto"; see `mlff_student.archive.native.with_backend`.
    interface : "TorchForce" (openmmtorch, C++ alone in the step; not to be copied, see above),
        "PythonForce" (OpenMM 8.5 or later with any torch; a subset of atoms needs 8.6) or "auto":
        TorchForce where it loads.

    Raises
    ------
    MissingDependencyError : the interface or the native kernels were asked for and cannot be used.
    InputError : empty topology, element unknown to the student, index out of range, no such
        interface or backend, or a dtype that the archive does not have.
    ArchiveError : unusable model.
    """
    interface = _choose(interface)
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads must be at least 1, not {threads}")
        torch.set_num_threads(threads)
    archive = archive_of(model, dtype, device)
    chosen = student_atoms(topology, atoms, archive.metadata["elements"])
    if periodic is None:
        periodic = topology.getPeriodicBoxVectors() is not None
    numbers = [atom.element.atomic_number for atom in chosen]
    subset = None if atoms is None else [atom.index for atom in chosen]
    if interface == "TorchForce":
        module = TorchForceModule(
            with_backend(archive, backend, device).module,
            torch.tensor(numbers),
            None if subset is None else torch.tensor(subset),
            periodic,
        )
        force = _import_openmmtorch().TorchForce(torch.jit.script(module.to(device)))
        force.setOutputsForces(True)
        _tell_what_ends_the_process()
    else:
        computation = PythonForceComputation(archive, numbers, periodic, backend, device)
        force = _python_force(computation, subset)
    force.setUsesPeriodicBoundaryConditions(periodic)
    force.setForceGroup(force_group)
    force.setName(FORCE_NAME + archive.metadata["name"])
    return force


def student_atoms(
    topology: "Topology", indices: Iterable[int] | None, known: Collection[str]
) -> list["Atom"]:
    """Atoms of the topology that a student acts on, all if no indices are given.

    Raises
    ------
    InputError : none, an index out of range or given twice, or an element that is not known.
    """
    members = list(topology.atoms())
    chosen = list(range(len(members))) if indices is None else [int(index) for index in indices]
    if not chosen:
        raise InputError("no atoms for the student: the topology or the subset is empty")
    if min(chosen) < 0 or max(chosen) >= len(members) or len(set(chosen)) != len(chosen):
        raise InputError(f"atoms must be distinct indices from 0 to {len(members) - 1}")
    for index in chosen:
        element = members[index].element
        if element is None or element.symbol not in known:
            found = "no element" if element is None else element.symbol
            raise InputError(
                f"atom {index} ({members[index].name}) is {found}; "
                f"the student knows {', '.join(known)}"
            )
    return [members[index] for index in chosen]


def _choose(interface: str) -> str:
    """The interface to take; "auto" says in the log which, and why not the faster one."""
    if interface not in INTERFACES:
        raise InputError(f"no interface {interface!r}; there are {', '.join(INTERFACES)}")
    if interface == "PythonForce":
        return interface
    try:
        _import_openmmtorch()
    except MissingDependencyError as error:
        if interface == "TorchForce":
            raise
        logger.warning("interface PythonForce: %s", error)
        return "PythonForce"
    return "TorchForce"


@cache
def _tell_what_ends_the_process() -> None:
    logger.info(
        "interface TorchForce: copy.deepcopy and XmlSerializer.deserialize of this System would "
        "end the process; interface='PythonForce' survives both"
    )


def _python_force(
    computation: PythonForceComputation, subset: list[int] | None
) -> "openmm.PythonForce":
    import openmm

    needed = "setUsesPeriodicBoundaryConditions" if subset is None else "setParticles"
    if not hasattr(getattr(openmm, "PythonForce", None), needed):
        raise MissingDependencyError(
            f"PythonForce needs OpenMM 8.5, on some of the atoms 8.6; this is "
            f"{openmm.__version__}: pip install 'openmm>=8.6'"
        )
    force = openmm.PythonForce(computation)
    if subset is not None:
        force.setParticles(subset)
    return force


@cache
def _import_openmmtorch() -> ModuleType:
    """The plug-in, tried once: built for another torch, it fails on import or in its first step."""
    logging_was = logging.root.manager.disable
    try:
        from openmm import OpenMMException, Platform

        # It warns that it imports openmm by its old name.
        logging.disable(max(logging_was, logging.WARNING))
        import openmmtorch

        # Where openmm was imported before torch (MDTraj does so too), the kernels of TorchForce
        # found no libtorch to link to. It is loaded by now.
        for failure in Platform.getPluginLoadFailures():
            library = failure.removeprefix("Error loading library ").split(": ")[0]
            if "OpenMMTorch" in library:
                with suppress(OpenMMException):  # the OpenCL one, where there is no OpenCL
                    Platform.loadPluginLibrary(library)
        _one_step(openmmtorch.TorchForce(torch.jit.script(_Nothing())))
    except Exception as error:
        raise MissingDependencyError(
            f"TorchForce does not work ({str(error).strip().splitlines()[0]}); "
            "pip install 'mlff-student[openmm]', and `mlff-student doctor` tells what is wrong"
        ) from error
    finally:
        logging.disable(logging_was)
    return openmmtorch


class _Nothing(nn.Module):
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
