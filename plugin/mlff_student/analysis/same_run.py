"""Check that a log and a trajectory are of the same run."""

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

# Largest root mean square difference between log and trajectory, in standard deviations of the
# energy or volume. Two independent runs differ by sqrt(2). The same run differs by zero, or by more
# if a leap-frog integrator wrote velocities half a step away.
SAME_RUN = 0.5
# The same for potential energies that a model gives for the frames. Measured: 0.22 for another
# student of the same teacher, 0.0000 for the right model, and 0.17 for the right model and
# positions that are rounded to a thousandth of a nanometre.
SAME_MODEL, SAME_MODEL_ROUNDED = 0.1, 0.3
ROUNDED = (".xtc", ".gro")  # formats that round positions


def _numbers() -> "array[float]":
    return array("d")  # takes a quarter of the memory of a list; there may be millions of numbers


@dataclass
class FrameSeries:
    """Time, volume and kinetic energy of each frame of a trajectory, as far as the file has them.

    Attributes
    ----------
    frames : int
        Number of frames.
    time_ps : array[float]
        Time of each frame, ps. Empty if the file has no times.
    volume_angstrom3 : array[float]
        Volume of the cell of each frame, angstrom^3. Empty for open systems.
    kinetic_ev : array[float]
        Kinetic energy of each frame, eV. Empty if the file has no velocities.
    """

    frames: int = 0
    time_ps: "array[float]" = field(default_factory=_numbers)
    volume_angstrom3: "array[float]" = field(default_factory=_numbers)
    kinetic_ev: "array[float]" = field(default_factory=_numbers)

    def follow(self, frames: Iterable[Frames], structure: Structure) -> Iterator[Frames]:
        """Yield the frames unchanged, and fill the series from them.

        Parameters
        ----------
        frames : Iterable[Frames]
            Parts of the trajectory, as `stream_frames` yields them.
        structure : Structure
            Structure of the same atoms, with masses.

        Yields
        ------
        Frames
            The parts, unchanged.
        """
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

    def select(self, chosen: NDArray[np.bool_]) -> "FrameSeries":
        """Return the numbers of some frames.

        Parameters
        ----------
        chosen : NDArray[np.bool_]
            (F,), whether each frame is selected.
        """
        columns = (self.time_ps, self.volume_angstrom3, self.kinetic_ev)
        selected = [array("d", np.array(values)[chosen[: len(values)]]) for values in columns]
        return FrameSeries(int(chosen.sum()), *selected)


def check_same_run(
    thermo: Thermo,
    log: Path,
    series: FrameSeries,
    trajectory: Path,
    *,
    atoms: int,
    row_of_frame: NDArray[np.int_] | None = None,
) -> None:
    """Refuse a log whose rows, times, energies or volumes do not fit the trajectory.

    Parameters
    ----------
    thermo : Thermo
        Content of the log.
    log, trajectory : Path
        The two files, for error messages.
    series : FrameSeries
        Numbers of the frames of the trajectory.
    atoms : int
        Number of atoms.
    row_of_frame : NDArray[np.int_] | None
        (F,), row with the timestep of each frame, or -1. None: the timesteps are not known, and
        rows and frames are matched by their numbers.

    Raises
    ------
    InputError
        If they are of different runs. The message has the two numbers that contradict each other.
    """
    rows, frames = len(thermo.time_ps), series.frames
    few, many = sorted((rows, frames))
    ratio = round(many / few)
    if (
        row_of_frame is None and abs(many - ratio * few) > ratio
    ):  # a row or frame more or less: the start, or a killed run
        raise InputError(
            f"{log} has {rows} rows and {trajectory} has {frames} frames, neither a multiple of "
            "the other: they are of different runs"
        )
    dof = logged_degrees_of_freedom(thermo)
    # 2 % are for rounding. Rigid water has 2/3 of 3N, and the motion of the whole takes up to 6.
    if dof > 1.02 * 3 * atoms or dof < 0.6 * 3 * atoms - 6:
        size = "larger" if dof > 3 * atoms else "smaller"
        raise InputError(
            f"{log} belongs to a {size} system, or its energies are not in eV: kinetic energy and "
            f"temperature imply {dof:.0f} degrees of freedom, {atoms} atoms have {3 * atoms}"
        )
    if row_of_frame is None and len(series.time_ps) == frames > 1:
        per_frame = (series.time_ps[-1] - series.time_ps[0]) / (frames - 1)
        expected = frame_spacing(thermo, frames)
        counted = per_frame == 1.0  # MDTraj counts frames if the file has no times
        if per_frame > 0 and not counted and abs(per_frame / expected - 1.0) > 0.02:
            raise InputError(
                f"{trajectory} has a frame every {per_frame:.4g} ps, but by the rows of {log} it "
                f"is {expected:.4g} ps: they are of different runs, or the timestep is wrong"
            )
    every = np.arange(frames)
    if thermo.volume_angstrom3 is not None and len(series.volume_angstrom3) == frames:
        volumes = np.array(series.volume_angstrom3)
        off = smallest_difference(thermo.volume_angstrom3, frames, every, volumes, row_of_frame)
        if off > max(SAME_RUN * thermo.volume_angstrom3.std(), 1e-3 * volumes.mean()):
            raise InputError(
                f"the mean volume is {volumes.mean():.5g} angstrom^3 in {trajectory}, but "
                f"{thermo.volume_angstrom3.mean():.5g} in {log}: they are of different runs"
            )
    if len(series.kinetic_ev) == frames:
        kinetic = np.array(series.kinetic_ev)
        check_energies(
            thermo.kinetic_ev,
            frames,
            every,
            kinetic,
            "kinetic energy",
            log,
            trajectory,
            SAME_RUN,
            row_of_frame,
        )


