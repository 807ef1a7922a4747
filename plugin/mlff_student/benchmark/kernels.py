"""`benchmark kernels`: the speed of energy and forces by model, size and number of threads."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlff_student.archive.archive import require_torch
from mlff_student.archive.backends import evaluator, instruction_set
from mlff_student.archive.registry import archive_of
from mlff_student.benchmark.measure import MOLECULE, KernelJob, measure, software
from mlff_student.benchmark.records import Progress, Record, RecordFile, no_progress
from mlff_student.benchmark.settings import check_atoms, check_cores, check_models, check_positive
from mlff_student.benchmark.timing import using_threads
from mlff_student.core.errors import InputError

COMMAND = "benchmark kernels"


@dataclass(frozen=True)
class BenchmarkSettings:
    """Settings of `benchmark kernels`.

    Attributes
    ----------
    models : tuple[str, ...]
        Names of shipped models, or paths of checkpoints or archives.
    atoms : tuple[int, ...]
        Sizes of the thermal structures, two atoms or more.
    threads : tuple[int, ...]
        Numbers of threads.
    seconds : float
        Least time of a measurement, s; each has three rounds at least.
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
    """Measure each model, size and number of threads with the native and the portable backend.

    Parameters
    ----------
    settings : BenchmarkSettings
        What to measure.
    output : Path, optional
        JSON file, written after each measurement. An existing file is resumed if it was begun on
        this machine with the same settings and library.
    progress : callable
        Called with the name of the job, the number of jobs done and the number of jobs.

    Returns
    -------
    list of dict
        Flat records, in the order in which they were measured; `note` says why a figure is missing.

    Raises
    ------
    InputError
        The output cannot be written or is of another benchmark; nothing has run then.
    ArchiveError
        There is no such model.
    MissingDependencyError
        The native kernels cannot be used.
    """
    archives = {model: archive_of(model) for model in settings.models}
    for archive in archives.values():
        evaluator(archive, "native")  # raises an error now if there are no native kernels
    require_torch("the benchmark")
    machine = {"instruction_set": instruction_set()} | software()
    file = RecordFile(output, COMMAND, settings, machine)

    def measured(job: KernelJob) -> list[Record]:
        with using_threads(job.threads):
            return measure(job, archives[job.model], settings.seconds, file.records)

    return file.measure(_jobs(settings), measured, progress)


def _jobs(settings: BenchmarkSettings) -> Iterator[KernelJob]:
    for model in settings.models:
        for atoms in settings.atoms:
            for threads in settings.threads:
                yield KernelJob("kernels", model, atoms, threads)
        if settings.openmm:
            yield KernelJob("openmm_step", model, MOLECULE, 1)
