"""The core as a C library: the portable student's numbers, refused input, and no code that runs."""

import ctypes
import platform
import re
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import vesin
from ase import Atoms
from ase.io import write

from mlff_student.archive.archive import METADATA, WEIGHTS, load_archive
from mlff_student.archive.backends import evaluator, library_path
from mlff_student.archive.contents import read_members, write_members
from mlff_student.archive.core import FactsStruct, ResultsStruct, SystemStruct
from mlff_student.archive.export import export
from mlff_student.archive.graph import atom_virials, evaluate_graph, join
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "plugin" / "csrc"
LIBRARY = library_path()
DAMAGED = 3000  # archives
OK, BAD_INPUT = 0, 1

pytestmark = [
    pytest.mark.skipif(not LIBRARY.is_file(), reason=f"{LIBRARY} was not built"),
    pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler"),
]


class Answer(NamedTuple):
    energies: np.ndarray
    forces: np.ndarray
    virial: np.ndarray
    virials: np.ndarray


@pytest.fixture(scope="session")
def api() -> Any:
    library = ctypes.CDLL(str(LIBRARY))
    for name in ("open", "open_memory", "new_workspace"):
        getattr(library, f"mlff_student_{name}").restype = ctypes.c_void_p
    library.mlff_student_error.restype = ctypes.c_char_p
    library.mlff_student_describe.restype = FactsStruct
    library.mlff_student_workspace_bytes.restype = ctypes.c_size_t
    return library


def error(api: Any) -> str:
    return api.mlff_student_error().decode()


def opened(api: Any, path: Path) -> ctypes.c_void_p:
    model = api.mlff_student_open(bytes(path))
    assert model, error(api)
    return ctypes.c_void_p(model)


