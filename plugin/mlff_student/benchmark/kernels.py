"""How fast the kernels are: every model, size and number of threads, into a file that a killed run
goes on with.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from mlff_student.archive.native import library_path, with_backend
from mlff_student.archive.registry import archive_of, available_models
from mlff_student.benchmark.measure import MOLECULE, Job, measure
from mlff_student.benchmark.records import Record, RecordFile
from mlff_student.core.errors import InputError
from mlff_student.core.files import require_writable
from mlff_student.core.results import machine_facts

COMMAND = "benchmark kernels"


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is measured.

    Attributes
    ----------
    models : names of shipped models, or paths of checkpoints or archives.
    atoms : sizes of the thermal structures, two atoms or more.
    threads : numbers of threads.
    seconds : spent on a measurement, beyond the three rounds that every one gets.
    openmm : whether to measure a step of 22 atoms in OpenMM as well.
    """

    models: tuple[str, ...]
    atoms: tuple[int, ...] = (22, 100, 1000, 10000)
    threads: tuple[int, ...] = (1,)
    seconds: float = 2.0
    openmm: bool = True

    def __post_init__(self) -> None:
        for name in ("models", "atoms", "threads"):
            values = getattr(self, name)
            if not values:
                raise InputError(f"no {name} to measure")
            unique = dict.fromkeys(values) if name == "models" else sorted(set(values))
            object.__setattr__(self, name, tuple(unique))
        if self.atoms[0] < 2:
            raise InputError(f"atoms must be 2 or more, got {self.atoms[0]}")
        cores = machine_facts()["cores"]
        if not 1 <= self.threads[0] <= self.threads[-1] <= cores:
            wrong = self.threads[0] if self.threads[0] < 1 else self.threads[-1]
            raise InputError(
                f"threads must be 1 to {cores}, the cores of this machine; got {wrong}"
            )
        if not 0.0 < self.seconds < float("inf"):
            raise InputError(f"seconds must be positive, got {self.seconds}")


def benchmark_kernels(
    settings: BenchmarkSettings,
    output: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda job, done, jobs: None,
) -> list[Record]:
    """Measure every model, size and number of threads by the native and the portable backend.

    Parameters
    ----------
    output : JSON file, written after every measurement. One that is there already and was begun on
        this machine with the same settings and library is gone on with.
    progress : called with the job's name, how many are done and how many there are.

    Returns
    -------
    Flat records, in the order they were measured; `note` says why a figure is missing.

    Raises
    ------
    InputError : settings that cannot be measured; an output that cannot be written or is of another
        benchmark. Before anything runs.
    ArchiveError : no such model.
    MissingDependencyError : the native kernels cannot be used.
    """
    archives = {model: archive_of(model) for model in settings.models}
    if output:
        require_writable(output)
    for archive in archives.values():
        with_backend(archive, "native")  # raises here where it cannot be had
    machine = {
        "instruction_set": torch.ops.mlff_student.instruction_set(),
        "torch": torch.__version__,
        "library_sha256": hashlib.sha256(library_path().read_bytes()).hexdigest(),
    }
    file = RecordFile(output, COMMAND, settings, machine)
    jobs = list(_jobs(settings))
    threads_before = torch.get_num_threads()
    try:
        for number, job in enumerate(jobs):
            progress(str(job), number, len(jobs))
            if not any(job.made(record) for record in file.records):
                torch.set_num_threads(job.threads)
                file.add(measure(job, archives[job.model], settings.seconds, file.records))
        progress("done", len(jobs), len(jobs))
    finally:
        torch.set_num_threads(threads_before)
    return file.records


def models_of(wish: str) -> tuple[str, ...]:
    """Models of a list with commas, or `all` shipped ones."""
    if wish == "all":
        return tuple(available_models())
    return tuple(name.strip() for name in wish.split(",") if name.strip())


def _jobs(settings: BenchmarkSettings) -> Iterator[Job]:
    for model in settings.models:
        for atoms in settings.atoms:
            for threads in settings.threads:
                yield Job("kernels", model, atoms, threads)
        if settings.openmm:
            yield Job("openmm_step", model, MOLECULE, 1)
