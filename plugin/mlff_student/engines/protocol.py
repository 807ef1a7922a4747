"""Molecular dynamics with a student: one protocol and one set of files, whichever engine runs it.

A run is written in segments. Each start, the first or after a kill, begins a segment at the last
checkpoint; when the last step is done the segments become run.dcd and run.csv.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import mdtraj
from rich.progress import Progress, TextColumn

pass


from mlff_student.archive.native import BACKENDS
from mlff_student.core.errors import InputError
from mlff_student.core.files import atomic_write
from mlff_student.structures.reading import Structure
from mlff_student.structures.trajectories import iterate_frames

THERMO_COLUMNS = ("time_ps", "potential_ev", "kinetic_ev", "total_ev", "temperature_k")
ENGINES = ("openmm", "lammps", "ase")
CHECKPOINTS_PER_RUN = 50
FRAMES_AT_ONCE = 500  # while segments are joined
COLDEST_START = 0.1  # of the temperature: the least kinetic energy production starts with
ATOMS_FOR_THREADS = 500
LARGEST_SEED = 900_000_000  # that LAMMPS takes


@dataclass(frozen=True)
class MDSettings:
    """What decides a run. Two runs with equal settings are the same run.

    Attributes
    ----------
    engine : "openmm", "lammps" or "ase".
    model : shipped name, checkpoint or archive path; in ASE also a teacher's name.
    structure : file or SMILES string.
    steps : of production.
    timestep_fs, temperature_K : of thermalisation and production.
    ensemble : "nve" (velocity Verlet or leap-frog), "nvt" (Langevin) or "npt" (with a barostat that
        scales the box by one factor; not in ASE).
    every : steps between frames of the trajectory and rows of the log.
    thermalise_steps : of Langevin dynamics after minimisation, before production. Production then
        starts with the total energy that the second half of it had on average.
    friction_per_ps : of Langevin dynamics.
    seed : of velocities and thermostat.
    platform : OpenMM platform, or empty for the fastest.
    threads : of the network; 0 takes one below 500 atoms, and all cores above. Threads that wait
        for each other cost a small molecule more than they give: on a busy machine, a hundredfold.
    backend : kernels, see `mlff_student.archive.native.with_backend`.
    pressure_bar : of "npt".
    thermalise_timestep_fs : 0 takes that of production. Runs of several timesteps that are to be
        compared start from the same state when they thermalise with the same one.
    guide : of "nvt" in ASE: a student that thermalises, and on whose trajectories the model's
        ensemble is sampled (`mlff_student.validation.reference_monte_carlo`), one move from frame to frame.
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
    guide: str = ""

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
        if self.engine == "ase" and self.ensemble == "npt":
            raise InputError("npt runs in openmm and lammps; in ase there is nve and nvt")
        if self.guide and (self.engine, self.ensemble) != ("ase", "nvt"):
            raise InputError(f"a guide is for nvt in ase, not {self.ensemble} in {self.engine}")
        if self.thermalise_steps < 2:
            raise InputError(f"thermalise_steps must be two or more, got {self.thermalise_steps}")
        if self.threads < 0:
            raise InputError(f"threads must not be negative, got {self.threads}")
        if not 0 < self.seed <= LARGEST_SEED:
            raise InputError(f"seed must be from 1 to {LARGEST_SEED}, got {self.seed}")
        if self.steps % self.every:
            raise InputError(
                f"{self.steps} steps are no multiple of the {self.every} between frames"
            )

    def threads_for(self, atoms: int) -> int:
        """Threads of the network for a system of that size."""
        return self.threads or (1 if atoms < ATOMS_FOR_THREADS else len(os.sched_getaffinity(0)))

    @property
    def start_timestep_fs(self) -> float:
        """Timestep of thermalisation."""
        return self.thermalise_timestep_fs or self.timestep_fs

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints: a multiple of those between frames."""
        return self.every * max(1, self.steps // self.every // CHECKPOINTS_PER_RUN)


class Segment(NamedTuple):
    """Files of one uninterrupted stretch of production."""

    first_step: int
    trajectory: Path
    thermo: Path


class RunFolder:
    """Files of a run, all in one folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "settings.json"
        self.topology = path / "run.pdb"
        self.trajectory = path / "run.dcd"
        self.thermo = path / "run.csv"
        self.archive = path / "model.pt"
        self.summary = path / "run.json"

    def segment(self, first_step: int) -> Segment:
        """Files of the segment that begins after a production step."""
        stem = f"segment-{first_step:010d}"
        return Segment(first_step, self.path / f"{stem}.dcd", self.path / f"{stem}.csv")

    def segments(self) -> list[Segment]:
        """Segments begun so far, in order."""
        paths = sorted(self.path.glob("segment-*.csv"))
        return [self.segment(int(path.stem.removeprefix("segment-"))) for path in paths]


