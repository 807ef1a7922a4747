"""The wheel: what it contains, and that it works in a new environment (try_wheel.sh)."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "build" / "try_wheel.sh"
LIBRARIES = {
    *("libmlff_student.so", "libmlff_student_torch.so", "libmlff_student_vesin.so"),
    *("mlff_student_pair.so", "mlff_studentplugin.so"),
}
# Every Linux has these.
OF_THE_SYSTEM = re.compile(r"(ld-linux-|lib(c|m|dl|pthread|rt|gcc_s|stdc\+\+)\.so\.)")
MAX_BYTES = 8_000_000


def try_wheel(*arguments: str | Path, **environment: str) -> str:
    """Run the script as a shell outside of this environment does, and return what it prints."""
    own = ("PYTHONPATH", "VIRTUAL_ENV", "MLFF_STUDENT_NATIVE", "LAMMPS_PLUGIN_PATH")
    variables = {key: value for key, value in os.environ.items() if key not in own}
    result = subprocess.run(
        [SCRIPT, *arguments, sys.executable],
        env=variables | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
    return result.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """Folder of the source distribution and of the wheel that is built of it."""
    folder = tmp_path_factory.mktemp("dist")
    try_wheel("build", folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(wheel) as contents:
        contents.extractall(folder)
    return folder


def test_one_wheel_for_every_python(wheel):
    assert re.search(r"-py3-none-manylinux_2_\d+_x86_64\.whl$", wheel.name)
    assert wheel.stat().st_size < MAX_BYTES


def test_wheel_has_all_parts(unpacked):
    package = unpacked / "mlff_student"
    assert {path.name for path in package.glob("lib/*.so")} == LIBRARIES
    record = json.loads((package / "lib" / "build.json").read_text())
    assert set(record["missing"]) <= {"LAMMPS backend portable"}
    assert record["lammps"] == "20250722"
    for part in ("py.typed", "include/mlff_student.h", "lammps_inputs/in.nve"):
        assert (package / part).is_file(), part
    for model in ("original", "tiny", "ultra_tiny"):
        assert (package / "checkpoints" / model / "model.pt").is_file()


def test_libraries_need_nothing_but_the_wheel_and_the_system(unpacked):
    """Neither Python, LAMMPS, MPI nor the vesin of the environment."""
    own = {path.name for path in unpacked.rglob("*.so*")}
    for path in unpacked.rglob("*.so*"):
        table = subprocess.run(
            ["objdump", "-p", path.name],
            cwd=path.parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        needed = set(re.findall(r"NEEDED +(\S+)", table))
        if path.name == "libmlff_student_torch.so":
            needed.remove("libtorch_cpu.so")  # of the process that loads it
        others = {name for name in needed - own if not OF_THE_SYSTEM.match(name)}
        assert not others, f"{path.name} needs {others}"
        folders = re.findall(r"(?:RPATH|RUNPATH) +(\S+)", table)
        assert all(part.startswith("$ORIGIN") for line in folders for part in line.split(":"))


def test_plugin_is_for_the_lammps_of_the_extra():
    """The build and the extra name one release."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (built,) = (
        entry["build"]["requires"]
        for entry in project["tool"]["scikit-build"]["overrides"]
        if "build" in entry
    )
    assert built == project["project"]["optional-dependencies"]["lammps"]


def test_calculator_in_an_environment_without_torch(wheel):
    assert "C2H6O: -" in try_wheel("core", wheel)


def test_without_a_compiler_the_reason_is_recorded(tmp_path):
    """The rest is installed."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, ROOT]
    environment = os.environ | {"CXX": str(tmp_path / "missing"), "MLFF_STUDENT_LAMMPS": "off"}
    subprocess.run(command, env=environment, capture_output=True, check=True)
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as contents:
        record = json.loads(contents.read("mlff_student/lib/build.json"))
    assert {"native kernels", "LAMMPS plugin"} <= set(record["missing"])
    assert "install g++" in record["missing"]["native kernels"]


@pytest.mark.slow
@pytest.mark.parametrize("face", ["openmm", "torchforce", "torch", "lammps"])
def test_wheel_in_an_engine(face, wheel):
    try_wheel(face, wheel)


@pytest.mark.slow
@pytest.mark.parametrize("face", ["core", "lammps"])
def test_checkout(face):
    """`pip install .`, with build isolation."""
    try_wheel(face, ROOT)
