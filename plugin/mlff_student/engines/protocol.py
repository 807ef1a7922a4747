"""Settings and files of a molecular dynamics run, the same for every engine.

A run is written in segments. Each start of the command, also after a kill, begins a new segment at
the last checkpoint. After the last step the segments are joined to run.dcd and run.csv.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import mdtraj

from mlff_student.archive.backends import BACKENDS
from mlff_student.core.errors import InputError, InterruptedRunError
from mlff_student.core.files import ascii_path, atomic_write
from mlff_student.structures.reading import Structure
from mlff_student.structures.trajectories import iterate_frames

THERMO_COLUMNS = ("time_ps", "potential_ev", "kinetic_ev", "total_ev", "temperature_k")
ENGINES = ("openmm", "lammps", "ase")
ENSEMBLES = ("nve", "nvt", "npt")
CHECKPOINTS_PER_RUN = 50
FRAMES_AT_ONCE = 500  # frames in memory while segments are joined
# Least kinetic energy that production starts with, as a fraction of the thermal kinetic energy.
MIN_START_KINETIC_FRACTION = 0.1
ATOMS_FOR_THREADS = 500  # systems with fewer atoms run on one thread
LARGEST_SEED = 900_000_000  # the largest random seed that every engine accepts


@dataclass(frozen=True)
class MDSettings:
    """Settings of a run. Two runs with equal settings are the same run.

    Attributes
    ----------
    engine : str
        MD engine, one of `ENGINES`.
    model : str
        Shipped name, or path of a checkpoint or archive. With the engine "ase" it may also be the
        name of a teacher.
    structure : str
        File or SMILES string.
    steps : int
        Number of steps of the production run.
    timestep_fs : float
        Timestep of the production run, fs.
    temperature_K : float
        Temperature of thermalisation and production, K.
    ensemble : str
        Ensemble of the production run: "nve" (velocity Verlet or leap-frog), "nvt" (Langevin
        dynamics) or "npt" (Langevin dynamics and a barostat that scales all box lengths by one
        factor).
    every : int
        Steps between frames of the trajectory and rows of the log.
    thermalise_steps : int
        Number of steps of Langevin dynamics between minimisation and production. Production starts
        with a total energy at which the run has the temperature on average; it is computed from
        the mean potential energy of the second half of these steps.
    friction_per_ps : float
        Friction coefficient of Langevin dynamics, 1/ps.
    seed : int
        Random seed of velocities and thermostat, from 1 to `LARGEST_SEED`.
    platform : str
        OpenMM platform; the fastest if empty.
    threads : int
        Number of threads of the network. 0 means one thread below 500 atoms and all cores from
        there on. For a small molecule several threads are slower than one, on a busy machine up to
        a hundred times, because they wait for each other.
    backend : str
        Compute backend, "native", "portable" or "auto"; see
        `mlff_student.archive.backends.evaluator`.
    pressure_bar : float
        Pressure of the ensemble "npt", bar.
    thermalise_timestep_fs : float
        Timestep of thermalisation, fs; 0 means that of production. Runs with different timesteps
        start from the same state if they thermalise with the same timestep.

    Raises
    ------
    InputError
        A value is unknown or out of its range, or `steps` is not a multiple of `every`.
    """

    engine: str
    model: str
    structure: str
    steps: int
    timestep_fs: float
    temperature_K: float
    ensemble: str
    every: int
    thermalise_steps: int
    friction_per_ps: float
    seed: int
    platform: str = ""
    threads: int = 0
    backend: str = "auto"
    pressure_bar: float = 1.01325
    thermalise_timestep_fs: float = 0.0

    def __post_init__(self) -> None:
        for name, known in (
            ("engine", ENGINES),
            ("ensemble", ENSEMBLES),
            ("backend", BACKENDS),
        ):
            if getattr(self, name) not in known:
                raise InputError(
                    f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}"
                )
        for name in ("steps", "every", "timestep_fs", "temperature_K", "friction_per_ps"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.thermalise_timestep_fs < math.inf:
            raise InputError(
                f"thermalise_timestep_fs must not be negative, got {self.thermalise_timestep_fs}"
            )
        if not math.isfinite(self.pressure_bar):
            raise InputError(f"pressure_bar must be a number, got {self.pressure_bar}")
        if self.thermalise_steps < 2:
            raise InputError(f"thermalise_steps must be two or more, got {self.thermalise_steps}")
        if self.threads < 0:
            raise InputError(f"threads must not be negative, got {self.threads}")
        if not 0 < self.seed <= LARGEST_SEED:
            raise InputError(f"seed must be from 1 to {LARGEST_SEED}, got {self.seed}")
        if self.steps % self.every:
            raise InputError(
                f"{self.steps} steps are not a multiple of the {self.every} between frames"
            )

    def threads_for(self, atoms: int) -> int:
        """Return the number of threads of the network for a number of atoms."""
        return self.threads or (1 if atoms < ATOMS_FOR_THREADS else len(os.sched_getaffinity(0)))

    @property
    def start_timestep_fs(self) -> float:
        """Timestep of thermalisation, fs."""
        return self.thermalise_timestep_fs or self.timestep_fs

    @property
    def checkpoint_every(self) -> int:
        """Number of steps between checkpoints, which is a multiple of `every`."""
        return self.every * max(1, self.steps // self.every // CHECKPOINTS_PER_RUN)


class Segment(NamedTuple):
    """Files of a part of the production run that was not interrupted.

    Attributes
    ----------
    first_step : int
        Production step after which the segment begins.
    trajectory : Path
        DCD file of the frames.
    thermo : Path
        CSV file with the columns `THERMO_COLUMNS`.
    """

    first_step: int
    trajectory: Path
    thermo: Path


class RunFolder:
    """Paths of the files of a run, all in one folder.

    Parameters
    ----------
    path : Path
        The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "settings.json"
        self.topology = path / "run.pdb"
        self.trajectory = path / "run.dcd"
        self.thermo = path / "run.csv"
        self.archive = path / "model.pt"
        self.summary = path / "run.json"

    def segment(self, first_step: int) -> Segment:
        """Return the files of the segment that begins after a production step."""
        stem = f"segment-{first_step:010d}"
        return Segment(first_step, self.path / f"{stem}.dcd", self.path / f"{stem}.csv")

    def segments(self) -> list[Segment]:
        """Return the segments that exist, in the order of their steps."""
        paths = sorted(self.path.glob("segment-*.csv"))
        return [self.segment(int(path.stem.removeprefix("segment-"))) for path in paths]

    def has_rows_until(self, step: int, every: int) -> bool:
        """Return whether the logs of the segments have all rows up to a production step."""
        segments = [segment for segment in self.segments() if segment.first_step < step]
        starts = [segment.first_step for segment in segments] + [step]
        return starts[0] == 0 and all(
            segment.thermo.read_bytes().count(b"\n") - 1 >= (end - segment.first_step) // every
            for segment, end in zip(segments, starts[1:], strict=True)
        )

    def drop_segments_after(self, step: int) -> None:
        """Delete the segments that begin after a production step, which is computed again."""
        for segment in self.segments():
            if segment.first_step > step:
                segment.trajectory.unlink(missing_ok=True)
                segment.thermo.unlink()


