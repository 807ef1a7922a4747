"""`benchmark lammps`: time of a step by size, ranks and threads, with its stages and messages."""

import hashlib
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from string import Template
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ase import Atoms

from mlff_student.archive.archive import Archive, save_archive
from mlff_student.archive.registry import archive_of
from mlff_student.benchmark.measure import too_large_for_portable
from mlff_student.benchmark.records import Progress, Record, RecordFile, is_of, no_progress
from mlff_student.benchmark.settings import check_cores, check_models, check_positive
from mlff_student.benchmark.structures import acetone_box, edge_lengths, whole_molecules
from mlff_student.core.errors import InputError, StudentError
from mlff_student.core.results import machine_facts, package_versions
from mlff_student.engines.lammps.plugin import (
    PAIR_STYLE,
    lammps_executable,
    mpi_executable,
    plugin_path,
)
from mlff_student.engines.lammps.run import element_order, run_lmp, write_data
from mlff_student.engines.protocol import ns_per_day

COMMAND = "benchmark lammps"
BLOCK = 20  # number of steps between rebuilds of the neighbour list, and between times in the log
STUDENT = "mlff_student"
# Figures of a record; null if they were not measured.
FIGURES = (
    "steps",
    "us_per_atom_step",
    "us_per_atom_step_iqr",
    "ms_per_step",
    "ns_per_day",
    "neighbour_us",
    "edges_us",
    "model_us",
    "tally_us",
    "communication_us",
    "other_us",
    "communication_share",
    "speedup_by_ranks",
    "thread_speedup",
    "cores_used",
    "ghosts_per_rank",
    "swaps_per_step",
    "swapped_kb_per_step",
    "messages_per_step",
    "sent_kb_per_step",
    "held_kb_per_atom",
    "peak_kb_per_atom",
)

SCRIPT = Template("""\
units           $units
atom_style      $atom_style
boundary        p p p
newton          on
read_data       system.data
$potential
neighbor        1.0 bin
neigh_modify    every $block delay 0 check no
velocity        all create 300.0 4928459 mom yes rot no dist gaussian
timestep        $timestep
fix             motion all nve
thermo_style    custom step cpu
thermo          $block
info            out log memory
run             0
timer           timeout $seconds every $block
run             1000000 pre no
info            out log memory
""")


class Potential(NamedTuple):
    """A potential and the system that it is run on.

    Attributes
    ----------
    system : str
        Name of the system, such as "acetone".
    box : callable
        Makes a box with a given number of atoms.
    units, atom_style : str
        Arguments of the commands of these names in LAMMPS.
    commands : str
        Commands of LAMMPS that set the potential.
    timestep_fs : float
        Usual timestep of the potential, fs; times are compared by step.
    files : tuple of Path
        Files that the commands name.
    """

    system: str
    box: Callable[[int], Atoms]
    units: str
    atom_style: str
    commands: str
    timestep_fs: float
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class LammpsSettings:
    """Settings of `benchmark lammps`; each combination that the cores allow is measured.

    Attributes
    ----------
    models : tuple[str, ...]
        Names of shipped models, or paths of checkpoints or archives.
    atoms : tuple[int, ...]
        Numbers of atoms of the boxes, multiples of ten.
    ranks : tuple[int, ...]
        Numbers of MPI ranks.
    threads : tuple[int, ...]
        Numbers of threads of each rank; other potentials run with one thread.
    seconds : float
        Time of the steps in each measurement, s; at least 20 steps are made.
    backends : tuple[str, ...]
        Compute backends: native, portable; portable runs on one rank with one thread.
    """

    models: tuple[str, ...]
    atoms: tuple[int, ...] = (1000, 10000, 100000)
    ranks: tuple[int, ...] = (1, 2)
    threads: tuple[int, ...] = (1, 2)
    seconds: float = 10.0
    backends: tuple[str, ...] = ("native", "portable")

    def __post_init__(self) -> None:
        check_models(self.models)
        object.__setattr__(self, "models", tuple(dict.fromkeys(self.models)))
        for name in ("atoms", "ranks", "threads"):
            if not (values := getattr(self, name)):
                raise InputError(f"no {name} to measure")
            object.__setattr__(self, name, tuple(sorted(set(values))))
        for count in self.atoms:
            whole_molecules(count)
        for name in ("ranks", "threads"):
            check_cores(name, getattr(self, name))
        check_positive("seconds", self.seconds)
        if unknown := set(self.backends) - {"native", "portable"}:
            raise InputError(f"no backend {min(unknown)!r}; there are native and portable")


class LammpsJob(NamedTuple):
    """One run of `benchmark lammps`.

    Attributes
    ----------
    style : str
        Pair style of LAMMPS.
    model : str
        Shipped name or path of a student; empty for other pair styles.
    backend : str
        "native" or "portable"; empty for other pair styles.
    atoms : int
        Number of atoms.
    ranks : int
        Number of MPI ranks.
    threads : int
        Number of threads of each rank.
    """

    style: str
    model: str
    backend: str
    atoms: int
    ranks: int
    threads: int

    def __str__(self) -> str:
        what = f"{self.model} {self.backend}" if self.model else self.style
        return f"{what}: {self.atoms} atoms, ranks: {self.ranks}, threads: {self.threads}"


