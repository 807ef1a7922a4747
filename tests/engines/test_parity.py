"""Every engine computes the numbers of the archive it was given."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import openmm
import pytest
import torch
from ase import Atoms
from ase.md.verlet import VelocityVerlet
from ase.units import fs, kB
from numpy.typing import NDArray
from openmm import unit

from mlff_student.archive.export import export
from mlff_student.archive.registry import archive_of, checkpoint_path
from mlff_student.core.units import KJ_PER_MOL
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.engines.lammps.run import (
    INPUT,
    boundary,
    element_order,
    run_lmp,
    single_point,
    write_data,
)
from mlff_student.structures.reading import Structure, make_topology
from openmm_integration import create_system
from openmm_integration.topology import openmm_topology

STRUCTURES = ("water", "ethanol", "molecule32", "water_box", "triclinic")


class Tolerance(NamedTuple):
    """Largest differences allowed."""

    energy: float  # eV/atom
    forces: float  # eV/angstrom
    virial: float  # of its largest component


TOLERANCES = {
    # The engines list neighbours in different orders, and float32 sums depend on the order.
    "float32": Tolerance(energy=1e-6, forces=1e-5, virial=1e-5),
    # The same in float64, whose rounding is 1e9 times smaller. The virial comes out of LAMMPS as a
    # pressure, and LAMMPS rounds 1 eV/angstrom^3 to 1.6021765e6 bar, 8e-8 off CODATA.
    "float64": Tolerance(energy=1e-11, forces=1e-9, virial=1e-7),
}
# LAMMPS rounds the energy units' ratio to 23.060549, 5e-8 off CODATA.
REAL_UNITS = 1e-7


def openmm_point(atoms: Atoms, archive: Path, platform: str) -> tuple[float, NDArray[np.float64]]:
    """Energy (eV) and forces (N, 3) in eV/angstrom."""
    system = create_system(openmm_topology(Structure(atoms, make_topology(atoms, []))), archive)
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform)
    )
    context.setPositions(atoms.positions * unit.angstrom)
    state = context.getState(energy=True, forces=True)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.angstrom)
    return energy * KJ_PER_MOL, forces * KJ_PER_MOL


def archive_virial(atoms: Atoms, archive: Path) -> NDArray[np.float64]:
    _, _, virial = archive_of(archive).module(
        torch.tensor(atoms.positions),
        torch.tensor(atoms.numbers),
        torch.tensor(atoms.cell.array),
        torch.tensor(atoms.pbc),
    )
    return virial.numpy()


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_engines_agree(
    name: str,
    precision: str,
    structures: dict[str, Atoms],
    tiny_archive: Path,
    tiny_archive64: Path,
    tmp_path: Path,
) -> None:
    """ASE, OpenMM on two platforms, LAMMPS in two unit systems: one energy, one set of forces."""
    atoms = structures[name]
    archive = tiny_archive if precision == "float32" else tiny_archive64
    allowed = TOLERANCES[precision]
    atoms.calc = StudentForceFieldCalculator(archive)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    virial = archive_virial(atoms, archive)
    assert abs(forces).max() > 0.1, "forces that vanish would agree in any engine"

    found = {p: openmm_point(atoms, archive, p) for p in ("Reference", "CPU")}
    # One unit system is enough for the second precision: the conversion is the same code. Float64
    # is portable, so the other backend is tried in the other unit system.
    for units in ("metal", "real") if precision == "float32" else ("metal",):
        backend = "portable" if units == "real" else "auto"
        point = single_point(atoms, archive, tmp_path, units=units, backend=backend)
        found[units] = point.energy, point.forces
        relative = REAL_UNITS if units == "real" else 0.0
        virial_error = abs(point.virial - virial).max() / abs(virial).max()
        assert virial_error < allowed.virial + relative, units

    for engine, (other_energy, other_forces) in found.items():
        relative = REAL_UNITS if engine == "real" else 0.0
        energy_error = abs(other_energy - energy)
        force_error = abs(other_forces - forces).max()
        assert energy_error < allowed.energy * len(atoms) + relative * abs(energy), engine
        assert force_error < allowed.forces + relative * abs(forces).max(), engine


STEPS, TIMESTEP_FS = 60, 0.5
NVE = f"""
timestep   {TIMESTEP_FS * 1e-3}
fix        motion all nve
write_dump all custom start.dump id xu yu zu modify sort id format float "%.15g"
run        {STEPS}
write_dump all custom end.dump id xu yu zu modify sort id format float "%.15g"
"""
# Largest difference of a coordinate after 30 fs, angstrom. Float64: LAMMPS has the ratio of its
# units to eight digits, OpenMM and ASE have theirs from two editions of CODATA. Float32: 1e-5
# eV/angstrom of rounding in the forces moves a hydrogen by 5e-5.
TRAJECTORY_TOLERANCES = {"float32": 5e-5, "float64": 1e-7}


def ase_motion(atoms: Atoms, archive: Path) -> NDArray[np.float64]:
    """How far each atom goes, (N, 3) in angstrom."""
    moving = atoms.copy()
    moving.calc = StudentForceFieldCalculator(archive)
    VelocityVerlet(moving, TIMESTEP_FS * fs).run(STEPS)
    return moving.positions - atoms.positions


def openmm_motion(atoms: Atoms, archive: Path) -> NDArray[np.float64]:
    """As `ase_motion`. OpenMM's own Verlet is leap-frog, with velocities half a step apart."""
    system = create_system(openmm_topology(Structure(atoms, make_topology(atoms, []))), archive)
    for index, mass in enumerate(atoms.get_masses()):
        system.setParticleMass(index, mass)
    verlet = openmm.CustomIntegrator(TIMESTEP_FS * unit.femtosecond)
    for line in ("v=v+0.5*dt*f/m", "x=x+dt*v", "v=v+0.5*dt*f/m"):
        verlet.addComputePerDof(line[0], line[2:])
    context = openmm.Context(system, verlet, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(atoms.positions * unit.angstrom)
    context.setVelocities(angstrom_per_ps(atoms) * (unit.angstrom / unit.picosecond))
    verlet.step(STEPS)
    found = context.getState(positions=True).getPositions(asNumpy=True)
    return found.value_in_unit(unit.angstrom) - atoms.positions


def lammps_motion(atoms: Atoms, archive: Path, folder: Path) -> NDArray[np.float64]:
    """As `ase_motion`."""
    write_data(atoms, folder / "start.data")
    with (folder / "start.data").open("a") as file:
        print("\nVelocities\n", file=file)
        for index, velocity in enumerate(angstrom_per_ps(atoms), 1):
            print(index, *velocity, file=file)
    start = INPUT.substitute(
        units="metal",
        boundary=boundary(atoms),
        start="read_data start.data",
        backend="auto",
        archive=archive.resolve(),
        elements=" ".join(element_order(atoms)),
    )
    run_lmp(start + NVE, folder, "nve")
    first, last = (
        np.loadtxt(folder / f"{name}.dump", skiprows=9)[:, 1:] for name in ("start", "end")
    )
    return last - first


def angstrom_per_ps(atoms: Atoms) -> NDArray[np.float64]:
    """Velocities (N, 3)."""
    return atoms.get_velocities() * 1e3 * fs


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", ["ethanol", "triclinic"])
def test_trajectories_agree(
    name: str, precision: str, structures: dict[str, Atoms], tmp_path: Path
) -> None:
    """The same start at constant energy in ASE, OpenMM and LAMMPS."""
    archive = tmp_path / "tiny.pt"
    export(checkpoint_path("tiny"), archive, dtype=precision, verify=False)
    atoms = structures[name]
    thermal = np.sqrt(kB * 300.0 / atoms.get_masses())[:, None]
    atoms.set_velocities(thermal * np.random.default_rng(8).standard_normal((len(atoms), 3)))
    expected = ase_motion(atoms, archive)
    assert abs(expected).max() > 0.2, "atoms that stay would agree in any engine"
    for found in (openmm_motion(atoms, archive), lammps_motion(atoms, archive, tmp_path)):
        np.testing.assert_allclose(found, expected, atol=TRAJECTORY_TOLERANCES[precision])
