"""Makes a student an OpenMM Force: a TorchForce (C++) or a PythonForce (any version of torch)."""

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
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor, nn

from mlff_student.archive.archive import Archive, load_archive, save_archive
from mlff_student.archive.native import with_backend
from mlff_student.archive.registry import archive_of
from mlff_student.archive.scripting import script
from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.core.units import KJ_PER_MOL, NM
from mlff_student.structures.checks import allows_charges

from .topology import check_electrons

if TYPE_CHECKING:
    import openmm
    from openmm.app import Topology
    from openmm.app.topology import Atom

logger = logging.getLogger(__name__)

FORCE_NAME = "mlff-student "  # followed by the name of the model
INTERFACES = ("auto", "TorchForce", "PythonForce")


class TorchForceModule(nn.Module):
    """TorchScript module of a TorchForce; it takes nm and returns kJ/mol and kJ/mol/nm.

    The archive computes its own gradient, so OpenMM uses the forces directly and runs no autograd.
    On OpenMM's CUDA platform TorchForce moves the module to the GPU; native kernels still compute
    on the CPU.

    Parameters
    ----------
    archive : torch.jit.ScriptModule
        Module of an archive.
    atomic_numbers : Tensor
        Atomic numbers (n,) of the student's atoms.
    atoms : Tensor, optional
        Indices (n,) of the student's atoms; None if it acts on all particles.
    periodic : bool
        Whether the system has a box.
    """

    atomic_numbers: Tensor
    pbc: Tensor
    no_cell: Tensor
    atoms: Tensor

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
        self.on_cpu = not hasattr(archive, "student")  # the module of native kernels has no student
        self.is_subset = atoms is not None
        self.register_buffer("atoms", torch.arange(len(atomic_numbers)) if atoms is None else atoms)
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