def benchmark_lammps(
    settings: LammpsSettings,
    output: Path | None = None,
    progress: Progress = no_progress,
    *,
    command: str = COMMAND,
    alternatives: Mapping[str, Potential] | None = None,
) -> list[Record]:
    """Run LAMMPS at constant energy with each student.

    Runs of one size start from the same box, at liquid density and 300 K, and rebuild the neighbour
    list every 20 steps. A time is the median over blocks of 20 steps. The shares of the stages are
    those that LAMMPS and the pair style report, means over the ranks. Waiting for another rank
    counts as communication.

    Parameters
    ----------
    settings : LammpsSettings
        What to measure.
    output : Path, optional
        JSON file, written after each run. An existing file is resumed if it was begun on this
        machine with the same settings and plugin.
    progress : callable
        Called with the name of the job, the number of jobs done and the number of jobs.
    command : str
        Command that is named in the file.
    alternatives : mapping of str to Potential, optional
        Other potentials to run, by pair style.

    Returns
    -------
    list of dict
        Flat records, in the order in which they were measured; `note` says why figures are missing.

    Raises
    ------
    InputError
        The output cannot be written or is of another benchmark; nothing has run then.
    ArchiveError
        There is no such model.
    MissingDependencyError
        LAMMPS, MPI or the plugin is missing.
    """
    archives = {model: archive_of(model) for model in settings.models}
    if "portable" in settings.backends:
        from mlff_student.archive.scripting import with_script

        archives = {model: with_script(archive) for model, archive in archives.items()}
    for needed in (lammps_executable, mpi_executable, plugin_path):
        needed()
    pair_style = plugin_path().with_name(PAIR_STYLE)
    machine = {
        "lammps": package_versions().get("lammps", "of no package"),
        "torch": package_versions().get("torch", "of no package"),
        "plugin_sha256": hashlib.sha256(pair_style.read_bytes()).hexdigest(),
    }
    file = RecordFile(output, command, settings, machine)
    potentials = dict(alternatives or {})

    def measured(job: LammpsJob) -> list[Record]:
        potential = potentials.get(job.style) or _student(job)
        record = _measure(job, potential, archives.get(job.model), settings.seconds)
        if record["us_per_atom_step"]:
            record |= _speedups(job, record, file.records)
        return [record]

    return file.measure(_jobs(settings, tuple(potentials)), measured, progress)


def _jobs(settings: LammpsSettings, styles: tuple[str, ...]) -> Iterator[LammpsJob]:
    cores = machine_facts()["cores"]
    for atoms in settings.atoms:
        for model in settings.models:
            for backend in settings.backends:
                for ranks in settings.ranks if backend != "portable" else (1,):
                    for threads in settings.threads if backend != "portable" else (1,):
                        if ranks * threads <= cores:
                            yield LammpsJob(STUDENT, model, backend, atoms, ranks, threads)
        for style in styles:
            for ranks in settings.ranks:
                yield LammpsJob(style, "", "", atoms, ranks, 1)


@cache
def _box(box: Callable[[int], Atoms], atoms: int) -> Atoms:
    return box(atoms)


def _measure(
    job: LammpsJob, potential: Potential, archive: Archive | None, seconds: float
) -> Record:
    atoms = _box(potential.box, job.atoms)
    record: Record = job._asdict() | {
        "measurement": "lammps",
        "system": potential.system,
        "timestep_fs": potential.timestep_fs,
        **dict.fromkeys(FIGURES),
        "note": "",
    }
    if job.backend == "portable" and archive:
        edges = len(edge_lengths(atoms, archive.metadata["cutoff"]))
        if note := too_large_for_portable(job.model, job.atoms, edges):
            return record | {"note": note}
    script = SCRIPT.substitute(
        units=potential.units,
        atom_style=potential.atom_style,
        potential=potential.commands,
        block=BLOCK,
        timestep=potential.timestep_fs * (1e-3 if potential.units == "metal" else 1.0),
        seconds=math.ceil(seconds),
    )
    with TemporaryDirectory(prefix="mlff-student-lammps-") as name:
        folder = Path(name)
        write_data(atoms, folder / "system.data", potential.units, potential.atom_style)
        if archive:
            save_archive(archive, folder / "model.pt")
        for file in potential.files:
            shutil.copy(file, folder)
        try:
            log = run_lmp(script, folder, "steps", threads=job.threads, ranks=job.ranks)
        except StudentError as error:
            reason, *_ = str(error).partition(" (log:")  # the folder with the log is deleted
            return record | {"note": f"not measured: {reason}"}
    record |= figures_of(log, job.atoms)
    record["ns_per_day"] = ns_per_day(potential.timestep_fs, record["ms_per_step"])
    return record


