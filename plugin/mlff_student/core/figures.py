"""Figures, which are measured numbers with unit and error, and the thresholds that judge them.

The keys of a figure in JSON are made from its name and its unit. `figures.yaml` lists every figure
that a record can hold, with the title that tables print. `thresholds.yaml` lists every limit with
its source.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mlff_student.core.errors import InputError

THRESHOLDS = Path(__file__).with_name("thresholds.yaml")
KNOWN = Path(__file__).with_name("figures.yaml")
# The suffix of each unit in the keys of JSON. A count or a ratio has the empty unit and no suffix.
SUFFIXES = {
    "": "",
    "%": "percent",
    "% of T": "percent",
    "% of |E|": "percent",
    "%/ns": "percent_per_ns",
    "1/cm": "per_cm",
    "1/ps": "per_ps",
    "GPa": "gpa",
    "K": "k",
    "angstrom": "angstrom",
    "bits": "bits",
    "cm^2/s": "cm2_per_s",
    "degrees": "deg",
    "eV": "ev",
    "eV/angstrom": "ev_per_angstrom",
    "eV/atom": "ev_per_atom",
    "fs": "fs",
    "g/cm^3": "g_per_cm3",
    "kB/atom": "kb_per_atom",
    "kcal/mol": "kcal_per_mol",
    "kT/ns/dof": "kt_per_ns_per_dof",
    "kJ/mol": "kj_per_mol",
    "meV/atom": "mev_per_atom",
    "meV/atom/ps": "mev_per_atom_ps",
    "ms": "ms",
    "ps": "ps",
    "s": "s",
    "standard deviations": "sigma",
    "standard errors": "sigma",
}
BOUNDS = ("absolute", "most", "least")


@dataclass(frozen=True)
class Figure:
    """One measured number with its unit and error.

    Attributes
    ----------
    name : str
        Name of the measured quantity without the unit, for example "drift".
    value : float
        Measured value in `unit`. NaN means that it could not be measured; such a figure fails.
    unit : str
        Unit, a key of `SUFFIXES`.
    standard_error : float or None
        Standard error in `unit`. None means that the figure has none, for example a count. NaN
        means that the error is not known.
    noise : float or None
        Value in `unit` that the figure would have because of finite sampling alone. None means that
        it was not measured.
    """

    name: str
    value: float
    unit: str = ""
    standard_error: float | None = None
    noise: float | None = None

    @property
    def key(self) -> str:
        """Key of the value in a record, for example "drift_mev_per_atom_ps"."""
        return _key(self.name, self.unit)

    @property
    def standard_error_key(self) -> str:
        """Key of the standard error in a record, for example "drift_stderr_mev_per_atom_ps"."""
        return _key(f"{self.name}_stderr", self.unit)

    @property
    def noise_key(self) -> str:
        """Key of the noise in a record: "rdf_noise_percent" for the figure "rdf_error_percent"."""
        return _key(f"{self.name.removesuffix('_error')}_noise", self.unit)

    @property
    def title(self) -> str:
        """Title in tables: that in `figures.yaml`, or the name in words if it is not there."""
        known = known_figures().get(self.key)
        return known.title if known else self.name.replace("_", " ")

    def as_record(self) -> dict[str, float]:
        """Return the value and, if there are any, standard error and noise by their keys."""
        record = {self.key: self.value}
        if self.standard_error is not None:
            record[self.standard_error_key] = self.standard_error
        if self.noise is not None:
            record[self.noise_key] = self.noise
        return record

    def __str__(self) -> str:
        error = self.standard_error
        if error is not None and np.isfinite([self.value, error]).all() and error > 0:
            decimals = max(0, 1 - int(np.floor(np.log10(error))))
            return f"{self.value:.{decimals}f} ± {error:.{decimals}f}"
        return f"{self.value:.4g}"


@dataclass(frozen=True)
class KnownFigure:
    """One row of `figures.yaml`.

    Attributes
    ----------
    name : str
        Name of the figure.
    unit : str
        Unit of the figure, a key of `SUFFIXES`.
    title : str
        Title that tables print.
    """

    name: str
    unit: str
    title: str

    def figure(self, value: float) -> Figure:
        """Return the figure with this value, in `unit`."""
        return Figure(self.name, value, self.unit)


@dataclass(frozen=True)
class Threshold:
    """The limit that a figure must not exceed, and its source.

    Attributes
    ----------
    value : float
        The limit.
    unit : str
        Unit of the limit, in words.
    source : str
        Reason for this number.
    bound : str
        "absolute": upper limit of the absolute value; "most": upper limit of the value; "least":
        lower limit of the value.
    ensembles : tuple of str
        Ensembles of the runs that the limit applies to; if empty, it applies to any run.
    errors_to_fail : float
        Number of standard errors by which a figure must be beyond the limit to fail. A figure that
        is beyond the limit by less is not resolved.
    """

    value: float
    unit: str
    source: str
    bound: str = "absolute"
    ensembles: tuple[str, ...] = ()
    errors_to_fail: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", float(self.value))
        object.__setattr__(self, "ensembles", tuple(self.ensembles))
        if self.bound not in BOUNDS:
            raise ValueError(f"bound is {self.bound!r}, expected one of {', '.join(BOUNDS)}")

    def margin(self, value: float) -> float:
        """Return how far a value is within the limit: negative beyond it, NaN if the value is."""
        if self.bound == "least":
            return value - self.value
        return self.value - (abs(value) if self.bound == "absolute" else value)

    @property
    def sign(self) -> str:
        """Sign between a figure that passes and the limit: "≤" or "≥"."""
        return "≥" if self.bound == "least" else "≤"

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g} {self.unit}".rstrip()


class Measured:
    """Base class of the result of an analysis, which gives figures and a record for JSON."""

    def figures(self) -> list[Figure]:
        """Return all numbers that were measured."""
        raise NotImplementedError

    def facts(self) -> dict[str, str]:
        """Return results that are text, for example the atoms of the worst bond."""
        return {}

    def as_record(self) -> dict[str, Any]:
        """Return the flat dictionary that is written to JSON, with units in the keys."""
        return record_of(self.figures()) | self.facts()


@cache
def known_figures() -> dict[str, KnownFigure]:
    """Return all figures of `figures.yaml` by their keys."""
    rows = [KnownFigure(*row) for row in yaml.safe_load(KNOWN.read_text())]
    return {_key(row.name, row.unit): row for row in rows}


def symbols(unit: str) -> str:
    """Return a unit as pages and plots print it, for example "eV/Å" for "eV/angstrom"."""
    return unit.replace("angstrom", "Å").replace("^2", "²").replace("^3", "³")


def record_of(figures: Iterable[Figure]) -> dict[str, float]:
    """Return a flat dictionary of figures, their standard errors and their noise by their keys.

    Parameters
    ----------
    figures : Iterable[Figure]
        Figures with different keys.
    """
    return {key: value for figure in figures for key, value in figure.as_record().items()}


def figures_of(record: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of `figures.yaml` that a record has; null (None) is read as NaN.

    Parameters
    ----------
    record : Mapping[str, Any]
        Flat record, as `record_of` makes it and JSON stores it.
    """
    known = known_figures()
    return [_read(record, known[key]) for key in record if key in known]


