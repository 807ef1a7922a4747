"""Figures: measured numbers with their unit and error, and the thresholds they are judged by.

The keys of a figure in JSON come from its name and unit alone. `figures.yaml` has every figure that
a record can hold, with the title that tables print; `thresholds.yaml` has every limit with its
source.
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
# What a unit is in the keys of JSON. A count or a ratio has the empty unit, which adds nothing.
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
    "kT/ns/dof": "kt_per_ns_per_dof",
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
    """One measured number.

    Attributes
    ----------
    name : str
        What was measured, without the unit: "drift".
    value : float
        In `unit`; a NaN is a figure that could not be measured, and fails.
    unit : str
        One of `SUFFIXES`.
    standard_error : float or None
        In the same unit. None: the figure has none by nature, as a count; NaN: it is not known.
    noise : float or None
        What sampling alone would make of the figure, in the same unit, where that was measured.
    """

    name: str
    value: float
    unit: str = ""
    standard_error: float | None = None
    noise: float | None = None

    @property
    def key(self) -> str:
        """Key in a record: "drift_mev_per_atom_ps"."""
        return _key(self.name, self.unit)

    @property
    def standard_error_key(self) -> str:
        """Key of the standard error: "drift_stderr_mev_per_atom_ps"."""
        return _key(f"{self.name}_stderr", self.unit)

    @property
    def noise_key(self) -> str:
        """Key of the noise: "rdf_noise_percent" beside "rdf_error_percent"."""
        return _key(f"{self.name.removesuffix('_error')}_noise", self.unit)

    @property
    def title(self) -> str:
        """What tables call it; its name in words where `figures.yaml` does not have it."""
        known = known_figures().get(self.key)
        return known.title if known else self.name.replace("_", " ")

    def as_record(self) -> dict[str, float]:
        """The figure, its standard error and its noise, as far as it has them, by their keys."""
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
    """A row of `figures.yaml`: name and unit of a figure, and the title that tables print."""

    name: str
    unit: str
    title: str

    def figure(self, value: float) -> Figure:
        """The figure with a value."""
        return Figure(self.name, value, self.unit)


@dataclass(frozen=True)
class Threshold:
    """What a figure must stay within.

    Attributes
    ----------
    value : float
        The limit.
    unit : str
        Of the limit, in words.
    source : str
        Why it is this number.
    bound : str
        "absolute": the most that the absolute value may be; "most": the most that the value may be;
        "least": the least.
    ensembles : tuple of str
        That it applies to; empty: any run.
    errors_to_fail : float
        Standard errors that a figure must be beyond the limit by to fail. Nearer, it is not
        resolved.
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
        """How far a value is within the limit; negative beyond it, NaN of NaN."""
        if self.bound == "least":
            return value - self.value
        return self.value - (abs(value) if self.bound == "absolute" else value)

    @property
    def sign(self) -> str:
        """Between a figure that passes and the limit."""
        return "≥" if self.bound == "least" else "≤"

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g} {self.unit}".rstrip()


class Measured:
    """What analyses return: figures for whoever judges or prints, a record for JSON."""

    def figures(self) -> list[Figure]:
        """All numbers that were measured."""
        raise NotImplementedError

    def facts(self) -> dict[str, str]:
        """What is known besides, in words: the atoms of the worst bond, the ensemble."""
        return {}

    def as_record(self) -> dict[str, Any]:
        """Flat dictionary with units in the keys, as JSON has it."""
        return record_of(self.figures()) | self.facts()


@cache
def known_figures() -> dict[str, KnownFigure]:
    """All figures of `figures.yaml` by their keys."""
    rows = [KnownFigure(*row) for row in yaml.safe_load(KNOWN.read_text())]
    return {_key(row.name, row.unit): row for row in rows}


def symbols(unit: str) -> str:
    """A unit as pages and plots print it: "eV/Å" for "eV/angstrom"."""
    return unit.replace("angstrom", "Å").replace("^2", "²").replace("^3", "³")


def record_of(figures: Iterable[Figure]) -> dict[str, float]:
    """Flat dictionary of figures, their standard errors and their noise."""
    return {key: value for figure in figures for key, value in figure.as_record().items()}


def figures_of(record: Mapping[str, Any]) -> list[Figure]:
    """The known figures in a record, such as one read from JSON, where null stands for NaN."""
    known = known_figures()
    return [_read(record, known[key]) for key in record if key in known]


def figure_of(record: Mapping[str, Any], key: str) -> Figure | None:
    """One known figure of a record; None where the record does not have it, or has null."""
    return None if record.get(key) is None else _read(record, known_figures()[key])


def _read(record: Mapping[str, Any], known: KnownFigure) -> Figure:
    figure = known.figure(np.nan)
    value, error, noise = (
        (np.nan if record[key] is None else record[key]) if key in record else None
        for key in (figure.key, figure.standard_error_key, figure.noise_key)
    )
    return replace(figure, value=value, standard_error=error, noise=noise)


def load_thresholds(path: Path = THRESHOLDS) -> dict[str, Threshold]:
    """Thresholds by the key of the figure they bound.

    Raises
    ------
    InputError
        If the file is not such a table.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text())
        return {key: Threshold(**entry) for key, entry in entries.items()}
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"cannot read thresholds from {path} (name: value, unit, source): {error}"
        ) from error


def _key(name: str, unit: str) -> str:
    return "_".join(filter(None, (name, SUFFIXES[unit])))
