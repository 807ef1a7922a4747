"""The scripts in benchmarks/: their help, small runs, and errors for missing input."""

import csv
import importlib
import json
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from ase.build import molecule
from ase.calculators.lj import LennardJones
from ase.neighborlist import neighbor_list

from mlff_student.benchmark.kernels import BenchmarkSettings, benchmark_kernels
from mlff_student.benchmark.steps import StepSettings, benchmark_steps
from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.core.units import KB, KJ_PER_MOL
from mlff_student.engines.protocol import MDSettings
from mlff_student.engines.run import run_md
from mlff_student.structures.reading import read_structure

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text())
TEACHER = "python:ase.calculators.lj:LennardJones"
PNG = b"\x89PNG"


def script(name: str, *words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script as a user does, with wide output."""
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *words],
        cwd=folder,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def done(result: subprocess.CompletedProcess[str]) -> str:
    """Return the output of a script, and assert that it succeeded."""
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def module(monkeypatch):
    """Return a function that imports a module of benchmarks/ by name."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


@pytest.fixture
def status(monkeypatch) -> Callable[..., int]:
    """Return a function that runs a script in this process, which has the imports already."""

    def run(name: str, *words: str) -> int:
        monkeypatch.syspath_prepend(BENCHMARKS)
        monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / name), *words])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(sys.argv[0], run_name="__main__")
        return int(end.value.code or 0)

    return run


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name, status, capsys):
    assert status(name, "--help") == 0
    text = capsys.readouterr().out
    assert "usage" in text.lower() and name in text


# --- From records to tables and figures ----------------------------------------------------------


def test_roofline(tmp_path):
    records = tmp_path / "kernels.json"
    settings = BenchmarkSettings(("ultra_tiny",), (22,), seconds=0.01, openmm=False)
    benchmark_kernels(settings, records)
    done(script("roofline.py", "kernels.json", folder=tmp_path))
    assert (tmp_path / "roofline.png").read_bytes().startswith(PNG)
    result = script("step_report.py", "kernels.json", folder=tmp_path)  # of another command
    assert result.returncode == 2
    assert "benchmark openmm" in result.stderr