def figure_of(record: Mapping[str, Any], key: str) -> Figure | None:
    """Return the figure of a record with this key, or None if it is missing or null.

    Parameters
    ----------
    record : Mapping[str, Any]
        Flat record, as `record_of` makes it and JSON stores it.
    key : str
        Key of a figure of `figures.yaml`.
    """
    return None if record.get(key) is None else _read(record, known_figures()[key])


def _read(record: Mapping[str, Any], known: KnownFigure) -> Figure:
    figure = known.figure(np.nan)
    value, error, noise = (
        (np.nan if record[key] is None else record[key]) if key in record else None
        for key in (figure.key, figure.standard_error_key, figure.noise_key)
    )
    return replace(figure, value=value, standard_error=error, noise=noise)


def load_thresholds(path: Path = THRESHOLDS) -> dict[str, Threshold]:
    """Read a table of thresholds, by the key of the figure that each limits.

    Parameters
    ----------
    path : Path
        YAML file in the form of `thresholds.yaml`.

    Raises
    ------
    InputError
        The file cannot be read or is not a table of thresholds.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text())
        return {key: Threshold(**entry) for key, entry in entries.items()}
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"cannot read thresholds from {path}: {error}. Expected for each figure are value, "
            "unit and source"
        ) from error


def _key(name: str, unit: str) -> str:
    return "_".join(filter(None, (name, SUFFIXES[unit])))
