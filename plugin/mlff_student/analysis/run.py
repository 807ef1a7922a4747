"""All figures of a finished run, from its trajectory, topology and log."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import units

from ..errors import InputError
from .drift import Drift, fit_drift
from .frames import read_topology, stream_frames
from .stability import Stability, measure_stability
from .thermo import Thermo, read_thermo


@dataclass(frozen=True)
class Analysis:
    """All figures of one run; `as_record` is what --json writes."""

    drift: Drift
    stability: Stability
    rows: int
    atoms: int
    degrees_of_freedom: int
    duration_ps: float

    def as_record(self) -> dict[str, float | int | str]:
        """Flat dictionary, units in the keys."""
        return {
            **self.drift.as_record(),
            **self.stability.as_record(),
            "rows": self.rows,
            "atoms": self.atoms,
            "degrees_of_freedom": self.degrees_of_freedom,
            "duration_ps": self.duration_ps,
        }


def analyze(
    trajectory: Path, topology: Path, log: Path, *, degrees_of_freedom: int | None = None
) -> Analysis:
    """Figures of the run that wrote these three files.

    Parameters
    ----------
    trajectory : any format that `stream_frames` reads.
    topology : structure file with the trajectory's atoms in its order; its coordinates are the
        reference for bonds.
    log : any that `read_thermo` reads.
    degrees_of_freedom : 3N - 3 unless given.

    Raises
    ------
    InputError : a file that cannot be used, or files of different runs.
    """
    structure = read_topology(topology)
    atoms = len(structure.atoms)
    if degrees_of_freedom is None:
        degrees_of_freedom = 3 * atoms - 3
    thermo = read_thermo(log, degrees_of_freedom=degrees_of_freedom)
    drift = fit_drift(thermo, atoms, degrees_of_freedom=degrees_of_freedom)
    stability = measure_stability(stream_frames(trajectory, structure), structure, Path(trajectory))
    _check_same_run(thermo, log, atoms, trajectory, stability.frames)
    return Analysis(
        drift=drift,
        stability=stability,
        rows=len(thermo.time_ps),
        atoms=atoms,
        degrees_of_freedom=degrees_of_freedom,
        duration_ps=float(thermo.time_ps[-1] - thermo.time_ps[0]),
    )


def _check_same_run(thermo: Thermo, log: Path, atoms: int, trajectory: Path, frames: int) -> None:
    """Refuse a log whose rows or kinetic energy cannot be this trajectory's."""
    rows = len(thermo.time_ps)
    few, many = sorted((rows, frames))
    ratio = round(many / few)
    if abs(many - ratio * few) > ratio:  # one row or frame more or less: the start, or a kill
        raise InputError(
            f"{log} has {rows} rows and {trajectory} has {frames} frames, neither a multiple of "
            "the other: they are of different runs"
        )
    with np.errstate(all="ignore"):
        dof = np.median(2.0 * thermo.kinetic_ev / (units.kB * thermo.temperature_k))
    if dof > 1.02 * 3 * atoms:  # 2 % for rounding in the log
        raise InputError(
            f"{log} belongs to a larger system, or its energies are not in eV: kinetic energy and "
            f"temperature imply {dof:.0f} degrees of freedom, {atoms} atoms have {3 * atoms}"
        )
