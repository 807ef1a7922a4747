"""Builds the plugin for a LAMMPS, without Python, and compares its runs with the ASE calculator.

    python tests/build/try_lammps.py FOLDER --prefix /usr/local --lmp /usr/local/bin/lmp
    python tests/build/try_lammps.py FOLDER --source ~/lammps --lmp ~/lammps/build/lmp
    python tests/build/try_lammps.py FOLDER --plugin OTHER --lmp lmp --refusal "found Open MPI"

The last line tests that a plugin of another LAMMPS is refused. All files go into FOLDER. The exit
status is 1 if the energies differ, or if the plugin was not refused.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.build import molecule

from mlff_student.archive.export import export
from mlff_student.archive.registry import checkpoint_path
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.engines.lammps.run import element_order, write_data

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-6  # eV/atom; float32 sums in another order
# All programs that the build may use. No Python is among them.
TOOLS = ("c++", "mpicxx", "ar", "ranlib", "ld", "as", "make", "ninja", "sh", "uname")
RUN = """units metal
boundary p p p
read_data system.data
pair_style mlff_student
pair_coeff * * {archive} {elements}
neighbor 1.0 bin
velocity all create 300 4928459 mom yes rot yes dist gaussian
timestep 0.0005
fix motion all nve
thermo_style custom step pe
thermo_modify format float %.15g
thermo {every}
dump frames all custom {every} frames.dump id x y z
dump_modify frames sort id format float %.17g
run {steps}
"""
STEPS, EVERY = 20, 5
ROW = re.compile(r"^\s*\d+\s+(-?\d+\.\d+)\s*$", re.MULTILINE)


class Comparison(NamedTuple):
    """Potential energies of a run in LAMMPS and of the ASE calculator at the same positions."""

    ranks: int
    lammps: np.ndarray  # (frames,) eV
    ase: np.ndarray  # (frames,) eV
    atoms: int
    seconds: float  # of the run with its start

    @property
    def largest(self) -> float:
        """The largest difference, eV/atom."""
        return float(np.max(np.abs(self.lammps - self.ase))) / self.atoms


def build(folder: Path, *options: str) -> Path:
    """Build the plugin with CMake on a PATH without Python, and return its folder."""
    tools, plugin = folder / "tools", folder / "plugin"
    tools.mkdir(parents=True, exist_ok=True)
    for name in TOOLS:
        if (tool := shutil.which(name)) and not (tools / name).exists():
            (tools / name).symlink_to(tool)
    cmake = shutil.which("cmake") or "cmake"
    # CMake also looks beside its own program, so that a Python there is hidden from it.
    hidden = ("-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF", "-DCMAKE_FIND_USE_INSTALL_PREFIX=OFF")
    for command in (
        [cmake, "-S", ROOT / "plugin", "-B", plugin, *hidden, *options],
        [cmake, "--build", plugin, "--target", "mlff_studentplugin", "-j2"],
    ):
        done = subprocess.run(
            command,
            env=os.environ | {"PATH": str(tools)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
    return plugin


def water_box(count: int = 64, edge: float = 12.42) -> Atoms:
    """Return molecules of water on a cubic lattice, with random orientations."""
    rng = np.random.default_rng(5)
    side = round(count ** (1 / 3))
    box = Atoms(cell=[edge] * 3, pbc=True)
    for cell in np.ndindex(side, side, side):
        water = molecule("H2O")
        water.rotate(rng.uniform(0, 360), rng.normal(size=3))
        water.positions += np.array(cell) * edge / side - water.positions.mean(axis=0)
        box += water
    box.wrap()
    return box


def run_lammps(script: str, folder: Path, plugin: Path, lmp: Path, launcher: list[str]) -> str:
    """Run a script in a folder, and return what LAMMPS prints."""
    (folder / "in.try").write_text(script)
    done = subprocess.run(
        [*launcher, str(lmp), "-in", "in.try"],
        cwd=folder,
        env=os.environ | {"LAMMPS_PLUGIN_PATH": str(plugin), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.stdout + done.stderr


def compare(
    folder: Path, plugin: Path, lmp: Path, archive: Path, launcher: list[str], ranks: int
) -> Comparison:
    """Run constant-energy dynamics of a water box, and compute the energies of its frames by ASE.

    Parameters
    ----------
    folder : Path
        Where the run writes.
    plugin : Path
        Folder of the plugin.
    lmp : Path
        The program LAMMPS.
    archive : Path
        The student.
    launcher : list of str
        Command that starts a program on these ranks; empty for one rank.
    ranks : int
        Number of MPI ranks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    atoms = water_box()
    write_data(atoms, folder / "system.data")
    elements = " ".join(element_order(atoms))
    script = RUN.format(archive=archive.resolve(), elements=elements, steps=STEPS, every=EVERY)
    began = time.perf_counter()
    output = run_lammps(script, folder, plugin, lmp, launcher)
    seconds = time.perf_counter() - began
    if f"{ranks} MPI rank(s)" not in output or "Loop time" not in output:
        raise SystemExit(output)
    energies = [float(row) for row in ROW.findall(output)]
    atoms.calc = StudentForceFieldCalculator(archive)
    expected = []
    for frame in (folder / "frames.dump").read_text().split("ITEM: TIMESTEP")[1:]:
        rows = frame.split("ITEM: ATOMS id x y z\n")[1].splitlines()
        atoms.positions = np.loadtxt(rows)[:, 1:]
        expected.append(atoms.get_potential_energy())
    if len(energies) != STEPS // EVERY + 1 or len(expected) != len(energies):
        raise SystemExit(output)
    return Comparison(ranks, np.array(energies), np.array(expected), len(atoms), seconds)


