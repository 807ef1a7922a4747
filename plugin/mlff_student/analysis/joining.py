"""Choose the tables of a log that belong to the run of a trajectory, and join them by timesteps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlff_student.analysis.log_tables import Log, LogTable
from mlff_student.core.errors import InputError
from mlff_student.structures.trajectories import FrameSteps

# Two rows of one timestep are of the same state if they differ by less than a share of the value,
# which allows for rounding, plus a share of the fluctuation. Another state differs by about one
# fluctuation. Potential energies may change a little where LAMMPS tunes the Ewald sum anew.
SAME_STATE = 1e-5
OF_FLUCTUATION = {"kinetic_ev": 0.01, "temperature_k": 0.01, "potential_ev": 0.1, "e_pair": 0.1}


@dataclass(frozen=True)
class Part:
    """Rows of one table, from `start` up to, but not including, `stop`."""

    table: LogTable
    start: int
    stop: int

    def column(self, name: str) -> NDArray[np.float64]:
        """Return a column, (rows,)."""
        return self.table.columns[name][self.start : self.stop]

    def clock(self) -> NDArray[np.float64]:
        """Return timesteps, or times in ps if the table has no timesteps, (rows,)."""
        return self.column("step" if "step" in self.table.columns else "time_ps")


@dataclass(frozen=True)
class JoinedTables:
    """Tables of one run whose timesteps continue, without the rows that two of them share.

    Attributes
    ----------
    parts : tuple of Part
        Rows of the tables.
    chosen_frames : NDArray[np.bool_] or None
        (F,), frames of the trajectory that belong to these tables. None stands for all.
    notes : tuple of str
        What was left out.
    """

    parts: tuple[Part, ...]
    chosen_frames: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()

    def clock(self) -> NDArray[np.float64]:
        """Return timesteps, or times in ps if a table has no timesteps, (rows,)."""
        return np.concatenate([part.clock() for part in self.parts])

    @property
    def span(self) -> str:
        """First and last row in words."""
        clock, steps = self.clock(), "step" in self.parts[0].table.columns
        name = "steps {:.0f} to {:.0f}" if steps else "{:g} to {:g} ps"
        return name.format(clock[0], clock[-1])

    def tables(self, chosen: Callable[[LogTable], bool]) -> "JoinedTables":
        """Return the rows of some tables. The first has the row that it shares with another."""
        parts = [part for part in self.parts if chosen(part.table)]
        return replace(self, parts=(*(replace(part, start=0) for part in parts[:1]), *parts[1:]))

    def between(self, first: float, last: float) -> "JoinedTables":
        """Return the rows with timesteps from `first` up to, but not including, `last`."""
        parts = []
        for part in self.parts:
            inside = np.flatnonzero((part.clock() >= first) & (part.clock() < last)) + part.start
            if inside.size:
                parts.append(Part(part.table, int(inside[0]), int(inside[-1]) + 1))
        return replace(self, parts=tuple(parts))


def join_tables(log: Log) -> list[JoinedTables]:
    """Join the tables of molecular dynamics whose timesteps continue.

    A table continues the one before if it begins at its last row, or at an earlier row with the
    same energies, from which the run was restarted; the rows after that are then replaced. It also
    continues if it begins where the next row was due. After a minimisation, a reset of the timestep
    or a change of the velocities, another run begins. Single points (`run 0`) are left out.

    Parameters
    ----------
    log : Log
        Tables of a log.

    Returns
    -------
    list[JoinedTables]
        Runs in the order of the file.

    Raises
    ------
    InputError
        No table is of molecular dynamics and has timesteps or times.
    """
    runs: list[JoinedTables] = []
    interrupted = True
    for table in log.tables:
        if table.kind != "run" or not {"step", "time_ps"} & set(table.columns):
            interrupted = True
            continue
        joined = None if interrupted or not runs else _continued(runs[-1], table)
        if joined is None:
            runs.append(JoinedTables((Part(table, 0, len(table)),)))
        else:
            runs[-1] = joined
        interrupted = False
    if not runs:
        kinds = ", ".join(sorted({table.kind for table in log.tables}))
        headers = "; ".join(sorted({table.header for table in log.tables}))
        raise InputError(
            f"{log.path} has no table of molecular dynamics with steps or times, only of: {kinds} "
            f"({headers[:200]})"
        )
    return [run for run in runs if len(run.clock()) > 1] or runs


def _continued(run: JoinedTables, table: LogTable) -> JoinedTables | None:
    """Return a run with one more table, or None if the table begins another run."""
    last = run.parts[-1]
    new = Part(table, 0, len(table))
    if ("step" in last.table.columns) != ("step" in table.columns):
        return None
    begin = float(new.clock()[0])
    # Only a restart looks back beyond the last tables: `run N every M` writes thousands of them.
    near = run if begin < last.clock()[0] else replace(run, parts=run.parts[-2:])
    clock = near.clock()
    if begin < clock[-1] and len(table) == 1:
        return None
    if begin > clock[-1]:
        due = 1.5 * float(np.diff(clock).max()) if len(clock) > 1 else 0.0
        return replace(run, parts=(*run.parts, new)) if begin <= clock[-1] + due else None
    shared = np.flatnonzero(clock == begin)
    if not shared.size or not _same_state(near, int(shared[0]), new):
        return None
    parts = run.parts
    if begin < clock[-1]:
        parts = run.between(-np.inf, np.nextafter(begin, np.inf)).parts
    notes = run.notes
    if begin < clock[-1]:
        notes += (f"the rows after {begin:g} are those of the run that was restarted there",)
    rest = [Part(table, 1, len(table))] if len(table) > 1 else []
    return replace(run, parts=(*parts, *rest), notes=notes)


def _same_state(run: JoinedTables, row: int, new: Part) -> bool:
    """Return whether a row of a run and the first row of a table have the same energies."""
    for name, share in OF_FLUCTUATION.items():
        if all(name in part.table.columns for part in (*run.parts, new)):
            values = np.concatenate([part.column(name) for part in run.parts])
            spread = float(np.nanstd(np.append(values, new.column(name))))
            allowed = SAME_STATE * abs(values[row]) + share * spread
            if abs(values[row] - new.column(name)[0]) > allowed:
                return False
    return True


def match_frames(log: Log, trajectory: Path, steps: FrameSteps | None) -> list[JoinedTables]:
    """Return the runs in a log that may be the run of a trajectory.

    Parameters
    ----------
    log : Log
        Tables of a log.
    trajectory : Path
        Trajectory; its name is looked for among the dumps that the log opens.
    steps : FrameSteps | None
        Timesteps of its frames, if it has any.

    Returns
    -------
    list[JoinedTables]
        One run, or several that the timesteps do not distinguish.

    Raises
    ------
    InputError
        No run has the timesteps of the trajectory, or the trajectory covers several.
    """
    runs = join_tables(log)
    name = _name_in_log(log, trajectory)
    opened = [table for table in log.tables if name in table.dumps]
    if opened:  # the log says which tables
        runs = [run for run in (run.tables(lambda t: name in t.dumps) for run in runs) if run.parts]
        if not runs:
            raise InputError(
                f"by the commands in {log.path}, {name} was written in no run of molecular dynamics"
            )
    if _has_frames_of_minimisation(log, opened, steps):
        raise InputError(
            f"{trajectory} was written during a minimisation too, and its format does not have the "
            "timestep of each frame, so that the frames of the run cannot be told: write a dump of "
            "the style custom, or begin the dump after the command minimize"
        )
    if steps is not None and steps.counted and any(run.notes for run in runs):  # of restarts
        raise InputError(
            f"{log.path} has a run that was killed and restarted, and {trajectory} does not have "
            "the timestep of each frame: write a dump of the style custom"
        )
    with_steps = all("step" in part.table.columns for run in runs for part in run.parts)
    if steps is not None and with_steps:
        return _by_steps(log, runs, trajectory, steps)
    if log.lammps_units and not opened:  # the run may be any single table too
        runs = runs + [
            run.tables(lambda t, table=part.table: t is table)
            for run in runs
            if len(run.parts) > 1
            for part in run.parts
        ]
    return runs


def _name_in_log(log: Log, trajectory: Path) -> str:
    """Return the name by which the log opens a trajectory; empty if none or several may be it."""
    names = {name for table in log.tables for name in table.dumps}
    for path in (trajectory.resolve(), Path(str(trajectory.resolve()).removesuffix(".gz"))):
        parts = path.parts
        same = [name for name in names if parts[-len(Path(name).parts) :] == Path(name).parts]
        if same:
            return max(same, key=len)
        same = [name for name in names if Path(name).name == path.name]
        if len(same) == 1:
            return same[0]
    return ""


def _has_frames_of_minimisation(
    log: Log, opened: Sequence[LogTable], steps: FrameSteps | None
) -> bool:
    """Return whether frames of a minimisation precede those of a run, without timesteps."""
    if steps is not None and not steps.counted:
        return False
    kinds = [table.kind for table in log.tables]
    for index, table in enumerate(log.tables):
        if table.kind != "minimize" or "run" not in kinds[index:]:
            continue
        if table in opened:
            return True
        if not opened and steps is not None and "step" in table.columns:
            begin, end = table.columns["step"][[0, -1]]
            if begin < steps.steps.max() and end > steps.steps.min():
                return True
    return False


def _by_steps(
    log: Log, runs: Sequence[JoinedTables], trajectory: Path, steps: FrameSteps
) -> list[JoinedTables]:
    """Return the runs whose timesteps are those of the frames."""
    frames = steps.steps
    # Where the steps go back, the run was restarted: later frames replace earlier ones.
    later = np.minimum.accumulate(frames[::-1])[::-1]
    current = np.append(later[1:] > frames[:-1], True)
    candidates = []
    for run in runs:
        candidate = _with_frames(run, log, frames, current)
        if candidate is not None:
            candidates.append(candidate)
    if not candidates:
        spans = "; ".join(run.span for run in runs)
        raise InputError(
            f"{trajectory} has frames of steps {frames.min()} to {frames.max()}, but {log.path} "
            f"has {spans}: they are of different runs"
        )
    if len(candidates) == 1:
        return candidates
    # The steps of one run may contain those of another: that which begins and ends with the frames.
    chosen = [_chosen(run) for run in candidates]
    together = np.logical_or.reduce(chosen).sum()
    whole = [run for run in candidates if _chosen(run).sum() == together]
    apart = any((first & second).sum() < 2 for first, second in combinations(chosen, 2))
    if (np.diff(frames) < 0).any() or (apart and not whole):
        raise InputError(several_runs(log, trajectory, candidates))
    exact = [run for run in whole if _ends_with_frames(run, frames)]
    return exact or whole or candidates


def several_runs(log: Log, trajectory: Path, runs: Sequence[JoinedTables]) -> str:
    """Return why a trajectory cannot be analyzed that may be of several runs in a log.

    Parameters
    ----------
    log : Log
        Tables of a log.
    trajectory : Path
        Trajectory.
    runs : Sequence[JoinedTables]
        The runs.
    """
    return (
        f"{trajectory} may have frames of more than one run in {log.path}: "
        f"{' and '.join(run.span for run in runs)}. Between runs there is a minimisation, a reset "
        "of the timestep or another change of the state. Analyze one at a time: give a copy of the "
        "log that has only its tables"
    )


def _chosen(run: JoinedTables) -> NDArray[np.bool_]:
    assert run.chosen_frames is not None
    return run.chosen_frames


def _ends_with_frames(run: JoinedTables, frames: NDArray[np.int_]) -> bool:
    """Return whether a run begins and ends within one interval of the frames."""
    every = _interval(frames)
    clock = np.concatenate([part.table.columns["step"] for part in run.parts])
    return abs(clock.min() - frames.min()) < every and abs(clock.max() - frames.max()) < every


def _interval(values: NDArray[np.int_]) -> float:
    return float(np.median(np.diff(values))) if len(values) > 1 else np.inf


def _with_frames(
    run: JoinedTables, log: Log, frames: NDArray[np.int_], current: NDArray[np.bool_]
) -> JoinedTables | None:
    """Return the rows and frames that a run and a trajectory have in common; None if too few."""
    every = _interval(frames[current])
    low, high = frames.min(), frames.max()

    def in_common(table: LogTable) -> bool:  # more than a frame where one run follows another
        begin, end = table.columns["step"][[0, -1]]
        return begin <= low <= end if low == high else min(end, high) > max(begin, low)

    used = run.tables(in_common)
    if not used.parts:
        return None
    first, last = used.clock()[[0, -1]]
    # Less than one more row was due when a run was killed.
    killed = used.parts[-1].table is log.tables[-1] and not log.tables[-1].ended
    slack = float(np.diff(used.clock()).max()) if killed and len(used.clock()) > 1 else 0.5
    chosen = current & (frames >= first) & (frames < last + slack)
    if first % every and any(
        table.kind == "minimize" and table.columns.get("step", [-1])[-1] == first
        for table in log.tables
    ):
        chosen &= frames != first  # the last frame of a minimisation is out of turn
    if chosen.sum() < min(2, len(frames)):
        return None
    inside = used.between(frames[chosen].min() - every, frames[chosen].max() + every)
    notes = list(run.notes)
    if dropped := len(used.clock()) - len(inside.clock()):
        notes.append(
            f"{dropped} row(s) of the log are left out, because the trajectory has only frames of "
            f"steps {frames[chosen].min()} to {frames[chosen].max()}"
        )
    if dropped := int((~chosen).sum()):
        notes.append(
            f"{dropped} of {len(frames)} frames are left out: the log has no row of molecular "
            "dynamics at their steps, or a restarted run repeats them"
        )
    return replace(inside, chosen_frames=chosen, notes=tuple(notes))


def describe(log: Log, run: JoinedTables) -> str:
    """Return in words which tables of a log were used: "3 tables, steps 0 to 5000".

    Parameters
    ----------
    log : Log
        Tables of a log.
    run : JoinedTables
        Tables that were used.
    """
    used = {id(part.table) for part in run.parts}
    text = f"{len(used)} {'table' if len(used) == 1 else 'tables'}, {run.span}"
    for kind, name in (("run", "other run"), ("minimize", "minimisation"), ("rerun", "rerun")):
        left = sum(
            table.kind == kind and id(table) not in used and len(table) > 1 for table in log.tables
        )
        if left:
            text += f", {left} {name}{'' if left == 1 else 's'} left out"
    return text
