"""The project's targets for the kernels, and measured figures judged by them."""

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
    """A threshold, and the records that it applies to.

    Attributes
    ----------
    figure : KnownFigure
        What is bounded.
    threshold : Threshold
        By what.
    models : list of str, or "all"
        Names of models.
    atoms, atoms_from : int
        The number of atoms; or, where that is 0, the smallest.
    threads, ranks : int
        Of the measurement.
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
        """Of the figure, in a record."""
        return self.figure.figure(np.nan).key

    def concerns(self, record: Record) -> bool:
        """Whether it applies to a record of the native kernels."""
        return (
            record["backend"] == "native"
            and (self.models == "all" or record["model"] in self.models)
            and record["threads"] == self.threads
            and record.get("ranks", 1) == self.ranks
            and record["atoms"] == (self.atoms or max(record["atoms"], self.atoms_from))
        )

    def check(self, value: float) -> Check:
        """Judge a value of the figure."""
        return judge_figure(self.figure.figure(value), self.threshold)


class TargetCheck(NamedTuple):
    """A measured figure judged by a target."""

    model: str
    atoms: str  # a number, or "1000 to 100000"
    check: Check

    @property
    def verdict(self) -> str:
        """`met`, or by how much of the target it was missed."""
        if self.check.passed:
            return "met"
        return f"missed by {abs(self.check.figure.value / self.check.threshold.value - 1.0):.0%}"


def load_targets(path: Path = TARGETS) -> list[Target]:
    """All targets of the table."""
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
    """Every figure that a target is about, judged by it; ordered by model."""
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
    """Exponent of time ~ atoms^exponent of each model that was timed at two sizes or more."""
    timed = [
        record
        for record in records
        if record["measurement"] == "kernels"
        and record.get("ms") is not None
        and target.concerns(record)
    ]
    for model in dict.fromkeys(record["model"] for record in timed):
        points = {one["atoms"]: one["ms"] for one in timed if one["model"] == model}
        if len(points) > 1:
            sizes = sorted(points)
            slope, _ = np.polyfit(np.log(sizes), np.log([points[size] for size in sizes]), 1)
            yield TargetCheck(model, f"{sizes[0]} to {sizes[-1]}", target.check(float(slope)))
