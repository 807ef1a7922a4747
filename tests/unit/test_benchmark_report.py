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
from mlff_student.errors import InputError

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
    assert {("single", TEACHER), ("md", TEACHER)} <= kinds
    for one in records:
        if one["measurement"] == "scaling":  # 100 and 200 atoms: the search is no small part
            assert one["ms_with_search"] > one["ms"]
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
