"""Write a student as ONNX, for programs without torch, and verify the file with onnxruntime.

The file uses opset 18, and the numbers of atoms and edges are dynamic. The student's gradient is
derived by hand and plain arithmetic, so that the forces are part of the graph. The neighbour search
is not: a program must have its own.

| input | shape | |
|---|---|---|
| edge_vectors | (edges, 3) float64 | x_j - x_i of every edge i <- j below the cutoff, angstrom |
| edge_index | (2, edges) int64 | [receiver i, sender j] |
| atomic_numbers | (atoms,) int64 | |

| output | shape | |
|---|---|---|
| energy | () float64 | eV; NaN if an element is unknown |
| energies | (atoms,) float64 | energy of each atom, eV |
| forces | (atoms, 3) float64 | eV/angstrom |
| virial | (3, 3) float64 | - sum r_ij (x) dE/dr_ij = - volume * stress, eV |
| gradient | (edges, 3) float64 | dE/d edge_vectors, eV/angstrom |

The model's metadata entry `mlff_student` contains the same metadata as an archive, as JSON: the
cutoff, the elements and more.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor, nn

from mlff_student.archive.export import Agreement, differences, refuse_disagreement
from mlff_student.archive.graph import join
from mlff_student.archive.registry import read_model
from mlff_student.archive.scripting import student_of, with_script
from mlff_student.core.errors import MissingDependencyError
from mlff_student.core.files import atomic_write
from mlff_student.model.student import (
    DTYPES,
    Student,
    forces_from_gradient,
    virial_from_gradient,
)

if TYPE_CHECKING:
    import onnxruntime

OPSET = 18  # ScatterND that adds, and reductions with axes as inputs
INPUTS = ("edge_vectors", "edge_index", "atomic_numbers")
OUTPUTS = ("energy", "energies", "forces", "virial", "gradient")
METADATA_KEY = "mlff_student"


class OnnxModule(nn.Module):
    """Module that is traced: a student with its sums over edges.

    Parameters
    ----------
    student : Student
        Student to trace.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(
        self, edge_vectors: Tensor, edge_index: Tensor, atomic_numbers: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the outputs of the second table in this module's description."""
        # onnxruntime cannot broadcast an empty list of edges. An edge as long as the cutoff adds
        # nothing to the energy.
        ghost = torch.full((1, 3), self.student.cutoff * 3**-0.5, dtype=torch.float64)
        vectors = torch.cat([edge_vectors, ghost])
        index = torch.cat([edge_index, torch.zeros((2, 1), dtype=torch.int64)], 1)
        species = self.student.species_of[atomic_numbers]
        atoms = atomic_numbers.shape[0]
        energies, gradient = self.student(vectors, index, species.clamp(min=0), atoms)
        energies = torch.where(species < 0, torch.nan, energies)
        forces = forces_from_gradient(gradient, index, atoms)
        virial = virial_from_gradient(gradient, vectors)
        return energies.sum(), energies, forces, virial, gradient[:-1]


def export_onnx(
    checkpoint: Path, output: Path, dtype: str = "float32", verify: bool = True
) -> list[Agreement]:
    """Write the ONNX file of a checkpoint.

    Parameters
    ----------
    checkpoint : Path
        Weights file; its card.json is read from the same folder.
    output : Path
        ONNX file to write. An existing file is replaced only after the verification.
    dtype : str
        Precision of the network's arithmetic, "float32" or "float64".
    verify : bool
        Whether to run the file in onnxruntime on structures of 1 to 43 atoms and compare it with
        eager evaluation before `output` is replaced.

    Returns
    -------
    list[Agreement]
        Measured differences; empty without verification.

    Raises
    ------
    ArchiveError
        The checkpoint cannot be read, or the file computes other numbers than the student.
    InputError
        The output cannot be written.
    MissingDependencyError
        onnx, onnxscript or onnxruntime is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"export to ONNX needs {error.name}: pip install 'mlff-student[onnx]'"
        ) from error
    archive = with_script(read_model(checkpoint).in_precision(dtype))  # for its self-check
    student, config = student_of(archive, DTYPES[dtype]), archive.config
    with atomic_write(output) as temporary:
        program = _trace(OnnxModule(student))
        program.model.metadata_props[METADATA_KEY] = json.dumps(archive.metadata)
        program.model.doc_string = __doc__
        program.save(str(temporary))
        if not verify:
            return []
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # further threads spin while they wait
        session = onnxruntime.InferenceSession(str(temporary), options)
        agreements = differences(
            student, config, "onnx", dtype, lambda atoms: _run(session, atoms, config.cutoff)
        )
        refuse_disagreement(f"the ONNX file of {archive.metadata['name']}", agreements)
    return agreements


def _trace(module: OnnxModule) -> torch.onnx.ONNXProgram:
    """Trace with the exporter of torch.export; the older one fixes the sizes of the example."""
    edges, atoms = torch.export.Dim("edges", min=1), torch.export.Dim("atoms", min=1)
    example = (
        torch.tensor([[1.1, 0.1, 0.2], [-1.1, -0.1, -0.2]], dtype=torch.float64).repeat(4, 1),
        torch.tensor([[0, 1], [1, 0]]).repeat(1, 4),
        torch.tensor([6, 8, 1]),
    )
    with _silence():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            dynamic_shapes=({0: edges}, {1: edges}, {0: atoms}),
            input_names=INPUTS,
            output_names=OUTPUTS,
            opset_version=OPSET,
            custom_translation_table={torch.ops.aten.index_add.default: _index_add},
            optimize=False,  # the optimiser drops NORM_FLOOR, 1e-8, because it takes it for zero
            verbose=False,
        )
    assert program is not None  # only dynamo=False returns None
    return program


def _index_add(self: Any, dim: int, index: Any, source: Any, alpha: float = 1.0) -> Any:
    """Sum rows with ScatterElements.

    The exporter itself uses ScatterND, which has a race condition in onnxruntime 1.31: on two
    threads forces sometimes had errors of up to 0.2 eV/angstrom.
    """
    from onnxscript import opset18

    later = list(range(1, len(source.shape)))
    rows = opset18.Unsqueeze(index, opset18.Constant(value_ints=later)) if later else index
    everywhere = opset18.Expand(rows, opset18.Shape(source))
    return opset18.ScatterElements(self, everywhere, source, axis=dim, reduction="add")


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the warnings that the exporter prints about its own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _run(
    session: "onnxruntime.InferenceSession", atoms: Atoms, cutoff: float
) -> tuple[float, np.ndarray]:
    """Return energy (eV) and forces (N, 3) in eV/angstrom of a structure by onnxruntime."""
    graph = join([atoms], cutoff)
    values = (graph.edge_vectors, graph.edge_index, graph.numbers)
    energy, _, forces, *_ = session.run(list(OUTPUTS), dict(zip(INPUTS, values, strict=True)))
    return float(energy), forces