def pointer(array: np.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def evaluate(api: Any, models: list, atoms: Atoms, threads: int = 1) -> tuple[int, list[Answer]]:
    """Return the status, and an answer for each model."""
    count = len(atoms)
    positions, numbers = np.ascontiguousarray(atoms.positions), atoms.numbers.astype(np.int64)
    cell, periodic = np.array(atoms.cell.array), atoms.pbc.astype(np.intc)
    system = SystemStruct(count, *map(pointer, (positions, numbers, cell, periodic)))
    shapes = (count,), (count, 3), (3, 3), (count, 3, 3)
    answers = [Answer(*map(np.empty, shapes)) for _ in models]
    results = (ResultsStruct * len(models))(
        *(ResultsStruct(*map(pointer, answer)) for answer in answers)
    )
    work = ctypes.c_void_p(api.mlff_student_new_workspace())
    handles = (ctypes.c_void_p * len(models))(*models)
    status = api.mlff_student_evaluate_committee(
        handles, ctypes.c_size_t(len(models)), work, threads, ctypes.byref(system), results
    )
    api.mlff_student_free_workspace(work)
    return status, answers


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("archives")
    paths = {name: folder / f"{name}.pt" for name in ("tiny", "ultra_tiny")}
    for name, path in paths.items():
        export(ROOT / "checkpoints" / name / "model.pt", path, dtype="float32", verify=False)
    return paths


def compiled(source: Path, folder: Path, *options: str) -> Path:
    """Compile a C or C++ program against the library."""
    program = folder / source.stem
    rpath = f"-Wl,-rpath,{LIBRARY.parent},-rpath-link,{Path(vesin.__file__).parent / 'lib'}"
    compiler = ["cc", "-std=c99"] if source.suffix == ".c" else ["c++", "-std=c++17", "-pthread"]
    command = [*compiler, "-O1", "-Wall", "-Wextra", "-Werror", *options, f"-I{HEADER}", source]
    subprocess.run([*command, LIBRARY, rpath, "-rdynamic", "-o", program], check=True)
    return program


def run(*command: str | Path) -> str:
    done = subprocess.run(list(command), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


# --- The library ---------------------------------------------------------------------------------


def test_library_exports_the_c_api_and_links_no_torch():
    names = [line.split()[2] for line in run("nm", "-D", "--defined-only", LIBRARY).splitlines()]
    assert "mlff_student_evaluate" in names
    assert [name for name in names if not name.startswith("mlff_student_")] == []
    needed = [line for line in run("readelf", "-d", LIBRARY).splitlines() if "(NEEDED)" in line]
    allowed = ("libgomp", "vesin", "libstdc++", "libgcc_s", "libm.", "libc.", "ld-linux")
    assert [line for line in needed if not any(name in line for name in allowed)] == []


def test_example_in_c_gives_the_portable_numbers(
    archives: dict[str, Path], structures: dict[str, Atoms], tmp_path: Path
):
    """The header is C99; examples/energy.c reads an XYZ file."""
    program = compiled(ROOT / "examples" / "energy.c", tmp_path, "-Wpedantic")
    atoms = structures["ethanol"]
    write(tmp_path / "ethanol.xyz", atoms, format="xyz", fmt="%20.12f")
    lines = run(program, archives["tiny"], tmp_path / "ethanol.xyz").splitlines()
    atoms.calc = StudentForceFieldCalculator("tiny", backend="portable")
    forces = [[float(word) for word in line.split()[:3]] for line in lines[1:]]
    assert float(lines[0].split()[1]) == pytest.approx(atoms.get_potential_energy(), abs=2e-5)
    np.testing.assert_allclose(forces, atoms.get_forces(), rtol=1e-5, atol=2e-5)
    missing = subprocess.run([program, "none.pt", "x.xyz"], capture_output=True, check=False)
    assert missing.returncode == 2


def test_structures_give_the_portable_numbers(
    api: Any, archives: dict[str, Path], structures: dict[str, Atoms]
):
    """Also a committee of two models, and the virial of each atom."""
    models = [opened(api, path) for path in archives.values()]
    for name in ("ethanol", "triclinic", "water_box"):
        atoms = structures[name]
        status, answers = evaluate(api, models, atoms, threads=2)
        assert status == OK, error(api)
        for path, model, answer in zip(archives.values(), models, answers, strict=True):
            graph = join([atoms], load_archive(path).metadata["cutoff"])
            expected = evaluate_graph(evaluator(load_archive(path), "portable"), graph)
            virials = atom_virials(graph, expected.gradient)
            close = {"rtol": 1e-5, "atol": 2e-5}
            np.testing.assert_allclose(answer.energies, expected.energies, **close)
            np.testing.assert_allclose(answer.forces, expected.forces, **close)
            np.testing.assert_allclose(answer.virials, virials, rtol=1e-5, atol=1e-4)
            np.testing.assert_allclose(answer.virial, answer.virials.sum(0), atol=1e-9)
            _, (alone,) = evaluate(api, [model], atoms)
            for part, same in zip(answer, alone, strict=True):
                np.testing.assert_array_equal(part, same)


def test_edges_give_the_portable_numbers(
    api: Any, archives: dict[str, Path], structures: dict[str, Atoms]
):
    archive, atoms = load_archive(archives["tiny"]), structures["triclinic"]
    graph = join([atoms], archive.metadata["cutoff"])
    order = np.random.default_rng(1).permutation(graph.edge_index.shape[1])
    index = np.ascontiguousarray(graph.edge_index[:, order])
    vectors = np.ascontiguousarray(graph.edge_vectors[order])
    numbers = atoms.numbers.astype(np.int64)
    energies, gradient = np.empty(len(atoms)), np.empty_like(vectors)
    model, work = opened(api, archives["tiny"]), ctypes.c_void_p(api.mlff_student_new_workspace())

    def call(edge_index: np.ndarray, edge_vectors: np.ndarray, local: int) -> int:
        count, edges = ctypes.c_int64(len(atoms)), ctypes.c_int64(len(vectors))
        return api.mlff_student_evaluate_edges(
            *(model, work, 1, count, pointer(numbers), edges, pointer(edge_index)),
            *(pointer(edge_vectors), ctypes.c_int64(local), pointer(energies), pointer(gradient)),
        )

    assert call(index, vectors, len(atoms)) == OK, error(api)
    expected = evaluate_graph(evaluator(archive, "portable"), graph)
    np.testing.assert_allclose(energies, expected.energies, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(gradient, expected.gradient[order], rtol=1e-5, atol=2e-5)
    assert api.mlff_student_workspace_bytes(work) > 0
    assert call(index + 1, vectors, 1) == BAD_INPUT
    assert f"names atom {len(atoms)} of {len(atoms)}" in error(api)
    assert call(index, vectors, len(atoms) + 1) == BAD_INPUT
    assert f"local is {len(atoms) + 1}, expected 0 to {len(atoms)}" in error(api)
    for value, message in ((np.nan, "is NaN or infinite: (nan, "), (0.0, "has no length")):
        wrong = vectors.copy()
        wrong[5] = value
        assert call(index, wrong, 1) == BAD_INPUT
        assert f"edge vector 5 {message}" in error(api)


def test_facts_of_an_archive(api: Any, archives: dict[str, Path]):
    facts = api.mlff_student_describe(opened(api, archives["tiny"]))
    metadata = load_archive(archives["tiny"]).metadata
    assert facts.name.decode() == metadata["name"]
    assert facts.teacher.decode() == metadata["teacher"]
    assert facts.parameters == metadata["parameters"]
    assert (facts.channels, facts.layers) == (metadata["channels"], metadata["layers"])
    known = Atoms(metadata["elements"]).numbers
    assert sorted(known) == [facts.atomic_numbers[k] for k in range(facts.elements)]


# --- Errors --------------------------------------------------------------------------------------


def moved(atoms: Atoms, value: float) -> Atoms:
    atoms.positions[1, 2] = value
    return atoms


def of_gold(atoms: Atoms) -> Atoms:
    atoms.numbers[1] = 79
    return atoms


def with_cell(atoms: Atoms, cell: Any) -> Atoms:
    atoms.set_cell(cell)
    atoms.pbc = True
    return atoms


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda atoms: moved(atoms, np.nan), "position of atom 1 is NaN or infinite: ("),
        (lambda atoms: moved(atoms, 1e6), "atom 1 is more than 100000 angstrom"),
        (of_gold, "atomic number 79 (Au) is unknown to this student; it knows 1 (H)"),
        (lambda atoms: with_cell(atoms, np.zeros((3, 3))), "cell has the volume 0.0"),
        (lambda atoms: with_cell(atoms, [np.inf, 5, 5]), "vector 0 of the periodic cell is NaN or"),
        (lambda atoms: atoms[[0, 0]], "do two atoms coincide?"),
    ],
)
def test_bad_structures_are_refused(
    change: Callable[[Atoms], Atoms],
    message: str,
    api: Any,
    archives: dict[str, Path],
    structures: dict[str, Atoms],
):
    status, _ = evaluate(api, [opened(api, archives["tiny"])], change(structures["water"]))
    assert status == BAD_INPUT
    assert message in error(api)


