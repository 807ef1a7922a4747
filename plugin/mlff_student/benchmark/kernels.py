"""How fast the kernels are: every model, size and number of threads."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from mlff_student.archive.native import with_backend
from mlff_student.archive.registry import archive_of
from mlff_student.benchmark.measure import MOLECULE, KernelJob, measure, software
from mlff_student.benchmark.records import Progress, Record, RecordFile, no_progress
from mlff_student.benchmark.settings import check_atoms, check_cores, check_models, check_positive
from mlff_student.benchmark.timing import torch_threads
from mlff_student.core.errors import InputError

COMMAND = "benchmark kernels"


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is measured.

    Attributes
    ----------
    models : tuple[str, ...]
        Names of shipped models, or paths of checkpoints or archives.
    atoms : tuple[int, ...]
        Sizes of the thermal structures, two atoms or more.
    threads : tuple[int, ...]
        Numbers of threads.
    seconds : float
        Time spent on a measurement, beyond the three rounds that each of them gets.
    openmm : bool
        Whether to measure a step of 22 atoms in OpenMM as well.
    """

    models: tuple[str, ...]
    atoms: tuple[int, ...] = (22, 100, 1000, 10000)
    threads: tuple[int, ...] = (1,)
    seconds: float = 2.0
    openmm: bool = True

    def __post_init__(self) -> None:
        check_models(self.models)
        for name in ("atoms", "threads"):
            if not (values := getattr(self, name)):
                raise InputError(f"no {name} to measure")
            object.__setattr__(self, name, tuple(sorted(set(values))))
        object.__setattr__(self, "models", tuple(dict.fromkeys(self.models)))
        check_atoms(self.atoms)
        check_cores("threads", self.threads)
        check_positive("seconds", self.seconds)


def benchmark_kernels(
    settings: BenchmarkSettings, output: Path | None = None, progress: Progress = no_progress
) -> list[Record]:
    """Measure every model, size and number of threads by the native and the portable backend.

    Parameters
    ----------
    settings : BenchmarkSettings
        What to measure.
    output : Path | None
        JSON file, written after every measurement. An existing one that was begun on this machine
        with the same settings and library is resumed.
    progress : Progress
        Called with the job's name, how many are done and how many there are.

    Returns
    -------
    list[Record]
        Flat records, in the order they were measured; `note` says why a figure is missing.

    Raises
    ------
    InputError
        Settings that cannot be measured; an output that cannot be written or is of another
        benchmark. Before anything runs.
    ArchiveError
        There is no such model.
    MissingDependencyError
        The native kernels cannot be used.
    """
    archives = {model: archive_of(model) for model in settings.models}
    for archive in archives.values():
        with_backend(archive, "native")  # raises here where it cannot be had
    instructions = torch.ops.mlff_student.instruction_set()
    machine = {"instruction_set": instructions} | software()
    file = RecordFile(output, COMMAND, settings, machine)

    def measured(job: KernelJob) -> list[Record]:
        with torch_threads(job.threads):
            return measure(job, archives[job.model], settings.seconds, file.records)

    return file.measure(_jobs(settings), measured, progress)


def _jobs(settings: BenchmarkSettings) -> Iterator[KernelJob]:
    for model in settings.models:
        for atoms in settings.atoms:
            for threads in settings.threads:
                yield KernelJob("kernels", model, atoms, threads)
        if settings.openmm:
            yield KernelJob("openmm_step", model, MOLECULE, 1)
