"""Run the tasks of a protocol, several at once, in a folder from which a killed campaign resumes.

campaign.json     protocol, models, engines and teacher; a resumed campaign must have the same
structures/       packed boxes
runs/NAME/        trajectories, logs and checkpoints, which git ignores
results/NAME.json record and series of a task, written atomically
"""

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
from mlff_student.core.results import read_json, write_json
from mlff_student.engines.protocol import RunFolder
from mlff_student.engines.run import engine_of, run_md
from mlff_student.structures.checks import check_structure
from mlff_student.structures.reading import read_structure
from mlff_student.teachers.registry import is_teacher, make_teacher
from mlff_student.validation.measure import MEASURES, measure_comparison, measure_run
from mlff_student.validation.protocol import Liquid, Protocol
from mlff_student.validation.reference_monte_carlo import run_reference_monte_carlo
from mlff_student.validation.tasks import (
    CampaignTarget,
    CompareTask,
    RunTask,
    Task,
    prepare_structures,
    tasks_of,
    with_held_out,
)

POLL_S = 1.0  # time between updates of the progress bars
# Words in errors of engines and readers whose cause is the machine and not the model.
TRANSIENT = re.compile(
    "no space left|bad_alloc|out of memory|cannot allocate|input/output error|cannot read", re.I
)
Result = dict[str, Any]  # has the keys "record" and "series"


@dataclass(frozen=True)
class Folder:
    """The folder of a campaign.

    Attributes
    ----------
    path : Path
        Path of the folder.
    """

    path: Path

    @property
    def identity(self) -> Path:
        """The file with protocol, models, engines and teacher."""
        return self.path / "campaign.json"

    def run(self, name: str) -> RunFolder:
        """Return the folder of a run.

        Parameters
        ----------
        name : str
            Name of the task.

        Returns
        -------
        RunFolder
            Folder with its files.
        """
        return RunFolder(self.path / "runs" / name)

    def result(self, name: str) -> Path:
        """Return the file with the result of a task.

        Parameters
        ----------
        name : str
            Name of a task.

        Returns
        -------
        Path
            JSON file.
        """
        return self.path / "results" / f"{name}.json"

    def read(self, name: str) -> Result | None:
        """Read the result of a task.

        Parameters
        ----------
        name : str
            Name of the task.

        Returns
        -------
        Result | None
            The result. None if the task is not done, or an older version measured it (`MEASURES`).

        Raises
        ------
        InputError
            If the file is damaged.
        """
        path = self.result(name)
        if not path.exists():
            return None
        try:
            content = read_json(path)
            if content.get("measures") != MEASURES:
                return None
            return {"record": content["record"], "series": content["series"]}
        except (InputError, KeyError) as error:
            raise InputError(f"{path} is damaged; delete it, and it is computed again") from error