def test_bad_calls_are_refused(api: Any, archives: dict[str, Path], structures: dict[str, Atoms]):
    model, atoms = opened(api, archives["tiny"]), structures["water"]
    for threads in (0, -3, 100_000):
        assert evaluate(api, [model], atoms, threads)[0] == BAD_INPUT
        assert f"threads is {threads}, expected 1 to 1024" in error(api)
    assert evaluate(api, [model, None], atoms)[0] == BAD_INPUT
    assert "model is NULL" in error(api)
    assert evaluate(api, [], atoms)[0] == BAD_INPUT
    assert "count is 0" in error(api)
    assert api.mlff_student_use_instruction_set(b"mmx") == BAD_INPUT
    assert "'mmx'; choose avx512, avx2 or generic" in error(api)


@pytest.mark.parametrize(
    "name", ["check_layers", "check_threads", "check_calls", "check_allocations"]
)
def test_program(name: str, tmp_path: Path):
    """Each of these programs in C++ says in its first lines what it tests."""
    if name == "check_allocations" and platform.libc_ver()[0] != "glibc":
        pytest.skip("it counts calls of glibc's allocator")
    run(compiled(Path(__file__).with_name(f"{name}.cpp"), tmp_path), "2")


# --- Archives ------------------------------------------------------------------------------------


def test_code_in_an_archive_does_not_run(
    api: Any, archives: dict[str, Path], structures: dict[str, Atoms], tmp_path: Path
):
    """The weights are read all the same, and give the same numbers."""
    members = read_members(archives["tiny"])
    name = next(name for name in members if name.startswith("code/") and "student" in name)
    planted = b"  ops.aten.save(torch.ones(1), '%b')\n" % bytes(tmp_path / "ran")
    members[name] += planted
    path = tmp_path / "planted.pt"
    path.write_bytes(write_members(members))
    _, (answer,) = evaluate(api, [opened(api, path)], structures["ethanol"])
    _, (same,) = evaluate(api, [opened(api, archives["tiny"])], structures["ethanol"])
    np.testing.assert_array_equal(answer.forces, same.forces)
    assert list(tmp_path.iterdir()) == [path]


