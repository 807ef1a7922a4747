"""The benchmark of LAMMPS: its records, how it resumes, and settings that it refuses."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ase.neighborlist import neighbor_list

from mlff_student.benchmark.lammps import LammpsSettings, benchmark_lammps
from mlff_student.benchmark.structures import acetone_box
from mlff_student.core.errors import InputError

STAGES = ("neighbour", "edges", "model", "tally", "communication", "other")
SETTINGS = LammpsSettings(("ultra_tiny",), atoms=(60,), ranks=(1, 2), threads=(1,), seconds=0.1)


@pytest.mark.parametrize("count", [60, 1000, 10000])
def test_acetone_box_has_the_density_of_the_liquid(count):
    """The box holds whole molecules that do not touch, and is nearly a cube."""
    liquid = acetone_box(count)
    assert len(liquid) == count
    assert liquid.get_chemical_formula(empirical=True) == "C3H6O"
    density = liquid.get_masses().sum() / liquid.get_volume() / 0.602214  # g/cm3
    assert density == pytest.approx(0.7845, rel=1e-3)
    i, j, distance = neighbor_list("ijd", liquid, 2.5)
    assert distance[i // 10 != j // 10].min() > 1.5
    assert liquid.cell.lengths().max() < 2.0 * liquid.cell.lengths().min()


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[Path, list[dict]]:
    """JSON file and records of a small benchmark with all combinations."""
    path = tmp_path_factory.mktemp("benchmark") / "lammps.json"
    return path, benchmark_lammps(SETTINGS, path)


def check_record(record: dict) -> None:
    """Assert that the figures of a record agree with each other."""
    assert not record["note"]
    assert record["steps"] >= 20 and record["atoms"] == 60 and record["threads"] == 1
    # The stages are LAMMPS's shares of the same steps; it rounds them to five digits.
    total = sum(record[f"{stage}_us"] for stage in STAGES)
    assert total == pytest.approx(record["us_per_atom_step"], rel=1e-3)
    assert record["ms_per_step"] == pytest.approx(60e-3 * record["us_per_atom_step"])
    assert 0.0 < record["communication_share"] < 1.0
    assert record["held_kb_per_atom"] > 1.0


def test_every_combination_has_a_record(measured):
    _, records = measured
    assert [(row["backend"], row["ranks"]) for row in records] == [
        ("native", 1),
        ("native", 2),
        ("portable", 1),
    ]
    for record in records:
        check_record(record)
        assert (record["style"], record["system"]) == ("mlff_student", "acetone")
    alone, two, _ = records
    assert alone["messages_per_step"] == 0.0
    ratio = alone["us_per_atom_step"] / two["us_per_atom_step"]
    assert two["speedup_by_ranks"] == pytest.approx(ratio)
    assert 0.0 < two["sent_kb_per_step"] < two["swapped_kb_per_step"]


def test_threads_of_a_rank_share_its_memory():
    """LAMMPS counts each thread as a processor, but reports the memory of a rank."""
    settings = replace(SETTINGS, ranks=(1,), threads=(1, 2), backends=("native",))
    one, two = benchmark_lammps(settings)
    assert (one["threads"], two["threads"]) == (1, 2)
    assert two["held_kb_per_atom"] == pytest.approx(one["held_kb_per_atom"], rel=0.3)


def test_killed_run_resumes(measured):
    """Records in the file are not measured again, and other settings are refused."""
    path, records = measured
    content = json.loads(path.read_text())
    assert content["command"] == "benchmark lammps"
    content["results"] = records[:-1]
    path.write_text(json.dumps(content))
    benchmark_lammps(SETTINGS, path)
    resumed = json.loads(path.read_text())["results"]
    assert resumed[:-1] == json.loads(json.dumps(records[:-1]))
    assert resumed[-1]["backend"] == "portable"
    other = LammpsSettings(("tiny",), atoms=(60,), seconds=0.1)
    with pytest.raises(InputError, match="holds another benchmark"):
        benchmark_lammps(other, path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"atoms": (1001,)}, "a multiple of 10 atoms, got 1001"),
        ({"atoms": (0,)}, "a multiple of 10 atoms, got 0"),
        ({"ranks": (999,)}, "ranks must be 1 to"),
        ({"threads": (0,)}, "threads must be 1 to"),
        ({"seconds": math.nan}, "seconds must be positive"),
        ({"models": ()}, "no models"),
        ({"backends": ("cuda",)}, "no backend 'cuda'"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        LammpsSettings(**{"models": ("tiny",), "atoms": (60,)} | options)


def test_command(tmp_path):
    """The command prints a table, and writes the records and no other file."""
    command = [
        sys.executable, "-m", "mlff_student", "benchmark", "lammps", "--models", "ultra_tiny",
        "--atoms", "60", "--ranks", "1", "--threads", "1", "--seconds", "0.1",
        "--backends", "native", "--json", "lammps.json",
    ]  # fmt: skip
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "ultra_tiny" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["lammps.json"]