class Campaign:
    """A protocol that is run for models, with results in a folder.

    All errors below are raised before anything runs.

    Parameters
    ----------
    protocol : Protocol
        The runs and comparisons.
    target : CampaignTarget
        Models, engines and teacher.
    output : Path
        Folder of the campaign. If it has a campaign with the same protocol and models, that is
        resumed.

    Raises
    ------
    InputError
        If there is nothing to run, a structure or teacher cannot be found, a structure has elements
        that a model does not know, or the folder has another campaign.
    ArchiveError
        If there is no such model.
    MissingDependencyError
        If an engine is not installed.
    """

    def __init__(self, protocol: Protocol, target: CampaignTarget, output: Path) -> None:
        self.target = target
        self.folder = Folder(output)
        if target.teacher:
            make_teacher(target.teacher)
        known_elements = []
        for model in target.models:
            if not is_teacher(model):
                known_elements.append(archive_of(model).metadata["elements"])
            elif set(target.engines) != {"ase"}:
                raise InputError(f"{model} is no student and needs --engine ase")
            else:
                make_teacher(model)
        self.protocol = protocol = with_held_out(protocol, target.models)
        self.proposal_models = (
            {
                step.proposal_model
                for step in protocol.steps
                if isinstance(step, Liquid)
                and step.proposal_model
                and (step.teacher_ps or step.teacher_npt_ps)
            }
            if target.teacher
            else set()
        )
        for model in self.proposal_models:
            archive_of(model)
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {output}: {error.strerror}") from error
        require_writable(self.folder.identity)
        identity = self._identity()
        self._weights = identity["models"]
        self._check_identity(identity)
        sources = prepare_structures(protocol, output / "structures")
        for source in sources.values():
            atoms = read_structure(source).atoms
            for elements in known_elements:
                check_structure(atoms, elements)
        identity["structures"] = {name: _digest_of(source) for name, source in sources.items()}
        begun = self._check_identity(identity)
        self.tasks = tasks_of(protocol, target, sources)
        for settings in {
            (task.settings.engine, task.settings.ensemble): task.settings
            for task in self.runs()
            if not task.proposal_model  # hybrid Monte Carlo has an engine of its own
        }.values():
            engine_of(settings)
        if not begun:
            write_json(self.folder.identity, identity)
        (output / "runs").mkdir(exist_ok=True)
        (output / "runs" / ".gitignore").write_text("*\n")

    def runs(self) -> list[RunTask]:
        """Return all tasks that are runs."""
        return [task for task in self.tasks if isinstance(task, RunTask)]

    def pending(self) -> list[Task]:
        """Return the tasks that have no result yet."""
        return [task for task in self.tasks if self.folder.read(task.name) is None]

    def results(self) -> dict[str, Result]:
        """Return the results of finished tasks by the name of the task."""
        results = {task.name: self.folder.read(task.name) for task in self.tasks}
        return {name: result for name, result in results.items() if result is not None}

    def _identity(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol.digest,  # does not depend on its name and description
            "teacher": self.target.teacher,
            "engines": list(self.target.engines),
            "models": self._digests(),
        }

    def _digests(self) -> dict[str, str]:
        """Return the SHA-256 of each student's file, and the name of each teacher."""
        return {
            model: model if is_teacher(model) else sha256(model_file(model))
            for model in (*self.target.models, *sorted(self.proposal_models))
        }

    def _require_weights(self) -> None:
        """Refuse models whose files have changed since the campaign began."""
        digests = self._digests()
        if changed := [model for model in digests if self._weights[model] != digests[model]]:
            raise InputError(
                f"the weights of {', '.join(changed)} changed while the campaign ran; restore "
                "them, or start a campaign in another folder"
            )

    def _check_identity(self, wanted: dict[str, Any]) -> bool:
        """Return whether the folder has this campaign; raise InputError if it has another."""
        path = self.folder.identity
        if not path.exists():
            if any((self.folder.path / name).exists() for name in ("runs", "results")):
                raise InputError(
                    f"{self.folder.path} has runs or results, but no {path.name} that describes "
                    "them; choose another --output or delete them"
                )
            return False
        try:
            begun = read_json(path)
        except InputError as error:
            raise InputError(f"{error}; choose another --output") from error
        if changed := [key for key in wanted if begun.get(key) != wanted[key]]:
            raise InputError(
                f"{self.folder.path} has another campaign: {', '.join(changed)} differ (models are "
                "compared by their weights, structures by their files). Choose another --output or "
                "delete that folder"
            )
        return True

    def run(
        self, workers: int, cost: Callable[[Task], float] = lambda task: 1.0, quiet: bool = False
    ) -> None:
        """Run all tasks that have no result yet.

        A lock on the folder keeps other processes away. Ctrl-C loses at most the work of each run
        since its last checkpoint.

        Parameters
        ----------
        workers : int
            Number of processes. Each has a thread, unless the protocol has another number.
        cost : Callable[[Task], float]
            Function that returns the expected time of a task, s, for the progress bar and the
            order.
        quiet : bool
            Whether to show no progress bars.

        Raises
        ------
        InputError
            If another process runs this campaign, or a model's file changed.
        MissingDependencyError
            If a package is missing in a worker.
        StudentError
            If a worker was killed, or tasks raised errors (see `perform`). In the second case, all
            other tasks are done first.
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
                    for task in [task for task in waiting if set(task.needs) <= done]:
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
                        except Exception as error:  # a calculator may raise anything
                            undone[task.name] = error
                    waiting = [task for task in waiting if not set(task.needs) & set(undone)]
                    show(list(running.values()), done)
        except BrokenProcessPool as error:
            names = ", ".join(task.name for task in running.values())
            raise StudentError(
                f"a worker was killed at {names or 'its start'}, by a crash or because of missing "
                "memory; run the same command again to resume"
            ) from error
        finally:
            for process in list((pool._processes or {}).values()):
                if running:
                    process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)
        if undone:
            name, error = next(iter(undone.items()))
            reason = (
                error if isinstance(error, StudentError) else f"{type(error).__name__}: {error}"
            )
            raise StudentError(
                f"{len(undone)} task(s) did not finish, and tasks that need them were left out. "
                f"The first is {name}: {reason}. Run the same command to try them again"
            ) from error


def perform(task: Task, output: Path) -> None:
    """Run a task in a worker, and write its result.

    Failures of the model are stored as failed results. These are errors of OpenMM, LAMMPS or a
    calculator during a run, files of a run that the analysis refuses (atoms in another order, a log
    of other frames, a frame that the model cannot evaluate), and comparisons with a failed run.
    Failures of the machine are raised and retried.

    Parameters
    ----------
    task : Task
        The task.
    output : Path
        Folder of the campaign.

    Raises
    ------
    StudentError, OSError
        If a failure says nothing about the model: a killed worker or `lmp`, a full disk, missing
        memory, deleted files, a missing package or teacher. Nothing is written, and the same
        command tries again.
    """
    folder = Folder(output)
    model, engine = task.name.split("/")[:2]
    head: dict[str, Any] = {"case": task.name, "step": task.step, "structure": task.structure}
    head |= {"model": model, "engine": engine, "judged": task.judged, **task.identity()}
    failure, record, series = "", {}, {}
    if isinstance(task, RunTask):
        run = folder.run(task.name)
        try:
            if task.proposal_model:
                run_reference_monte_carlo(task.settings, task.proposal_model, run.path, quiet=True)
            else:
                run_md(task.settings, run.path, quiet=True)
        except StudentError as error:
            if (
                type(error) is not StudentError
            ):  # its subclasses are errors of input or installation
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
    """Return the message of a model's failure; raise InterruptedRunError if the machine failed."""
    if TRANSIENT.search(str(error)):
        raise InterruptedRunError(str(error)) from error
    return str(error)


