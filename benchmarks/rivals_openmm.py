"""Measure a step in OpenMM of TensorNet, MACE and ANI networks and of the students."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from networks import ARCHITECTURES, make_rival

from mlff_student.archive.registry import archive_of
from mlff_student.benchmark import MOLECULE
from mlff_student.benchmark.settings import models_of, words_of
from mlff_student.benchmark.step_tables import step_table
from mlff_student.benchmark.steps import (
    Alternative,
    StepSettings,
    benchmark_steps,
    from_calculator,
    quietly,
)
from mlff_student.cli import console, run
from mlff_student.cli.benchmark import progress_bar
from mlff_student.cli.common import whole_numbers
from mlff_student.structures.reading import read_structure

COMMAND = "benchmarks/rivals_openmm.py"


@dataclass(frozen=True)
class RivalSettings(StepSettings):
    """Settings of `benchmark openmm` with the architectures of `networks.py`."""

    rivals: tuple[str, ...] = ()


def main(
    rivals: Annotated[
        str, typer.Option(help="Architectures, separated by commas: tensornet, mace, ani.")
    ] = ",".join(ARCHITECTURES),
    models: Annotated[
        str,
        typer.Option(help="Students whose sizes the networks have, separated by commas; or all."),
    ] = "all",
    also: Annotated[
        str, typer.Option(help="Teachers, separated by commas, such as gfn2-xtb.")
    ] = "",
    molecule: Annotated[
        str, typer.Option(help="Structure file or SMILES string of a molecule.")
    ] = MOLECULE,
    platforms: Annotated[str, typer.Option(help="OpenMM platforms, separated by commas.")] = "CPU",
    threads: Annotated[str, typer.Option(help="Numbers of threads, separated by commas.")] = "1",
    seconds: Annotated[float, typer.Option(help="Least time for all steps, s.")] = 5.0,
    json: Annotated[
        Path, typer.Option(help="JSON file for the records; a killed run resumes from it.")
    ] = Path("rivals-openmm.json"),
) -> None:
    """Measure a step in OpenMM of other networks with random weights and of the students.

    Each network has about as many parameters as a student. With random weights a molecule is not
    stable, so the steps are so short that it does not move. TensorNet first compiles for a minute.
    Needs: pip install mace-torch torchani torchmd-net

    Example: python benchmarks/rivals_openmm.py --rivals mace --models tiny --json mace.json
    """
    settings = RivalSettings(
        models=models_of(models),
        molecule=molecule,
        atoms=(),
        backends=("native",),
        platforms=words_of(platforms),
        threads=whole_numbers("--threads", threads),
        also=words_of(also),
        seconds=seconds,
        rivals=words_of(rivals),
    )
    with progress_bar("packages", quiet=False) as progress:
        networks = alternatives(settings)
        records = benchmark_steps(settings, json, progress, command=COMMAND, alternatives=networks)
    console.print(step_table(records))


def alternatives(settings: RivalSettings) -> list[Alternative]:
    """Make a network of each architecture with the size of each student.

    Raises
    ------
    InputError
        There is no such architecture, or it does not know an element of the molecule.
    MissingDependencyError
        The package of an architecture is not installed.
    """
    atoms = read_structure(settings.molecule).atoms
    sizes = {archive_of(model).metadata["parameters"] for model in settings.models}
    networks = []
    with quietly():
        for name in settings.rivals:
            for parameters in sorted(sizes, reverse=True):
                rival = make_rival(name, parameters, atoms)
                if calculator := rival.calculator():
                    networks.append(from_calculator(name, rival.parameters, calculator))
                else:
                    networks.append(Alternative(name, rival.parameters, None, rival.create_system))
    return networks


if __name__ == "__main__":
    run(lambda: typer.run(main))