class Engine(Protocol):
    """A function that runs MD in one engine to the end of production.

    It starts from the newest checkpoint in the folder or, if there is none, with minimisation and
    thermalisation. It begins a segment, which has a frame and a log row after every
    `settings.every` steps and none for its first step. It calls `progress` with the number of
    completed production steps, and returns the wall time of production in milliseconds per step.
    `mlff_student.engines.run.engine_of` refuses a run that the engine cannot do.
    """

    def __call__(
        self,
        settings: MDSettings,
        structure: Structure,
        folder: RunFolder,
        progress: Callable[[int], None],
    ) -> float: ...


def ns_per_day(timestep_fs: float, ms_per_step: float) -> float:
    """Return the nanoseconds that are simulated in a day of wall time."""
    return timestep_fs * 1e-6 * 86_400_000.0 / ms_per_step


def join_segments(folder: RunFolder, every: int, periodic: bool) -> int:
    """Join the segments of a run to run.dcd and run.csv.

    A segment is used up to the first step of the next segment, because the steps after the last
    checkpoint of a killed segment were computed again.

    Parameters
    ----------
    folder : RunFolder
        Folder of the run.
    every : int
        Steps between frames.
    periodic : bool
        Whether the frames get a box. An engine may write a box for an open system; it is dropped.

    Returns
    -------
    int
        Number of frames in run.dcd and of rows in run.csv.

    Raises
    ------
    InterruptedRunError
        A segment has fewer frames or rows than it had when it was written.
    """
    segments = folder.segments()
    ends = [*(segment.first_step for segment in segments), None][1:]
    rows: list[str] = []
    try:
        topology = mdtraj.load_topology(str(folder.topology))
    except Exception as error:
        raise damaged_run(folder, f"{folder.topology} cannot be read ({error})") from error
    with (
        atomic_write(folder.trajectory) as temporary,
        ascii_path(temporary) as name,
        mdtraj.formats.DCDTrajectoryFile(name, "w") as output,
    ):
        for segment, end in zip(segments, ends, strict=True):
            text = segment.thermo.read_text(errors="replace")
            header, *lines = text.splitlines() or [",".join(THERMO_COLUMNS)]
            count = len(lines) if end is None else (end - segment.first_step) // every
            rows = [*(rows or [header]), *lines[:count]]
            missing = count  # frames
            for kept in _first_frames(folder, segment, topology, count):
                box = {}
                if periodic:
                    box = {"cell_lengths": kept.unitcell_lengths * 10.0}
                    box |= {"cell_angles": kept.unitcell_angles}
                output.write(kept.xyz * 10.0, **box)
                missing -= len(kept)
            if missing or len(lines) < count:
                raise damaged_run(
                    folder,
                    f"{segment.trajectory} has {count - missing} of {count} frames and "
                    f"{segment.thermo} has {min(count, len(lines))} of {count} rows",
                )
    with atomic_write(folder.thermo) as temporary:
        temporary.write_text("\n".join(rows) + "\n")
    return len(rows) - 1


def _first_frames(
    folder: RunFolder, segment: Segment, topology: mdtraj.Topology, count: int
) -> Iterator[mdtraj.Trajectory]:
    """Read the first frames of a segment in chunks."""
    try:
        for chunk in iterate_frames(segment.trajectory, topology, FRAMES_AT_ONCE) if count else ():
            if kept := chunk[:count]:
                yield kept
            count -= len(kept)
    except Exception as error:  # MDTraj raises errors of any kind
        raise damaged_run(folder, f"{segment.trajectory} cannot be read ({error})") from error


def damaged_run(folder: RunFolder, reason: str) -> InterruptedRunError:
    """Return the error of a run that has a file which is incomplete or altered.

    Parameters
    ----------
    folder : RunFolder
        Folder of the run.
    reason : str
        What is wrong with which file.
    """
    return InterruptedRunError(
        f"the run is damaged: {reason}. The disk was full, or another program changed the file; "
        f"remove the folder {folder.path} and run again"
    )
