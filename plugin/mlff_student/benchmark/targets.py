"""The targets of the benchmarks, and the judgement of measured figures by them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from mlff_student.benchmark.records import Record
from mlff_student.core.figures import KnownFigure, Threshold, known_figures
from mlff_student.reporting.verdict import Check, judge_figure

TARGETS = Path(__file__).with_name("targets.yaml")


class Target(NamedTuple):
    """A limit that a figure of a benchmark should keep, and the records that it applies to.

    Attributes
    ----------
    figure : KnownFigure
        The figure.
    threshold : Threshold
        The limit.
    models : list of str, or "all"
        Names of the models that it applies to.
    atoms : int
        Number of atoms that it applies to; 0 for any from `atoms_from` on.
    atoms_from : int
        Smallest number of atoms that it applies to.
    threads, ranks : int
        Numbers of threads and ranks that it applies to.
    """

    figure: KnownFigure
    threshold: Threshold
    models: list[str] | str
    atoms: int = 0
    atoms_from: int = 0
    threads: int = 1
    ranks: int = 1

    @property
    def key(self) -> str:
        """Key of the figure in a record."""
        return self.figure.figure(np.nan).key

    def concerns(self, record: Record) -> bool:
        """Return whether the target applies to a record; it applies to native kernels only."""
        return (
            record["backend"] == "native"
            and (self.models == "all" or record["model"] in self.models)
            and record["threads"] == self.threads
            and record.get("ranks", 1) == self.ranks
            and record["atoms"] == (self.atoms or max(record["atoms"], self.atoms_from))
        )

    def check(self, value: float) -> Check:
        """Compare a value of the figure with the limit."""
        return judge_figure(self.figure.figure(value), self.threshold)


class TargetCheck(NamedTuple):
    """A measured figure judged by a target.

    Attributes
    ----------
    model : str
        Name of the model.
    atoms : str
        Number of atoms, or a range such as "1000 to 100000".
    check : Check
        The figure with its limit.
    """

    model: str
    atoms: str
    check: Check

    @property
    def verdict(self) -> str:
        """`met`, or by what fraction of the target it was missed."""
        if self.check.passed:
            return "met"
        return f"missed by {abs(self.check.figure.value / self.check.threshold.value - 1.0):.0%}"


def load_targets(path: Path = TARGETS) -> list[Target]:
    """Read all targets.

    Parameters
    ----------
    path : Path
        YAML file in the form of targets.yaml.
    """
    return [
        _target(entry, group["source"])
        for group in yaml.safe_load(path.read_text())
        for entry in group["targets"]
    ]


def _target(entry: dict[str, Any], source: str) -> Target:
    figure = known_figures()[entry.pop("figure")]
    threshold = Threshold(entry.pop("value"), figure.unit, source, entry.pop("bound"))
    return Target(figure, threshold, **entry)


def judge_targets(records: list[Record], targets: list[Target]) -> list[TargetCheck]:
    """Judge all figures that have a target.

    Parameters
    ----------
    records : list of dict
        Records of benchmarks.
    targets : list of Target
        The targets.

    Returns
    -------
    list of TargetCheck
        The judged figures, ordered by model.
    """
    checks = [
        TargetCheck(record["model"], str(record["atoms"]), target.check(record[target.key]))
        for target in targets
        for record in records
        if record.get(target.key) is not None
        and np.isfinite(record[target.key])
        and target.concerns(record)
    ]
    for target in targets:
        if target.key == "exponent":
            checks += _exponents(records, target)
    models = list(dict.fromkeys(record["model"] for record in records))
    return sorted(checks, key=lambda check: models.index(check.model))


def _exponents(records: list[Record], target: Target) -> Iterator[TargetCheck]:
    """Fit time ~ atoms^exponent for each model that was timed at two sizes or more."""
    timed = [
        record
        for record in records
        if record["measurement"] == "kernels"
        and record.get("ms") is not None
        and target.concerns(record)
    ]
    for model in dict.fromkeys(record["model"] for record in timed):
        points = {row["atoms"]: row["ms"] for row in timed if row["model"] == model}
        if len(points) > 1:
            sizes = sorted(points)
            slope, _ = np.polyfit(np.log(sizes), np.log([points[size] for size in sizes]), 1)
            yield TargetCheck(model, f"{sizes[0]} to {sizes[-1]}", target.check(float(slope)))