def main() -> None:
    """Parse the arguments and print a line for each number of ranks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="new files go here")
    parser.add_argument("--lmp", type=Path, required=True, help="the program LAMMPS")
    parser.add_argument("--prefix", help="folder where LAMMPS is installed")
    parser.add_argument("--source", help="source tree of LAMMPS")
    parser.add_argument("--plugin", type=Path, help="folder of a plugin that was built before")
    parser.add_argument("--option", action="append", default=[], help="a further option of CMake")
    parser.add_argument("--mpiexec", default="mpiexec", help="the program that starts the ranks")
    parser.add_argument("--ranks", default="1,2", help="numbers of MPI ranks")
    parser.add_argument("--archive", type=Path, help="the student; by default tiny is exported")
    parser.add_argument("--refusal", help="text with which LAMMPS must refuse the plugin")
    args = parser.parse_args()
    folder, lmp = args.folder.resolve(), Path(shutil.which(args.lmp) or args.lmp).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    options = list(args.option)
    if args.prefix:
        options.append(f"-DLAMMPS_PREFIX={args.prefix}")
    if args.source:
        options.append(f"-DLAMMPS_SOURCE_DIR={args.source}")
    plugin = args.plugin.resolve() if args.plugin else build(folder, *options)
    if args.refusal:
        output = run_lammps("pair_style mlff_student\n", folder, plugin, lmp, [])
        warning = next((line for line in output.splitlines() if "is not available" in line), output)
        print(warning)
        refused = "Unrecognized pair style 'mlff_student'" in output
        sys.exit(0 if args.refusal in warning and refused else 1)
    archive = args.archive
    if not archive:
        archive = folder / "tiny.pt"
        export(checkpoint_path("tiny"), archive, verify=False)
    good = True
    for ranks in map(int, args.ranks.split(",")):
        launcher = [*args.mpiexec.split(), "-n", str(ranks)]
        result = compare(folder / f"ranks{ranks}", plugin, lmp, archive, launcher, ranks)
        relative = np.max(np.abs(result.lammps / result.ase - 1.0))
        print(
            f"{ranks} rank(s): {len(result.ase)} energies near {result.lammps[0]:.6f} eV; largest "
            f"difference from ASE {result.largest:.1e} eV/atom, {relative:.1e} of the energy; "
            f"{result.seconds:.1f} s"
        )
        good = good and result.largest < TOLERANCE
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
