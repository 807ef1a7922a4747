"""Frames of one structure: geometries that MD, modes, rattling or scans give, with the teacher's
labels.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS
from ase.vibrations import Vibrations

from ..errors import MissingDependencyError, StudentError
from ..structure import connected_fragments, perceive_bonds
from ..units import KB
from .dataset import LabelledStructure
from .recipe import MD, Augmentation, Methods, NormalModes, Recipe
from .structures import Source, build

CONTACT_SCALES = (0.8, 1.3)  # of a bond's or contact's length, least and most
PROBE_STEP = 0.005  # angstrom an atom, for the central difference of H v
SOFTEST_MODE = 100.0  # 1/cm; softer ones are not harmonic and would be displaced without bounds
GIVEN = ("file", "proposed")  # groups whose geometries are labelled as they are by default
NOT_LABELLED = np.float32(np.nan)


def label_source(source: Source, recipe: Recipe, seed: int) -> LabelledStructure:
    """All frames of one structure, labelled by the recipe's teacher.

    A frame for which the teacher raises, gives a value that is not finite, or a force above
    `recipe.largest_force` is left out and counted.
    """
    from ..teachers import make_teacher

    return Labeller(source, make_teacher(recipe.teacher), recipe.largest_force, seed).run(
        recipe.sampling.get(source.group, Methods(starts=source.group in GIVEN))
    )


class Labeller:
    """Collects the frames of one structure."""

    def __init__(
        self, source: Source, teacher: Calculator, largest_force: float, seed: int
    ) -> None:
        self.source = source
        self.teacher = teacher
        self.largest_force = largest_force
        self.rng = np.random.default_rng(seed)
        self.seed = seed
        self.frames: list[dict[str, Any]] = []
        self.attempted = 0
        self.failures: list[str] = []

    def run(self, methods: Methods) -> LabelledStructure:
        """Frames of all starting geometries by all methods."""
        atoms = Atoms()
        with self._counted():
            for atoms in build(self.source, self.seed):
                atoms.calc = self.teacher
                if methods.starts:
                    self._add(self._rattled(atoms, methods.rattle), "start")
                for _ in range(methods.contacts):
                    self._add(self._with_contact(atoms), "contact")
                if methods.augment:
                    with self._counted():
                        self._augment(atoms, methods.augment)
                if methods.normal_modes and len(atoms) <= methods.normal_modes.largest:
                    with self._counted():
                        self._displace(atoms, methods.normal_modes)
                if methods.md:
                    self._simulate(atoms, methods.md)
        chosen = self.rng.permutation(len(self.frames))[: methods.hessian_products]
        for k in chosen:
            with self._counted():
                self._add_hessian_product(atoms, self.frames[k])
        return self._gather(atoms)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """A teacher may raise anything: remember what, and go on."""
        try:
            yield
        except MissingDependencyError:
            raise
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            self.failures.append(first if isinstance(error, StudentError) else repr(error))

    def _add(self, atoms: Atoms, method: str, temperature: float = np.nan) -> None:
        """Label a geometry and keep it as float32 has it, since that is what a student will see."""
        self.attempted += 1
        with self._counted():
            atoms = atoms.copy()
            atoms.positions = atoms.positions.astype(np.float32)
            atoms.calc = self.teacher
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            if not (np.isfinite(energy) and np.isfinite(forces).all()):
                self.failures.append(f"{method}: labels that are not finite")
            elif abs(forces).max() > self.largest_force:
                self.failures.append(f"{method}: force of {abs(forces).max():.0f} eV/angstrom")
            else:
                self.frames.append(
                    {
                        "methods": method,
                        "positions": atoms.positions,
                        "forces": forces,
                        "energies": energy,
                        "temperatures": temperature,
                        "cells": atoms.cell.array,
                        "pbc": atoms.pbc,
                        "stresses": self._stress(atoms),
                        "probes": np.full(forces.shape, NOT_LABELLED),
                        "products": np.full(forces.shape, NOT_LABELLED),
                    }
                )

    def _stress(self, atoms: Atoms) -> np.ndarray:
        if atoms.pbc.all() and "stress" in self.teacher.implemented_properties:
            return atoms.get_stress()
        return np.full(6, NOT_LABELLED)

    def _rattled(self, atoms: Atoms, width: float) -> Atoms:
        rattled = atoms.copy()
        rattled.positions += self.rng.normal(scale=width, size=(len(atoms), 3)) if width else 0.0
        return rattled

    def _with_contact(self, atoms: Atoms) -> Atoms:
        """One bond stretched or compressed, with all that hangs on it; a ring's bond alone."""
        moved = self._rattled(atoms, 0.02)
        bonds = perceive_bonds(atoms)
        if bonds:
            bond = bonds[self.rng.integers(len(bonds))]
            fragment = connected_fragments(len(atoms), [one for one in bonds if one != bond])
            whole = fragment == fragment[bond[1]]
            if fragment[bond[0]] == fragment[bond[1]]:
                whole = np.arange(len(atoms)) == bond[1]
            vector = atoms.positions[bond[1]] - atoms.positions[bond[0]]
            moved.positions[whole] += (self.rng.uniform(*CONTACT_SCALES) - 1.0) * vector
        return moved

    def _augment(self, atoms: Atoms, settings: Augmentation) -> None:
        try:
            from augment_atoms import Config, generate_structures
        except ImportError as error:
            raise MissingDependencyError(
                "sampling with `augment` needs augment-atoms: pip install 'mlff-student[distill]'"
            ) from error
        config = Config(
            n_per_structure=settings.frames + 1,  # the structure itself is counted
            T=settings.temperature_K,
            beta=0.5,
            sigma_range=tuple(settings.rattle),
            seed=self.seed % 2**32,
            units="eV",
            cell_sigma=0.03 if atoms.pbc.all() else None,
            max_force=self.largest_force,
        )
        with redirect_stdout(io.StringIO()):  # it prints its progress
            made = generate_structures(atoms, self.teacher, [], config)
        for one in made[1:]:  # the first is the structure itself
            self._add(one, "augment")

    def _displace(self, atoms: Atoms, settings: NormalModes) -> None:
        """Classical harmonic ensemble: each mode's coordinate has the variance kT / omega^2."""
        relaxed = atoms.copy()
        relaxed.calc = self.teacher
        BFGS(relaxed, logfile=None).run(fmax=0.02, steps=200)
        with TemporaryDirectory() as folder:
            vibrations = Vibrations(relaxed, name=folder + "/modes")
            vibrations.run()
            data = vibrations.get_vibrations()
        energies, modes = data.get_energies_and_modes()
        stiff = energies.real > SOFTEST_MODE * units.invcm
        hbar = units._hbar * units.J * units.s
        widths = np.sqrt(KB * settings.temperature_K) * hbar / energies.real[stiff]  # A sqrt(amu)
        for _ in range(settings.frames):
            one = relaxed.copy()
            amplitudes = self.rng.normal(size=stiff.sum()) * widths
            one.positions += np.tensordot(amplitudes, modes[stiff], 1)
            self._add(one, "normal_modes", settings.temperature_K)

    def _simulate(self, atoms: Atoms, settings: MD) -> None:
        runner = atoms.copy()
        runner.calc = self.teacher
        for temperature in settings.temperatures_K:
            planned = self.attempted + settings.frames
            with self._counted():
                MaxwellBoltzmannDistribution(runner, temperature_K=temperature, rng=self.rng)
                md = Langevin(
                    runner,
                    timestep=settings.timestep_fs * units.fs,
                    temperature_K=temperature,
                    friction=settings.friction_per_fs / units.fs,
                    fixcm=False,  # fixing it makes small molecules hotter than asked for
                    rng=self.rng,
                )
                md.run(settings.equilibration)
                for _ in range(settings.frames):
                    md.run(settings.interval)
                    if not np.isfinite(runner.positions).all():
                        raise FloatingPointError("MD left the finite numbers")
                    self._add(runner, "md", temperature)
            if self.attempted < planned:  # the teacher raised on the way: start again from here
                self.attempted = planned
                runner.positions = atoms.positions

    def _add_hessian_product(self, atoms: Atoms, frame: dict[str, Any]) -> None:
        """H v of a random v by a central difference of forces: two more calls of the teacher."""
        probe = self.rng.normal(size=(len(atoms), 3)).astype(np.float32)
        sides = []
        for sign in (1, -1):
            one = Atoms(atoms.numbers, frame["positions"], cell=frame["cells"], pbc=frame["pbc"])
            one.positions += sign * PROBE_STEP * probe
            one.calc = self.teacher
            sides.append(one.get_forces())
        product = (sides[1] - sides[0]) / (2.0 * PROBE_STEP)
        if np.isfinite(product).all():
            frame["probes"], frame["products"] = probe, product

    def _gather(self, atoms: Atoms) -> LabelledStructure:
        arrays = {
            "positions": (np.float32, (len(atoms), 3)),
            "forces": (np.float32, (len(atoms), 3)),
            "energies": (np.float64, ()),
            "temperatures": (np.float32, ()),
            "cells": (np.float32, (3, 3)),
            "pbc": (bool, (3,)),
            "stresses": (np.float32, (6,)),
            "probes": (np.float32, (len(atoms), 3)),
            "products": (np.float32, (len(atoms), 3)),
        }
        return LabelledStructure(
            name=self.source.name,
            identity=self.source.identity,
            kind=self.source.kind,
            split=self.source.split,
            attempted=max(self.attempted, 1),
            failure="; ".join(dict.fromkeys(self.failures)),
            atomic_numbers=atoms.numbers.astype(np.uint8),
            methods=[frame["methods"] for frame in self.frames],
            **{
                key: np.array([frame[key] for frame in self.frames], dtype).reshape(-1, *shape)
                for key, (dtype, shape) in arrays.items()
            },
        )
