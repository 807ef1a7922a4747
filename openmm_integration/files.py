"""Files for OpenMM users who do not have this package: a module for TorchForce, and a System."""

from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from openmm import Context, Platform, State, System, VerletIntegrator, XmlSerializer, unit
from openmm.app import PDBFile, Topology

from mlff_student.archive.archive import Archive, save_archive
from mlff_student.archive.export import DTYPES, Agreement
from mlff_student.archive.native import with_backend
from mlff_student.archive.registry import archive_of
from mlff_student.core.errors import ArchiveError, InputError
from mlff_student.core.files import atomic_write
from mlff_student.core.units import KJ_PER_MOL, NM
from mlff_student.engines.ase.calculator import evaluate

from .force import TorchForceModule, student_atoms
from .system import system_without_student
from .topology import load_structure

MODULE, SYSTEM, SCRIPT, PROGRAM = "student.pt", "system.xml", "simulate.py", "simulate.cpp"
START, STATE = "start.pdb", "start.xml"  # for Python, with the topology; for C++
FILES = (MODULE, SYSTEM, START, SCRIPT, STATE, PROGRAM)
NATIVE = """from mlff_student.archive.native import load_library

load_library()  # the kernels that student.pt was written for
"""
# Not in system.xml, since openmmtorch 1.5 dies of a segmentation fault when it reads a TorchForce
# from XML, with a student in it or without.
LINES = """force = TorchForce("{module}")
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
    """Write student.pt, system.xml and start.pdb with simulate.py, which puts the three together,
    and start.xml with simulate.cpp, which does so in C++.

    Parameters
    ----------
    model : shipped name, or path of a checkpoint or archive.
    structure : file or SMILES string, as `load_structure` takes.
    folder : receives the files; made if it is not there.
    dtype : of the network, "float32" or "float64", where a checkpoint is compiled (None: float32);
        an exported archive has its own, and another is refused.
    backend : kernels. "portable": the files need nothing of this package. "native": whoever loads
        student.pt must have loaded the native library.

    Returns
    -------
    Difference of the written module from the archive, on the structure.

    Raises
    ------
    InputError : unusable structure, a dtype that the archive does not have, or a folder that cannot
        be written.
    ArchiveError : unusable model, or a written module that does not compute what the archive does.
    MissingDependencyError : the native kernels were asked for and cannot be used.
    """
    archive = archive_of(model, dtype and DTYPES[dtype])
    topology, positions = load_structure(structure)
    members = student_atoms(topology, None, archive.metadata["elements"])
    numbers = torch.tensor([atom.element.atomic_number for atom in members])
    periodic = topology.getPeriodicBoxVectors() is not None
    chosen = with_backend(archive, backend)
    native = chosen.module is not archive.module
    module = torch.jit.script(TorchForceModule(chosen.module, numbers, None, periodic))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from error
    with atomic_write(folder / MODULE) as temporary:
        save_archive(Archive(module, archive.metadata), temporary)
        agreement = _compare(archive, temporary, topology, positions)
        if not agreement.passed:
            raise ArchiveError(f"the written module disagrees with its archive: {agreement}")
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
                prelude=NATIVE if native else "",
                lines=LINES.format(module=MODULE, periodic=periodic),
                system=SYSTEM,
                start=START,
            )
        )
    return agreement


def _state(system: System, positions: unit.Quantity) -> State:
    """Positions and box, at rest."""
    reference = Platform.getPlatformByName("Reference")
    context = Context(system, VerletIntegrator(0.001), reference)
    context.setPositions(positions)
    return context.getState(positions=True)


def _compare(
    archive: Archive, path: Path, topology: Topology, positions: unit.Quantity
) -> Agreement:
    """The written module, read again, against the archive."""
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
    energy, forces = module(*inputs)
    energies, expected, _ = evaluate(archive, atoms)
    return Agreement(
        structure=path.parent.name,
        dtype=archive.metadata["dtype"],
        atoms=len(atoms),
        energy_ev_per_atom=abs(float(energy) * KJ_PER_MOL - float(energies.sum())) / len(atoms),
        forces_ev_per_angstrom=float((forces * (KJ_PER_MOL / NM) - expected).abs().max()),
        largest_force_ev_per_angstrom=float(expected.abs().max()),
    )
