"""Does a student hold in MD? Constant-energy runs of molecules that it was not trained on."""

import csv
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import track

from mlff_student.analysis import analyze
from mlff_student.archive.registry import read_card
from mlff_student.core.errors import InputError, StudentError
from mlff_student.core.figures import load_thresholds
from mlff_student.core.files import atomic_write
from mlff_student.distill.molecules import LIBRARY, Molecule, read_library
from mlff_student.engines.protocol import MDSettings, RunFolder
from mlff_student.engines.run import run_md
from mlff_student.reporting.verdict import verdict

EVERY = 20  # steps between frames and log rows


class Stability(NamedTuple):
    """One molecule's run, a row of nve.csv."""

    name: str
    smiles: str
    atoms: int
    ps: float
    temperature_k: float
    drift_mev_per_atom_ps: float
    drift_stderr_mev_per_atom_ps: float
    bond_deviation_angstrom: float
    passed: bool
    failure: str


def held_out_molecules(checkpoint: Path, count: int, library: Path = LIBRARY) -> list[Molecule]:
    """Molecules of a checkpoint's test set, evenly spread over the lengths of their SMILES.

    Raises
    ------
    InputError : the checkpoint's card names fewer molecules of the library.
    """
    names = set(read_card(checkpoint).get("held_out", {}).get("test", []))
    found = sorted(
        (m for m in read_library(library) if m.name in names), key=lambda m: len(m.smiles)
    )
    if len(found) < count:
        raise InputError(
            f"the card of {checkpoint} names {len(found)} held-out molecules of {library}"
        )
    return [found[k] for k in np.linspace(0, len(found) - 1, count).round().astype(int)]


def simulate(checkpoint: Path, molecule: Molecule, folder: Path, ps: float) -> Stability:
    """NVE at 300 K in OpenMM, 0.5 fs, after 2 ps of Langevin dynamics; goes on in its folder."""
    os.environ["OMP_NUM_THREADS"] = "1"
    settings = MDSettings(
        engine="openmm",
        model=str(checkpoint),
        structure=molecule.smiles,
        steps=round(2000.0 * ps / EVERY) * EVERY,
        timestep_fs=0.5,
        temperature_K=300.0,
        ensemble="nve",
        every=EVERY,
        thermalise_steps=4000,
        friction_per_ps=10.0,
        seed=1,
    )
    run = RunFolder(folder)
    try:
        run_md(settings, run.path, quiet=True)
        record = analyze(run.trajectory, run.topology, run.thermo).as_record()
    except StudentError as error:  # it blew up: a result, and the worst there is
        nothing = float("nan")
        return Stability(
            molecule.name, molecule.smiles, 0, ps, *[nothing] * 4, False, str(error).splitlines()[0]
        )
    failed = [check.name for check in verdict(record, load_thresholds()) if not check.passed]
    return Stability(
        name=molecule.name,
        smiles=molecule.smiles,
        passed=not failed,
        failure=" ".join(failed),
        ps=record["duration_ps"],
        **{key: record[key] for key in Stability._fields if key in record},
    )


def measure_stability(
    checkpoint: Path, runs: Path, output: Path, *, molecules: int, ps: float, workers: int
) -> list[Stability]:
    """Run held-out molecules of a checkpoint, one process a worker.

    Parameters
    ----------
    checkpoint : model.pt with its card.json.
    runs : folder of the runs; finished ones are not run again.
    output : CSV of all results, written after each.
    ps : length of each run.

    Raises
    ------
    InputError : too few held-out molecules, or the output cannot be written.
    """
    chosen = held_out_molecules(checkpoint, molecules)
    rows: dict[str, Stability] = {}
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(simulate, checkpoint, one, runs / one.name, ps) for one in chosen]
        for job in track(as_completed(jobs), total=len(jobs), description="NVE"):
            rows[job.result().name] = job.result()
            ordered = [rows[one.name] for one in chosen if one.name in rows]
            with atomic_write(output) as temporary, open(temporary, "w", newline="") as stream:
                writer = csv.writer(stream)
                writer.writerow(Stability._fields)
                writer.writerows(
                    [f"{v:.4g}" if isinstance(v, float) else v for v in row] for row in ordered
                )
    return ordered