def test_other_files_are_refused(
    api: Any, archives: dict[str, Path], tiny_archive64: Path, tmp_path: Path
):
    members = read_members(archives["tiny"])
    altered = members | {WEIGHTS: members[WEIGHTS][:-4] + struct.pack("<f", 1.0)}
    metadata = members[METADATA]
    other = members | {METADATA: metadata.replace(b'"energy": -', b'"energy": -1')}
    old = members | {METADATA: metadata.replace(b'"format_version": 3', b'"format_version": 2')}
    del old[WEIGHTS]
    bare = members | {METADATA: re.sub(rb'"self_check": {[^}]*}', b'"self_check": null', metadata)}
    compressed = BytesIO()
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(f"archive/{name}", data)
    for content, message in (
        (b"no archive", "it is no zip file"),
        (archives["tiny"].read_bytes()[:-30], "its end is missing"),
        (write_members(altered), "the weights have the hash"),
        (write_members(other), "its self-check fails: energy off by"),
        (write_members(bare), "the self-check is missing"),
        (compressed.getvalue(), "it contains no metadata"),
        (write_members(old), "format 2, this build reads format 3; write it again: mlff-student"),
        (tiny_archive64.read_bytes(), "is in float64, and the kernels compute in float32"),
    ):
        path = tmp_path / "other.pt"
        path.write_bytes(content)
        assert not api.mlff_student_open(bytes(path))
        assert message in error(api)
    for path, message in (
        (tmp_path / "none.pt", "there is no file"),
        (tmp_path, "no regular file"),
    ):
        assert not api.mlff_student_open(bytes(path))
        assert f"{message} '{path}'" in error(api) or f"'{path}' is {message}" in error(api)


def header(text: bytes) -> bytes:
    """Return weights with a header and no numbers."""
    return len(text).to_bytes(8, "little") + text


LARGE = 2**20  # bytes
SMALL_FILES = {
    "values": (METADATA, b"[" + b"0," * 2_000_000 + b"0]"),
    "keys": (METADATA, b"{" + b",".join(b'"%d":0' % k for k in range(400_000)) + b"}"),
    "depth": (METADATA, b"[" * LARGE),
    "arrays": (WEIGHTS, header(b"{" + b",".join(b'"%d":[]' % k for k in range(100_000)) + b"}")),
    "dimensions": (
        WEIGHTS,
        header(b'{"a":{"dtype":"F32","data_offsets":[0,0],"shape":[%s1]}}' % (b"1," * 400_000)),
    ),
    "name": (WEIGHTS, header(b'{"%s":0}' % (b"a" * (LARGE - 10)))),
    "size": (WEIGHTS, b"\xff" * 8),
    "shape": (
        WEIGHTS,
        header(b'{"a":{"dtype":"F32","data_offsets":[0,0],"shape":[0,%d]}}' % 10**15),
    ),
}


@pytest.mark.parametrize("kind", SMALL_FILES)
def test_small_files_do_not_take_much_memory(kind: str, archives: dict[str, Path], tmp_path: Path):
    name, content = SMALL_FILES[kind]
    members = read_members(archives["ultra_tiny"]) | {name: content}
    path = tmp_path / "small.pt"
    path.write_bytes(write_members(members))
    program = (
        "import ctypes, resource, sys\n"
        "api = ctypes.CDLL(sys.argv[1])\n"
        "api.mlff_student_error.restype = ctypes.c_char_p\n"
        "api.mlff_student_open.restype = ctypes.c_void_p\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        f"limit = pages * {resource.getpagesize()} + {8 * path.stat().st_size + 2**26}\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "assert not api.mlff_student_open(sys.argv[2].encode())\n"
        "print(api.mlff_student_error().decode())\n"
    )
    reason = run(sys.executable, "-c", program, LIBRARY, path)
    assert "mlff-student archive" in reason or "is damaged" in reason
    assert "memory" not in reason


def test_damaged_archives_are_opened_or_refused(archives: dict[str, Path], tmp_path: Path):
    """Within the memory that the header states."""
    source = Path(__file__).with_name("check_open.cpp")
    print(run(compiled(source, tmp_path), "0", str(DAMAGED), archives["ultra_tiny"]))
