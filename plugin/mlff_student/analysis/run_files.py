"""Open the trajectory and the log of a run, and find what belongs together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlff_student.analysis.joining import JoinedTables, describe, match_frames, several_runs
from mlff_student.analysis.log_files import read_log
from mlff_student.analysis.log_tables import Log
from mlff_student.analysis.same_run import FrameSeries, check_same_run, frame_spacing
from mlff_student.analysis.thermo import Thermo, interpolated, thermo_of
from mlff_student.core.errors import InputError
from mlff_student.structures.reading import Structure
from mlff_student.structures.trajectories import (
    Frames,
    FrameSteps,
    every_nth,
    read_steps,
    select_frames,
    stream_frames,
)

UNEVEN = 1e-3  # largest difference between frame spacings, as a share of their mean


@dataclass(frozen=True)
class RunFiles:
    """The files of a run, and what was read from them.

    Attributes
    ----------
    trajectory, log : Path
        Files.
    structure : Structure
        Topology.
    thermo : Thermo
        Rows of the log that belong to the trajectory.
    lammps_units : str
        Unit style of a dump that does not say it.
    log_used : str
        Tables of the log that were used, in words.
    notes : tuple of str
        What was left out.
    chosen_frames : NDArray[np.bool_] or None
        Frames of the file that belong to the run, (F,). None stands for all.
    frame_steps : NDArray[np.int_] or None
        Timesteps of these frames. None if they are not known.
    series : FrameSeries
        Times, volumes and kinetic energies of these frames, once they were read.
    """

    trajectory: Path
    log: Path
    structure: Structure
    thermo: Thermo
    lammps_units: str
    log_used: str
    notes: tuple[str, ...]
    chosen_frames: NDArray[np.bool_] | None = None
    frame_steps: NDArray[np.int_] | None = None
    series: FrameSeries = field(default_factory=FrameSeries)

    def frames(self, every: int = 1) -> Iterator[Frames]:
        """Yield frames of the run."""
        parts = stream_frames(self.trajectory, self.structure, lammps_units=self.lammps_units)
        if self.chosen_frames is not None:
            parts = select_frames(parts, self.chosen_frames)
        return every_nth(parts, every) if every > 1 else parts

    @property
    def row_of_frame(self) -> NDArray[np.int_] | None:
        """Row with the timestep of each frame, or -1; None if the timesteps are not known."""
        if self.frame_steps is None or self.thermo.step is None:
            return None
        rows = np.searchsorted(self.thermo.step, self.frame_steps).clip(
            max=len(self.thermo.step) - 1
        )
        return np.where(self.thermo.step[rows] == self.frame_steps, rows, -1)

    def check(self, series: FrameSeries) -> None:
        """Refuse a log that is of another run than the trajectory."""
        if self.frame_steps is not None and series.frames != len(self.frame_steps):
            raise InputError(
                f"{self.trajectory} has {series.frames} frames that can be read, but its header "
                f"says {len(self.frame_steps)}; the file is damaged"
            )
        check_same_run(
            self.thermo,
            self.log,
            series,
            self.trajectory,
            atoms=len(self.structure.atoms),
            row_of_frame=self.row_of_frame,
        )

    def frame_times(self) -> NDArray[np.float64]:
        """Return the time of each frame, ps."""
        if self.frame_steps is None or self.thermo.step is None:
            spacing = frame_spacing(self.thermo, self.series.frames)
            return spacing * np.arange(self.series.frames, dtype=np.float64)
        steps = self.frame_steps.astype(np.float64)
        return interpolated(steps, self.thermo.step, self.thermo.time_ps)

    def time_before(self, frames: int) -> float:
        """Return the time of the run before a frame, or of the whole run and one interval, ps."""
        times = self.frame_times()
        last = (times[-1] - times[0]) / max(1, len(times) - 1)
        return float(
            times[frames] - times[0] if frames < len(times) else times[-1] - times[0] + last
        )

    def frame_ps(self) -> float:
        """Return the time between frames, ps.

        Raises
        ------
        InputError
            The frames are not evenly spaced.
        """
        times = self.frame_times()
        if len(times) < 2:
            return frame_spacing(self.thermo, len(times))
        spacing = np.diff(times)
        if np.ptp(spacing) > UNEVEN * spacing.mean():
            raise InputError(
                f"the frames of {self.trajectory} are {spacing.min():g} to {spacing.max():g} ps "
                "apart; they must be evenly spaced"
            )
        return float(spacing.mean())


def open_run(
    trajectory: Path,
    log_path: Path,
    structure: Structure,
    degrees_of_freedom: int,
    lammps_units: str | None,
    timestep_fs: float | None,
) -> RunFiles:
    """Find the part of a log that belongs to a trajectory, and the frames that belong to it.

    Parameters
    ----------
    trajectory, log_path : Path
        Files of the run.
    structure : Structure
        Topology.
    degrees_of_freedom : int
        Number of degrees of freedom, for a log that lacks temperature or kinetic energy.
    lammps_units, timestep_fs : str | None, float | None
        As in `read_thermo`.

    Raises
    ------
    InputError
        A file cannot be used, or no run or several of the log fit the trajectory.
    """
    steps = read_steps(trajectory)
    log = read_log(log_path, lammps_units=lammps_units, units_of_dump=steps.units if steps else "")
    candidates = match_frames(log, trajectory, steps)

    def opened(tables: JoinedTables) -> RunFiles:
        thermo = thermo_of(
            log,
            tables,
            degrees_of_freedom=degrees_of_freedom,
            timestep_fs=timestep_fs,
            steps=steps,
        )
        notes = (*_cut_off(trajectory, steps), *tables.notes, *_changes(tables, thermo))
        chosen = tables.chosen_frames
        return RunFiles(
            trajectory,
            log_path,
            structure,
            thermo,
            log.lammps_units or lammps_units or "metal",
            describe(log, tables),
            notes,
            chosen,
            None if steps is None or chosen is None else steps.steps[chosen],
        )

    if len(candidates) == 1:
        return opened(candidates[0])
    return _fitting_run(log, candidates, opened)


def _fitting_run(
    log: Log, candidates: list[JoinedTables], opened: Callable[[JoinedTables], RunFiles]
) -> RunFiles:
    """Return the only run of several that the energies and volumes of the frames fit."""
    fitting: list[tuple[RunFiles, JoinedTables]] = []
    series: FrameSeries | None = None
    problem: InputError | None = None
    for tables in candidates:
        try:
            run = opened(tables)
            if series is None:
                numbers = FrameSeries()
                whole = replace(run, chosen_frames=None).frames()
                for _ in numbers.follow(whole, run.structure):
                    pass
                series = numbers  # only if the whole file could be read
            selected = series if run.chosen_frames is None else series.select(run.chosen_frames)
            run.check(selected)
            fitting.append((run, tables))
        except InputError as error:
            problem = problem or error
    if len(fitting) == 1:
        return fitting[0][0]
    if problem is not None and not fitting:
        raise problem
    raise InputError(several_runs(log, fitting[0][0].trajectory, [tables for _, tables in fitting]))


def _cut_off(trajectory: Path, steps: FrameSteps | None) -> tuple[str, ...]:
    if steps is None or not steps.cut_off:
        return ()
    return (f"{trajectory} has {steps.cut_off} frame(s) that were cut off; they are left out",)


def _changes(tables: JoinedTables, thermo: Thermo) -> tuple[str, ...]:
    """Return notes on what differs between the tables."""
    notes = []
    if len({part.table.integrators for part in tables.parts}) > 1:
        notes.append("the fixes that integrate or thermostat differ between the tables of the log")
    columns = [set(part.table.columns) & set(Thermo._fields) for part in tables.parts]
    if lost := set.union(*columns) - {
        name for name in thermo._fields if getattr(thermo, name) is not None
    }:
        notes.append(f"not all tables of the log have {', '.join(sorted(lost))}; it is not used")
    return tuple(notes)
