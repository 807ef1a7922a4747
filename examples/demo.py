"""Export a student, run alanine dipeptide in OpenMM and LAMMPS, and compare both.

The molecule has 22 atoms and runs at constant energy. The script prints drift and speed of both
engines, and how far their energies and forces differ from those in ASE.

    python examples/demo.py            # 5 ps in each engine, about five minutes
    python examples/demo.py --ps 50
"""

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import openmm
import typer
from openmm import unit

from mlff_student.analysis import Analysis, analyze
from mlff_student.archive.export import export
from mlff_student.archive.registry import checkpoint_path
from mlff_student.cli import console, run
from mlff_student.core.figures import Figure, record_of
from mlff_student.core.results import write_results
from mlff_student.core.units import KJ_PER_MOL
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.engines.lammps.run import single_point
from mlff_student.engines.protocol import MDSettings, RunFolder
from mlff_student.engines.run import run_md
from mlff_student.reporting.analyze import energy_course, judge_run
from mlff_student.reporting.plots import plot_drift
from mlff_student.reporting.verdict import Outcome, drift_table, overall
from mlff_student.structures.reading import read_structure
from openmm_integration import create_system, load_structure

MOLECULE = str(Path(__file__).with_name("alanine_dipeptide.pdb"))
TIMESTEP_FS = 0.5
EVERY = 20


def openmm_point(positions: np.ndarray, archive: Path) -> tuple[float, np.ndarray]:
    """Return energy (eV) and forces (N, 3) (eV/angstrom) of the molecule in OpenMM."""
    topology, _ = load_structure(MOLECULE)
    context = openmm.Context(create_system(topology, archive), openmm.VerletIntegrator(0.001))
    context.setPositions(positions * unit.angstrom)
    state = context.getState(energy=True, forces=True)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.angstrom)
    return energy * KJ_PER_MOL, forces * KJ_PER_MOL


def demo(
    ps: Annotated[float, typer.Option(help="Length of each run, ps.")] = 5.0,
    model: Annotated[str, typer.Option(help="Name of a shipped model.")] = "original",
    output: Annotated[Path, typer.Option(help="Folder for all files.")] = Path("runs/demo"),
) -> None:
    """Export a student, run it in OpenMM and LAMMPS, and compare the two engines."""
    output.mkdir(parents=True, exist_ok=True)
    archive = output / f"{model}.pt"
    agreements = export(checkpoint_path(model), archive)
    worst = max(agreement.forces_ev_per_angstrom for agreement in agreements)
    console.print(
        f"exported {archive}; its forces differ from those of the checkpoint by at most "
        f"{worst:.1e} eV/angstrom"
    )

    atoms = read_structure(MOLECULE).atoms
    atoms.calc = StudentForceFieldCalculator(archive)
    points = {
        "openmm": openmm_point(atoms.positions, archive),
        "lammps": single_point(atoms, archive, output)[:2],
    }
    analyses: dict[str, Analysis] = {}
    agreement_and_speed: dict[str, list[Figure]] = {}
    for engine in points:
        settings = MDSettings(
            engine=engine,
            model=str(archive),
            structure=MOLECULE,
            steps=round(ps * 1000.0 / TIMESTEP_FS / EVERY) * EVERY,
            timestep_fs=TIMESTEP_FS,
            temperature_K=300.0,
            ensemble="nve",
            every=EVERY,
            thermalise_steps=4000,
            friction_per_ps=10.0,
            seed=1,
        )
        folder = RunFolder(output / engine)
        speed = run_md(settings, folder.path)
        analyses[engine] = analyze(folder.trajectory, folder.topology, folder.thermo)
        energy, forces = points[engine]
        energy_parity = abs(energy - atoms.get_potential_energy()) / len(atoms)
        force_parity = float(abs(forces - atoms.get_forces()).max())
        agreement_and_speed[engine] = [
            Figure("ms_per_step", speed["ms_per_step"]),
            Figure("ns_per_day", speed["ns_per_day"]),
            Figure("energy_parity", energy_parity, "eV/atom"),
            Figure("force_parity", force_parity, "eV/angstrom"),
        ]

    checks = {engine: judge_run(analysis) for engine, analysis in analyses.items()}
    records = {engine: analysis.as_record() for engine, analysis in analyses.items()}
    table = drift_table(records, checks)
    for of_engines in zip(*agreement_and_speed.values(), strict=True):
        title, unit_name = of_engines[0].title, of_engines[0].unit
        table.add_row(title, unit_name, *(f"{figure.value:.2g}" for figure in of_engines))
    console.print(table)
    courses = {engine: energy_course(analysis) for engine, analysis in analyses.items()}
    plot_drift(courses, output / "drift.png")
    results = [
        {"engine": engine} | record | record_of(agreement_and_speed[engine])
        for engine, record in records.items()
    ]
    write_results(output / "demo.json", "demo", model, results)
    console.print(f"trajectories, logs and the plot drift.png are in {output}")
    if any(overall(of_run) is not Outcome.PASSED for of_run in checks.values()):
        sys.exit(1)


if __name__ == "__main__":
    run(lambda: typer.run(demo))
