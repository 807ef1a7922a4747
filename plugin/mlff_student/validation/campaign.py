"""Carry out a protocol's tasks, several at once, into a folder that a killed campaign resumes from.

campaign.json     what is tested by what: another start must be the same
structures/       boxes that were made
runs/NAME/        trajectories, logs and checkpoints; not to be committed
results/NAME.json record and series of a task, written whole
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mlff_student.archive.registry import archive_of, model_file
from mlff_student.core.errors import (
    InputError,
    InterruptedRunError,
    MissingDependencyError,
    StudentError,
)
from mlff_student.core.files import only_writer, require_writable, sha256
from mlff_student.core.processes import end_with_parent
from mlff_student.core.results import write_json
from mlff_student.engines.protocol import RunFolder
from mlff_student.engines.run import engine_of, run_md
from mlff_student.teachers.registry import is_teacher, make_teacher
from mlff_student.validation.measure import MEASURES, measure_comparison, measure_run
from mlff_student.validation.protocol import Liquid, Protocol
from mlff_student.validation.tasks import (
    CompareTask,
    RunTask,
    Subject,
    Task,
    prepare_structures,
    tasks_of,
)

POLL_S = 1.0  # between looks at the runs' logs
# What engines and readers say where the machine, and not the model, is to blame.
TRANSIENT = re.compile(
    "no space left|bad_alloc|out of memory|cannot allocate|input/output error|cannot read", re.I
)
Result = dict[str, Any]  # keys record (flat) and series


@dataclass(frozen=True)
class Folder:
    """Where a campaign keeps its files."""

    path: Path

    @property
    def identity(self) -> Path:
        """What is tested by what."""
        return self.path / "campaign.json"

    def run(self, name: str) -> RunFolder:
        """Files of a run."""
        return RunFolder(self.path / "runs" / name)

    def result(self, name: str) -> Path:
        """Result of a task."""
        return self.path / "results" / f"{name}.json"

    def read(self, name: str) -> Result | None:
        """Result of a task, if it is done and has what is measured today (`MEASURES`).

        Raises
        ------
        InputError : the file is damaged.
        """
        path = self.result(name)
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text())
            if content.get("measures") != MEASURES:
                return None
            return {"record": content["record"], "series": content["series"]}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged; remove it, and it is made anew") from error


class Campaign:
    """A protocol applied to models, in a folder.

    Parameters
    ----------
    protocol, subject : what is run, of whom.
    output : folder; one begun with the same protocol and models is gone on with.

    Raises
    ------
    InputError : nothing to run, a structure or teacher that cannot be had, or a folder that holds
        another campaign. ArchiveError : no such model. MissingDependencyError : an engine is not
        installed. All before anything runs.
    """

    def __init__(self, protocol: Protocol, subject: Subject, output: Path) -> None:
        self.protocol, self.subject = protocol, subject
        self.folder = Folder(output)
        if subject.teacher:
            make_teacher(subject.teacher)
        for model in subject.models:
            if not is_teacher(model):
                archive_of(model)
            elif set(subject.engines) != {"ase"}:
                raise InputError(f"{model} is no student: it runs with --engine ase alone")
            else:
                make_teacher(model)
        self.guides = {
            step.guide
            for step in protocol.steps
            if isinstance(step, Liquid) and step.guide and step.teacher_ps and subject.teacher
        }
        for guide in self.guides:
            archive_of(guide)
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {output}: {error.strerror}") from error
        require_writable(self.folder.identity)
        identity = self._identity()
        self._weights = identity["models"]
        self._check_identity(identity)
        sources = prepare_structures(protocol, output / "structures")
        identity["structures"] = {name: _digest_of(source) for name, source in sources.items()}
        begun = self._check_identity(identity)
        self.tasks = tasks_of(protocol, subject, sources)
        for engine in dict.fromkeys(task.settings.engine for task in self.runs()):
            engine_of(next(t.settings for t in self.runs() if t.settings.engine == engine))
        if not begun:
            write_json(self.folder.identity, identity)
        (output / "runs").mkdir(exist_ok=True)
        (output / "runs" / ".gitignore").write_text("*\n")

    def runs(self) -> list[RunTask]:
        """All runs."""
        return [task for task in self.tasks if isinstance(task, RunTask)]

    def pending(self) -> list[Task]:
        """Tasks without a result."""
        return [task for task in self.tasks if self.folder.read(task.name) is None]

    def results(self) -> dict[str, Result]:
        """Results there are, by the task's name."""
        found = {task.name: self.folder.read(task.name) for task in self.tasks}
        return {name: result for name, result in found.items() if result is not None}

    def _identity(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol.digest,  # whatever it is called, and said to be about
            "teacher": self.subject.teacher,
            "engines": list(self.subject.engines),
            "models": self._digests(),
        }

    def _digests(self) -> dict[str, str]:
        """SHA-256 of the students' files; of a teacher its name."""
        return {
            model: model if is_teacher(model) else sha256(model_file(model))
            for model in (*self.subject.models, *sorted(self.guides))
        }

    def _require_weights(self) -> None:
        """Refuse models whose files are no longer those that the campaign began with."""
        if changed := [m for m, digest in self._digests().items() if self._weights[m] != digest]:
            raise InputError(f"the weights of {', '.join(changed)} changed while the campaign ran")

    def _check_identity(self, wanted: dict[str, Any]) -> bool:
        """Whether the folder holds this campaign begun; InputError if it holds another."""
        path = self.folder.identity
        if not path.exists():
            if any((self.folder.path / name).exists() for name in ("runs", "results")):
                raise InputError(
                    f"{self.folder.path} holds runs or results, and no {path.name} that says of "
                    "what; choose another --output or remove them"
                )
            return False
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}); choose another --output") from error
        if changed := [key for key in wanted if found.get(key) != wanted[key]]:
            raise InputError(
                f"{self.folder.path} holds another campaign ({', '.join(changed)} differ; a model "
                "differs when its weights do, a structure when its file does); choose another "
                "--output or remove that folder"
            )
        return True

    def run(
        self, workers: int, cost: Callable[[Task], float] = lambda task: 1.0, quiet: bool = False
    ) -> None:
        """Carry out what is pending; Ctrl-C loses at most what runs did since a checkpoint. One
        process at a time, which holds the folder's lock.

        Parameters
        ----------
        workers : processes, one thread each.
        cost : expected seconds of a task, for the bar and the order.

        Raises
        ------
        InputError : another process is at it, or a model's file changed meanwhile.
        MissingDependencyError : a worker lacks a package.
        StudentError : a worker was killed; or tasks could not be done (see `perform`), the first of
            them named, after all others were.
        """
        undone: dict[str, Exception] = {}
        waiting = sorted(self.pending(), key=cost, reverse=True)
        done = {task.name for task in self.tasks} - {task.name for task in waiting}
        os.environ["OMP_NUM_THREADS"] = "1"
        running: dict[Future[None], Task] = {}
        pool = ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=end_with_parent
        )
        try:
            with (
                only_writer(self.folder.identity, "wait for it, or choose another --output"),
                _bars(waiting, cost, self.folder, quiet) as show,
            ):
                while waiting or running:
                    for task in [t for t in waiting if set(t.needs) <= done]:
                        if len(running) == workers:
                            break
                        self._require_weights()
                        waiting.remove(task)
                        running[pool.submit(perform, task, self.folder.path)] = task
                    finished, _ = wait(running, POLL_S, FIRST_COMPLETED)
                    for future in finished:
                        task = running.pop(future)
                        try:
                            future.result()
                            done.add(task.name)
                        except (BrokenProcessPool, MissingDependencyError):
                            running[future] = task
                            raise
                        except Exception as error:  # a calculator's may be anything
                            undone[task.name] = error
                    waiting = [task for task in waiting if not set(task.needs) & set(undone)]
                    show(list(running.values()), done)
        except BrokenProcessPool as error:
            names = ", ".join(task.name for task in running.values())
            raise StudentError(
                f"a worker was killed by a crash or want of memory at {names or 'its start'}; "
                "the same command goes on from there"
            ) from error
        finally:
            for process in list((pool._processes or {}).values()):
                if running:
                    process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)
        if undone:
            name, error = next(iter(undone.items()))
            what = error if isinstance(error, StudentError) else f"{type(error).__name__}: {error}"
            raise StudentError(
                f"{len(undone)} task(s) could not be done, and those that need them, {name} the "
                f"first: {what}; the same command tries them again"
            ) from error


