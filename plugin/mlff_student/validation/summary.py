"""The verdict over all results of a campaign, and what a model is good for by them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..verdict import Check, Threshold, verdict, with_error
from .compare import stderr_of

Record = Mapping[str, Any]
# Figures that a full validation has, and what is needed to measure them.
EXPECTED = {
    "drift_mev_per_atom_ps": "runs at constant energy",
    "exchange_ratio": "runs at constant energy",
    "bond_deviation_angstrom": "any run",
    "force_rmse_ev_per_angstrom": "a teacher (--teacher)",
    "convergence_deviation": "a ladder of timesteps",
    "rdf_error_percent": "a liquid box and a teacher's run of it",
}


class CaseCheck(NamedTuple):
    """A figure of one case held against its threshold."""

    case: str
    model: str
    engine: str
    judged: bool
    check: Check
    stderr: float  # of the figure; NaN where none is known

    def __str__(self) -> str:
        return f"{self.check.name} is {with_error(self.check.value, self.stderr)}"


class Advice(NamedTuple):
    """What the evidence says a model is for, and what not; sentences."""

    use_for: list[str]
    not_for: list[str]


@dataclass(frozen=True)
class Summary:
    """Verdict of a campaign.

    Attributes
    ----------
    checks : every figure with a threshold, of every case.
    not_measured : figure and what it would have needed.
    advice : by model.
    """

    checks: list[CaseCheck]
    not_measured: dict[str, str]
    advice: dict[str, Advice]

    @property
    def passed(self) -> bool:
        """Whether all that the verdict counts is within the thresholds."""
        return not self.failures

    @property
    def failures(self) -> list[CaseCheck]:
        """What the verdict counts and is not within its threshold."""
        return [one for one in self.checks if one.judged and not one.check.passed]

    def worst(self, model: str, engine: str) -> dict[str, CaseCheck]:
        """The figure farthest up of those the verdict counts, by name."""
        found: dict[str, CaseCheck] = {}
        for one in self.checks:
            if (one.model, one.engine) == (model, engine) and one.judged:
                name = one.check.name
                if name not in found or _badness(one) > _badness(found[name]):
                    found[name] = one
        return found


def _badness(one: CaseCheck) -> float:
    value = abs(one.check.value)
    return np.inf if np.isnan(value) else value


def summarise(records: Iterable[Record], thresholds: Mapping[str, Threshold]) -> Summary:
    """Verdict over the records of a campaign's results.

    Raises
    ------
    InputError : no record that the verdict counts.
    """
    records = list(records)
    checks = [
        CaseCheck(
            one["case"],
            one["model"],
            one["engine"],
            one["judged"],
            check,
            stderr_of(one, check.name),
        )
        for one in records
        for check in verdict(_numbers(one), thresholds)
    ]
    if not any(one.judged for one in checks):
        raise InputError("no result that a verdict could be made of")
    measured = {one.check.name for one in checks}
    missing = {name: what for name, what in EXPECTED.items() if name not in measured}
    models = dict.fromkeys(one.model for one in checks if one.judged)
    advice = {model: _advice(model, records, checks, missing) for model in models}
    return Summary(checks, missing, advice)


def _numbers(record: Record) -> Record:
    """The record with null, which is how JSON has NaN, as NaN."""
    return {key: np.nan if value is None else value for key, value in record.items()}


def _advice(
    model: str, records: list[Record], checks: list[CaseCheck], missing: Mapping[str, str]
) -> Advice:
    failed = {one.case: one for one in checks if not one.check.passed}
    mine = [one for one in records if one["model"] == model]
    runs = [one for one in mine if one.get("ensemble") == "nve"]
    use, avoid = [], []
    kept = [one for one in runs if one["judged"] and one["case"] not in failed]
    if kept:
        atoms, length = [one["atoms"] for one in kept], max(one["duration_ps"] for one in kept)
        use.append(
            f"constant-energy MD of {_span(atoms)} atoms: {len(kept)} of "
            f"{sum(one['judged'] for one in runs)} runs held, the longest {length:.0f} ps"
        )
    for key, unit, what in (
        ("target_temperature_k", "K", "temperature"),
        ("timestep_fs", "fs", "timestep"),
        ("atoms", "atoms", "size"),
    ):
        rungs = [one for one in runs if one["step"] == f"{what}_ladder" and key in one]
        held, broke = _ladder(rungs, key, failed)
        if held is not None and what != "size":
            use.append(f"{what} up to {held:g} {unit}, the highest rung below which all held")
        elif held is not None:
            use.append(f"up to {held:g} atoms, the largest size below which all held")
        if broke is not None:
            value, why = broke
            avoid.append(f"{what} of {value:g} {unit} and more: {why}")
    liquid = [
        one for one in mine if one.get("ensemble") in ("nvt", "npt") or "rdf_error_percent" in one
    ]
    bad = [one for one in liquid if one["case"] in failed]
    if liquid and not bad:
        use.append("the liquid tested, for as long as it was run")
    for one in bad:
        why = failed[one["case"]]
        avoid.append(f"liquids such as {one['structure']} ({one['engine']}): {why}")
    for one in runs:
        if one["judged"] and one["case"] in failed and not one["step"].endswith("_ladder"):
            avoid.append(f"{one['structure']} ({one['engine']}): {failed[one['case']]}")
    if not liquid:
        avoid.append("liquids: not tested")
    for name in missing:
        if name == "force_rmse_ev_per_angstrom":
            avoid.append("anything that depends on the teacher's forces: not compared")
    return Advice(use, list(dict.fromkeys(avoid)))


def _ladder(
    rungs: list[Record], key: str, failed: Mapping[str, CaseCheck]
) -> tuple[float | None, tuple[float, CaseCheck] | None]:
    """Highest rung up to which all held, and the lowest at which one did not, with why."""
    held: float | None = None
    for value in sorted({one[key] for one in rungs}):
        bad = [one for one in rungs if one[key] == value and one["case"] in failed]
        if bad:
            return held, (value, failed[bad[0]["case"]])
        held = value
    return held, None


def _span(values: list[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"
