"""Chemistry of students against teachers: real energies, files, verdict and resumption."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlff_student.archive.evidence import read_evidence
from mlff_student.archive.registry import checkpoint_path
from mlff_student.cli import main
from mlff_student.core.errors import InputError
from mlff_student.core.figures import record_of
from mlff_student.distill.chemistry import (
    ChemistryReport,
    Place,
    compare_chemistry,
    load_chemistry,
    run_isomer,
)
from mlff_student.distill.chemistry_report import records, write_report
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator

CHEMISTRY = load_chemistry()
SMALL = replace(
    CHEMISTRY,
    torsions={name: CHEMISTRY.torsions[name] for name in ("ethane_C-C", "ethene_C=C")},
    dimers={"hydrogen_bonded": ["Water_dimer", "Formamide_dimer"], "dispersion": ["Ethene_dimer"]},
    dimer_curves=["Water_dimer"],
    conformers={"ether": "COCCNC(C)=O"},
    bonds={"O-H": CHEMISTRY.bonds["O-H"], "Si-H": Place("[SiH4]", (0, 1))},
    isomers={"butene": CHEMISTRY.isomers["Z-but-2-ene"]},
    md=replace(CHEMISTRY.md, ps=0.05),
)
FACTORY = """
from mlff_student import StudentForceFieldCalculator

def ultra_tiny():
    return StudentForceFieldCalculator("ultra_tiny")
