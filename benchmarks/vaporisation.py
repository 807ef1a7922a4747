"""Compute enthalpies of vaporisation from the boxes of a campaign, U(gas) - U(box) / n + RT."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from mlff_student.analysis.blocks import mean_of_blocks, mean_of_runs
from mlff_student.analysis.thermo import read_thermo
from mlff_student.cli import run
from mlff_student.core.errors import InputError
from mlff_student.core.files import atomic_write
from mlff_student.core.units import KB, KJ_PER_MOL
from mlff_student.engines.protocol import MDSettings
from mlff_student.engines.run import run_md
from mlff_student.teachers.registry import is_teacher
from mlff_student.validation.protocol import Liquid, Protocol, load_protocol
from mlff_student.validation.tasks import label_of

GAS_BURN_IN_PS = 1.0
GAS_STEPS = 40_000


def main(
    campaign: Annotated[
        Path,
        typer.Argument(help="Folder of `mlff-student validate run --protocol campaign`."),
    ],
    models: Annotated[
        str,
        typer.Option(help="Models, separated by commas; those of the protocol if not given."),
    ] = "",
    teacher: Annotated[str, typer.Option(help="Teacher of the campaign; empty for none.")] = "",
    protocol: Annotated[
        str, typer.Option(help="Protocol of the campaign: name or YAML file.")
    ] = "campaign",
    gas_steps: Annotated[
        int,
        typer.Option(min=4000, help="Number of MD steps of 0.5 fs of each molecule in the gas."),
    ] = GAS_STEPS,
    output: Annotated[Path, typer.Option("-o", "--output", help="CSV file to write.")] = Path(
        "vaporisation.csv"
    ),
) -> None:
    """Compute enthalpies of vaporisation of the liquids of a campaign, with standard errors.

    The energies of the boxes come from the logs of the campaign (a day of MD). Single molecules run
    for about a minute each in CAMPAIGN/gas. The same command resumes after a kill.

    Example: mlff-student validate run --protocol campaign --teacher gfn2-xtb -o campaign
    && python benchmarks/vaporisation.py campaign --teacher gfn2-xtb
    """
    if not (campaign / "runs").is_dir():
        raise InputError(
            f"{campaign} has no folder runs; make it with: "
            f"mlff-student validate run --protocol {protocol} -o {campaign}"
        )
    settings = load_protocol(protocol)
    names = models.split(",") if models else list(settings.models)
    if teacher:
        names.insert(0, teacher)
    rows = list(enthalpies(settings, campaign, names, gas_steps))
    with atomic_write(output) as temporary, temporary.open("w") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"written: {output}")


def enthalpies(
    protocol: Protocol, campaign: Path, models: list[str], gas_steps: int
) -> Iterator[dict[str, Any]]:
    """Compute a row of the table for each liquid and model.

    Raises
    ------
    InputError
        The protocol has no liquid at constant volume, or its runs are not in the folder.
    """
    liquids = [step for step in protocol.steps if isinstance(step, Liquid) and step.nvt_ps]
    if not liquids:
        raise InputError(
            f"the protocol {protocol.name} has no liquid at constant volume; give one with nvt_ps"
        )
    for step in liquids:
        box = protocol.boxes[step.box]
        for model in models:
            pattern = f"runs/{label_of(model)}/*/{step.step}/{step.box}-nvt-*/run.csv"
            logs = sorted(campaign.glob(pattern))
            if not logs:
                raise InputError(f"{campaign} has no finished run {pattern}; finish the campaign")
            folder = campaign / "gas" / f"{label_of(model)}-{step.box}"
            gas = mean_of_blocks(
                gas_energies(model, box.smiles, step.temperature_K, gas_steps, folder)
            )
            liquid = mean_of_runs([energies(log, step.burn_in_ps) / box.count for log in logs])
            enthalpy = gas.value - liquid.value + KB * step.temperature_K
            yield {
                "box": step.box,
                "model": model,
                "logs": len(logs),
                "gas_ev": f"{gas.value:.4f}",
                "gas_stderr_ev": f"{gas.stderr:.4f}",
                "box_ev_per_molecule": f"{liquid.value:.4f}",
                "box_stderr_ev_per_molecule": f"{liquid.stderr:.4f}",
                "vaporisation_kj_per_mol": f"{enthalpy / KJ_PER_MOL:.1f}",
                "vaporisation_stderr_kj_per_mol": (
                    f"{np.hypot(gas.stderr, liquid.stderr) / KJ_PER_MOL:.1f}"
                ),
            }


def gas_energies(
    model: str, smiles: str, temperature_K: float, steps: int, folder: Path
) -> np.ndarray:
    """Run MD of a single molecule, and return its potential energies, eV."""
    settings = MDSettings(
        engine="ase" if is_teacher(model) else "openmm",
        model=model,
        structure=smiles,
        steps=steps,
        timestep_fs=0.5,
        temperature_K=temperature_K,
        ensemble="nvt",
        every=20,
        thermalise_steps=4000,
        friction_per_ps=10.0,
        seed=1,
    )
    folder.parent.mkdir(exist_ok=True)
    run_md(settings, folder)
    return energies(folder / "run.csv", GAS_BURN_IN_PS)


def energies(log: Path, burn_in_ps: float) -> np.ndarray:
    """Return the potential energies after the burn-in, eV.

    Raises
    ------
    InputError
        The run is not longer than the burn-in.
    """
    thermo = read_thermo(log)
    late = thermo.potential_ev[thermo.time_ps > burn_in_ps]
    if not len(late):
        raise InputError(
            f"{log} is not longer than the burn-in of {burn_in_ps:g} ps; give a longer run"
        )
    return late


if __name__ == "__main__":
    run(lambda: typer.run(main))
