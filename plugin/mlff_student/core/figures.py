"""Measured figures, and the one table of thresholds."""

from pathlib import Path
from typing import NamedTuple

import yaml

from mlff_student.core.errors import InputError

THRESHOLDS = Path(__file__).with_name("thresholds.yaml")


class Threshold(NamedTuple):
    """Largest absolute value a figure may have."""

    value: float
    unit: str
    source: str


def load_thresholds(path: Path = THRESHOLDS) -> dict[str, Threshold]:
    """Thresholds by the name of the figure they bound.

    Raises
    ------
    InputError : not such a table.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text())
        table = {name: Threshold(**entry) for name, entry in entries.items()}
        return {name: entry._replace(value=float(entry.value)) for name, entry in table.items()}
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"cannot read thresholds from {path} (name: value, unit, source): {error}"
        ) from error