def _speedups(job: LammpsJob, record: Record, records: list[Record]) -> Record:
    """Return the time of the same run on one rank, and on one thread, over that of this run."""
    ratios = {}
    for key, single in (
        ("speedup_by_ranks", job._replace(ranks=1)),
        ("thread_speedup", job._replace(threads=1)),
    ):
        for earlier in [*records, record]:
            if is_of(earlier, single) and earlier["us_per_atom_step"]:
                ratios[key] = earlier["us_per_atom_step"] / record["us_per_atom_step"]
    return ratios


def _student(job: LammpsJob) -> Potential:
    symbols = " ".join(element_order(_box(acetone_box, job.atoms)))
    return Potential(
        system="acetone",
        box=acetone_box,
        units="metal",
        atom_style="atomic",
        commands=f"pair_style {STUDENT} backend {job.backend}\npair_coeff * * model.pt {symbols}",
        timestep_fs=0.5,
    )


def figures_of(log: str, atoms: int) -> Record:
    """Read the figures of the last run in a log of LAMMPS.

    Times are per step and atom. `model_us` is the time of the pair style without its parts edges,
    tally and exchange; it includes fixes, such as the fix that computes the charges of ReaxFF.

    Parameters
    ----------
    log : str
        Text of the log.
    atoms : int
        Number of atoms.

    Raises
    ------
    StudentError
        A line is missing in the log.
    """
    setup, run = log[: (start := log.rindex("\nrun ", 0, log.rindex("Loop time")))], log[start:]
    seconds = _number(r"^Loop time of (\S+) on \d+ procs", run)
    steps = int(_number(r"^Loop time of \S+ on \d+ procs for (\d+) steps", run))
    ranks = int(_number(r"CPU use with (\d+) MPI tasks", run))
    clock = [
        (int(step), float(time))
        for step, time in re.findall(r"^ +(\d+) +(\S+) *$", run, re.MULTILINE)
    ]
    blocks = [
        (after[1] - before[1]) / BLOCK
        for before, after in pairwise(clock)
        if after[0] - before[0] == BLOCK
    ]
    per_step = median(blocks) if blocks else seconds / steps
    micro = 1e6 / atoms
    average = {
        name: float(value)
        for name, value in re.findall(r"^(\w+) +\|[^|\n]*\| *(\S+) *\|", run, re.MULTILINE)
        if name != "Section"
    }
    exchange, edges, tally = (average.get(name, 0.0) for name in ("Exchange", "Edges", "Tally"))
    stages = {
        "neighbour_us": average["Neigh"],
        "edges_us": edges,
        "model_us": average["Pair"] + average["Modify"] - exchange - edges - tally,
        "tally_us": tally,
        "communication_us": average["Comm"] + exchange,
        "other_us": average["Output"] + average["Other"],
    }
    record: Record = {name: value / seconds * per_step * micro for name, value in stages.items()}
    record |= {
        "steps": steps,
        "us_per_atom_step": per_step * micro,
        "ms_per_step": 1e3 * per_step,
        "communication_share": stages["communication_us"] / seconds,
        "ghosts_per_rank": _number(r"^Nghost: +(\S+) ave", run),
        "cores_used": _number(r"^(\S+)% CPU use", run) / 100.0,
        # LAMMPS rounds these to a hundredth of a megabyte.
        "held_kb_per_atom": 1e3 * ranks * _memory_held(setup) / atoms,
        "peak_kb_per_atom": 1e3 * ranks * (_peak(run) - _peak(setup)) / atoms,
    }
    if len(blocks) > 1:
        low, _, high = quantiles(blocks, n=4)
        record["us_per_atom_step_iqr"] = (high - low) * micro
    if counts := re.search(
        r"(\S+) swaps of (\S+) bytes in all, of these (\S+) messages of (\S+) bytes", run
    ):
        swaps, swapped, messages, sent = map(float, counts.groups())
        record |= {
            "swaps_per_step": swaps,
            "swapped_kb_per_step": 1e-3 * swapped,
            "messages_per_step": messages,
            "sent_kb_per_step": 1e-3 * sent,
        }
    return record


def _number(pattern: str, run: str) -> float:
    """Return the number in a line that each log of LAMMPS has."""
    match = re.search(pattern, run, re.MULTILINE)
    if not match:
        raise StudentError(f"the log of LAMMPS has no line {pattern!r}")
    return float(match.group(1))


def _memory_held(setup: str) -> float:
    """Return the memory of a rank that LAMMPS reports, megabytes."""
    return float(re.findall(r"^Per MPI rank memory .* \| (\S+) \|", setup, re.MULTILINE)[-1])


def _peak(text: str) -> float:
    """Return the largest resident set of the process of the first rank, megabytes."""
    return float(re.findall(r"^Maximum resident set size: (\S+) Mbyte", text, re.MULTILINE)[-1])
