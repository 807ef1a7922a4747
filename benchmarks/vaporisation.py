"""Enthalpies of vaporisation in the campaign's boxes, U(gas) - U(box) / n + RT.

    python checkpoints/data/validation/vaporisation.py

runs single molecules at constant temperature (five minutes; a killed run goes on), takes the boxes'
energies from the logs of the campaign's runs, and writes vaporisation.csv beside this file.
"""

import csv
from pathlib import Path

import numpy as np

from mlff_student.analysis.blocks import mean_of_blocks, mean_of_runs
from mlff_student.analysis.thermo import read_thermo
from mlff_student.core.files import atomic_write
from mlff_student.core.units import KB, KJ_PER_MOL
from mlff_student.engines.protocol import MDSettings
from mlff_student.engines.run import run_md
from mlff_student.teachers.registry import is_teacher
from mlff_student.validation.protocol import load_protocol

HERE = Path(__file__).parent
RUNS = HERE / "runs"
STEPS = ("liquid", "liquid_water")
GAS_BURN_IN_PS = 1.0


def energies(log: Path, burn_in_ps: float) -> np.ndarray:
    """Potential energies after the burn-in, eV."""
    thermo = read_thermo(log)
    return thermo.potential_ev[thermo.time_ps > burn_in_ps]


def gas(model: str, smiles: str, temperature_K: float) -> np.ndarray:
    """Potential energies of a single molecule, eV."""
    settings = MDSettings(
        engine="ase" if is_teacher(model) else "openmm", model=model, structure=smiles,
        steps=40_000, timestep_fs=0.5, temperature_K=temperature_K, ensemble="nvt", every=20,
        thermalise_steps=4000, friction_per_ps=10.0, seed=1,
    )  # fmt: skip
    folder = RUNS / "gas" / f"{model}-{smiles}"
    run_md(settings, folder)
    return energies(folder / "run.csv", GAS_BURN_IN_PS)


def main() -> None:
    """Measure all models and both liquids."""
    protocol = load_protocol("campaign")
    rows = []
    for step in (one for one in protocol.steps if one.step in STEPS):
        box = protocol.boxes[step.box]
        for model in ("gfn2-xtb", *protocol.models):
            alone = mean_of_blocks(gas(model, box.smiles, step.temperature_K))
            logs = sorted(RUNS.glob(f"{model}/*/{step.step}/{step.box}-nvt-*/run.csv"))
            boxed = mean_of_runs([energies(log, step.burn_in_ps) / box.count for log in logs])
            heat = alone.value - boxed.value + KB * step.temperature_K
            rows.append(
                {
                    "box": step.box,
                    "model": model,
                    "logs": len(logs),
                    "gas_ev": f"{alone.value:.4f}",
                    "gas_stderr_ev": f"{alone.stderr:.4f}",
                    "box_ev_per_molecule": f"{boxed.value:.4f}",
                    "box_stderr_ev_per_molecule": f"{boxed.stderr:.4f}",
                    "vaporisation_kj_per_mol": f"{heat / KJ_PER_MOL:.1f}",
                    "vaporisation_stderr_kj_per_mol": (
                        f"{np.hypot(alone.stderr, boxed.stderr) / KJ_PER_MOL:.1f}"
                    ),
                }
            )
    with atomic_write(HERE / "vaporisation.csv") as temporary, temporary.open("w") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
