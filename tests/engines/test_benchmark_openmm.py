"""The benchmark of steps in OpenMM: that it measures what it says, and refuses what it cannot."""

import json
import subprocess
import sys
from pathlib import Path

import openmm
import pytest

from mlff_student.benchmark.architectures import ARCHITECTURES, make_rival
from mlff_student.benchmark.step_report import step_markdown, write_step_report
from mlff_student.benchmark.steps import StepSettings, benchmark_steps, versions
from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.core.results import machine_facts
from mlff_student.engines.protocol import ns_per_day
from mlff_student.structures.reading import read_structure
from openmm_integration import load_structure

LENNARD_JONES = "python:ase.calculators.lj:LennardJones"
QUICK = {"models": ("ultra_tiny",), "seconds": 0.1, "platforms": ("CPU",)}


def test_every_combination_has_a_record():
    records = benchmark_steps(
        StepSettings(**QUICK, molecule="O", atoms=(80,), others=(LENNARD_JONES,), timestep_fs=2.0)
    )
    found = [
        (one["atoms"], one["model"], one["interface"], one["backend"], one["periodic"])
        for one in records
    ]
    students = [
        ("ultra_tiny", interface, backend)
        for backend in ("native", "portable")
        for interface in ("TorchForce", "PythonForce")
    ]
    expected = [(3, *one, False) for one in students]
    expected += [(3, LENNARD_JONES, "PythonForce", "", False)]
    expected += [(80, *one, True) for one in students]
    assert found == expected
    for one in records:
        assert one["platform"] == "CPU" and one["threads"] == 1
        assert one["overhead_ms"] == one["ms_per_step"] - one["kernel_ms"]
        assert one["ns_per_day"] == ns_per_day(2.0, one["ms_per_step"])
    # Kernels that compute 25 times as many edges an atom, for 27 times as many atoms, take longer.
    small, large = (
        next(one for one in records if (one["atoms"], one["backend"]) == (count, "native"))
        for count in (3, 80)
    )
    assert large["kernel_ms"] > 3 * small["kernel_ms"]
    assert large["ms_per_step"] > 3 * small["kernel_ms"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"threads": (999,)}, InputError, "threads must be 1 to"),
        ({"atoms": (1,)}, InputError, "atoms must be 2 or more, got 1"),
        ({"seconds": 0.0}, InputError, "seconds must be positive"),
        ({"molecule": "", "atoms": ()}, InputError, "no molecule and no atoms"),
        ({"platforms": ("Quantum",)}, InputError, "no platform 'Quantum'"),
        ({"interfaces": ("TorchForces",)}, InputError, "no interface 'TorchForces'"),
        ({"others": ("python:nowhere:f",)}, MissingDependencyError, "cannot import nowhere"),
        ({"others": ("ani",), "molecule": "BrBr"}, InputError, "built for H, C, N, .*not for Br"),
        (
            {"others": ("ani",), "molecule": "", "atoms": (80,)},
            InputError,
            "no molecule to measure",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(options, error, words):
    with pytest.raises(error, match=words):
        benchmark_steps(StepSettings(**QUICK | {"molecule": "O", "atoms": ()} | options))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_missing_package_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, ARCHITECTURES[name].module, None)
    with pytest.raises(MissingDependencyError, match=f"pip install {ARCHITECTURES[name].package}"):
        benchmark_steps(StepSettings(**QUICK, molecule="O", atoms=(), others=(name,)))


@pytest.mark.slow  # they compile for minutes
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("parameters", [429_185, 21_345])
def test_networks_of_other_packages(parameters, name):
    """Of a student's size within 10 %, and with energies that depend on the positions."""
    pytest.importorskip(ARCHITECTURES[name].module)
    rival = make_rival(name, parameters)
    assert rival.parameters == pytest.approx(parameters, rel=0.1)
    if calculator := rival.calculator():
        water = read_structure("O").atoms
        water.calc = calculator
        assert abs(water.get_forces()).max() > 0.0
        return
    topology, positions = load_structure("O")
    context = openmm.Context(
        rival.create_system(topology, read_structure("O").atoms),
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatformByName("Reference"),
    )
    energies = []
    for scale in (1.0, 1.1):
        context.setPositions(positions * scale)
        energies.append(context.getState(energy=True).getPotentialEnergy()._value)
    assert energies[0] != energies[1]


def test_killed_benchmark_goes_on(tmp_path):
    """What is in the file is kept; the same command measures the rest, and another is refused."""
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
    assert [one["atoms"] for one in before] == [3] * 2 + [80] * 2
    jobs: list[str] = []
    records = benchmark_steps(settings, path, lambda job, done, count: jobs.append(job))
    assert jobs == ["packages", "thermal, 90 atoms, threads: 1", "done"]
    assert records[:4] == before
    assert [one["atoms"] for one in records[4:]] == [90] * 2
    with pytest.raises(InputError, match=r"another benchmark \(timestep_fs differ\)"):
        benchmark_steps(StepSettings(**vars(settings) | {"timestep_fs": 1.0}), path)


def test_report(tmp_path):
    """A table for each structure, whose rows are the records, and figures."""
    head = {
        "model": "tiny", "parameters": 76097, "interface": "TorchForce", "backend": "native",
        "platform": "CPU", "threads": 1, "kernel_ms": 0.25, "overhead_ms": 0.05,
        "ms_per_step": 0.3, "ms_per_step_iqr": 0.01, "ns_per_day": 144.0, "timestep_fs": 0.5,
        "atoms": 22, "periodic": False,
    }  # fmt: skip
    alone = {"kernel_ms": None, "overhead_ms": None, "backend": ""}
    records = [
        head,
        head | alone | {"model": "mace", "parameters": 75264, "ns_per_day": 2.1},
        head | {"atoms": 1000, "periodic": True, "ms_per_step": 12.0, "ns_per_day": 3.6},
    ]
    text = step_markdown(records, machine_facts() | versions())
    assert "**22 atoms, a molecule**" in text and "**1,000 atoms, a box**" in text
    assert "Random weights, for their speed alone: mace." in text
    row = "| tiny | 76,097 | TorchForce | native | CPU | 1 | 0.3 | 0.01 | 0.25 | 0.05 | 144 |"
    assert row in text.splitlines()
    written = write_step_report(records, machine_facts() | versions(), tmp_path / "found.json")
    assert {path.name for path in written} == {"found.md", "found.png", "found-atoms.png"}
    assert all(path.stat().st_size > 1000 for path in written if path.suffix == ".png")


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
    assert {one.name for one in tmp_path.iterdir()} == {"openmm.json", "openmm.md", "openmm.png"}
