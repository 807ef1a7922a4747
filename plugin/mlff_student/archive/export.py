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
from mlff_student.archive.registry import compile_checkpoint, model_name
from mlff_student.core.errors import ArchiveError, InputError
from mlff_student.core.files import atomic_write
from mlff_student.model.student import DTYPES, Student, StudentConfig

# Largest differences allowed between the archive and eager evaluation of the same precision. In
# float64 they agree to rounding; in float32 the order of summation matters.
ENERGY_TOLERANCE = {"float32": 1e-6, "float64": 1e-11}  # eV/atom
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
    """

    structure: str
    dtype: str
    atoms: int
    energy_ev_per_atom: float
    forces_ev_per_angstrom: float
    largest_force_ev_per_angstrom: float

    @property
    def passed(self) -> bool:
        """Whether both differences are within the tolerances of the precision."""
        scale = max(1.0, self.largest_force_ev_per_angstrom)
        return (
            self.energy_ev_per_atom <= ENERGY_TOLERANCE[self.dtype]
            and self.forces_ev_per_angstrom <= FORCE_TOLERANCE[self.dtype] * scale
        )


def export(
    checkpoint: Path, output: Path, dtype: str = "float32", verify: bool = True
) -> list[Agreement]:
    """Write the archive of a checkpoint.

    Parameters
    ----------
    checkpoint : Path
        Weights file; its card.json is read from the same folder.
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
        Measured differences; empty without verification.

    Raises
    ------
    ArchiveError
        The checkpoint cannot be read, or the archive computes other numbers than the student.
    InputError
        The precision is unknown, or the output cannot be written.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; expected {' or '.join(DTYPES)}")
    agreements: list[Agreement] = []
    with atomic_write(output) as temporary:
        for precision, torch_dtype in DTYPES.items():
            if precision != dtype and not verify:
                continue
            student, config, archive = compile_checkpoint(checkpoint, torch_dtype)
            if precision == dtype:
                save_archive(archive, temporary)
                archive = load_archive(temporary)
            if verify:
                agreements += compare_with_eager(student, config, archive)
        refuse_disagreement(f"the archive of {model_name(checkpoint)}", agreements)
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


def compare_with_eager(
    student: Student, config: StudentConfig, archive: Archive
) -> list[Agreement]:
    """Compare an archive with eager evaluation of its student on `verification_structures`.

    Parameters
    ----------
    student : Student
        Student in the precision of the archive.
    config : StudentConfig
        Architecture of the student.
    archive : Archive
        Archive to compare.

    Returns
    -------
    list[Agreement]
        Differences for each structure.
    """

    def evaluate(atoms: Atoms) -> tuple[float, np.ndarray]:
        energy, forces, _ = archive.module(
            torch.tensor(atoms.positions),
            torch.tensor(atoms.numbers),
            torch.tensor(atoms.cell.array),
            torch.tensor(atoms.pbc),
        )
        return float(energy), forces.numpy()

    return differences(student, config, archive.metadata["dtype"], evaluate)


def differences(
    student: Student,
    config: StudentConfig,
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
                f"{a.structure} in {a.dtype}: {a.energy_ev_per_atom:.1e} eV/atom, "
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