def same_model(trajectory: Path) -> float:
    """Return how far a model's energies of the frames may differ from those in the log.

    The number is in standard deviations of the energy in the log. It is larger for formats that
    round positions.

    Parameters
    ----------
    trajectory : Path
        Trajectory file, whose ending says whether positions are rounded.

    Returns
    -------
    float
        Largest difference, in standard deviations.
    """
    return SAME_MODEL_ROUNDED if trajectory.suffix.lower() in ROUNDED else SAME_MODEL


def logged_degrees_of_freedom(thermo: Thermo) -> float:
    """Return the number of degrees of freedom by which the log's program computed the temperature.

    It is the median of 2 K / (k T) over the rows, with kinetic energy K and temperature T. It is
    NaN if no row is finite.

    Parameters
    ----------
    thermo : Thermo
        Content of the log.

    Returns
    -------
    float
        Number of degrees of freedom, not rounded.
    """
    with np.errstate(all="ignore"):
        of_rows = 2.0 * thermo.kinetic_ev / (KB * thermo.temperature_k)
    finite = of_rows[np.isfinite(of_rows)]
    return float(np.median(finite)) if len(finite) else np.nan


def frame_spacing(thermo: Thermo, frames: int) -> float:
    """Return the time between frames, ps: a whole number of rows, or a whole fraction of a row.

    Parameters
    ----------
    thermo : Thermo
        Content of the log.
    frames : int
        Number of frames in the trajectory.

    Returns
    -------
    float
        Time between frames, ps.
    """
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
    row_of_frame: NDArray[np.int_] | None = None,
) -> None:
    """Refuse a log whose energies differ from those of the trajectory's frames.

    Parameters
    ----------
    of_log : NDArray[np.float64]
        Energies in the log, (rows,), eV.
    frames : int
        Number of frames in the trajectory.
    chosen : NDArray[np.int_]
        Indices of the frames whose energies are known, (C,).
    of_chosen : NDArray[np.float64]
        Energies of the chosen frames, (C,), eV.
    name : str
        Name of the energy, for the error message: "kinetic energy".
    log, trajectory : Path
        The two files, for the error message.
    allowed : float
        Largest root mean square difference, in standard deviations of the energy in the log.
    row_of_frame : NDArray[np.int_] | None
        As in `check_same_run`.

    Raises
    ------
    InputError
        If the difference is larger.
    """
    spread = float(of_log.std())
    off = smallest_difference(of_log, frames, chosen, of_chosen, row_of_frame)
    if off > allowed * spread:
        raise InputError(
            f"the {name} of the frames of {trajectory} differs by {off:.3g} eV from that in {log}, "
            f"which fluctuates by {spread:.3g} eV: they are of different runs, or of different "
            "models"
        )


def smallest_difference(
    of_log: NDArray[np.float64],
    frames: int,
    chosen: NDArray[np.int_],
    of_chosen: NDArray[np.float64],
    row_of_frame: NDArray[np.int_] | None = None,
) -> float:
    """Return the root mean square difference between rows of a log and frames, matched best.

    The log, the trajectory or both may have the start of the run, and each may lack its end.

    Parameters
    ----------
    of_log : NDArray[np.float64]
        Values in the log, (rows,).
    frames : int
        Number of frames in the trajectory.
    chosen : NDArray[np.int_]
        Indices of the frames whose values are known, (C,).
    of_chosen : NDArray[np.float64]
        Values of the chosen frames, (C,), in the unit of the log.
    row_of_frame : NDArray[np.int_] | None
        As in `check_same_run`. If it is known, only these pairs are compared.

    Returns
    -------
    float
        The smallest difference over all ways to match, in the unit of the values. NaN if rows and
        frames cannot be matched.
    """
    if row_of_frame is not None:
        rows = row_of_frame[chosen]
        off = of_log[rows[rows >= 0]] - of_chosen[rows >= 0]
        return float(np.sqrt(np.mean(off**2))) if off.size else np.nan
    few, many = sorted((len(of_log), frames))
    ratio = round(many / few)
    best = np.nan
    for first in range(-1, 2 * ratio):  # index in the longer series of the shorter one's start
        rows = first + ratio * chosen if len(of_log) >= frames else (chosen - first) / ratio
        inside = (rows >= 0) & (rows < len(of_log)) & (rows == np.floor(rows))
        if inside.sum() >= max(1, len(chosen) // (2 if len(of_log) >= frames else 2 * ratio)):
            off = of_log[rows[inside].astype(int)] - of_chosen[inside]
            best = float(np.fmin(best, np.sqrt(np.mean(off**2))))
    return best
