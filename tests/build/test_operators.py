"""The torch operators of the native kernels: the core's numbers from TorchScript."""

import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from mlff_student.archive import operator
from mlff_student.archive.archive import Archive, load_archive, pack_archive
from mlff_student.archive.core import CoreStudent
from mlff_student.archive.graph import edges_of
from mlff_student.archive.operator import (
    OperatorModule,
    operators_path,
    operators_unavailable,
    torch_module,
)
from mlff_student.core.errors import MissingDependencyError

pytestmark = pytest.mark.skipif(operators_unavailable() is not None, reason="no operators")

ROOT = Path(__file__).parents[2]
OTHER_PYTHON = os.environ.get("MLFF_STUDENT_OTHER_PYTHON")  # a Python with another torch
LIMIT = 32  # students that the library keeps open
NUMBERS = """
import sys, torch
torch.ops.load_library({library!r})
inputs = torch.load("inputs.pt")
module = torch.jit.load("module.pt")
for student in (module, torch.jit.freeze(module.eval())):
    with torch.inference_mode():
        results = student(*inputs)
    torch.save([part.clone() for part in results], "results.pt")
    expected = torch.load("expected.pt")
    assert all(torch.equal(a, b) for a, b in zip(results, expected)), (results, expected)
print(torch.__version__)
"""
COUNT_THREADS = """
import os, torch
torch.ops.load_library({library!r})
inputs, counts = torch.load("inputs.pt"), []
for name in ("one.pt", "module.pt"):
    torch.jit.load(name).evaluate(*inputs)
    counts.append(len(os.listdir("/proc/self/task")))
print(counts[1] - counts[0])
"""


@pytest.fixture
def archive(tiny_archive: Path) -> Archive:
    return load_archive(tiny_archive)


def arguments(atoms: Atoms) -> tuple[torch.Tensor, ...]:
    parts = atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc
    return tuple(torch.tensor(part) for part in parts)


def core_numbers(archive: Archive, atoms: Atoms) -> list[np.ndarray]:
    student = CoreStudent("core", archive.content)
    return list(student.evaluate(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc)[:3])


def same(found: tuple[torch.Tensor, ...], expected: list[np.ndarray]) -> bool:
    return all(np.array_equal(a.numpy(), b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["molecule32", "triclinic"])
def test_numbers_of_the_core(name: str, archive: Archive, structures: dict[str, Atoms]):
    atoms, module = structures[name], OperatorModule(archive, threads=2)
    expected = core_numbers(archive, atoms)
    positions, numbers, cell, pbc = arguments(atoms)
    assert same(module.evaluate(positions, numbers, cell, pbc), expected)
    energy, forces, virial = torch.jit.script(module)(positions, numbers, cell, pbc)
    assert float(energy) == pytest.approx(expected[0].sum(), rel=1e-14)
    assert same((forces, virial), expected[1:])
    # Other types and strides, and a graph of autograd that is not needed.
    turned = positions.T.contiguous().T.requires_grad_()
    found = module.evaluate(turned, numbers.int(), cell, pbc.int())
    assert same(tuple(part.detach() for part in found), expected)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert same(module.evaluate(positions, numbers, cell, pbc), expected)


def test_edges_have_the_numbers_of_the_core(archive: Archive, structures: dict[str, Atoms]):
    atoms, module = structures["triclinic"], OperatorModule(archive)
    index, vectors = edges_of(atoms, 5.0)
    for n_local in (len(atoms), 3, 0):
        expected = CoreStudent("core", archive.content).evaluate_edges(
            vectors, index, atoms.numbers, n_local
        )
        given = (torch.tensor(part) for part in (vectors, index, atoms.numbers))
        assert same(torch.jit.script(module).from_edges(*given, n_local), list(expected))


def written_module(archive: Archive, atoms: Atoms, folder: Path) -> None:
    module = torch.jit.script(OperatorModule(archive))
    module.save(str(folder / "module.pt"))
    torch.save(arguments(atoms), folder / "inputs.pt")
    torch.save(module(*arguments(atoms)), folder / "expected.pt")


def run_numbers(python: str, folder: Path) -> str:
    script = NUMBERS.format(library=str(operators_path()))
    command = [python, "-c", script]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_saved_and_frozen_module_in_another_process(
    archive: Archive, structures: dict[str, Atoms], tmp_path: Path
):
    """That process loads the library and nothing else of this package."""
    written_module(archive, structures["ethanol"], tmp_path)
    assert run_numbers(sys.executable, tmp_path) == torch.__version__


@pytest.mark.skipif(not OTHER_PYTHON, reason="MLFF_STUDENT_OTHER_PYTHON is not set")
def test_the_same_library_in_another_torch(
    archive: Archive, structures: dict[str, Atoms], tmp_path: Path
):
    written_module(archive, structures["ethanol"], tmp_path)
    assert run_numbers(str(OTHER_PYTHON), tmp_path) != torch.__version__


def renamed(archive: Archive, name: str) -> Archive:
    return pack_archive(archive.metadata | {"name": name, "self_check": None}, archive.tensors)


def test_many_students_at_once(archive: Archive, structures: dict[str, Atoms]):
    """More than the library keeps open, from several threads."""
    atoms = structures["ethanol"]
    expected, given = core_numbers(archive, atoms), arguments(atoms)
    modules = [OperatorModule(renamed(archive, f"copy {k}"), 1) for k in range(LIMIT + 8)]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda module: same(module.evaluate(*given), expected), modules * 3))


def _in_child(module: OperatorModule, given: tuple, results: multiprocessing.SimpleQueue) -> None:
    results.put([part.numpy() for part in module.evaluate(*given)])