def perform(task: Task, output: Path) -> None:
    """Carry out one task and write its result; in a worker.

    A failure is a result, the worst there is, where it says something of the model: the engine gave
    the run up (OpenMM's and LAMMPS's own errors, a calculator that stops), the analysis refused its
    files (atoms in another order, a log that is not the frames', a model that cannot do a frame),
    or a run that is compared had failed so. It has the run's identity, so that nobody overlooks it.

    Raises
    ------
    StudentError, OSError : whatever else went wrong says nothing of the model, and nothing is
        written: a worker or `lmp` that was killed, a full disk, want of memory, files that are
        gone, a package or teacher that is missing. The same command tries again.
    """
    folder = Folder(output)
    model, engine = task.name.split("/")[:2]
    head: dict[str, Any] = {"case": task.name, "step": task.step, "structure": task.structure}
    head |= {"model": model, "engine": engine, "judged": task.judged, **task.identity()}
    failure, record, series = "", {}, {}
    if isinstance(task, RunTask):
        run = folder.run(task.name)
        try:
            run_md(task.settings, run.path, quiet=True)
        except StudentError as error:
            if type(error) is not StudentError:  # of the input or the installation
                raise
            failure = _of_the_model(error)
        else:
            _require_files(run)
            try:
                record, series = measure_run(task, run)
            except InputError as error:
                failure = _of_the_model(error)
    elif broken := [name for name in task.needs if _failure(folder, name)]:
        failure = f"{broken[0]} failed: {_failure(folder, broken[0])}"
    else:
        for name in task.needs:
            _require_files(folder.run(name))
        try:
            record, series = measure_comparison(
                task,
                [folder.run(name) for name in task.needs if name not in task.references],
                [folder.run(name) for name in task.references],
            )
        except InputError as error:
            failure = _of_the_model(error)
    outcome = {"failed_runs": int(bool(failure)), "failure": (failure.splitlines() or [""])[0]}
    path = folder.result(task.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"measures": MEASURES, "record": head | outcome | record, "series": series}
    write_json(path, content)