def test_steps_in_openmm(tmp_path):
    settings = StepSettings(
        ("ultra_tiny",), "O", (80,), ("PythonForce",), ("native",), ("Reference",), seconds=0.01
    )
    small, _ = benchmark_steps(settings, tmp_path / "openmm.json")
    done(script("step_report.py", "openmm.json", "-o", "steps.md", folder=tmp_path))
    text = (tmp_path / "steps.md").read_text()
    assert "**3 atoms, a molecule**" in text and "**80 atoms, a box**" in text
    assert f"| {small['ns_per_day']:.3g} |" in text
    for name in ("steps.png", "steps-atoms.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)


@pytest.mark.slow  # 20 s
def test_rivals_in_lammps(tmp_path):
    """Records of ReaxFF, SNAP and a student give tables and a prediction."""
    options = ["--models", "ultra_tiny", "--atoms", "60", "--ranks", "1", "--seconds", "0.1"]
    words = ["rivals_lammps.py", *options, "--json", "lammps.json"]
    assert "reaxff" in done(script(*words, folder=tmp_path))
    before = (tmp_path / "lammps.json").read_text()
    records = json.loads(before)["results"]
    assert [(row["style"], row["system"], row["note"]) for row in records] == [
        ("mlff_student", "acetone", ""),
        ("reaxff", "acetone", ""),
        ("snap", "tantalum", ""),
    ]
    done(script(*words, folder=tmp_path))
    assert (tmp_path / "lammps.json").read_text() == before  # nothing is measured again
    done(script("step_report.py", "lammps.json", folder=tmp_path))
    assert "| snap | 60 | 1 | 1 |" in (tmp_path / "lammps.md").read_text()
    assert (tmp_path / "lammps.png").read_bytes().startswith(PNG)
    table = done(script("weak_scaling.py", "lammps.json", folder=tmp_path))
    assert table.splitlines()[-1].startswith("| ultra_tiny | 60 | ")


def test_weak_scaling_of_a_given_network(module):
    """Times for a latency of 1 us and a bandwidth of 1 GB/s, computed by hand."""
    weak_scaling = module("weak_scaling")
    record = {
        "swaps_per_step": 12.0,
        "swapped_kb_per_step": 952.0,
        "ghosts_per_rank": 1000.0,
        "ms_per_step": 10.0,
    }
    predictions = {
        row.ranks: row for row in weak_scaling.predict(record, 2, weak_scaling.Network(1.0, 1.0))
    }
    assert predictions[1].ms_per_step == 10.0 and predictions[1].efficiency == 1.0
    messages = 24 * 1e-3 + 1.0  # of pair style and LAMMPS; 952 kB + 48 B x 1000
    assert predictions[2].ms_per_step == pytest.approx(10.0 + messages / 3 + 1e-3)
    assert predictions[8].ms_per_step == pytest.approx(10.0 + messages + 3e-3)
    assert predictions[1000].ms_per_step == pytest.approx(10.0 + messages + 10e-3)
    assert predictions[1000].efficiency == pytest.approx(10.0 / predictions[1000].ms_per_step)
    assert np.all(np.diff([row.efficiency for row in predictions.values()]) < 0.0)


@pytest.mark.parametrize("count", [60, 1000])
def test_tantalum_box_has_the_lattice_constant(module, count):
    metal = module("rivals_lammps").tantalum_box(count)
    assert len(metal) == count
    assert neighbor_list("d", metal, 3.0).min() == pytest.approx(3.316 * math.sqrt(3) / 2)


# --- Networks of other packages ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensornet", "mace", "ani"])
def test_missing_package_is_named(module, monkeypatch, name):
    networks = module("networks")
    architecture = networks.ARCHITECTURES[name]
    monkeypatch.setitem(sys.modules, architecture.module, None)
    with pytest.raises(MissingDependencyError, match=f"pip install {architecture.package}"):
        networks.make_rival(name, 20_000, molecule("H2O"))


def test_unknown_networks_and_elements(module):
    networks = module("networks")
    with pytest.raises(InputError, match="no architecture 'amber'"):
        networks.make_rival("amber", 20_000, molecule("H2O"))
    with pytest.raises(InputError, match=r"built for H, C, N, .*not for Na"):
        networks.make_rival("ani", 20_000, molecule("NaCl"))


@pytest.mark.slow  # they compile for minutes
@pytest.mark.parametrize("name", ["tensornet", "mace", "ani"])
@pytest.mark.parametrize("parameters", [429_185, 21_345])
def test_networks_have_the_wanted_size_and_depend_on_positions(module, parameters, name):
    """The size is within 10 % of that of a student."""
    import openmm

    from openmm_integration import load_structure

    networks = module("networks")
    pytest.importorskip(networks.ARCHITECTURES[name].module)
    water = read_structure("O").atoms
    rival = networks.make_rival(name, parameters, water)
    assert rival.parameters == pytest.approx(parameters, rel=0.1)
    if calculator := rival.calculator():
        water.calc = calculator
        assert abs(water.get_forces()).max() > 0.0
        return
    topology, positions = load_structure("O")
    context = openmm.Context(
        rival.create_system(topology, water),
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatformByName("Reference"),
    )
    energies = []
    for scale in (1.0, 1.1):
        context.setPositions(positions * scale)
        energies.append(context.getState(energy=True).getPotentialEnergy()._value)
    assert energies[0] != energies[1]


# --- Students beside the teacher -----------------------------------------------------------------


@pytest.mark.slow  # 30 s
def test_report(tmp_path):
    """All measurements of a student and a fast teacher are made, and are not repeated."""
    words = [
        "report.py", "--models", "ultra_tiny", "--teacher", TEACHER, "--molecule", "CCO",
        "--atoms", "100,200", "--batches", "2", "--engines", "openmm", "--steps", "50",
        "--seconds", "0.05", "-o", "report",
    ]  # fmt: skip
    done(script(*words, folder=tmp_path))
    file = tmp_path / "report" / "benchmark.json"
    before = file.read_text()
    records = json.loads(before)["results"]
    kinds = {(row["measurement"], row["model"]) for row in records}
    both = ("single", "batch", "md", "scaling", "memory")
    assert {(kind, model) for kind in both for model in ("ultra_tiny", TEACHER)} < kinds
    assert ("stages", "ultra_tiny") in kinds
    times = [row[key] for row in records for key in ("ms", "ms_per_step") if row.get(key)]
    assert len(times) >= 6 and min(times) > 0
    page = (tmp_path / "report" / "benchmark.html").read_text()
    assert "ultra_tiny" in page and page.count("<img") == 4
    done(script(*words, folder=tmp_path))
    assert file.read_text() == before
    words[words.index("CCO")] = "CO"
    result = script(*words, folder=tmp_path)
    assert result.returncode == 2 and "molecule differ" in result.stderr


def test_every_timed_call_computes(module, monkeypatch):
    """ASE keeps the results of the last structure, so the calculator must get new positions."""
    report = module("report")
    computed = []
    calculate = LennardJones.calculate

    def counting(self, *arguments, **options):
        computed.append(1)
        calculate(self, *arguments, **options)

    monkeypatch.setattr(LennardJones, "calculate", counting)
    ethanol = molecule("CH3CH2OH")
    places = [copy.positions for copy in report.displaced(ethanol, 0.01)]
    call = report.moving(report._forces_at(LennardJones(), ethanol), places)
    for _ in range(40):
        call()
    assert len(computed) == 40


def test_exponent_of_known_times(module):
    report = module("report")
    records = [
        {"measurement": "scaling", "model": "m", "atoms": n, "ms": 0.3 * n**1.1}
        for n in (22, 100, 1000)
    ]
    assert report.scaling_exponent(records, "m") == pytest.approx(1.1)
    assert np.isnan(report.scaling_exponent(records[:2], "m"))


def test_copies_side_by_side_do_not_touch(module):
    ethanol = molecule("CH3CH2OH")
    atoms = module("report").side_by_side(ethanol, 5)
    assert atoms.symbols.get_chemical_formula() == "C10H30O5"
    own = np.arange(len(atoms)) // len(ethanol)
    assert atoms.get_all_distances()[own[:, None] != own].min() >= 3.0
    first, last = atoms[:9].get_all_distances(), atoms[-9:].get_all_distances()
    np.testing.assert_allclose(first, last)


# --- Studies -------------------------------------------------------------------------------------


def test_vaporisation_of_a_gas(tmp_path):
    """The enthalpy of vaporisation of a free molecule is RT."""
    protocol = {
        "about": "one molecule",
        "models": ["ultra_tiny"],
        "engines": ["openmm"],
        "boxes": {"water": {"smiles": "O", "count": 1}},
        "steps": [{"step": "liquid", "box": "water", "nvt_ps": 2, "burn_in_ps": 1}],
    }
    (tmp_path / "gas.yaml").write_text(yaml.safe_dump(protocol))
    folder = tmp_path / "campaign" / "runs" / "ultra_tiny" / "openmm" / "liquid" / "water-nvt-0"
    folder.parent.mkdir(parents=True)
    settings = MDSettings(
        engine="openmm",
        model="ultra_tiny",
        structure="O",
        steps=4000,
        timestep_fs=0.5,
        temperature_K=300.0,
        ensemble="nvt",
        every=20,
        thermalise_steps=4000,
        friction_per_ps=10.0,
        seed=2,
    )
    run_md(settings, folder, quiet=True)
    options = ["--protocol", "gas.yaml", "--gas-steps", "4000", "-o", "enthalpy.csv"]
    done(script("vaporisation.py", "campaign", *options, folder=tmp_path))
    with (tmp_path / "enthalpy.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    error = float(row["vaporisation_stderr_kj_per_mol"])
    assert 0.0 < error < 5.0
    expected = KB * 300.0 / KJ_PER_MOL
    assert float(row["vaporisation_kj_per_mol"]) == pytest.approx(expected, abs=6.0 * error + 0.1)


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (
            ("vaporisation.py", "nowhere"),
            "mlff-student validate run --protocol campaign -o nowhere",
        ),
        (("learning_studies.py", "no/dataset.h5"), "mlff-student distill sample"),
        (("roofline.py", "none.json"), "none.json is no file of benchmark kernels"),
        (("rivals_lammps.py", "--rivals", "amber"), "no potential 'amber'"),
        (("report.py", "--models", ""), "no models to measure"),
    ],
)
def test_missing_input_is_named(words, remedy, status, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert status(*words) == 2
    assert remedy in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
