"""The core library through ctypes, compared with the TorchScript of the same archive."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from frames import periodic_water

from mlff_student.archive.archive import load_archive
from mlff_student.archive.backends import library_path
from mlff_student.archive.core import CoreStudent
from mlff_student.archive.export import export
from mlff_student.archive.registry import checkpoint_path
from mlff_student.core.errors import ArchiveError, InputError

ENERGY, FORCE = 1e-5, 3e-5  # eV an atom, eV/angstrom: float32 sums in another order


@pytest.fixture(scope="module", params=["original", "tiny"])
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("core") / f"{request.param}.pt"
    export(checkpoint_path(request.param), path, verify=False)
    return path


@pytest.fixture(scope="module")
def student(archive: Path) -> CoreStudent:
    return CoreStudent(str(archive), archive.read_bytes(), threads=2, library=library_path())


def structures() -> list[Atoms]:
    slab = molecule("CH3CH2OH", cell=[6.0, 7.0, 0.0])
    slab.pbc = (True, True, False)
    return [molecule("CH3CH2OH"), molecule("H2O"), Atoms("O"), periodic_water(), slab]


def as_numpy(answer: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    return [value.numpy() for value in answer]


def test_core_gives_the_numbers_of_the_archive(archive: Path, student: CoreStudent):
    module = load_archive(archive).module
    for atoms in structures():
        arrays = atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc
        found = student.evaluate(*arrays, with_virials=True)
        energies, forces, virial = as_numpy(module.evaluate(*map(torch.tensor, arrays)))
        np.testing.assert_allclose(found.energies, energies, rtol=0, atol=ENERGY)
        np.testing.assert_allclose(found.forces, forces, rtol=0, atol=FORCE)
        np.testing.assert_allclose(found.virial, virial, rtol=0, atol=10 * FORCE)
        assert found.virials is not None
        np.testing.assert_allclose(found.virials.sum(0), found.virial, rtol=0, atol=1e-10)


def test_edges_of_a_caller_give_the_numbers_of_the_archive(archive: Path, student: CoreStudent):
    module = load_archive(archive).module
    atoms = molecule("CH3CH2OH")
    index = np.array([(i, j) for i in range(9) for j in range(9) if i != j]).T[:, ::-1]
    vectors = atoms.positions[index[1]] - atoms.positions[index[0]]
    expected = module.from_edges(
        torch.tensor(vectors), torch.tensor(index.copy()), torch.tensor(atoms.numbers), 5
    )
    for found, answer in zip(
        student.evaluate_edges(vectors, index, atoms.numbers, 5), as_numpy(expected), strict=True
    ):
        np.testing.assert_allclose(found, answer, rtol=0, atol=FORCE)


def test_pickled_forked_and_threaded(student: CoreStudent):
    """All give the same bytes: the order of the sums does not depend on the threads."""
    water = periodic_water()
    arrays = water.positions, water.numbers, water.cell.array, water.pbc

    def answer(copy: CoreStudent) -> bytes:
        return copy.evaluate(*arrays).forces.tobytes()

    expected = answer(student)
    single = CoreStudent("one thread", student._content, threads=1, library=library_path())
    assert answer(single) == expected
    assert answer(pickle.loads(pickle.dumps(student))) == expected
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(answer, [student] * 16)) == {expected}
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, b"same" if answer(student) == expected else b"other")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 5) == b"same"


def test_first_energy_needs_no_torch(archive: Path):
    code = (
        "import sys, pathlib, mlff_student.archive.core as core\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "from mlff_student.archive.backends import library_path\n"
        "student = core.CoreStudent(str(path), path.read_bytes(), library=library_path())\n"
        "print(student.evaluate([[0, 0, 0], [1, 0, 0]], [8, 1]).energies.sum())\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, archive], check=True, timeout=60)


@pytest.mark.parametrize(
    ("positions", "numbers", "message"),
    [
        ([[0.0, 0.0, 0.0]], [79], r"79 \(Au\)"),
        ([[0.0, np.nan, 0.0]], [8], "position of atom 0"),
        ([[0.0, 0.0, 0.0]], [8, 1], "1 positions, but 2 atomic numbers"),
        ([0.0, 0.0, 0.0], [8], r"shape \(3,\), expected \(N, 3\)"),
    ],
)
def test_bad_input_is_refused(
    positions: list, numbers: list[int], message: str, student: CoreStudent
):
    with pytest.raises(InputError, match=message):
        student.evaluate(positions, numbers)


def test_damaged_archive_is_refused(archive: Path):
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (bytes(content), b"", b"PK"):
        with pytest.raises(ArchiveError, match=r"NAME\.pt"):
            CoreStudent("NAME.pt", damaged, library=library_path())