def _failure(folder: Folder, name: str) -> str:
    """Return why a task failed, or an empty text if it did not."""
    result = folder.read(name)
    return result["record"]["failure"] if result else ""


def _require_files(run: RunFolder) -> None:
    """Raise InterruptedRunError if files of a run are missing."""
    for path in (run.trajectory, run.topology, run.thermo):
        if not path.is_file():
            raise InterruptedRunError(
                f"{path} is missing; delete the folder {run.path} and the result of the run, and "
                "the run is made again"
            )


def _digest_of(source: str) -> str:
    """Return the SHA-256 of a structure's file, or a SMILES string itself."""
    return sha256(Path(source)) if Path(source).is_file() else source


@contextmanager
def _bars(
    pending: list[Task], cost: Callable[[Task], float], folder: Folder, quiet: bool
) -> Iterator[Callable[[list[Task], set[str]], None]]:
    """Show a progress bar for all tasks in expected seconds, and one for each running task."""
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
    """Return the finished share of a run, from the rows in the log of its newest segment."""
    if isinstance(task, CompareTask):
        return 0.0
    segments = folder.run(task.name).segments()
    if not segments:
        return 0.0
    try:
        rows = segments[-1].thermo.read_bytes().count(b"\n") - 1
    except OSError:
        return 1.0  # the segments were joined, so the run is finished
    return min(1.0, (segments[-1].first_step + rows * task.settings.every) / task.settings.steps)