class Engine(Protocol):
    """What an engine must offer: run production to its end from the newest checkpoint in the
    folder, or from minimisation and thermalisation if there is none.

    It begins a segment, reports each completed production step count to `progress`, and returns
    the wall time of its production in milliseconds a step. A segment has a frame and a row after
    every `settings.every` steps, and none of the step it begins at.
    """

    def __call__(
        self,
        settings: MDSettings,
        structure: Structure,
        folder: RunFolder,
        progress: Callable[[int], None],
    ) -> float: ...


def ns_per_day(timestep_fs: float, ms_per_step: float) -> float:
    """Simulated nanoseconds in a day of wall time."""
    return timestep_fs * 1e-6 * 86_400_000.0 / ms_per_step


@contextmanager
def progress_bar(settings: MDSettings, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Bar over production steps with the speed in ns/day."""
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, disable=quiet) as progress:
        bar = progress.add_task(
            f"{settings.engine}: minimising, thermalising", total=settings.steps, speed=""
        )
        start: tuple[float, int] | None = None

        def report(step: int) -> None:
            nonlocal start
            now = time.monotonic()
            start = start or (now, step)
            seconds, steps = now - start[0], step - start[1]
            speed = (
                f"{ns_per_day(settings.timestep_fs, 1e3 * seconds / steps):.2f} ns/day"
                if steps
                else ""
            )
            progress.update(
                bar,
                completed=step,
                description=f"{settings.engine}: {settings.ensemble.upper()}",
                speed=speed,
            )

        yield report


def join_segments(folder: RunFolder, every: int, periodic: bool) -> None:
    """Make run.dcd and run.csv from the segments.

    A segment counts up to the first step of the next one: what a killed segment wrote after its
    last checkpoint was computed again. Frames of open systems lose the box that LAMMPS draws
    around them.
    """
    segments = folder.segments()
    ends = [segment.first_step for segment in segments[1:]] + [None]
    topology = mdtraj.load_topology(str(folder.topology))
    rows: list[str] = []
    with (
        atomic_write(folder.trajectory) as temporary,
        mdtraj.formats.DCDTrajectoryFile(str(temporary), "w") as output,
    ):
        for segment, end in zip(segments, ends, strict=True):
            header, *lines = segment.thermo.read_text().splitlines() or [",".join(THERMO_COLUMNS)]
            rows = rows or [header]
            count = len(lines) if end is None else (end - segment.first_step) // every
            rows += lines[:count]
            if count <= 0:
                continue
            for chunk in iterate_frames(segment.trajectory, topology, FRAMES_AT_ONCE):
                kept = chunk[: max(count, 0)]
                count -= len(kept)
                if len(kept):
                    box = (
                        {
                            "cell_lengths": kept.unitcell_lengths * 10.0,
                            "cell_angles": kept.unitcell_angles,
                        }
                        if periodic
                        else {}
                    )
                    output.write(kept.xyz * 10.0, **box)
    with atomic_write(folder.thermo) as temporary:
        temporary.write_text("\n".join(rows) + "\n")


ENSEMBLES = ("nve", "nvt", "npt")
