"""Writes files for OpenMM users who do not have this package: a TorchForce module and a System."""

import json
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from openmm import Context, Platform, State, System, VerletIntegrator, XmlSerializer, unit
from openmm.app import PDBFile, Topology

from mlff_student.archive.archive import Archive
from mlff_student.archive.backends import evaluator
from mlff_student.archive.export import Agreement
from mlff_student.archive.operator import torch_module
from mlff_student.archive.registry import archive_of
from mlff_student.archive.scripting import script
from mlff_student.core.errors import ArchiveError, InputError
from mlff_student.core.files import atomic_write
from mlff_student.core.units import KJ_PER_MOL, NM

from .force import student_atoms
from .system import system_without_student
from .topology import load_structure
from .torchforce import TorchForceModule

MODULE, SYSTEM, SCRIPT, PROGRAM = "student.pt", "system.xml", "simulate.py", "simulate.cpp"
METADATA = "metadata.json"  # in student.pt
START, STATE = "start.pdb", "start.xml"  # start.pdb is for Python, start.xml for C++
FILES = (MODULE, SYSTEM, START, SCRIPT, STATE, PROGRAM)
LOAD_KERNELS = """from mlff_student.archive.operator import operators_path

torch.ops.load_library(operators_path())  # the kernels that student.pt was written for
"""
# The force is not in system.xml, because openmmtorch 1.5 ends with a segmentation fault when it
# reads any TorchForce from XML.
FORCE_LINES = """force = TorchForce("{module}")
force.setOutputsForces(True)
force.setUsesPeriodicBoundaryConditions({periodic})
system.addForce(force)
"""
EXAMPLE = '''"""Runs the system of this folder. It needs openmm and openmmtorch{and_package}."""

import torch  # before openmm, or TorchForce finds no libtorch
from openmm import LangevinMiddleIntegrator, XmlSerializer, unit
from openmm.app import PDBFile, Simulation
from openmmtorch import TorchForce

{prelude}system = XmlSerializer.deserialize(open("{system}").read())
{lines}
start = PDBFile("{start}")
timestep = 0.5 * unit.femtosecond
integrator = LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, timestep)
simulation = Simulation(start.topology, system, integrator)
simulation.context.setPositions(start.positions)
simulation.minimizeEnergy()
simulation.step(100)
print(simulation.context.getState(energy=True).getPotentialEnergy())
'''


def write_openmm_files(
    model: str | Path,
    structure: str,
    folder: Path,
    *,
    dtype: str | None = None,
    backend: str = "portable",
) -> Agreement:
    """Write files that run a student in OpenMM without this package.

    simulate.py runs student.pt, system.xml and start.pdb; simulate.cpp runs student.pt, system.xml
    and start.xml in C++.

    Parameters
    ----------
    model : str | Path
        Shipped name, or path of a checkpoint or archive.
    structure : str
        File or SMILES string that `load_structure` reads.
    folder : Path
        Folder that receives the files; it is made if it does not exist.
    dtype : str, optional
        Precision of the network when a checkpoint is compiled, "float32" (default) or "float64". An
        exported archive has a precision already; another one is an error.
    backend : str
        Compute backend. With "portable" the files do not need this package; with "native" a program
        must load the library of the torch operators before it loads student.pt.

    Returns
    -------
    Agreement
        Difference between the written module and the archive in energy and forces of the structure.

    Raises
    ------
    InputError
        The structure is unusable, the archive has another dtype, or the folder cannot be written.
    ArchiveError
        The model is unusable, or the written module does not compute the same as the archive.
    MissingDependencyError
        `backend` is "native" and the native kernels cannot be used.
    """
    archive = archive_of(model, dtype)
    topology, positions = load_structure(structure)
    members = student_atoms(topology, None, archive.metadata["elements"])
    numbers = [atom.element.atomic_number for atom in members]
    periodic = topology.getPeriodicBoxVectors() is not None
    student = torch_module(archive, backend)
    native = not hasattr(student, "student")
    taken = "native" if native else "portable"
    module = script(TorchForceModule(student, numbers, None, periodic))
    metadata = {METADATA: json.dumps(archive.metadata)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from error
    with atomic_write(folder / MODULE) as temporary:
        # torch itself ends the process if the disk is full.
        temporary.write_bytes(module.save_to_buffer(_extra_files=metadata))
        agreement = _compare(archive, taken, temporary, topology, positions)
        if not agreement.passed:
            raise ArchiveError(
                f"the written module does not compute the same as its archive: {agreement}"
            )
    system = system_without_student(topology)
    with atomic_write(folder / SYSTEM) as temporary:
        temporary.write_text(XmlSerializer.serialize(system))
    with atomic_write(folder / STATE) as temporary:
        temporary.write_text(XmlSerializer.serialize(_state(system, positions)))
    with atomic_write(folder / PROGRAM) as temporary:
        source = Path(__file__).with_name(PROGRAM).read_text()
        temporary.write_text(source.replace("PERIODIC", str(periodic).lower()))
    with atomic_write(folder / START) as temporary, temporary.open("w") as file:
        PDBFile.writeFile(topology, positions, file)
    with atomic_write(folder / SCRIPT) as temporary:
        temporary.write_text(
            EXAMPLE.format(
                and_package="; and mlff-student, for its kernels" if native else "",
                prelude=LOAD_KERNELS if native else "",
                lines=FORCE_LINES.format(module=MODULE, periodic=periodic),
                system=SYSTEM,
                start=START,
            )
        )
    return agreement


def _state(system: System, positions: unit.Quantity) -> State:
    """Return a State with the positions and the box, and no velocities."""
    reference = Platform.getPlatformByName("Reference")
    context = Context(system, VerletIntegrator(0.001), reference)
    context.setPositions(positions)
    return context.getState(positions=True)


def _compare(
    archive: Archive, backend: str, path: Path, topology: Topology, positions: unit.Quantity
) -> Agreement:
    """Read the written module again and compare it with the archive."""
    module = torch.jit.load(str(path))
    inputs = [torch.tensor(positions.value_in_unit(unit.nanometer))]
    atoms = Atoms(
        [atom.element.symbol for atom in topology.atoms()],
        positions=positions.value_in_unit(unit.angstrom),
    )
    if (box := topology.getPeriodicBoxVectors()) is not None:
        atoms.set_cell(np.array(box.value_in_unit(unit.angstrom)))
        atoms.pbc = True
        inputs.append(torch.tensor(atoms.cell.array / NM))
    energy, forces = (result.numpy() for result in module(*inputs))
    expected = evaluator(archive, "portable").evaluate(
        atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc
    )
    energy_error = float(energy * KJ_PER_MOL - expected.energies.sum())
    force_errors = forces * (KJ_PER_MOL / NM) - expected.forces
    return Agreement(
        structure=path.parent.name,
        backend=backend,
        dtype=archive.metadata["dtype"],
        atoms=len(atoms),
        energy_ev_per_atom=abs(energy_error) / len(atoms),
        forces_ev_per_angstrom=float(abs(force_errors).max()),
        largest_force_ev_per_angstrom=float(abs(expected.forces).max()),
    )
