"""The records of a benchmark: one JSON file, written as they are made and resumed after a kill."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from mlff_student.core.errors import InputError
from mlff_student.core.files import require_writable
from mlff_student.core.results import machine_facts, write_json
from mlff_student.core.version import __version__

Record = dict[str, Any]
Progress = Callable[[str, int, int], None]  # a job's name, how many are done, how many there are


def no_progress(job: str, done: int, jobs: int) -> None:
    """Show nothing."""


class Job(Protocol):
    """What is measured in one go: a NamedTuple whose fields are keys of the records it gives."""

    def _asdict(self) -> dict[str, Any]: ...


class RecordFile:
    """The JSON file and the records in it; records alone where there is no file.

    Parameters
    ----------
    path : Path | None
        A file that exists must be of the same command, machine and settings.
    command : str
        The command that makes the records.
    settings : dataclass
        What is measured, with a field `models`.
    machine : dict[str, str]
        Facts beyond `machine_facts` that the figures depend on.

    Raises
    ------
    InputError
        The file cannot be written, or cannot be resumed.
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
            content = json.loads(path.read_text())
            head = {name: content.get(name) for name in self.head}
            records = content["results"]
        except (OSError, ValueError, AttributeError, KeyError) as error:
            raise InputError(
                f"{path} exists and is no file of {self.head['command']}; choose another file"
            ) from error
        if changed := list(_differences(head, self.head)):
            raise InputError(
                f"{path} holds another benchmark ({', '.join(changed)} differ); choose another "
                "file or remove that one"
            )
        return records

    def measure(
        self,
        jobs: Iterable[Job],
        measure: Callable[[Any], list[Record]],
        progress: Progress = no_progress,
    ) -> list[Record]:
        """Measure the jobs that have no record yet; the file is written after each of them.

        Returns
        -------
        list[Record]
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
    """Whether a record was made by a job."""
    return all(record.get(name) == value for name, value in job._asdict().items())


def read_records(path: Path, *commands: str) -> tuple[dict[str, Any], list[Record]]:
    """Facts about the machine, and the records, of a benchmark's file.

    Parameters
    ----------
    path : Path
        File that `RecordFile` has written.
    *commands : str
        Commands that make such records.

    Raises
    ------
    InputError
        The file cannot be read, is of another command, or holds no records.
    """
    try:
        content = json.loads(path.read_text())
        command, machine, records = (content[key] for key in ("command", "machine", "results"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no file of {' or '.join(commands)}: {error}") from error
    if command not in commands or not records:
        raise InputError(
            f"{path} holds {len(records)} records of {command!r}; those of {' or '.join(commands)} "
            "are needed"
        )
    return machine, records


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for name, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(name), dict):
            yield from _differences(old[name], value)
        elif old.get(name) != value:
            yield name
