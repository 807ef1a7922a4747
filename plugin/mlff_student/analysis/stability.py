"""Measure whether molecules kept their structure: bonds, hydrogens and RMSD."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import mdtraj
import numpy as np
from ase import units
from numpy.typing import NDArray

from mlff_student.analysis.bonds import (
    BROKEN_BOND_DEVIATION,
    bond_lengths,
    bond_pairs,
    check_order,
    reference_lengths,
)
from mlff_student.core.figures import Figure, Measured
from mlff_student.structures.checks import connected_fragments
from mlff_student.structures.reading import Structure
from mlff_student.structures.trajectories import Frames, make_whole

HYDROGEN_LOST = 2.5  # angstrom; a hydrogen farther from its bonded atom is lost


@dataclass(frozen=True)
class Stability(Measured):
    """What the bonds and molecules did along a trajectory.

    Attributes
    ----------
    bond_deviation_angstrom : float
        Largest difference of a bond's length from that in the reference, angstrom. NaN if a
        position is NaN.
    bond_deviation_atoms : str
        The two atoms of the bond with the largest difference.
    bond_deviation_frame : int
        Frame with the largest difference. Frames count from 0.
    bonds : int
        Number of bonds.
    frames : int
        Number of frames.
    hydrogen_distance_angstrom : float
        Largest distance of a hydrogen from the atom it is bonded to, angstrom.
    hydrogens_lost : int
        Number of hydrogens that were ever more than 2.5 angstrom from their bonded atom.
    stable_frames : int
        Number of frames before the first with a bond that is off by more than 0.5 angstrom, a lost
        hydrogen, or a position that is not finite.
    rmsd_angstrom, rmsd_max_angstrom : float | None
        Mean and largest root mean square distance from the reference after superposition, angstrom,
        for a single molecule. It is that of the heavy atoms, or of all atoms if there are fewer
        than three heavy atoms. None for several molecules.
    """

    bond_deviation_angstrom: float
    bond_deviation_atoms: str
    bond_deviation_frame: int
    bonds: int
    frames: int
    hydrogen_distance_angstrom: float
    hydrogens_lost: int
    stable_frames: int
    rmsd_angstrom: float | None
    rmsd_max_angstrom: float | None

    def figures(self) -> list[Figure]:
        """Return all figures. There is no RMSD for several molecules."""
        figures = [
            Figure("bond_deviation", self.bond_deviation_angstrom, "angstrom"),
            Figure("bond_deviation_frame", self.bond_deviation_frame),
            Figure("bonds", self.bonds),
            Figure("frames", self.frames),
            Figure("hydrogen_distance", self.hydrogen_distance_angstrom, "angstrom"),
            Figure("hydrogens_lost", self.hydrogens_lost),
            Figure("stable_frames", self.stable_frames),
        ]
        for name, value in (("rmsd", self.rmsd_angstrom), ("rmsd_max", self.rmsd_max_angstrom)):
            if value is not None:
                figures.append(Figure(name, value, "angstrom"))
        return figures

    def facts(self) -> dict[str, str]:
        """Return the atoms of the bond with the largest difference from its reference length."""
        return {"bond_deviation_atoms": self.bond_deviation_atoms}


def measure_stability(frames: Iterable[Frames], structure: Structure, name: Path) -> Stability:
    """Measure the bonds of the reference structure in all frames.

    Lengths are measured as in `mlff_student.analysis.bonds.bond_lengths`.

    Parameters
    ----------
    frames : Iterable[Frames]
        Parts of a trajectory, as `stream_frames` yields them.
    structure : Structure
        Reference structure with its bonds.
    name : Path
        Trajectory file, for error messages.

    Returns
    -------
    Stability
        Deviations of bonds, lost hydrogens and RMSD.

    Raises
    ------
    InputError
        If the atoms are in another order than in the structure.
    """
    members = list(structure.topology.atoms)
    pairs = bond_pairs(structure.topology)
    periodic = structure.atoms.pbc
    reference = reference_lengths(structure, pairs)
    with_hydrogen = (structure.atoms.numbers[pairs] == 1).any(axis=1)
    lost = np.zeros(int(with_hydrogen.sum()), bool)
    fragments = connected_fragments(len(members), pairs.tolist())
    worst, worst_atoms, worst_frame = 0.0, "", 0
    farthest, count, stable = 0.0, 0, None
    rmsd: list[NDArray[np.float64]] = []
    for part in frames:
        if count == 0:
            check_order(name, structure, part)
        failed = ~np.isfinite(part.positions).all(axis=(1, 2))
        if len(pairs):
            lengths = bond_lengths(part.positions, part.cells, pairs, reference.max(), periodic)
            deviation = np.abs(lengths - reference)  # (F, B)
            frame, bond = divmod(
                int(deviation.argmax()), len(pairs)
            )  # argmax takes a NaN as the largest
            value = float(deviation[frame, bond])
            if not np.isnan(worst) and not value <= worst:
                worst_atoms = f"{members[pairs[bond, 0]]} {members[pairs[bond, 1]]}"
                worst, worst_frame = value, count + frame
            hydrogens = lengths[:, with_hydrogen]
            gone = ~(hydrogens <= HYDROGEN_LOST)  # a NaN counts as lost
            lost |= gone.any(axis=0)
            farthest = max(farthest, float(np.nan_to_num(hydrogens, nan=np.inf).max(initial=0.0)))
            failed |= ~(deviation <= BROKEN_BOND_DEVIATION).all(axis=1) | gone.any(axis=1)
        if stable is None and failed.any():
            stable = count + int(failed.argmax())
        if fragments.max() == 0:
            rmsd.append(_rmsd(make_whole(part.positions, part.cells, pairs, periodic), structure))
        count += len(part)
    distances = np.concatenate(rmsd) if rmsd else None
    return Stability(
        bond_deviation_angstrom=worst,
        bond_deviation_atoms=worst_atoms,
        bond_deviation_frame=worst_frame,
        bonds=len(pairs),
        frames=count,
        hydrogen_distance_angstrom=farthest,
        hydrogens_lost=int(lost.sum()),
        stable_frames=count if stable is None else stable,
        rmsd_angstrom=None if distances is None else float(distances.mean()),
        rmsd_max_angstrom=None if distances is None else float(distances.max()),
    )


def _rmsd(positions: NDArray[np.float64], structure: Structure) -> NDArray[np.float64]:
    """Return the RMSD (F,), angstrom, of frames (F, N, 3) of a molecule after superposition."""
    chosen = np.flatnonzero(structure.atoms.numbers > 1)
    if len(chosen) < 3:
        chosen = np.arange(len(structure.atoms))
    reference = make_whole(
        structure.atoms.positions[None],
        structure.atoms.cell.complete().array[None] if structure.atoms.pbc.any() else None,
        bond_pairs(structure.topology),
        structure.atoms.pbc,
    )
    frames, start = (
        mdtraj.Trajectory(x[:, chosen] / units.nm, structure.topology.subset(chosen.tolist()))
        for x in (positions, reference)
    )
    return mdtraj.rmsd(frames, start).astype(float) * units.nm