class PythonForceComputation:
    """Function of a PythonForce: energy and forces of the student's atoms in a State.

    Pickling stores the archive too. A serialised System therefore needs no other file, but it needs
    this package where it is read.

    Parameters
    ----------
    archive : Archive
        The student.
    atomic_numbers : list[int]
        Atomic numbers of the student's atoms.
    periodic : bool
        Whether the system has a box.
    backend : str
        Compute backend: "native", "portable" or "auto".
    device : str
        Torch device.
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
        """Return the energy in kJ/mol and the forces (N, 3) in kJ/mol/nm of a State."""
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
            # A pickle can run any code, so the archive inside is no further danger.
            archive = load_archive(path, state["device"], trust=True)
            vars(self).update(state, archive=archive)
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
    trust: bool = False,
) -> "openmm.Force":
    """Return a student as an OpenMM Force, for `System.addForce`.

    Do not copy a System with a TorchForce by `copy.deepcopy`, and do not read it from XML
    (`XmlSerializer`): openmmtorch 1.5 ends the process with a segmentation fault. With
    interface="PythonForce" both work.

    Parameters
    ----------
    topology : Topology
        OpenMM topology. It gives the elements and, by its box, whether the system is periodic.
    model : str | Path
        Shipped name, or path of a checkpoint or archive.
    atoms : Iterable[int], optional
        Indices of the atoms that the student acts on; all atoms if None.
    periodic : bool, optional
        Whether the system is periodic; None takes it from the topology.
    dtype : torch.dtype, optional
        Precision of the network when a checkpoint is compiled; float32 if None. An exported archive
        has a precision already; another one is an error.
    force_group : int
        Force group of the Force in OpenMM.
    device : str
        Torch device of the student. Use "cuda" with OpenMM's CUDA platform; the backend "auto" is
        then the portable one. With "cpu" on that platform, native kernels compute on the CPU and
        every step copies positions and forces; the portable backend in a TorchForce uses the GPU.
    threads : int, optional
        Number of threads of torch and the native kernels. It is set for the whole process; None
        does not change it.
    backend : str
        Compute backend, "native", "portable" or "auto"; see
        `mlff_student.archive.native.with_backend`.
    interface : str
        Kind of the Force. "TorchForce" needs openmmtorch and runs no Python in a step; its System
        cannot be copied, see above. "PythonForce" works with any torch and needs OpenMM 8.5, or 8.6
        for a subset of atoms. "auto" is TorchForce if it loads, and PythonForce if not.
    trust : bool
        Whether to run the code of an archive that contains other code than this version writes.
        Use this only for files from people whom you trust.

    Raises
    ------
    MissingDependencyError
        The interface, or the native backend, was chosen by name and cannot be used.
    InputError
        The topology is empty or an ion or radical (`check_electrons`), the student does not know an
        element, an index is out of range, the interface or backend does not exist, or the archive
        has another dtype.
    ArchiveError
        The model is unusable.
    """
    interface = _choose(interface)
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads must be at least 1, not {threads}")
        torch.set_num_threads(threads)
    archive = archive_of(model, dtype, device, trust)
    members = student_atoms(topology, atoms, archive.metadata["elements"])
    if periodic is None:
        periodic = topology.getPeriodicBoxVectors() is not None
    numbers = [atom.element.atomic_number for atom in members]
    subset = None if atoms is None else [atom.index for atom in members]
    if not allows_charges(archive.metadata):
        check_electrons(topology, subset)
    if interface == "TorchForce":
        module = TorchForceModule(
            with_backend(archive, backend, device).module,
            torch.tensor(numbers),
            None if subset is None else torch.tensor(subset),
            periodic,
        )
        force = _import_openmmtorch().TorchForce(script(module.to(device)))
        force.setOutputsForces(True)
        _log_copying_limit()
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
    """Return the atoms of the topology that a student acts on.

    Parameters
    ----------
    topology : Topology
        OpenMM topology.
    indices : Iterable[int], optional
        Indices of the atoms; all atoms if None.
    known : Collection[str]
        Symbols of the elements that the student knows.

    Raises
    ------
    InputError
        There are no atoms, an index is out of range or occurs twice, or an element is not known.
    """
    members = list(topology.atoms())
    chosen = list(range(len(members))) if indices is None else [int(index) for index in indices]
    if not chosen:
        raise InputError("no atoms for the student: the topology or the subset is empty")
    if min(chosen) < 0 or max(chosen) >= len(members) or len(set(chosen)) != len(chosen):
        raise InputError(f"atoms must be distinct indices from 0 to {len(members) - 1}")
    for index in chosen:
        element = members[index].element
        if element is None or chemical_symbols[element.atomic_number] not in known:  # D is H
            symbol = "no element" if element is None else element.symbol
            raise InputError(
                f"atom {index} ({members[index].name}) is {symbol}; "
                f"the student knows {', '.join(known)}"
            )
    return [members[index] for index in chosen]


def _choose(interface: str) -> str:
    """Return the interface; for "auto" the log says why it is not TorchForce, which is faster."""
    if interface not in INTERFACES:
        raise InputError(f"no interface {interface!r}; there are {', '.join(INTERFACES)}")
    if interface == "PythonForce":
        return interface
    try:
        _import_openmmtorch()
    except MissingDependencyError as error:
        if interface == "TorchForce":
            raise
        cause = str(error.__cause__).strip().splitlines()[0]
        logger.warning("interface PythonForce, since TorchForce does not work (%s)", cause)
        return "PythonForce"
    return "TorchForce"


@cache
def _log_copying_limit() -> None:
    logger.info(
        "interface TorchForce: copy.deepcopy and XmlSerializer.deserialize of this System would "
        "end the process; with interface='PythonForce' both work"
    )


def _python_force(
    computation: PythonForceComputation, subset: list[int] | None
) -> "openmm.PythonForce":
    import openmm

    needed = "setUsesPeriodicBoundaryConditions" if subset is None else "setParticles"
    if not hasattr(getattr(openmm, "PythonForce", None), needed):
        raise MissingDependencyError(
            f"PythonForce needs OpenMM 8.5, or 8.6 for a subset of the atoms, found "
            f"{openmm.__version__}: pip install 'openmm>=8.6'"
        )
    force = openmm.PythonForce(computation)
    if subset is not None:
        force.setParticles(subset)
    return force


@cache
def _import_openmmtorch() -> ModuleType:
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
