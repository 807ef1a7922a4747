"""The commands that install what is missing: for this Python, and for the folder it came from."""

import json
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlff_student.core import installation
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
    assert "in a checkout of mlff-student: " in installation.build_command()
    (checkout / "pyproject.toml").write_text("")
    tools, build = installation.build_command().split(" && ")
    assert {"scikit-build-core", "cmake", "ninja"} <= set(shlex.split(tools))
    words = shlex.split(build)
    assert words[-1] == str(checkout)
    assert "--no-build-isolation" in words
    assert ("--editable" in words) == editable


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


def test_doctor_asks_nobody_for_torch_forces_torch(monkeypatch):
    """Without openmmtorch PythonForce does the same, so there is nothing to fix."""

    def installed(name: str) -> str:
        if name in ("openmmtorch", "lammps"):
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", installed)
    for trial in ("_openmm", "_lmp", "_plugin", "_mpiexec", "_native"):
        monkeypatch.setattr(doctor, trial, lambda *interface: "works")
    findings = {finding.what: finding for finding in doctor.examine()}
    for part in ("openmmtorch", "OpenMM TorchForce", "lammps"):
        assert not findings[part].works
        assert findings[part].optional
        assert findings[part].mend == ""
    assert not any("torch==2.9" in finding.mend for finding in findings.values())
