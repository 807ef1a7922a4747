"""Measure errors of the shipped students on the sample in tests/data, and their frequencies."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from ase.build import molecule
from ase.optimize import BFGS
from ase.vibrations import Vibrations

from mlff_student.archive.registry import available_models, load_student
from mlff_student.cli import run
from mlff_student.core.files import sha256
from mlff_student.core.results import write_results
from mlff_student.distill.dataset import read_frames
from mlff_student.distill.evaluate import evaluate_student
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.teachers.registry import is_teacher, make_teacher

SAMPLE = Path(__file__).parents[1] / "tests" / "data" / "held_out.h5"
TEACHER = "gfn2-xtb"
TORSIONS_BELOW = 350.0  # 1/cm; of the modes of ethanol only its two torsions are lower


def main(
    json: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("shipped.json"),
    sample: Annotated[Path, typer.Option(help="Dataset (HDF5); all its frames are used.")] = SAMPLE,
) -> None:
    """Measure errors of the shipped students on a sample, and their harmonic frequencies.

    Example: python benchmarks/shipped_figures.py --json shipped.json
    && python benchmarks/summarise_evidence.py shipped.json
    """
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in available_models():
            records += sample_errors(name, sample)
            records += frequency_errors(name, Path(folder))
    write_results(json, "shipped figures", ",".join(available_models()), records)
    print(f"written: {json}")


def sample_errors(model: str, sample: Path) -> Iterator[dict[str, Any]]:
    """Measure the errors of a student on molecules and on each kind of complex of a dataset."""
    student, _ = load_student(available_models()[model] / "model.pt")
    errors = evaluate_student(student, read_frames(sample))
    facts = {"model": model, "file": sample.name, "sha256": sha256(sample)}
    for kind, row in {"molecules": errors, **errors["complexes"]}.items():
        where = {"sample": sample.name, "kind": kind, "frames": row["frames"]}
        for name, key, unit in (
            ("force_rmse", "force_rmse_ev_per_angstrom", "eV/angstrom"),
            ("energy_rmse", "energy_rmse_ev_per_atom", "eV/atom"),
            ("force_r2", "force_r2", ""),
        ):
            yield facts | {"name": name, "value": row[key], "unit": unit, "where": where}


def frequency_errors(model: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Measure the largest deviations of harmonic frequencies from those of the teacher, percent."""
    for name, formula in (("water", "H2O"), ("ethanol", "CH3CH2OH")):
        expected = frequencies(formula, TEACHER, folder)
        deviations = 100.0 * np.abs(frequencies(formula, model, folder) / expected - 1.0)
        torsions = expected < TORSIONS_BELOW
        for modes, chosen in (("torsions", torsions), ("other modes", ~torsions)):
            if chosen.any():
                yield {
                    "model": model,
                    "name": "frequency_deviation",
                    "value": float(deviations[chosen].max()),
                    "unit": "%",
                    "where": {"structure": name, "modes": modes, "count": int(chosen.sum())},
                }


def frequencies(formula: str, model: str, folder: Path) -> np.ndarray:
    """Compute the harmonic frequencies of a relaxed molecule.

    Parameters
    ----------
    formula : str
        Name of the molecule in the G2 set of ASE.
    model : str
        Name of a student or teacher.
    folder : Path
        Folder for temporary files.

    Returns
    -------
    ndarray
        (3 N - 6,) frequencies without rotations and translations, 1/cm.
    """
    atoms = molecule(formula)
    atoms.calc = make_teacher(model) if is_teacher(model) else StudentForceFieldCalculator(model)
    BFGS(atoms, logfile=None).run(fmax=0.002, steps=300)
    vibrations = Vibrations(atoms, name=str(folder / f"{formula}-{model}"))
    vibrations.run()
    return vibrations.get_frequencies().real[6:]


if __name__ == "__main__":
    run(lambda: typer.run(main))