def _of_the_model(error: StudentError) -> str:
    """What an error says of a model; InterruptedRunError if it is the machine's."""
    if TRANSIENT.search(str(error)):
        raise InterruptedRunError(str(error)) from error
    return str(error)


def _failure(folder: Folder, name: str) -> str:
    """Why a task failed; empty if it did not."""
    result = folder.read(name)
    return result["record"]["failure"] if result else ""


def _require_files(run: RunFolder) -> None:
    """Refuse a run whose files are gone (InterruptedRunError)."""
    for path in (run.trajectory, run.topology, run.thermo):
        if not path.is_file():
            raise InterruptedRunError(
                f"{path} is gone; remove the folder {run.path} and the run's result, and it is "
                "made anew"
            )


def _digest_of(source: str) -> str:
    """SHA-256 of a structure's file; of a SMILES string itself."""
    return sha256(Path(source)) if Path(source).is_file() else source


@contextmanager
def _bars(
    pending: list[Task], cost: Callable[[Task], float], folder: Folder, quiet: bool
) -> Iterator[Callable[[list[Task], set[str]], None]]:
    """One bar over all tasks in expected seconds, one for each task that runs."""
    costs = {task.name: cost(task) for task in pending}
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), disable=quiet
    ) as progress:
        whole = progress.add_task("all", total=sum(costs.values()), note="")
        bars: dict[str, TaskID] = {}

        def show(running: list[Task], done: set[str]) -> None:
            shares = {task.name: _share_done(task, folder) for task in running}
            for name in set(bars) - set(shares):
                progress.remove_task(bars.pop(name))
            for name, share in shares.items():
                if name not in bars:
                    bars[name] = progress.add_task(name, total=1.0, note="")
                progress.update(bars[name], completed=share)
            seconds = sum(value for name, value in costs.items() if name in done)
            seconds += sum(share * costs[name] for name, share in shares.items())
            count = sum(name in done for name in costs)
            progress.update(whole, completed=seconds, note=f"{count} of {len(costs)}")

        yield show


def _share_done(task: Task, folder: Folder) -> float:
    """Of a run's production, from the rows of its last segment's log."""
    if isinstance(task, CompareTask):
        return 0.0
    segments = folder.run(task.name).segments()
    if not segments:
        return 0.0
    try:
        rows = segments[-1].thermo.read_bytes().count(b"\n") - 1
    except OSError:
        return 1.0  # they were joined meanwhile
    return min(1.0, (segments[-1].first_step + rows * task.settings.every) / task.settings.steps)
