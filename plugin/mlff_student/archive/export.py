"""Write an archive, and verify that it computes the same numbers as the student."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from vesin import NeighborList

from mlff_student.archive.archive import Archive, load_archive, save_archive
from mlff_student.archive.backends import Evaluator, PortableStudent, evaluator, unavailable
from mlff_student.archive.registry import read_model
from mlff_student.archive.scripting import student_of, with_script
from mlff_student.core.errors import ArchiveError, InputError
from mlff_student.core.files import atomic_write
from mlff_student.model.architecture import PRECISIONS, StudentConfig
from mlff_student.model.student import DTYPES, Student

# Largest differences allowed between the archive and eager evaluation of the same precision. In
# float64 they agree to rounding; in float32 the order of summation matters.
ENERGY_TOLERANCE = {"float32": 1e-6, "float64": 1e-11}  # eV/atom
NATIVE_ENERGY_TOLERANCE = 2e-5  # eV/atom; the native kernels have tables of the filters
# eV/angstrom, multiplied by the largest force where that is above 1 eV/angstrom.
FORCE_TOLERANCE = {"float32": 2e-5, "float64": 1e-9}


class Agreement(NamedTuple):
    """Largest differences of an archive from eager evaluation on one structure.

    Attributes
    ----------
    structure : str
        Name of the structure.
    dtype : str
        Precision, "float32" or "float64".
    atoms : int
        Number of atoms.
    energy_ev_per_atom : float
        Absolute difference of the energies, eV/atom.
    forces_ev_per_angstrom : float
        Largest absolute difference of a force component, eV/angstrom.
    largest_force_ev_per_angstrom : float
        Largest absolute force component by eager evaluation, eV/angstrom.
    backend : str
        What was compared: "portable" (the TorchScript in the file), "native" or "onnx".
    """

    structure: str
    dtype: str
    atoms: int
    energy_ev_per_atom: float
    forces_ev_per_angstrom: float
    largest_force_ev_per_angstrom: float
    backend: str = "portable"

    @property
    def passed(self) -> bool:
        """Whether both differences are within the tolerances of the precision."""
        scale = max(1.0, self.largest_force_ev_per_angstrom)
        native = self.backend == "native"
        return (
            self.energy_ev_per_atom
            <= (NATIVE_ENERGY_TOLERANCE if native else ENERGY_TOLERANCE[self.dtype])
            and self.forces_ev_per_angstrom <= FORCE_TOLERANCE[self.dtype] * scale
        )


def export(
    checkpoint: Path, output: Path, dtype: str = "float32", verify: bool = True
) -> list[Agreement]:
    """Write the archive of a checkpoint.

    Parameters
    ----------
    checkpoint : Path
        Weights file, whose card.json is read from the same folder; or an archive, also of format 2.
    output : Path
        Archive file to write. An existing file is replaced only after the verification.
    dtype : str
        Precision of the network, "float32" or "float64".
    verify : bool
        Whether to compare archives of both precisions with eager evaluation before `output` is
        replaced; the archive of the precision `dtype` is the written file, read again.

    Returns
    -------
    list[Agreement]
        Measured differences of the TorchScript and, in float32 and if they are there, of the native
        kernels; empty without verification.

    Raises
    ------
    ArchiveError
        The checkpoint cannot be read, or the archive computes other numbers than the student.
    InputError
        The precision is unknown, or the output cannot be written.
    """
    if dtype not in PRECISIONS:
        raise InputError(f"dtype {dtype!r} is unknown; expected {' or '.join(PRECISIONS)}")
    source, agreements = read_model(checkpoint), []
    with atomic_write(output) as temporary:
        for precision in PRECISIONS:
            if precision != dtype and not verify:
                continue
            archive = with_script(source.in_precision(precision))
            if precision == dtype:
                save_archive(archive, temporary)
                archive = load_archive(temporary, trust=True)  # the TorchScript of the file
            if verify:
                agreements += compare_with_eager(source, archive)
        refuse_disagreement(f"the archive of {source.metadata['name']}", agreements)
    return agreements


def eager_energy_and_forces(
    student: Student, config: StudentConfig, atoms: Atoms
) -> tuple[float, np.ndarray]:
    """Evaluate a student in another way than its archive does.

    Neighbours come from vesin instead of the archive's own search, and forces from autograd instead
    of the gradient that is derived by hand.

    Parameters
    ----------
    student : Student
        Student to evaluate.
    config : StudentConfig
        Architecture of the student.
    atoms : Atoms
        Structure.

    Returns
    -------
    energy : float
        Energy, eV.
    forces : np.ndarray
        (N, 3), forces, eV/angstrom.
    """
    first, second, shifts = NeighborList(cutoff=config.cutoff, full_list=True).compute(
        points=atoms.positions, box=atoms.cell.array, periodic=atoms.pbc, quantities="ijS"
    )
    positions = torch.tensor(atoms.positions, requires_grad=True)
    edge_index = torch.tensor(np.stack([first, second]).astype(np.int64))
    images = torch.tensor(shifts @ atoms.cell.array)
    vectors = positions[edge_index[1]] - positions[edge_index[0]] + images
    species = student.species_of[torch.tensor(atoms.numbers)]
    energies, _ = student(vectors, edge_index, species, len(atoms))
    energy = energies.sum()
    if len(first) == 0:
        return float(energy.detach()), np.zeros((len(atoms), 3))
    (gradient,) = torch.autograd.grad(energy, positions)
    return float(energy.detach()), -gradient.numpy()


def compare_with_eager(source: Archive, archive: Archive) -> list[Agreement]:
    """Compare the backends of an archive with its student on `verification_structures`.

    Parameters
    ----------
    source : Archive
        Weights of the student that is evaluated eagerly, in the precision of `archive`.
    archive : Archive
        Archive to compare.

    Returns
    -------
    list[Agreement]
        Differences for each backend and structure.
    """
    dtype = archive.metadata["dtype"]
    student = student_of(source, DTYPES[dtype])
    evaluators: list[Evaluator] = [PortableStudent(archive)]
    if dtype == "float32" and not unavailable():
        evaluators.append(evaluator(archive, "native", threads=1))

    def compared(with_backend: Evaluator) -> list[Agreement]:
        def evaluate(atoms: Atoms) -> tuple[float, np.ndarray]:
            results = with_backend.evaluate(
                atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc
            )
            return float(results.energies.sum()), results.forces

        return differences(student, source.config, with_backend.backend, dtype, evaluate)

    return [agreement for each in evaluators for agreement in compared(each)]


def differences(
    student: Student,
    config: StudentConfig,
    backend: str,
    dtype: str,
    evaluate: Callable[[Atoms], tuple[float, np.ndarray]],
) -> list[Agreement]:
    """Compare an exported file with eager evaluation of its student on `verification_structures`.

    Parameters
    ----------
    student : Student
        Student in the precision of the file.
    config : StudentConfig
        Architecture of the student.
    backend : str
        Name of what is compared, for the result.
    dtype : str
        Precision of the student, "float32" or "float64".
    evaluate : Callable[[Atoms], tuple[float, np.ndarray]]
        Function that computes energy (eV) and forces (N, 3) in eV/angstrom with the file.

    Returns
    -------
    list[Agreement]
        Differences for each structure.
    """
    agreements = []
    for name, atoms in verification_structures(config.elements).items():
        energy, forces = eager_energy_and_forces(student, config, atoms)
        exported_energy, exported_forces = evaluate(atoms)
        agreements.append(
            Agreement(
                structure=name,
                backend=backend,
                dtype=dtype,
                atoms=len(atoms),
                energy_ev_per_atom=abs(exported_energy - energy) / len(atoms),
                forces_ev_per_angstrom=float(abs(exported_forces - forces).max()),
                largest_force_ev_per_angstrom=float(abs(forces).max()),
            )
        )
    return agreements


def refuse_disagreement(what: str, agreements: list[Agreement]) -> None:
    """Raise an error if a difference is beyond its tolerance.

    Parameters
    ----------
    what : str
        Name of the exported file, for the message.
    agreements : list[Agreement]
        Measured differences.

    Raises
    ------
    ArchiveError
        A difference is beyond its tolerance; the message lists the structures.
    """
    if failed := [a for a in agreements if not a.passed]:
        raise ArchiveError(
            f"{what} disagrees with eager evaluation: "
            + "; ".join(
                f"{a.structure} by {a.backend} in {a.dtype}: {a.energy_ev_per_atom:.1e} eV/atom, "
                f"{a.forces_ev_per_angstrom:.1e} eV/angstrom"
                for a in failed
            )
        )


def verification_structures(elements: tuple[str, ...]) -> dict[str, Atoms]:
    """Return open, partly periodic, triclinic and small periodic structures with all elements.

    Parameters
    ----------
    elements : tuple[str, ...]
        Chemical symbols that the student knows; molecules with other elements are left out.
    """
    rng = np.random.default_rng(7)
    ethanol = molecule("CH3CH2OH")
    slab = ethanol.copy()
    slab.set_cell([6.0, 7.0, 0.0])
    slab.pbc = (True, True, False)
    water = molecule("H2O", cell=[3.2, 3.4, 3.6])
    water.pbc = True
    bromomethane = molecule("CH3Cl")
    bromomethane.symbols[bromomethane.symbols == "Cl"] = "Br"
    bromomethane.set_distance(0, 1, 1.94, fix=0)
    several = [molecule(name) for name in ("H2O", "HCN", "CF4", "PH3", "CH3SH", "CH3Cl")]
    crystal = Atoms(cell=[[11.5, 0.0, 0.0], [1.8, 11.0, 0.0], [0.7, -1.5, 12.0]], pbc=True)
    sites = np.stack(np.meshgrid(*[[0.0, 0.5]] * 3, indexing="ij"), -1).reshape(-1, 3)
    for placed, site in zip([*several, bromomethane], sites, strict=False):
        if set(placed.symbols) <= set(elements):
            placed.positions += site @ crystal.cell.array
            crystal += placed
    structures = {
        "ethanol, open": ethanol,
        "ethanol, periodic in two directions": slab,
        "water, cell below the cutoff": water,
        "molecules, triclinic": crystal,
        "one atom": Atoms("O", positions=[[0.0, 0.0, 0.0]]),
    }
    for atoms in structures.values():
        atoms.positions += 0.05 * rng.standard_normal(atoms.positions.shape)
    return structures
