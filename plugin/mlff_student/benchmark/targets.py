"""What the kernels are to reach, held beside what was measured."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

TARGETS = Path(__file__).with_name("targets.yaml")
UNITS = {
    "ratio_to_portable": "x portable",
    "sgemm_fraction": "of SGEMM rate",
    "speedup_by_threads": "x one thread",
    "exponent": "time exponent",
    "peak_memory_kb_per_atom": "kB/atom",
    "overhead_ms": "ms in OpenMM",
    "batch_speedup": "x one by one",
    "batch_s": "s a batch",
    "communication_share": "of time in communication",
    "speedup_by_ranks": "x one rank",
}


class Target(NamedTuple):
    """One bound; see targets.yaml."""

    figure: str
    models: list[str] | str
    atoms: int = 0
    atoms_from: int = 0
    threads: int = 1
    ranks: int = 1
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bound(self) -> float:
        """The number, whichever side it bounds."""
        found = self.at_most if self.at_least is None else self.at_least
        assert found is not None
        return found

    def concerns(self, record: dict[str, Any]) -> bool:
        """Whether a record of the native kernels has a figure to be held against it."""
        return (
            record["backend"] == "native"
            and record.get(self.figure) is not None
            and (self.models == "all" or record["model"] in self.models)
            and record["threads"] == self.threads
            and record.get("ranks", 1) == self.ranks
            and record["atoms"] == (self.atoms or max(record["atoms"], self.atoms_from))
        )


class Outcome(NamedTuple):
    """A target and the figure measured."""

    model: str
    atoms: str
    target: Target
    measured: float

    @property
    def met(self) -> bool:
        """Whether the figure is on the right side of the target."""
        one = self.target
        return self.measured <= one.bound if one.at_least is None else self.measured >= one.bound

    @property
    def verdict(self) -> str:
        """`met`, or by how much of the target it was missed."""
        if self.met:
            return "met"
        return f"missed by {abs(self.measured / self.target.bound - 1.0):.0%}"


def load_targets(path: Path = TARGETS) -> list[Target]:
    """All targets of the table."""
    groups = yaml.safe_load(path.read_text())
    return [Target(**entry) for group in groups for entry in group["targets"]]


def judge(records: list[dict[str, Any]], targets: list[Target]) -> list[Outcome]:
    """Every target beside every figure it is about, by model."""
    found = [
        Outcome(record["model"], str(record["atoms"]), target, value)
        for target in targets
        for record in records
        if target.concerns(record) and np.isfinite(value := record[target.figure])
    ]
    for target in targets:
        if target.figure == "exponent":
            found += _exponents(records, target)
    models = list(dict.fromkeys(record["model"] for record in records))
    return sorted(found, key=lambda outcome: models.index(outcome.model))


def _exponents(records: list[dict[str, Any]], target: Target) -> Iterator[Outcome]:
    timed = [
        record
        for record in records
        if record["measurement"] == "kernels" and target._replace(figure="ms").concerns(record)
    ]
    for model in dict.fromkeys(record["model"] for record in timed):
        points = {one["atoms"]: one["ms"] for one in timed if one["model"] == model}
        if len(points) > 1:
            sizes = sorted(points)
            slope, _ = np.polyfit(np.log(sizes), np.log([points[size] for size in sizes]), 1)
            yield Outcome(model, f"{sizes[0]} to {sizes[-1]}", target, float(slope))
