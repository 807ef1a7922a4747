"""The records of a benchmark: a JSON file that grows with each record, and resumes after a kill."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from mlff_student.core.errors import InputError
from mlff_student.core.files import require_writable
from mlff_student.core.results import machine_facts, read_json, write_json
from mlff_student.core.version import __version__

Record = dict[str, Any]
Progress = Callable[[str, int, int], None]  # name of a job, number of jobs done, number of jobs


def no_progress(job: str, done: int, jobs: int) -> None:
    """Show nothing."""


class Job(Protocol):
    """One measurement: a NamedTuple whose fields are keys of the records that it gives."""

    def _asdict(self) -> dict[str, Any]: ...


class RecordFile:
    """The records of a benchmark and their JSON file.

    Parameters
    ----------
    path : Path, optional
        JSON file. An existing file must be of the same command, machine and settings. If not given,
        the records are kept in memory only.
    command : str
        Command that makes the records.
    settings : dataclass
        What is measured, with a field `models`.
    machine : dict of str to str
        Facts that the figures depend on, in addition to `machine_facts`.

    Raises
    ------
    InputError
        The file cannot be written, or is of another benchmark.
    """

    def __init__(
        self, path: Path | None, command: str, settings: Any, machine: dict[str, str]
    ) -> None:
        self.path = path
        self.records: list[Record] = []
        self.head = {
            "command": command,
            "version": __version__,
            "model": ",".join(settings.models),
            "machine": machine_facts() | machine,
            "settings": json.loads(json.dumps(asdict(settings))),
        }
        if path:
            require_writable(path)
            if path.exists():
                self.records = self._read(path)

    def _read(self, path: Path) -> list[Record]:
        try:
            content = read_json(path)
            head = {name: content.get(name) for name in self.head}
            records = _records_of(content)
        except (InputError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} exists and is no file of {self.head['command']}; give another file"
            ) from error
        if changed := list(_differences(head, self.head)):
            raise InputError(
                f"{path} holds another benchmark ({', '.join(changed)} differ); give another "
                "file, or remove this one"
            )
        return records

    def measure(
        self,
        jobs: Iterable[Job],
        measure: Callable[[Any], list[Record]],
        progress: Progress = no_progress,
    ) -> list[Record]:
        """Measure the jobs that have no record yet, and write the file after each job.

        Parameters
        ----------
        jobs : iterable of Job
            All jobs of the benchmark.
        measure : callable
            Returns the records of a job.
        progress : callable
            Called with the name of the job, the number of jobs done and the number of jobs.

        Returns
        -------
        list of dict
            All records, in the order in which they were measured.
        """
        jobs = list(jobs)
        for number, job in enumerate(jobs):
            progress(str(job), number, len(jobs))
            if not any(is_of(record, job) for record in self.records):
                self.records += measure(job)
                if self.path:
                    write_json(self.path, self.head | {"results": self.records})
        progress("done", len(jobs), len(jobs))
        return self.records


def is_of(record: Record, job: Job) -> bool:
    """Return whether a record was made by a job."""
    return all(record.get(name) == value for name, value in job._asdict().items())


def read_records(path: Path, *commands: str) -> tuple[dict[str, Any], list[Record]]:
    """Read the file of a benchmark.

    Parameters
    ----------
    path : Path
        JSON file that `RecordFile` wrote.
    *commands : str
        Commands whose records are accepted.

    Returns
    -------
    machine : dict
        Facts about the machine and the versions.
    records : list of dict
        The records.

    Raises
    ------
    InputError
        The file cannot be read, is of another command, or holds no records.
    """
    try:
        content = read_json(path)
        command, machine, records = content["command"], content["machine"], _records_of(content)
    except (InputError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no file of {' or '.join(commands)}: {error}") from error
    if command not in commands or not records:
        raise InputError(
            f"{path} holds {len(records)} records of {command!r}; records of "
            f"{' or '.join(commands)} are needed"
        )
    return machine, records


def _records_of(content: dict[str, Any]) -> list[Record]:
    records = content["results"]
    if not (isinstance(records, list) and all(isinstance(record, dict) for record in records)):
        raise TypeError("results is not a list of records")
    return records


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for name, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(name), dict):
            yield from _differences(old[name], value)
        elif old.get(name) != value:
            yield name
