"""The commands that install what is missing: for this Python, and for the folder it came from."""

import json
import shlex
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlff_student.core import installation
from mlff_student.core.errors import StudentError
from mlff_student.engines import doctor


def test_command_is_for_this_python(monkeypatch, tmp_path):
    """`pip` alone only where it is the pip of this environment; uv's environments have none."""
    extra = "mlff-student[openmm]"
    here = Path(sys.executable).parent
    monkeypatch.setattr(installation.shutil, "which", lambda name: str(here / name))
    assert installation.install_command(extra) == f"pip install '{extra}'"
    monkeypatch.setattr(installation.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert shlex.split(installation.install_command(extra)) == [
        *(sys.executable, "-m", "pip", "install"),
        extra,
    ]
    monkeypatch.setattr(installation.importlib.util, "find_spec", lambda name: None)
    assert shlex.split(installation.install_command(extra)) == [
        *("uv", "pip", "install", "--python", sys.executable),
        extra,
    ]


@pytest.mark.parametrize("editable", [True, False])
def test_build_command_names_the_folder_of_the_sources(editable, monkeypatch, tmp_path):
    """It works from every folder, and keeps an editable install editable."""
    checkout = tmp_path / "a check out"
    checkout.mkdir()
    origin = {"url": checkout.as_uri(), "dir_info": {"editable": editable}}
    distribution = SimpleNamespace(read_text=lambda name: json.dumps(origin))
    monkeypatch.setattr(installation.metadata, "distribution", lambda name: distribution)
    assert installation.install_origin() == "wheel"
    assert shlex.split(installation.build_command())[-2:] == [
        *("--no-binary=mlff-student", "mlff-student"),
    ]
    (checkout / "pyproject.toml").write_text("")
    words = shlex.split(installation.build_command())
    assert words[-1] == str(checkout)
    assert ("--editable" in words) == editable
    assert str(checkout) in installation.install_origin()
    assert ("editable" in installation.install_origin()) == editable


def test_record_of_the_build(monkeypatch, tmp_path):
    """An install without the record, which an older version made, has no reason to tell."""
    record = tmp_path / "build.json"
    monkeypatch.setattr(installation, "built_library", lambda name: tmp_path / name)
    assert installation.build_record() == {}
    assert installation.why_missing("LAMMPS plugin") == "it was not built"
    record.write_text('{"torch": "2.9", "missing": {"LAMMPS plugin": "no LAMMPS"}}')
    assert installation.build_record() == {"torch": "2.9"}
    assert installation.why_missing("LAMMPS plugin") == "no LAMMPS"
    assert installation.why_missing("native kernels") == "they were not built"


PARTS = ("_openmm", "_lmp", "_plugin", "_native", "_portable", "mpi_executable")


def diagnosis(monkeypatch, missing: tuple[str, ...], failing: tuple[str, ...] = ()) -> dict:
    """Findings where these packages are not installed, and these parts do not work."""

    def installed(name: str) -> str:
        if name in missing:
            raise PackageNotFoundError(name)
        return "1.0"

    def fails(*interface: str) -> str:
        raise StudentError("it does not work")

    monkeypatch.setattr(doctor, "version", installed)
    for part in PARTS:
        trial = fails if part in failing else lambda *interface: "works"
        monkeypatch.setattr(doctor, part, trial)
    return {finding.what: finding for finding in doctor.examine()}


def test_doctor_asks_nobody_for_torch_forces_torch(monkeypatch):
    """Without openmmtorch PythonForce does the same, so there is nothing to fix."""
    findings = diagnosis(monkeypatch, ("openmmtorch", "lammps"))
    for part in ("openmmtorch", "OpenMM TorchForce", "lammps"):
        assert not findings[part].works
        assert findings[part].optional
        assert findings[part].fix == ""
    assert not any("torch==2.9" in finding.fix for finding in findings.values())


def test_doctor_of_an_installation_for_ase_alone(monkeypatch):
    """Engines that are not installed are offered, and nothing is wrong."""
    engines = ("torch", "openmm", "openmmml", "openmmtorch", "lammps", "rdkit", "tblite")
    findings = diagnosis(monkeypatch, engines, ("_portable", "_lmp"))
    assert all(finding.works or finding.optional for finding in findings.values())
    assert "mlff-student[openmm]" in findings["OpenMM PythonForce"].fix
    assert "mlff-student[lammps]" in findings["LAMMPS plugin"].fix
    assert "mlff-student[torch]" in findings["backend portable"].fix


@pytest.mark.parametrize("part", ["_plugin", "_openmm"])
def test_doctor_of_an_engine_that_is_installed_and_does_not_work(part, monkeypatch):
    findings = diagnosis(monkeypatch, (), (part,))
    broken = [finding for finding in findings.values() if not (finding.works or finding.optional)]
    assert broken
    assert all(finding.fix for finding in broken)


def test_doctor_without_anything_that_computes(monkeypatch):
    findings = diagnosis(monkeypatch, ("torch",), ("_native", "_portable"))
    assert not findings["native kernels"].optional
    assert findings["native kernels"].fix == installation.build_command()
