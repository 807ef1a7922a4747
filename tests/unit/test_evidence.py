"""The summary of a model's evidence, and when it is inconsistent or outdated."""

import json
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from mlff_student.archive import registry
from mlff_student.archive.evidence import (
    Evidence,
    Observation,
    add_evidence,
    check_evidence,
    content_sha256,
    read_evidence,
)
from mlff_student.cli import app
from mlff_student.core.errors import InputError
from mlff_student.core.figures import THRESHOLDS, Figure
from mlff_student.core.files import sha256
from mlff_student.distill.evaluate import card_text, recipe_content_sha256
from mlff_student.distill.recipe import ORGANIC_RECIPE
from mlff_student.validation.evidence import CAMPAIGN, protocol_sha256, thresholds_sha256

ROOT = Path(__file__).parents[2]
DRIFT = Observation(Figure("drift", -0.00193, "meV/atom/ps", 0.0003), {"engine": "openmm"})


def evidence(what: str = "nve", **made_from: str) -> Evidence:
    return Evidence(what, "mlff-student validate run", "2026-11-22", [DRIFT], made_from=made_from)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoint folder with weights and a card."""
    checkpoint = tmp_path / "mine"
    checkpoint.mkdir()
    (checkpoint / "model.pt").write_bytes(b"weights")
    return checkpoint


def card(folder: Path) -> dict:
    return {"model_sha256": sha256(folder / "model.pt")}


def test_summary_contains_the_evidence_that_was_added(folder: Path):
    first, second = evidence(recipe="a" * 64), evidence("speed")
    add_evidence(folder, "mine", [first])
    assert add_evidence(folder, "mine", [second]) == [first, second]
    assert read_evidence(folder) == [first, second]
    content = json.loads((folder / "summary.json").read_text())
    assert (content["format"], content["model"]) == (1, "mine")
    assert content["weights_sha256"] == sha256(folder / "model.pt")
    assert content["evidence"][0]["figures"] == [
        {
            "name": "drift",
            "value": -0.00193,
            "unit": "meV/atom/ps",
            "standard_error": 0.0003,
            "where": {"engine": "openmm"},
        }
    ]


def test_evidence_of_the_same_name_is_replaced(folder: Path):
    add_evidence(folder, "mine", [evidence(recipe="a" * 64), evidence("speed")])
    newer = evidence(recipe="b" * 64)
    assert add_evidence(folder, "mine", [newer]) == [newer, evidence("speed")]


def test_evidence_of_other_weights_is_dropped(folder: Path):
    add_evidence(folder, "mine", [evidence()])
    (folder / "model.pt").write_bytes(b"other weights")
    assert add_evidence(folder, "mine", [evidence("speed")]) == [evidence("speed")]


def test_a_figure_that_is_no_number_is_left_out(folder: Path):
    broken = Evidence("nve", "", "", [Observation(Figure("drift", float("nan"))), DRIFT])
    add_evidence(folder, "mine", [broken])
    assert read_evidence(folder)[0].figures == [DRIFT]


def test_damaged_summary_is_refused(folder: Path):
    for text in ("{", "[]", '{"format": 2}', '{"format": 1, "evidence": [{"figures": []}]}'):
        (folder / "summary.json").write_text(text)
        with pytest.raises(InputError, match=r"summary\.json"):
            read_evidence(folder)


def test_another_input_makes_evidence_outdated(folder: Path):
    add_evidence(folder, "mine", [evidence(recipe="a", dataset="d"), evidence("speed")])
    state = check_evidence(folder, card(folder), {"recipe": "a"})
    assert (state.inconsistent, [each.changed for each in state.evidence]) == ([], [[], []])
    state = check_evidence(folder, card(folder), {"recipe": "b"})
    assert [each.changed for each in state.evidence] == [["recipe"], []]


def test_other_weights_are_inconsistent(folder: Path):
    add_evidence(folder, "mine", [evidence()])
    of_these = card(folder)
    assert check_evidence(folder, of_these, {}).inconsistent == []
    (folder / "model.pt").write_bytes(b"other weights")
    assert len(check_evidence(folder, of_these, {}).inconsistent) == 2  # card and summary
    (folder / "summary.json").unlink()
    assert "there is no summary.json" in check_evidence(folder, card(folder), {}).inconsistent


def test_hash_depends_on_values_and_not_on_their_notation():
    text = "steps: 100\nrates: [1, 0.5]\n"
    same = "# faster\nrates:\n- 1.0\n- 0.5\nsteps: 100.0\n"
    assert content_sha256(yaml.safe_load(text)) == content_sha256(yaml.safe_load(same))
    changed = yaml.safe_load(text) | {"steps": 101}
    assert content_sha256(yaml.safe_load(text)) != content_sha256(changed)
    assert content_sha256({"on": True}) != content_sha256({"on": 1})


def rewritten(path: Path, folder: Path, change) -> Path:
    """Write a copy of a YAML file with changed values and without comments."""
    values = yaml.safe_load(path.read_text())
    change(values)
    copy = folder / path.name
    copy.write_text(yaml.safe_dump(values))
    return copy


def nothing(values: dict) -> None:
    """Change no value, so that only the comments are lost."""


@pytest.mark.parametrize(
    ("digest", "path", "words", "what"),
    [
        (
            lambda path: recipe_content_sha256(path, "tiny"),
            ORGANIC_RECIPE,
            lambda recipe: recipe["training"]["original"].update(steps=1),
            lambda recipe: recipe["training"]["tiny"].update(steps=1),
        ),
        (
            protocol_sha256,
            CAMPAIGN,
            lambda protocol: protocol.update(about="other words", models=["tiny"]),
            lambda protocol: protocol["steps"][0].update(ps=[20]),
        ),
        (
            thresholds_sha256,
            THRESHOLDS,
            lambda table: table["heating_percent"].update(source="other words"),
            lambda table: table["heating_percent"].update(value=6),
        ),
    ],
    ids=["recipe", "protocol", "thresholds"],
)
def test_hash_depends_on_numbers_only(digest, path: Path, words, what, tmp_path: Path):
    """Comments, prose and settings of another model do not change the hash; numbers do."""
    before = digest(path)
    assert digest(rewritten(path, tmp_path, nothing)) == before
    assert digest(rewritten(path, tmp_path, words)) == before
    assert digest(rewritten(path, tmp_path, what)) != before


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy of a shipped checkpoint, which the command uses in place of the shipped ones."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(registry.available_models()["ultra_tiny"], folder / "ultra_tiny")
    monkeypatch.setattr(registry, "FOLDERS", (folder,))
    return folder / "ultra_tiny"


def check(*options: str, json_file: Path) -> tuple[int, list[dict]]:
    result = CliRunner().invoke(app, ["models", "--check", "--json", str(json_file), *options])
    return result.exit_code, json.loads(json_file.read_text())["results"]


def test_command_reports_outdated_evidence_and_passes(shipped: Path, tmp_path: Path):
    add_evidence(shipped, "ultra_tiny", [evidence("old", **{"thresholds.yaml": "0" * 64})])
    status, records = check(json_file=tmp_path / "check.json")
    (old,) = [record for record in records if record["evidence"] == "old"]
    assert status == 0
    assert (old["current"], old["changed"]) == (False, "thresholds.yaml")
    assert old["consistent"]
    assert old["command"] == "mlff-student validate run"
    assert check("--strict", json_file=tmp_path / "check.json")[0] == 1


def test_command_fails_where_weights_changed_under_the_evidence(shipped: Path, tmp_path: Path):
    with (shipped / "model.pt").open("ab") as file:
        file.write(b"0")
    status, records = check(json_file=tmp_path / "check.json")
    assert status == 1
    assert not any(record["consistent"] for record in records)


def test_page_shows_what_was_held_in_md(shipped: Path):
    """The card has the ranges of the figures; without evidence it has no such section."""
    facts = json.loads((shipped / "card.json").read_text())
    assert "Results in MD" not in card_text(facts)
    drifts = [Observation(Figure("drift", v, "meV/atom/ps"), {"step": "nve"}) for v in (-0.5, 0.25)]
    text = card_text(facts, [Evidence("validation campaign", "", "", drifts)])
    assert "| -0.5 to 0.25 |" in text
    assert len(text.splitlines()) < 60


# --- The script that fills the summaries ----------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(ROOT / "benchmarks" / "summarise_evidence.py"))


def run_of(temperature_K: float, drift: float) -> dict:
    """Record of a run at one of several temperatures, as `validate run` writes it."""
    return {
        "case": f"tiny/openmm/temperature_ladder/ethanol-{temperature_K:g}K",
        "step": "temperature_ladder",
        "structure": "ethanol",
        "model": "tiny",
        "engine": "openmm",
        "judged": True,
        "kind": "run",
        "ensemble": "nve",
        "atoms": 9,
        "target_temperature_k": temperature_K,
        "duration_ps": 10.0,
        "failed_runs": 0,
        "drift_mev_per_atom_ps": drift,
        "drift_stderr_mev_per_atom_ps": 0.001,
        "bond_deviation_angstrom": 0.1,
    }


def test_campaign_is_summarised_by_temperature(script: dict):
    """The range of temperatures ends at the first that fails above the lowest that passes."""
    runs = [run_of(100.0, 0.01), run_of(200.0, -0.02), run_of(300.0, 0.9), run_of(400.0, 0.01)]
    content = {
        "command": "validate",
        "protocol": "campaign",
        "protocol_sha256": "0" * 64,
        "reproduce": "mlff-student validate run tiny --protocol campaign -o elsewhere",
        "machine": {"torch": "2.9.1", "processor": "AMD", "cores": 2},
        "results": [*runs, run_of(100.0, 7.0) | {"model": "original"}],
    }
    results = script["Results"](content, "2026-11-22", "")
    summary = script["of_campaign"](results, "tiny", 76_097)
    assert summary.command == "mlff-student validate run tiny --protocol campaign"
    assert (summary.versions, summary.machine) == ({"torch": "2.9.1"}, "AMD, 2 cores")
    assert summary.made_from[CAMPAIGN.name] == "0" * 64  # not the shipped protocol
    figures = [(figure.key, figure.value, where) for figure, where in summary.figures]
    assert ("nve_runs_passed", 3, {}) in figures
    assert ("temperature_held_k", 100.0, {"bound": "lowest"}) in figures
    assert ("temperature_held_k", 200.0, {"bound": "highest"}) in figures
    drifts = {
        where["temperature_K"]: value
        for key, value, where in figures
        if key == "drift_mev_per_atom_ps"
    }
    assert drifts == {100.0: 0.01, 200.0: -0.02, 300.0: 0.9, 400.0: 0.01}


def test_benchmark_is_summarised_with_its_command(script: dict):
    """The summary has the records of the student and of networks of its size only."""
    record = {"model": "tiny", "parameters": 76_097, "backend": "native", "ms": 0.2, "atoms": 22}
    content = {
        "command": "benchmark kernels",
        "model": "tiny,original",
        "settings": {"models": ["tiny", "original"], "atoms": [22], "openmm": False},
        "results": [
            record,
            record | {"model": "original", "ms": 0.8},
            record | {"model": "mace", "parameters": 80_000, "ms": 20.0},
            record | {"model": "mace", "parameters": 400_000, "ms": 40.0},
        ],
    }
    results = script["Results"](content, "2026-11-22", "")
    summary = script["of_benchmark"](results, "tiny", 76_097)
    words = "mlff-student benchmark kernels --models tiny,original --atoms 22 --no-openmm"
    assert summary.command == words
    values = [(figure.value, where.get("model")) for figure, where in summary.figures]
    assert values == [(0.2, None), (20.0, "mace")]


@pytest.mark.parametrize("model", registry.available_models())
def test_commands_of_the_shipped_evidence_exist(model: str):
    for each in read_evidence(registry.available_models()[model]):
        words = shlex.split(each.command)
        if words[0] == "python":
            assert (ROOT / words[1]).is_file(), each.command
            continue
        command = typer.main.get_command(app)
        del words[0]
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context("mlff-student", words)  # parses, and runs nothing
