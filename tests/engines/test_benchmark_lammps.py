"""The benchmark of LAMMPS: it measures what it says, goes on after a kill, refuses the rest."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.neighborlist import neighbor_list

from mlff_student.benchmark.boxes import acetone_box, tantalum_box
from mlff_student.benchmark.lammps import LammpsSettings, benchmark_lammps
from mlff_student.benchmark.lammps_report import BEGIN, END, report, write_section
from mlff_student.benchmark.weak_scaling import Network, predict
from mlff_student.core.errors import InputError, MissingDependencyError

STAGES = ("neighbour", "edges", "model", "tally", "communication", "other")
SETTINGS = LammpsSettings(("ultra_tiny",), atoms=(60,), ranks=(1, 2), threads=(1,), seconds=0.1)


@pytest.mark.parametrize("count", [60, 1000, 10000])
def test_boxes(count):
    """Liquid density, whole molecules that do not touch; a metal's nearest neighbours."""
    liquid = acetone_box(count)
    assert len(liquid) == count
    assert liquid.get_chemical_formula(empirical=True) == "C3H6O"
    density = liquid.get_masses().sum() / liquid.get_volume() / 0.602214  # g/cm3
    assert density == pytest.approx(0.7845, rel=1e-3)
    i, j, distance = neighbor_list("ijd", liquid, 2.5)
    assert distance[i // 10 != j // 10].min() > 1.5
    assert liquid.cell.lengths().max() < 2.0 * liquid.cell.lengths().min()
    metal = tantalum_box(count)
    assert len(metal) == count
    assert neighbor_list("d", metal, 3.0).min() == pytest.approx(3.316 * math.sqrt(3) / 2)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[Path, list[dict]]:
    """JSON file and records of one small run with everything in it."""
    path = tmp_path_factory.mktemp("benchmark") / "lammps.json"
    return path, benchmark_lammps(SETTINGS, path)


def test_every_combination_has_a_record(measured):
    _, records = measured
    found = [(one["style"], one["backend"], one["ranks"], one["system"]) for one in records]
    assert found == [
        ("mlff_student", "native", 1, "acetone"),
        ("mlff_student", "native", 2, "acetone"),
        ("mlff_student", "portable", 1, "acetone"),
        ("reaxff", "", 1, "acetone"),
        ("reaxff", "", 2, "acetone"),
        ("snap", "", 1, "tantalum"),
        ("snap", "", 2, "tantalum"),
    ]
    for one in records:
        assert not one["note"]
        assert one["steps"] >= 20 and one["atoms"] == 60 and one["threads"] == 1
        # The stages are LAMMPS's shares of the same steps; it rounds them to five digits.
        total = sum(one[f"{stage}_us"] for stage in STAGES)
        assert total == pytest.approx(one["us_per_atom_step"], rel=1e-3)
        assert one["ms_per_step"] == pytest.approx(60e-3 * one["us_per_atom_step"])
        assert 0.0 < one["communication_share"] < 1.0
        assert one["held_kb_per_atom"] > 1.0
        student = one["style"] == "mlff_student"
        assert (one["swaps_per_step"] is not None) == student
        if one["ranks"] == 2:
            alone = next(
                each
                for each in records
                if each["ranks"] == 1
                and (each["style"], each["backend"]) == (one["style"], one["backend"])
            )
            ratio = alone["us_per_atom_step"] / one["us_per_atom_step"]
            assert one["speedup_by_ranks"] == pytest.approx(ratio)
            if student:
                assert 0.0 < one["sent_kb_per_step"] < one["swapped_kb_per_step"]
        elif student:
            assert one["messages_per_step"] == 0.0


def test_threads_share_a_ranks_memory():
    """LAMMPS counts each thread as a processor; memory is of ranks."""
    settings = LammpsSettings(("ultra_tiny",), (60,), ranks=(1,), threads=(1, 2), seconds=0.1)
    one, two = benchmark_lammps(replace(settings, others=()))
    assert (one["threads"], two["threads"]) == (1, 2)
    assert two["held_kb_per_atom"] == pytest.approx(one["held_kb_per_atom"], rel=0.3)


def test_killed_run_goes_on(measured, monkeypatch):
    """What is in the file is not measured again, and settings of another benchmark are refused."""
    path, records = measured
    content = json.loads(path.read_text())
    assert content["command"] == "benchmark lammps"
    content["results"] = records[:-1]
    path.write_text(json.dumps(content))
    runs = []
    benchmark_lammps(SETTINGS, path, lambda job, *_: runs.append(job))
    found = json.loads(path.read_text())["results"]
    assert len(runs) == len(records) + 1
    assert [one["us_per_atom_step"] for one in found[:-1]] == [
        one["us_per_atom_step"] for one in records[:-1]
    ]
    assert found[-1]["style"] == "snap" and found[-1]["ranks"] == 2
    other = LammpsSettings(("tiny",), atoms=(60,), seconds=0.1)
    with pytest.raises(InputError, match="holds another benchmark"):
        benchmark_lammps(other, path)


def test_report_names_what_was_measured(measured, tmp_path):
    """Into the marked place of a document, as often as one likes."""
    _, records = measured
    text = report(records, Network())
    for words in ("| ultra_tiny | 60 | 2 | 1 |", "Chenoweth", "Thompson, Swiler", "1,000 ranks"):
        assert words in text
    path = tmp_path / "README.md"
    path.write_text(f"before\n\n{BEGIN}\n\nold\n\n{END}\n\nafter\n")
    for _ in range(2):
        write_section(text, path)
    assert path.read_text() == f"before\n\n{BEGIN}\n\n{text}\n\n{END}\n\nafter\n"
    path.write_text("no marks")
    with pytest.raises(InputError, match="has no place marked"):
        write_section(text, path)


def test_weak_scaling_of_a_known_machine():
    """Three exchanges' worth of messages at 1 us and 1 GB/s, by hand."""
    record = {
        "swaps_per_step": 12.0,
        "swapped_kb_per_step": 952.0,
        "ghosts_per_rank": 1000.0,
        "ms_per_step": 10.0,
    }
    found = {
        one.ranks: one
        for one in predict(record, 2, Network(latency_us=1.0, bandwidth_gb_per_s=1.0))
    }
    assert found[1].ms_per_step == 10.0 and found[1].efficiency == 1.0
    messages = 24 * 1e-3 + 1.0  # of pair style and LAMMPS; 952 kB + 48 B x 1000
    assert found[2].ms_per_step == pytest.approx(10.0 + messages / 3 + 1e-3)
    assert found[8].ms_per_step == pytest.approx(10.0 + messages + 3e-3)
    assert found[1000].ms_per_step == pytest.approx(10.0 + messages + 10e-3)
    assert found[1000].efficiency == pytest.approx(10.0 / found[1000].ms_per_step)
    assert list(found) == sorted(found)
    assert np.all(np.diff([one.efficiency for one in found.values()]) < 0.0)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"atoms": (1001,)}, InputError, "a multiple of 10 atoms, got 1001"),
        ({"atoms": (0,)}, InputError, "a multiple of 10 atoms, got 0"),
        ({"ranks": (999,)}, InputError, "ranks must be 1 to"),
        ({"threads": (0,)}, InputError, "threads must be 1 to"),
        ({"seconds": math.nan}, InputError, "seconds must be positive"),
        ({"models": ()}, InputError, "no models"),
        ({"others": ("amber",)}, InputError, "nothing is known of 'amber'"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, error, words):
    with pytest.raises(error, match=words):
        LammpsSettings(**{"models": ("tiny",), "atoms": (60,)} | options)


def test_a_potential_that_is_not_there(monkeypatch):
    monkeypatch.setattr("mlff_student.benchmark.lammps.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"has no file ffield\.reax\.cho"):
        benchmark_lammps(SETTINGS)


def test_command(tmp_path):
    """Records, figure and document from one line."""
    command = [
        sys.executable, "-m", "mlff_student", "benchmark", "lammps", "--models", "ultra_tiny",
        "--atoms", "60", "--ranks", "1", "--threads", "1", "--seconds", "0.1", "--others", "",
        "--json", "lammps.json", "--report", "lammps.md",
    ]  # fmt: skip
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "lammps.json",
        "lammps.md",
        "lammps.png",
    ]
