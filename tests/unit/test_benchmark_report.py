"""The benchmark report: no cached call is measured, all that was promised is in it, it resumes."""

import json

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.lj import LennardJones

from mlff_student.benchmark import report
from mlff_student.benchmark.report import (
    ReportSettings,
    benchmark_report,
    displaced,
    moving,
    scaling_exponent,
)
from mlff_student.benchmark.thermal import side_by_side
from mlff_student.core.errors import InputError

TEACHER = "python:ase.calculators.lj:LennardJones"


def test_no_call_is_cached(monkeypatch):
    """ASE remembers the last structure: the calculator must compute in every timed call."""
    computed = []
    calculate = LennardJones.calculate

    def counting(self, *arguments, **options):
        computed.append(1)
        calculate(self, *arguments, **options)

    monkeypatch.setattr(LennardJones, "calculate", counting)
    ethanol = molecule("CH3CH2OH")
    places = [copy.positions for copy in displaced(ethanol, 0.01)]
    call = moving(report._forces_at(LennardJones(), ethanol), places)
    for _ in range(40):
        call()
    assert len(computed) == 40


def test_exponent_is_that_of_the_times():
    records = [
        {"measurement": "scaling", "model": "m", "atoms": n, "ms": 0.3 * n**1.1}
        for n in (22, 100, 1000)
    ]
    assert scaling_exponent(records, "m") == pytest.approx(1.1)
    assert np.isnan(scaling_exponent(records[:2], "m"))


def test_teacher_is_not_asked_for_what_takes_too_long(monkeypatch):
    """By the cube of the number of atoms, from the last size on."""
    monkeypatch.setattr(report, "LONGEST_CALL", 0.0)
    settings = ReportSettings(models=("tiny",), teacher=TEACHER, atoms=(9, 90), seconds=0.05)
    found = report._teachers_scaling(TEACHER, molecule("CH3CH2OH"), settings)
    assert [(one["measurement"], one["atoms"]) for one in found] == [("scaling", 9), ("memory", 9)]
    assert found[-1]["peak_memory_mb"] is not None


def test_copies_side_by_side_do_not_touch():
    ethanol = molecule("CH3CH2OH")
    atoms = side_by_side(ethanol, 5)
    assert atoms.symbols.get_chemical_formula() == "C10H30O5"
    own = np.arange(len(atoms)) // len(ethanol)
    assert atoms.get_all_distances()[own[:, None] != own].min() >= 3.0
    first, last = atoms[:9].get_all_distances(), atoms[-9:].get_all_distances()
    np.testing.assert_allclose(first, last)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Settings, folder and records of a short benchmark of one student and a cheap teacher."""
    settings = ReportSettings(
        models=("ultra_tiny",),
        teacher=TEACHER,
        molecule="CCO",
        atoms=(100, 200),
        batches=(2,),
        engines=("openmm",),
        steps=50,
        seconds=0.1,
    )
    folder = tmp_path_factory.mktemp("benchmark")
    return settings, folder, benchmark_report(settings, folder)


def test_report_has_every_measurement(measured):
    _, folder, records = measured
    kinds = {(one["measurement"], one["model"]) for one in records}
    for kind in ("single", "batch", "md", "scaling", "memory", "stages"):
        assert (kind, "ultra_tiny") in kinds
    for kind in ("single", "batch", "md", "scaling", "memory"):
        assert (kind, TEACHER) in kinds
    assert np.isfinite(scaling_exponent(records, TEACHER))
    for one in records:
        if one["measurement"] == "scaling" and one["model"] == "ultra_tiny":
            assert one["ms_with_search"] > one["ms"]  # of 100 and 200 atoms it is no small part
    times = [one[key] for one in records for key in ("ms", "ms_per_step") if one.get(key)]
    assert len(times) >= 6 and min(times) > 0
    page = (folder / "benchmark.html").read_text()
    assert "ultra_tiny" in page and "Speed against accuracy" in page
    assert "http" not in page.replace("http-equiv", "").split("<body>")[1]


def test_benchmark_goes_on(measured, monkeypatch):
    """What is in the file is not measured again; another benchmark's file is refused."""
    settings, folder, records = measured
    file = folder / "benchmark.json"
    content = json.loads(file.read_text())
    content["results"] = [one for one in content["results"] if one["measurement"] != "memory"]
    file.write_text(json.dumps(content))
    monkeypatch.setattr(report, "_single", None)  # would raise if it were called
    again = benchmark_report(settings, folder)
    assert {one["job"] for one in again} == {one["job"] for one in records}
    with pytest.raises(InputError, match="settings differ"):
        benchmark_report(ReportSettings(models=("tiny",), teacher=TEACHER), folder)
