"""The benchmark of OpenMM: its records, how it resumes, and settings that it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlff_student.benchmark.steps import StepSettings, benchmark_steps
from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.engines.protocol import ns_per_day

LENNARD_JONES = "python:ase.calculators.lj:LennardJones"
QUICK = {"models": ("ultra_tiny",), "seconds": 0.1, "platforms": ("CPU",)}


def test_every_combination_has_a_record():
    records = benchmark_steps(
        StepSettings(**QUICK, molecule="O", atoms=(80,), also=(LENNARD_JONES,), timestep_fs=2.0)
    )
    measured = [
        (
            record["atoms"],
            record["model"],
            record["interface"],
            record["backend"],
            record["periodic"],
        )
        for record in records
    ]
    students = [
        ("ultra_tiny", interface, backend)
        for backend in ("native", "portable")
        for interface in ("TorchForce", "PythonForce")
    ]
    expected = [(3, *student, False) for student in students]
    expected += [(3, LENNARD_JONES, "PythonForce", "", False)]
    expected += [(80, *student, True) for student in students]
    assert measured == expected
    for record in records:
        assert record["platform"] == "CPU" and record["threads"] == 1
        assert record["overhead_ms"] == record["ms_per_step"] - record["kernel_ms"]
        assert record["ns_per_day"] == ns_per_day(2.0, record["ms_per_step"])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"threads": (999,)}, InputError, "threads must be 1 to"),
        ({"atoms": (1,)}, InputError, "atoms must be 2 or more, got 1"),
        ({"seconds": 0.0}, InputError, "seconds must be positive"),
        ({"molecule": "", "atoms": ()}, InputError, "no molecule and no atoms"),
        ({"platforms": ("Quantum",)}, InputError, "no platform 'Quantum'"),
        ({"interfaces": ("TorchForces",)}, InputError, "no interface 'TorchForces'"),
        ({"also": ("python:nowhere:f",)}, MissingDependencyError, "cannot import nowhere"),
        ({"also": (LENNARD_JONES,), "molecule": "", "atoms": (80,)}, InputError, "no molecule to"),
        ({"models": ()}, InputError, "no models"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, error, words):
    with pytest.raises(error, match=words):
        benchmark_steps(StepSettings(**QUICK | {"molecule": "O", "atoms": ()} | options))


def test_killed_benchmark_resumes(tmp_path):
    """Records in the file are kept, the same settings measure the rest, and others are refused."""
    path = tmp_path / "openmm.json"
    settings = StepSettings(
        **QUICK | {"seconds": 0.01}, molecule="O", atoms=(80, 90), backends=("native",)
    )

    def stop(job: str, done: int, jobs: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmark_steps(settings, path, stop)
    before = json.loads(path.read_text())["results"]
    assert [record["atoms"] for record in before] == [3] * 2 + [80] * 2
    jobs: list[str] = []
    records = benchmark_steps(settings, path, lambda job, done, count: jobs.append(job))
    assert jobs[-2:] == ["thermal, 90 atoms, threads: 1", "done"]
    assert records[:4] == before
    assert [record["atoms"] for record in records[4:]] == [90] * 2
    with pytest.raises(InputError, match=r"another benchmark \(timestep_fs differ\)"):
        benchmark_steps(StepSettings(**vars(settings) | {"timestep_fs": 1.0}), path)


def test_command(tmp_path: Path):
    path = tmp_path / "openmm.json"
    command = [
        sys.executable, "-m", "mlff_student", "benchmark", "openmm", "--models", "ultra_tiny",
        "--molecule", "O", "--atoms", "", "--platforms", "Reference", "--backends", "native",
        "--interfaces", "PythonForce", "--seconds", "0.1", "--json", str(path),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    content = json.loads(path.read_text())
    (record,) = content["results"]
    assert content["command"] == "benchmark openmm"
    assert record["ms_per_step"] > 0.0
    assert [entry.name for entry in tmp_path.iterdir()] == ["openmm.json"]
