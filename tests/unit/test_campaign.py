"""The campaign that the shipped students come with: of these weights, and as README says."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mlff_student.archive.registry import available_models
from mlff_student.core.figures import load_thresholds
from mlff_student.core.files import sha256
from mlff_student.validation.measure import MEASURES
from mlff_student.validation.protocol import load_protocol
from mlff_student.validation.report import load_schema
from mlff_student.validation.summary import summarise

ROOT = Path(__file__).parents[2]
CAMPAIGN = ROOT / "checkpoints" / "data" / "validation"
MODELS = ("original", "tiny", "ultra_tiny")


def records(model: str, step: str = "*") -> Iterator[dict[str, Any]]:
    for path in sorted(CAMPAIGN.glob(f"results/{model}/*/{step}/*.json")):
        content = json.loads(path.read_text())
        assert content["measures"] == MEASURES, "measured by an older analysis; run it again"
        yield content["record"]


def test_campaign_is_of_the_shipped_weights():
    begun = json.loads((CAMPAIGN / "campaign.json").read_text())
    assert begun["protocol"] == load_protocol("campaign").digest
    for model in MODELS:
        assert begun["models"][model] == sha256(available_models()[model] / "model.pt")


@pytest.mark.parametrize("model", MODELS)
def test_report_says_what_the_results_and_the_thresholds_say(model):
    report = json.loads((CAMPAIGN / f"report-{model}.json").read_text())
    jsonschema.validate(report, load_schema())
    mine = [one for one in report["results"] if one["model"] == model]
    assert {one["case"]: one for one in mine} == {one["case"]: one for one in records(model)}
    summary = summarise(mine, load_thresholds())
    assert report["passed"] == summary.passed
    told = {(one["case"], one["name"]): one["passed"] for one in report["checks"]}
    found = {(one.case, one.check.name): one.check.passed for one in summary.checks}
    assert {key: told[key] for key in found} == found
    assert report["advice"][model] == summary.advice[model]._asdict()


def test_original_keeps_its_bars_in_both_engines():
    """Drift, excursion and forces, for five molecules at two lengths and a nanosecond of one."""
    runs = [one for step in ("nve", "nve_1ns") for one in records("original", step)]
    assert len(runs) == 2 * (5 * 2 + 1)
    for run in runs:
        assert run["failed_runs"] == 0
        assert abs(run["drift_mev_per_atom_ps"]) < 0.05
        assert abs(run["seed_drift_percent"]) < 0.05
        assert run["force_rmse_ev_per_angstrom"] < 0.2


def row(title: str, *cells: str) -> str:
    return "| " + " | ".join((title, *cells)) + " |"


def largest(model: str, step: str, key: str) -> float:
    return max(abs(one[key]) for one in records(model, step))


def table() -> Iterator[str]:
    """README's table, as far as it has figures."""
    drift, rmse = "drift_mev_per_atom_ps", "force_rmse_ev_per_angstrom"
    yield row(
        "drift at 300 K and 0.5 fs, 5 unseen molecules of 17 to 30 atoms, 10 and 50 ps",
        "0.05 meV/atom/ps",
        *(f"{largest(model, 'nve', drift):.3f}" for model in MODELS),
    )
    yield row(
        "the same of benzocaine, 1 ns",
        "0.05 meV/atom/ps",
        *(f"{largest(model, 'nve_1ns', drift):.4f}" for model in MODELS),
    )
    forces = {model: [one[rmse] for one in records(model, "nve")] for model in MODELS}
    yield row(
        "forces along the 10 and 50 ps against GFN2-xTB (RMSE)",
        "0.2 eV/angstrom",
        *(f"{min(errors):.2f} to {max(errors):.2f}" for errors in forces.values()),
    )
    for liquid, step in (("water", "liquid_water"), ("methanol", "liquid")):
        errors = [
            max(one["rdf_error_percent"] for one in records(model, step) if one["kind"] == "rdf")
            for model in MODELS
        ]
        yield row(f"g(r) of {liquid}, worst pair", "5 %", *(f"{error:.0f} %" for error in errors))
    lost = "density_change_percent"
    changes = [[-one[lost] for one in records(m, "liquid*") if lost in one] for m in MODELS]
    spans = [f"{min(change):.0f} to {max(change):.0f} %" for change in changes]
    yield row("density lost at 1 bar, methanol and water", "25 %", *spans)
    for title, step, unit in (
        ("temperature up to which two molecules of 23 atoms held, 10 ps", "temperature", "K"),
        ("timestep up to which two molecules held, 300 K", "timestep", "fs"),
    ):
        advice = [summarise(records(model), load_thresholds()).advice[model] for model in MODELS]
        found = [re.search(rf"{step} of \S+ to (\S+) {unit}", str(one.use_for)) for one in advice]
        yield row(title, "", *(f"{one[1]} {unit}" for one in found)).replace("|  |", "| |")


def test_readme_has_the_campaigns_figures():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert [line for line in table() if line not in lines] == []
