"""Whether molecules kept their structure: bonds, hydrogens, and the way from where they started."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import mdtraj
import numpy as np
from ase import units
from numpy.typing import NDArray

from mlff_student.analysis.bonds import (
    COLLAPSE,
    bond_lengths,
    bond_pairs,
    check_order,
    reference_lengths,
)
from mlff_student.core.figures import Figure, Measured
from mlff_student.structures.checks import connected_fragments
from mlff_student.structures.reading import Structure
from mlff_student.structures.trajectories import Frames, make_whole

HYDROGEN_LOST = 2.5  # angstrom from the atom it is bonded to


@dataclass(frozen=True)
class Stability(Measured):
    """What became of the bonds of a trajectory.

    Attributes
    ----------
    bond_deviation_angstrom : float
        Of the bond that went farthest from its length in the reference; NaN where a position is;
        frames count from 0.
    bond_deviation_atoms : str
        Of the bond that went farthest from its length in the reference; NaN where a position is;
        frames count from 0.
    bond_deviation_frame : int
        Of the bond that went farthest from its length in the reference; NaN where a position is;
        frames count from 0.
    hydrogen_distance_angstrom : float
        The largest from a hydrogen to the atom it is bonded to.
    hydrogens_lost : int
        Those that were ever more than 2.5 angstrom away.
    stable_frames : int
        Before the first one with a bond more than 0.5 angstrom off, a hydrogen lost, or a position
        that is not finite.
    rmsd_angstrom, rmsd_max_angstrom : float | None
        From the reference, of the heavy atoms (all, where there are fewer than three) of a single
        molecule after superposition; None for several molecules.
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
        """All figures; no RMSD of several molecules."""
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
        """The atoms of the bond that went farthest from its length."""
        return {"bond_deviation_atoms": self.bond_deviation_atoms}


def measure_stability(frames: Iterable[Frames], structure: Structure, name: Path) -> Stability:
    """Follow the bonds of the reference structure through all frames.

    Distances are to the nearest image where the cell is thicker than two bonds, along what of it is
    periodic.

    Parameters
    ----------
    frames : Iterable[Frames]
        Pieces of a trajectory, as `stream_frames` gives them.
    name : Path
        Of the trajectory, for errors.

    Raises
    ------
    InputError
        Atoms in another order than the structure's.
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
            frame, bond = divmod(int(deviation.argmax()), len(pairs))  # a NaN counts as largest
            value = float(deviation[frame, bond])
            if not np.isnan(worst) and not value <= worst:
                worst_atoms = f"{members[pairs[bond, 0]]} {members[pairs[bond, 1]]}"
                worst, worst_frame = value, count + frame
            hydrogens = lengths[:, with_hydrogen]
            gone = ~(hydrogens <= HYDROGEN_LOST)  # NaN is gone
            lost |= gone.any(axis=0)
            farthest = max(farthest, float(np.nan_to_num(hydrogens, nan=np.inf).max(initial=0.0)))
            failed |= ~(deviation <= COLLAPSE).all(axis=1) | gone.any(axis=1)
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
    """Of each frame (F, N, 3) of whole molecules after superposition, angstrom."""
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
