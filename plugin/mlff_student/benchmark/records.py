"""The file of a benchmark, which a killed run goes on with."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlff_student.core.errors import InputError
from mlff_student.core.results import machine_facts, write_json
from mlff_student.core.version import __version__

Record = dict[str, Any]


class RecordFile:
    """The JSON file and the records in it; records alone where there is no file.

    Parameters
    ----------
    path : a file that is there already must be of the same command, machine and settings.
    command : that makes the records.
    settings : dataclass with a field `models`, what is measured.
    machine : facts beyond `machine_facts` that the figures depend on.

    Raises
    ------
    InputError : the file cannot be gone on with.
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
            "settings": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in asdict(settings).items()
            },
        }
        if path and path.exists():
            self.records = self._read(path)

    def _read(self, path: Path) -> list[Record]:
        try:
            content = json.loads(path.read_text())
            found = {name: content.get(name) for name in self.head}
            records = content["results"]
        except (OSError, ValueError, AttributeError, KeyError) as error:
            raise InputError(
                f"{path} exists and is no file of {self.head['command']}; choose another --json"
            ) from error
        if changed := list(_differences(found, self.head)):
            raise InputError(
                f"{path} holds another benchmark ({', '.join(changed)} differ); choose another "
                "--json or remove that file"
            )
        return records

    def add(self, records: list[Record]) -> None:
        """Keep records, in the file too."""
        self.records += records
        if self.path:
            write_json(self.path, self.head | {"results": self.records})


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    for name, value in wanted.items():
        if isinstance(value, dict) and isinstance(found.get(name), dict):
            yield from _differences(found[name], value)
        elif found.get(name) != value:
            yield name
