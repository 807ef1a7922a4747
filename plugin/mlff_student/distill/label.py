"""Labelling of many structures in parallel, on the cores of this machine or on a Dask cluster."""

import os
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from zlib import crc32

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn

from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.core.processes import end_with_parent
from mlff_student.distill.dataset import LabelledStructure, open_dataset
from mlff_student.distill.recipe import Recipe
from mlff_student.distill.sample import label_source
from mlff_student.distill.sources import Source, list_sources
from mlff_student.teachers.registry import TEACHERS, reads_charge

SCHEDULER_TIMEOUT_S = 10.0


def label(recipe: Recipe, dataset: Path, workers: int, scheduler: str = "") -> None:
    """Label all structures of a recipe that the dataset does not hold yet.

    Parameters
    ----------
    recipe : Recipe
        Says which structures, which teacher and which sampling methods to use.
    dataset : Path
        HDF5 file to make or to extend; each structure is safe as soon as it is labelled.
    workers : int
        Number of processes, each with one thread; not used with a scheduler.
    scheduler : str
        Address of a Dask scheduler (tcp://host:port); empty for this machine.

    Raises
    ------
    InputError
        The dataset was made with another teacher or random seed, the recipe has charged molecules
        and the teacher ignores charges, no structure gave a frame, the disk is full, a worker
        process died or the scheduler does not answer.
    MissingDependencyError
        The teacher or Dask is not installed.
    """
    if recipe.structures.charged and not reads_charge(recipe.teacher):
        others = [name for name in TEACHERS if reads_charge(name)]
        raise InputError(
            f"structures.charged is set, but teacher {recipe.teacher!r} computes every structure "
            f"as neutral; unset it, or use {', '.join(others)}"
        )
    with Console(stderr=True).status("listing structures"):
        sources = list_sources(recipe.structures, recipe.seed)
    label_sources(sources, recipe, dataset, workers, scheduler, recipe.structures.split_by)


def label_sources(
    sources: list[Source],
    recipe: Recipe,
    dataset: Path,
    workers: int,
    scheduler: str = "",
    split_by: str = "molecule",
) -> None:
    """Label the given structures that the dataset does not hold yet.

    Parameters
    ----------
    sources : list of Source
        The structures.
    recipe, dataset, workers, scheduler : Recipe, Path, int, str
        As for `label`.
    split_by : str
        "molecule", or "trajectory" for a dataset of one structure.

    Raises
    ------
    InputError, MissingDependencyError
        As for `label`.
    """
    dataset.parent.mkdir(parents=True, exist_ok=True)
    columns = (
        *Progress.get_default_columns(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[info]}"),
    )
    attributes = {"teacher": recipe.teacher, "seed": recipe.seed, "split_by": split_by}
    with open_dataset(dataset, **attributes) as writer, Progress(*columns) as progress:
        bar = progress.add_task("teacher", total=len(sources), info="")
        pending = [
            (source, recipe, (recipe.seed + crc32(source.name.encode())) % 2**31)
            for source in sources
            if source.name not in writer.names
        ]
        progress.update(bar, completed=len(sources) - len(pending))
        place = {source.name: number for number, source in enumerate(sources)}
        skipped = 0
        results = (
            _on_cluster(scheduler, pending) if scheduler else on_cores(workers, _label, pending)
        )
        with closing(results):  # stops the workers also when this loop ends by an error
            for labelled in results:
                writer.append(labelled, place[labelled.name])
                if labelled.failure:
                    skipped += labelled.attempted - len(labelled.energies)
                    text = f"{labelled.name}: {labelled.failure}"
                    progress.console.print(text, markup=False, highlight=False)
                info = f"{writer.frames} frames, {skipped} skipped"
                progress.update(bar, advance=1, info=info)
        if not writer.frames:
            raise InputError(
                f"no structure gave a frame; the reasons are in structures/failure of {dataset}"
            )


def _label(job: tuple[Source, Recipe, int]) -> LabelledStructure:
    return label_source(*job)


def on_cores(
    workers: int, work: Callable[[Any], Any], jobs: list[Any]
) -> Generator[Any, None, None]:
    """Do jobs in processes with one thread each, and return the results as they come.

    Parameters
    ----------
    workers : int
        Number of processes.
    work : callable
        Function of a module, which takes a job.
    jobs : list
        The jobs, which can be pickled.

    Yields
    ------
    Any
        What the function returns for each job, in the order in which the jobs end.

    Raises
    ------
    InputError
        A worker process died.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers when they load the teacher
    with ProcessPoolExecutor(workers, get_context("spawn"), end_with_parent) as pool:
        try:
            # No list of the futures is kept: it would keep all labels in memory.
            for future in as_completed([pool.submit(work, job) for job in jobs]):
                yield future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "a worker process died (out of memory, or a crash inside the teacher); what was "
                "done is safe: run the same command again, with fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _on_cluster(scheduler: str, jobs: list[Any]) -> Generator[LabelledStructure, None, None]:
    try:
        from dask.distributed import CancelledError, Client, KilledWorker
        from dask.distributed import as_completed as as_they_complete
    except ImportError as error:
        raise MissingDependencyError(
            "a Dask scheduler needs dask: pip install 'dask[distributed]'"
        ) from error
    try:
        client = Client(scheduler, timeout=SCHEDULER_TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {scheduler}: {error}") from error
    with client:
        try:
            for future in as_they_complete(client.map(_label, jobs, pure=False)):
                yield future.result()
        except (CancelledError, KilledWorker, OSError) as error:
            raise InputError(
                f"the Dask cluster at {scheduler} lost a worker or itself ({error}); what was "
                "labelled is safe: run the same command again"
            ) from error
