"""Whether a log and a trajectory are of the same run."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlff_student.analysis.ensemble import AMU_ANGSTROM2_PER_PS2
from mlff_student.analysis.thermo import Thermo
from mlff_student.core.errors import InputError
from mlff_student.core.units import KB
from mlff_student.structures.reading import Structure
from mlff_student.structures.trajectories import Frames

# Of the fluctuation of an energy or volume: between independent runs it is sqrt(2), of the same run
# zero, but for velocities that a leap-frog integrator wrote half a step away.
SAME_RUN = 0.5
# The same of potential energies by the model: another student of the same teacher was 0.22 off, the
# right one 0.0000, and 0.17 where the positions are rounded to a thousandth of a nanometre.
SAME_MODEL, SAME_MODEL_ROUNDED = 0.1, 0.3
ROUNDED = (".xtc", ".gro")


def _numbers() -> "array[float]":
    return array("d")  # a quarter of a list's memory: there may be millions


@dataclass
class FrameSeries:
    """One number for each frame of a trajectory, as far as the file has them."""

    frames: int = 0
    time_ps: "array[float]" = field(default_factory=_numbers)
    volume_angstrom3: "array[float]" = field(default_factory=_numbers)
    kinetic_ev: "array[float]" = field(default_factory=_numbers)

    def follow(self, frames: Iterable[Frames], structure: Structure) -> Iterator[Frames]:
        """Pass the frames on, and fill the series on the way."""
        masses = structure.atoms.get_masses()
        for part in frames:
            self.frames += len(part)
            if part.time_ps is not None:
                self.time_ps.extend(part.time_ps)
            if part.cells is not None:
                self.volume_angstrom3.extend(np.abs(np.linalg.det(part.cells)))
            if part.velocities is not None:
                kinetic = 0.5 * AMU_ANGSTROM2_PER_PS2 * (part.velocities**2).sum(axis=2) @ masses
                self.kinetic_ev.extend(kinetic)
            yield part


def check_same_run(
    thermo: Thermo, log: Path, series: FrameSeries, trajectory: Path, *, atoms: int
) -> None:
    """Refuse a log whose rows, time, energies or volumes cannot be this trajectory's.

    Raises
    ------
    InputError
        They are of different runs, with the two numbers that say so.
    """
    rows, frames = len(thermo.time_ps), series.frames
    few, many = sorted((rows, frames))
    ratio = round(many / few)
    if abs(many - ratio * few) > ratio:  # one row or frame more or less: the start, or a kill
        raise InputError(
            f"{log} has {rows} rows and {trajectory} has {frames} frames, neither a multiple of "
            "the other: they are of different runs"
        )
    dof = logged_degrees_of_freedom(thermo)
    # 2 % for rounding; rigid water has 2/3 of 3N, and up to 6 go with the whole's motion.
    if dof > 1.02 * 3 * atoms or dof < 0.6 * 3 * atoms - 6:
        other = "larger" if dof > 3 * atoms else "smaller"
        raise InputError(
            f"{log} belongs to a {other} system, or its energies are not in eV: kinetic energy and "
            f"temperature imply {dof:.0f} degrees of freedom, {atoms} atoms have {3 * atoms}"
        )
    if len(series.time_ps) == frames > 1:
        per_frame = (series.time_ps[-1] - series.time_ps[0]) / (frames - 1)
        expected = frame_spacing(thermo, frames)
        counted = per_frame == 1.0  # MDTraj counts frames where the file has no time
        if per_frame > 0 and not counted and abs(per_frame / expected - 1.0) > 0.02:
            raise InputError(
                f"{trajectory} has a frame every {per_frame:.4g} ps, by the rows of {log} it is "
                f"{expected:.4g} ps: they are of different runs, or the timestep is wrong"
            )
    every = np.arange(frames)
    if thermo.volume_angstrom3 is not None and len(series.volume_angstrom3) == frames:
        volumes = np.array(series.volume_angstrom3)
        off = smallest_difference(thermo.volume_angstrom3, frames, every, volumes)
        if off > max(SAME_RUN * thermo.volume_angstrom3.std(), 1e-3 * volumes.mean()):
            raise InputError(
                f"the cells of {trajectory} have {volumes.mean():.5g} angstrom^3 on average, those "
                f"in {log} {thermo.volume_angstrom3.mean():.5g}: they are of different runs"
            )
    if len(series.kinetic_ev) == frames:
        kinetic = np.array(series.kinetic_ev)
        check_energies(
            thermo.kinetic_ev, frames, every, kinetic, "kinetic energy", log, trajectory, SAME_RUN
        )


def same_model(trajectory: Path) -> float:
    """How far the model's energies of this file's frames may be off the log's, in widths."""
    return SAME_MODEL_ROUNDED if trajectory.suffix.lower() in ROUNDED else SAME_MODEL


def logged_degrees_of_freedom(thermo: Thermo) -> float:
    """2 K / (k T) of a log, what its program took the temperature from; NaN where no row tells."""
    with np.errstate(all="ignore"):
        of_rows = 2.0 * thermo.kinetic_ev / (KB * thermo.temperature_k)
    finite = of_rows[np.isfinite(of_rows)]
    return float(np.median(finite)) if len(finite) else np.nan


def frame_spacing(thermo: Thermo, frames: int) -> float:
    """Time between frames, ps: a whole number of rows, or a whole fraction of one."""
    rows, row_ps = len(thermo.time_ps), float(np.diff(thermo.time_ps).mean())
    return row_ps * round(rows / frames) if rows >= frames else row_ps / round(frames / rows)


def check_energies(
    of_log: NDArray[np.float64],
    frames: int,
    chosen: NDArray[np.int_],
    of_chosen: NDArray[np.float64],
    name: str,
    log: Path,
    trajectory: Path,
    allowed: float,
) -> None:
    """Refuse a log whose energy does not follow that of the chosen frames.

    Parameters
    ----------
    of_log : NDArray[np.float64]
        (rows,).
    frames : int
        In the trajectory.
    chosen : NDArray[np.int_]
        Indices of frames (C,) and their energies (C,).
    of_chosen : NDArray[np.float64]
        Indices of frames (C,) and their energies (C,).
    allowed : float
        Difference over the standard deviation of the log's energy.

    Raises
    ------
    InputError
        See above.
    """
    spread = float(of_log.std())
    off = smallest_difference(of_log, frames, chosen, of_chosen)
    if off > allowed * spread:
        raise InputError(
            f"the {name} of the frames of {trajectory} is {off:.3g} eV off that in {log}, which "
            f"fluctuates by {spread:.3g} eV: they are of different runs, or of another model"
        )


def smallest_difference(
    of_log: NDArray[np.float64],
    frames: int,
    chosen: NDArray[np.int_],
    of_chosen: NDArray[np.float64],
) -> float:
    """Root mean square difference between rows and chosen frames, over the best way to match them:
    the log, the trajectory or both may have the start, and either may have lost its end.
    """
    few, many = sorted((len(of_log), frames))
    ratio = round(many / few)
    best = np.nan  # none can be matched
    for first in range(-1, 2 * ratio):  # of the longer series, at the first of the shorter one
        rows = first + ratio * chosen if len(of_log) >= frames else (chosen - first) / ratio
        inside = (rows >= 0) & (rows < len(of_log)) & (rows == np.floor(rows))
        if inside.sum() >= max(1, len(chosen) // (2 if len(of_log) >= frames else 2 * ratio)):
            off = of_log[rows[inside].astype(int)] - of_chosen[inside]
            best = float(np.fmin(best, np.sqrt(np.mean(off**2))))
    return best
