"""The JSON file of a benchmark, written after each measurement; a killed run goes on with it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..results import write_json

Record = dict[str, Any]


class RecordFile:
    """Flat records of one benchmark; in memory alone where there is no file.

    Parameters
    ----------
    path : JSON file; one that is there is read, and gone on with.
    head : all else of the file's object, by which its benchmark is known: the command, what the
        machine is, the settings.

    Raises
    ------
    InputError : the file is of another benchmark, or of none.
    """

    def __init__(self, path: Path | None, head: dict[str, Any]) -> None:
        self.path = path
        self.head = head
        self.records: list[Record] = self._read(path) if path and path.exists() else []

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
        """Keep records; the file is replaced whole."""
        self.records += records
        if self.path:
            write_json(self.path, self.head | {"results": self.records})


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    for name, value in wanted.items():
        if isinstance(value, dict) and isinstance(found.get(name), dict):
            yield from _differences(found[name], value)
        elif found.get(name) != value:
            yield name