"""


def values(report: ChemistryReport, part: str, name: str) -> dict[str, float]:
    (row,) = [each for each in report.comparisons if (each.part, each.name) == (part, name)]
    return record_of(row.figures)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("chemistry")


@pytest.fixture(scope="module")
def report(folder: Path) -> ChemistryReport:
    return compare_chemistry("ultra_tiny", "gfn2-xtb", folder, chemistry=SMALL)


def test_energies_are_those_of_the_teacher(report: ChemistryReport):
    """Barriers of GFN2-xTB, and the water dimer near its published -5.0 kcal/mol."""
    assert values(report, "torsions", "ethane_C-C")["barrier_teacher_kcal_per_mol"] == (
        pytest.approx(2.8, abs=0.3)
    )
    assert values(report, "torsions", "ethene_C=C")["barrier_teacher_kcal_per_mol"] > 80.0
    water = values(report, "dimers", "Water_dimer")
    assert water["binding_teacher_kcal_per_mol"] == pytest.approx(-5.0, abs=0.3)
    (row,) = [each for each in report.comparisons if each.name == "Water_dimer"]
    assert row.curve is not None and row.curve.teacher is not None
    at_equilibrium = row.curve.teacher[row.curve.x == 1.0]
    assert at_equilibrium == pytest.approx([water["binding_teacher_kcal_per_mol"]], abs=1e-6)
    assert abs(row.curve.teacher[-1]) < abs(at_equilibrium)


def test_unknown_elements_are_left_out_and_named(report: ChemistryReport):
    (left,) = report.left_out
    assert (left.part, left.name) == ("bonds", "Si-H")
    assert "does not know Si" in left.reason


def test_files(report: ChemistryReport):
    write_report(report)
    content = json.loads((report.folder / "chemistry.json").read_text())
    assert content["command"] == "distill chemistry"
    assert content["results"] == json.loads(json.dumps(records(report)))
    judged = [record for record in content["results"] if "passed" in record]
    assert {record["part"] for record in judged} == {*("torsions", "dimers", "conformers"),
                                                     *("bonds", "isomers")}  # fmt: skip
    for name in ("torsions", "dimers", "binding", "conformers", "bonds"):
        assert (report.folder / f"{name}.png").stat().st_size > 10_000


def test_labels_are_kept_for_other_students(report: ChemistryReport, folder: Path):
    files = {path: path.stat().st_mtime_ns for path in folder.glob("labels/*/*.extxyz")}
    assert len(files) == 8
    other = compare_chemistry("tiny", "gfn2-xtb", folder, ("torsions", "dimers"), chemistry=SMALL)
    for name in ("ethane_C-C", "ethene_C=C"):
        key = "barrier_teacher_kcal_per_mol"
        first, second = (values(each, "torsions", name) for each in (report, other))
        assert first[key] == pytest.approx(second[key], abs=1e-4)
        assert first["torsion_rmse_kcal_per_mol"] != second["torsion_rmse_kcal_per_mol"]
    again = compare_chemistry("ultra_tiny", "gfn2-xtb", folder, chemistry=SMALL)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("labels/*/*.extxyz")} == files
    for row, earlier in zip(again.comparisons, report.comparisons, strict=True):
        assert record_of(row.figures) == pytest.approx(
            record_of(earlier.figures), rel=1e-4, abs=1e-3
        )


@pytest.fixture
def its_own_teacher(tmp_path: Path, monkeypatch) -> str:
    """Name of a teacher that is the student ultra_tiny."""
    (tmp_path / "its_own_teacher.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    return "python:its_own_teacher:ultra_tiny"


def test_a_student_that_is_its_own_teacher_passes(its_own_teacher: str, tmp_path: Path):
    """All 16 rotations and all dimers: every comparison is of equal geometries."""
    complete = replace(CHEMISTRY, conformers=SMALL.conformers)
    parts = ("torsions", "dimers", "conformers")
    report = compare_chemistry("ultra_tiny", its_own_teacher, tmp_path, parts, "original", complete)
    assert report.passed and not report.left_out
    assert len(report.checks) == 16 + 1 + 2
    for row in report.comparisons:
        for figure in row.figures:
            if "error" in figure.name or figure.name.endswith(("mae", "rmse", "deviation")):
                assert abs(figure.value) < 0.01, (row.name, figure)
    assert values(report, "conformers", "all")["conformer_spearman"] == pytest.approx(1.0)


def test_a_molecule_that_breaks_is_no_isomer_that_holds():
    calculator = StudentForceFieldCalculator("ultra_tiny")
    place = CHEMISTRY.isomers["Z-but-2-ene"]
    cold = replace(CHEMISTRY.md, ps=0.1, temperature_K=10.0)
    assert run_isomer(calculator, place, cold) == (0, 0.1)
    hot = replace(CHEMISTRY.md, ps=0.5, temperature_K=3e4)
    assert run_isomer(calculator, place, hot)[1] < 0.5


def test_broken_isomer_fails(tmp_path: Path):
    hot = replace(SMALL, md=replace(CHEMISTRY.md, ps=0.5, temperature_K=3e4))
    report = compare_chemistry("ultra_tiny", "gfn2-xtb", tmp_path, ("isomers",), chemistry=hot)
    assert not report.passed
    assert np.isnan(values(report, "isomers", "butene")["isomerisations"])


@pytest.mark.parametrize(
    ("parts", "preset", "message"),
    [(("torsion",), "", "unknown part 'torsion'"), ((), "huge", "unknown preset 'huge'")],
)
def test_unknown_names(parts: tuple[str, ...], preset: str, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        compare_chemistry("tiny", "gfn2-xtb", tmp_path, parts, preset)
    assert not list(tmp_path.iterdir())


def test_command_judges_and_adds_evidence(
    its_own_teacher: str, tmp_path: Path, monkeypatch, capsys
):
    checkpoint = tmp_path / "mine"
    shutil.copytree(checkpoint_path("ultra_tiny").parent, checkpoint)
    before = len(read_evidence(checkpoint))
    words = ["distill", "chemistry", str(checkpoint), "--teacher", its_own_teacher]
    words += ["--only", "bonds", "-o", str(tmp_path / "out"), "--summary"]
    words += ["--json", str(tmp_path / "results.json")]
    monkeypatch.setattr(sys, "argv", ["mlff-student", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    verdicts = [line for line in lines if re.search("FAIL|pass", line)]
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert len(results) == len(verdicts) == len(CHEMISTRY.bonds)
    for record, verdict in zip(results, verdicts, strict=True):
        assert record["name"] in verdict and record["teacher"] == its_own_teacher
        assert record["passed"] == ("pass" in verdict) == (not record["bond_curve_falls"])
    evidence = read_evidence(checkpoint)
    assert len(evidence) == before + 1
    assert evidence[-1].what == f"chemistry against {its_own_teacher}"
    assert {each.where["case"] for each in evidence[-1].figures} == set(CHEMISTRY.bonds)
