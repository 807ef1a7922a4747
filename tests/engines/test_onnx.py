"""ONNX files give the student's numbers in onnxruntime, for any number of atoms and edges."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from mlff_student.archive.backends import evaluator
from mlff_student.archive.export import FORCE_TOLERANCE
from mlff_student.archive.graph import evaluate_graph, join, structure_virials
from mlff_student.archive.onnx import INPUTS, METADATA_KEY, OPSET, OUTPUTS, export_onnx
from mlff_student.archive.registry import archive_of
from mlff_student.core.errors import ArchiveError, InputError, MissingDependencyError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
SYSTEMS = ["water", "ethanol", "molecule32", "water_box", "triclinic"]


@pytest.fixture(scope="module")
def file(tiny_checkpoint, tmp_path_factory) -> Path:
    """Random weights in float64, so that every number can be compared to rounding."""
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    assert all(each.passed for each in export_onnx(tiny_checkpoint, path, dtype="float64"))
    return path


@pytest.fixture(scope="module")
def session(file):
    return on_threads(file, 1)


def on_threads(file: Path, threads: int):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(file), options)


@pytest.fixture(scope="module")
def student(tiny_archive64):
    return evaluator(archive_of(tiny_archive64), "portable")


def run(session, structures: list[Atoms]) -> dict[str, np.ndarray]:
    graph = join(structures, 5.0)
    values = (graph.edge_vectors, graph.edge_index, graph.numbers)
    return dict(
        zip(OUTPUTS, session.run(OUTPUTS, dict(zip(INPUTS, values, strict=True))), strict=True)
    )


@pytest.mark.parametrize("name", SYSTEMS)
def test_all_outputs(name, session, student, structures):
    graph = join([structures[name]], 5.0)
    expected = evaluate_graph(student, graph)
    outputs = run(session, [structures[name]])
    virial = structure_virials(graph, expected.gradient)[0]
    for key, value in (expected._asdict() | {"virial": virial}).items():
        # float64; sums in another order
        assert outputs[key] == pytest.approx(value, rel=1e-9, abs=1e-9), key
    assert outputs["energy"] == pytest.approx(float(expected.energies.sum()), abs=1e-9)


def test_no_edges_one_atom_and_many(session, student, structures):
    single = run(session, [Atoms("N")])
    assert single["gradient"].shape == (0, 3)
    assert (single["forces"] == 0.0).all()
    many = [structures[name] for name in SYSTEMS] * 3 + [Atoms("N")]
    outputs, expected = run(session, many), evaluate_graph(student, join(many, 5.0))
    assert outputs["forces"] == pytest.approx(expected.forces, abs=1e-9)
    assert outputs["energies"][-1] == pytest.approx(single["energy"], abs=1e-12)


def test_threads_give_the_same(file, structures):
    """Sums over edges must have no race condition."""
    session = on_threads(file, 4)
    many = [structures["triclinic"]] * 10
    forces = [run(session, many)["forces"] for _ in range(8)]
    assert all(np.array_equal(forces[0], repeated) for repeated in forces)


def test_unknown_element(session):
    atoms = Atoms("HZn", [[0, 0, 0], [0, 0, 1.6]])
    assert np.isnan(run(session, [atoms])["energy"])


def test_facts_that_a_program_reads(file, session):
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    (opset,) = model.opset_import
    assert (opset.domain, opset.version) == ("", OPSET)  # only operators of the standard
    shapes = {value.name: value.shape for value in session.get_inputs() + session.get_outputs()}
    assert shapes == {
        "edge_vectors": ["edges", 3],
        "edge_index": [2, "edges"],
        "atomic_numbers": ["atoms"],
        "energy": [],
        "energies": ["atoms"],
        "forces": ["atoms", 3],
        "virial": [3, 3],
        "gradient": ["edges", 3],
    }
    facts = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
    assert facts["cutoff"] == 5.0
    assert facts["elements"][:2] == ["H", "C"]
    assert facts["name"] == "random_tiny"


def test_disagreement_leaves_the_old_file(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(FORCE_TOLERANCE, "float32", 0.0)
    path = tmp_path / "x.onnx"
    path.write_text("old")
    with pytest.raises(ArchiveError, match=r"the ONNX file of random_tiny disagrees"):
        export_onnx(tiny_checkpoint, path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.onnx"]


def test_refused(tiny_checkpoint, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no folder"):
        export_onnx(tiny_checkpoint, tmp_path / "nowhere" / "x.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'mlff-student\[onnx\]'"):
        export_onnx(tiny_checkpoint, tmp_path / "x.onnx")


def test_command(tmp_path):
    """`python export.py --model ultra_tiny --format onnx` writes a file, as users call it."""
    script = Path(__file__).parents[2] / "export.py"
    words = [sys.executable, script, "--model", "ultra_tiny", "--format", "onnx"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "largest difference from eager evaluation" in done.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["ultra_tiny.onnx"]
    assert done.stderr == ""
