"""Makes a student an OpenMM Force: a TorchForce (C++) or a PythonForce (any version of torch)."""

import logging
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mlff_student.archive.archive import Archive, require_torch
from mlff_student.archive.backends import evaluator
from mlff_student.archive.registry import archive_of
from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.core.units import KJ_PER_MOL, NM
from mlff_student.structures.checks import allows_charges, check_charge

from .topology import check_electrons

if TYPE_CHECKING:
    import openmm
    import torch
    from openmm.app import Topology
    from openmm.app.topology import Atom

logger = logging.getLogger(__name__)

FORCE_NAME = "mlff-student "  # followed by the name of the model
INTERFACES = ("auto", "TorchForce", "PythonForce")


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
    backend, device, threads : str, str, int | None
        As for `mlff_student.archive.backends.evaluator`.
    """

    def __init__(
        self,
        archive: Archive,
        atomic_numbers: list[int],
        periodic: bool,
        backend: str = "auto",
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        self._arguments = archive, atomic_numbers, periodic, backend, device, threads
        self._student = evaluator(archive, backend, device, threads)
        self._numbers, self._periodic = np.array(atomic_numbers), periodic

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def __call__(self, state: "openmm.State") -> tuple[float, NDArray[np.float64]]:
        """Return the energy in kJ/mol and the forces (N, 3) in kJ/mol/nm of a State."""
        cell = None
        if self._periodic:
            cell = state.getPeriodicBoxVectors(asNumpy=True)._value * NM
        positions = np.empty((len(self._numbers), 3))
        # What getPositions(asNumpy=True) calls; of its own 40 us, most are a call of dir().
        state._getVectorAsNumpy(state.Positions, positions)
        results = self._student.evaluate(positions * NM, self._numbers, cell)
        return results.energies.sum() / KJ_PER_MOL, results.forces * (NM / KJ_PER_MOL)


def student_force(
    topology: "Topology",
    model: str | Path = "original",
    *,
    atoms: Iterable[int] | None = None,
    periodic: bool | None = None,
    dtype: "str | torch.dtype | None" = None,
    force_group: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    backend: str = "auto",
    interface: str = "auto",
    trust: bool = False,
    charge: int = 0,
    multiplicity: int = 1,
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
    dtype : str | torch.dtype, optional
        Precision of the network, "float32" or "float64", when the model is a checkpoint; float32 if
        None. An exported archive has a precision already; another one is an error.
    force_group : int
        Force group of the Force in OpenMM.
    device : str
        Torch device of the student. Use "cuda" with OpenMM's CUDA platform; the backend "auto" is
        then the portable one. With "cpu" on that platform, native kernels compute on the CPU and
        every step copies positions and forces; the portable backend in a TorchForce uses the GPU.
    threads : int, optional
        Number of threads of the native kernels; None means OMP_NUM_THREADS or, without it, the
        number of CPUs that the process may use. The portable backend uses the threads of torch
        (`torch.set_num_threads`).
    backend : str
        Compute backend, "native", "portable" or "auto"; see
        `mlff_student.archive.backends.evaluator`.
    interface : str
        Kind of the Force. "TorchForce" needs openmmtorch and runs no Python in a step; its System
        cannot be copied, see above. "PythonForce" works with any torch or none and needs OpenMM
        8.5, or 8.6 for a subset of atoms. "auto" is TorchForce if it loads, and PythonForce if not.
    trust : bool
        Whether to run the code of an archive that contains other code than this version writes.
        Use this only for files from people whom you trust.
    charge : int
        Total charge of the student's atoms if the topology has no formal charges, elementary
        charges. It must be 0 unless the student was trained on ions. The energy does not depend on
        it; it only shows which structures are radicals.
    multiplicity : int
        Spin multiplicity of the student's atoms; it must be 1, as in the training.

    Raises
    ------
    MissingDependencyError
        The interface, or the native backend, was chosen by name and cannot be used.
    InputError
        The topology is empty, a radical, or an ion that the student was not trained for; the
        student does not know an element, an index is out of range, the interface or backend does
        not exist, or the archive has another dtype.
    ArchiveError
        The model is unusable.
    """
    interface = _choose(interface)
    archive = archive_of(model, dtype, trust=trust)
    members = student_atoms(topology, atoms, archive.metadata["elements"])
    if periodic is None:
        periodic = topology.getPeriodicBoxVectors() is not None
    numbers = [atom.element.atomic_number for atom in members]
    subset = None if atoms is None else [atom.index for atom in members]
    charged = allows_charges(archive.metadata)
    check_charge(charge, multiplicity, charged=charged)
    check_electrons(topology, subset, charged=charged, charge=charge)
    if interface == "TorchForce":
        from .torchforce import torch_force

        force = torch_force(archive, numbers, subset, periodic, backend, device, threads)
        _log_copying_limit()
    else:
        computation = PythonForceComputation(archive, numbers, periodic, backend, device, threads)
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
        require_torch("TorchForce")
        from .torchforce import import_openmmtorch

        import_openmmtorch()
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