def test_after_fork(archive: Archive, structures: dict[str, Atoms]):
    atoms, module = structures["molecule32"], OperatorModule(archive, threads=2)
    expected, given = core_numbers(archive, atoms), arguments(atoms)
    assert same(module.evaluate(*given), expected)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(module, given, results))
    child.start()
    for part, same_part in zip(results.get(), expected, strict=True):
        np.testing.assert_array_equal(part, same_part)
    child.join(60)
    assert child.exitcode == 0


@pytest.mark.parametrize(("threads", "expected"), [(2, 2), (0, 3)])
def test_number_of_threads(
    threads: int, expected: int, archive: Archive, structures: dict[str, Atoms], tmp_path: Path
):
    """0 means OMP_NUM_THREADS of the process that evaluates."""
    for name, count in (("one", 1), ("module", threads)):
        torch.jit.script(OperatorModule(archive, count)).save(str(tmp_path / f"{name}.pt"))
    torch.save(arguments(structures["water_box"].repeat(2)), tmp_path / "inputs.pt")
    result = subprocess.run(
        [sys.executable, "-c", COUNT_THREADS.format(library=str(operators_path()))],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(result.stdout) == expected - 1


def bad_calls(archive: Archive, atoms: Atoms) -> dict[str, Callable]:
    """Calls that are refused, by parts of their messages."""
    positions, numbers, cell, pbc = arguments(atoms)
    module, damaged = OperatorModule(archive), OperatorModule(renamed(archive, "damaged"))
    damaged.content[1000] += 1
    vectors, index = torch.zeros(2, 3), torch.tensor([[0, 1], [1, 0]])
    return {
        "position of atom 0 is NaN or infinite": lambda: module(
            positions * torch.nan, numbers, cell, pbc
        ),
        "number 79 (Au) is unknown": lambda: module(positions, numbers + 78, cell, pbc),
        "shapes (3, 3) and (2), expected (N, 3) and (N)": lambda: module(
            positions, numbers[:2], cell, pbc
        ),
        "(2, 3) and (3), expected (3, 3) and (3)": lambda: module(
            positions, numbers, cell[:2], pbc
        ),
        "(2, 3) and (2, 1), expected (E, 3) and (2, E)": lambda: module.from_edges(
            vectors, index[:, :1], numbers, 3
        ),
        "n_local is 4": lambda: module.from_edges(vectors, index, numbers, 4),
        "names atom 3 of 3": lambda: module.from_edges(vectors + 1.0, index + 2, numbers, 3),
        "the module was changed": lambda: damaged(positions, numbers, cell, pbc),
        "torch could not read, make or copy": lambda: module(
            positions.to("meta"), numbers, cell, pbc
        ),
    }


def test_errors_are_those_of_torch(archive: Archive, structures: dict[str, Atoms]):
    atoms = structures["water"]
    atoms.numbers[:] = 1
    for message, call in bad_calls(archive, atoms).items():
        with pytest.raises(RuntimeError, match=f"mlff_student: .*{re.escape(message)}"):
            call()
    module = torch.jit.script(OperatorModule(archive))
    positions, *others = arguments(atoms)
    with pytest.raises(RuntimeError, match="position of atom 0 is NaN or infinite"):
        module(positions * torch.nan, *others)
    assert same(module.evaluate(positions, *others), core_numbers(archive, atoms))


def test_library_exports_nothing_and_links_no_release_of_torch():
    def words(*command: str) -> str:
        return subprocess.run(
            [*command, str(operators_path())], capture_output=True, text=True, check=True
        ).stdout

    assert words("nm", "-D", "--defined-only") == ""
    needed = re.findall(r"NEEDED.*\[(.*)\]", words("readelf", "-d"))
    assert {name for name in needed if "torch" in name or "c10" in name} == {"libtorch_cpu.so"}
    header = (ROOT / "plugin" / "csrc" / "torch_abi.h").read_text()
    undefined = set(re.findall(r"U (aoti_torch_\w+)", words("nm", "-D")))
    assert undefined == set(re.findall(r"(aoti_torch_\w+)\(", header))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_tensors_on_a_gpu(archive: Archive, structures: dict[str, Atoms]):
    atoms, module = structures["triclinic"], torch.jit.script(OperatorModule(archive)).to("cuda")
    found = module.evaluate(*(part.to("cuda") for part in arguments(atoms)))
    assert same(found, core_numbers(archive, atoms))


def test_without_the_library(
    archive: Archive,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
):
    monkeypatch.setattr(operator, "operators_path", lambda: tmp_path / "none.so")
    operators_unavailable.cache_clear()
    try:
        with pytest.raises(MissingDependencyError, match=r"none\.so does not exist"):
            torch_module(archive, "native")
        operator._log_portable.cache_clear()
        modules = [torch_module(archive) for _ in range(2)]
        assert all(hasattr(module, "student") for module in modules)
        assert [text for text in caplog.messages if "portable" in text] == [
            "TorchScript with the portable backend, several times slower: "
            f"they were not built ({tmp_path / 'none.so'} does not exist)"
        ]
        (tmp_path / "none.so").write_text("no library")
        operators_unavailable.cache_clear()
        assert "none.so does not load" in str(operators_unavailable())
        monkeypatch.setattr(operator, "OLDEST_TORCH", (99, 0))
        operators_unavailable.cache_clear()
        assert "need torch 99.0 or later, found torch" in str(operators_unavailable())
    finally:
        monkeypatch.undo()
        operators_unavailable.cache_clear()
