"""Frames of one structure: geometries that MD, modes, rattling or scans give, with the teacher's
labels.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from tempfile import TemporaryDirectory
from threading import get_ident
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import BFGS
from ase.vibrations import Vibrations

from mlff_student.core.errors import InputError, MissingDependencyError, StudentError
from mlff_student.core.units import KB
from mlff_student.distill.dataset import LabelledStructure
from mlff_student.distill.recipe import MD, Augmentation, Methods, NormalModes, Recipe
from mlff_student.distill.sources import Source, build
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.structures.checks import connected_fragments, perceive_bonds
from mlff_student.teachers import make_teacher

CONTACT_SCALES = (0.8, 1.3)  # of a bond's or contact's length, least and most
VOLUME_FACTORS = (0.8, 2.0)  # of a box's volume, least and most
SOFTEST_MODE = 100.0  # 1/cm; softer ones are not harmonic and would be displaced without bounds
AUGMENT_CALLS = 500  # of the teacher for a frame, at most
GIVEN = ("file", "proposed")  # groups whose geometries are labelled as they are by default
NOT_LABELLED = np.float32(np.nan)


def label_source(source: Source, recipe: Recipe, seed: int) -> LabelledStructure:
    """All frames of one structure, labelled by the recipe's teacher.

    A frame for which the teacher raises, gives a value that is not finite, or a force above
    `recipe.largest_force` is left out and counted.
    """
    teacher = _teacher(recipe.teacher, get_ident())
    teacher.reset()  # the labels do not depend on what this process labelled before
    return Labeller(source, teacher, recipe.largest_force, seed).run(
        recipe.sampling.get(source.group, Methods(starts=source.group in GIVEN))
    )


@cache
def _teacher(name: str, thread: int) -> Calculator:
    """One calculator a thread of a process (a Dask worker has several; a calculator holds one
    structure): a network's weights are not loaded anew for every structure.
    """
    return make_teacher(name)


@cache
def _student(name: str, thread: int) -> Calculator:
    return StudentForceFieldCalculator(name)


class Labeller:
    """Collects the frames of one structure."""

    def __init__(
        self, source: Source, teacher: Calculator, largest_force: float, seed: int
    ) -> None:
        self.source = source
        self.teacher = _Finite(teacher)
        self.largest_force = largest_force
        self.rng = np.random.default_rng(seed)
        self.seed = seed
        self.frames: list[dict[str, Any]] = []
        self.attempted = 0
        self.failures: list[str] = []

    def run(self, methods: Methods) -> LabelledStructure:
        """Frames of all starting geometries by all methods.

        Raises
        ------
        ArchiveError
            No student of the name that `methods.md.by` gives.
        """
        atoms, mover = Atoms(), self.teacher
        if methods.md and methods.md.by != "teacher":
            mover = _student(methods.md.by, get_ident())
        with self._counted():
            for atoms in build(self.source, self.seed):
                self._check_periodicity(atoms)
                atoms.calc = self.teacher
                if methods.starts:
                    self._add(self._rattled(atoms, methods.rattle), "start")
                for _ in range(methods.contacts):
                    self._add(self._with_contact(atoms), "contact")
                if methods.augment:
                    with self._counted(methods.augment.frames):
                        self._augment(atoms, methods.augment)
                if methods.normal_modes and len(atoms) <= methods.normal_modes.largest:
                    with self._counted(methods.normal_modes.frames):
                        self._displace(atoms, methods.normal_modes)
                if methods.md:
                    self._simulate(atoms, methods.md, mover)
                for _ in range(methods.volumes):
                    self._add(self._at_another_volume(atoms), "volume")
        return self._gather(atoms)

    @contextmanager
    def _counted(self, planned: int = 0) -> Iterator[None]:
        """Record whatever a teacher raises, and continue; `planned` frames were attempted then."""
        planned += self.attempted
        try:
            yield
        except MissingDependencyError:
            raise
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            self.failures.append(first if isinstance(error, StudentError) else repr(error))
            self.attempted = max(self.attempted, planned)

    def _add(self, atoms: Atoms, method: str, temperature: float = np.nan) -> None:
        """Label a geometry and keep it as float32 has it, since that is what a student will see."""
        self.attempted += 1
        with self._counted():
            atoms = atoms.copy()
            atoms.positions = atoms.positions.astype(np.float32)
            atoms.cell[:] = atoms.cell.array.astype(np.float32)
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
                    }
                )

    def _check_periodicity(self, atoms: Atoms) -> None:
        """Refuse what tblite computes as something else: it takes any periodic axis for three."""
        if (
            atoms.pbc.any()
            and not atoms.pbc.all()
            and "tblite" in str(type(self.teacher.teacher).__mro__)
        ):
            raise InputError(f"GFN-xTB knows no structure that is periodic along {atoms.pbc} only")

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
            fragment = connected_fragments(len(atoms), [other for other in bonds if other != bond])
            whole = fragment == fragment[bond[1]]
            if fragment[bond[0]] == fragment[bond[1]]:
                whole = np.arange(len(atoms)) == bond[1]
            vector = atoms.get_distance(*bond, mic=atoms.pbc.any(), vector=True)
            moved.positions[whole] += (self.rng.uniform(*CONTACT_SCALES) - 1.0) * vector
        return moved

    def _at_another_volume(self, atoms: Atoms) -> Atoms:
        """One of the frames so far, or the structure itself, with its molecules moved apart or
        together as they are.
        """
        moved = atoms.copy()
        known = [frame for frame in self.frames if frame["methods"] != "volume"]
        if known:
            moved.positions = known[self.rng.integers(len(known))]["positions"]
        factor = self.rng.uniform(*VOLUME_FACTORS) ** (1.0 / 3.0)
        owner = connected_fragments(len(atoms), perceive_bonds(moved))
        for molecule in range(owner.max() + 1):
            rows = owner == molecule
            moved.positions[rows] += (factor - 1.0) * moved.positions[rows].mean(0)
        moved.cell[:] = factor * moved.cell.array
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
            sigma_range=(settings.rattle[0], settings.rattle[1]),
            seed=self.seed % 2**32,
            units="eV",
            cell_sigma=0.03 if atoms.pbc.all() else None,
            max_force=self.largest_force,
        )
        teacher: Any = _Limited(self.teacher, AUGMENT_CALLS * settings.frames)
        with redirect_stdout(io.StringIO()):  # it prints its progress
            made = generate_structures(atoms, teacher, [], config)
        for rattled in made[1:]:  # the first is the structure itself
            self._add(rattled, "augment")

    def _displace(self, atoms: Atoms, settings: NormalModes) -> None:
        """Classical harmonic ensemble: each mode's coordinate has the variance kT / omega^2."""
        relaxed = atoms.copy()
        relaxed.calc = self.teacher
        BFGS(relaxed, logfile=None).run(fmax=0.02, steps=200)
        for step in thermal_displacements(relaxed, settings, self.rng):
            displaced = relaxed.copy()
            displaced.positions += step
            self._add(displaced, "normal_modes", settings.temperature_K)

    def _simulate(self, atoms: Atoms, settings: MD, mover: Calculator) -> None:
        runner = atoms.copy()
        runner.calc = mover
        for temperature in settings.temperatures_K:
            broken = True
            with self._counted(settings.frames):
                thermalize_momenta(runner, temperature_K=temperature, rng=self.rng)
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
                    self._add(runner, "md", temperature)
                broken = False
            if broken:  # the teacher raised on the way: start again
                runner.positions = atoms.positions

    def _gather(self, atoms: Atoms) -> LabelledStructure:
        arrays = {
            "positions": (np.float32, (len(atoms), 3)),
            "forces": (np.float32, (len(atoms), 3)),
            "energies": (np.float64, ()),
            "temperatures": (np.float32, ()),
            "cells": (np.float32, (3, 3)),
            "pbc": (bool, (3,)),
            "stresses": (np.float32, (6,)),
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
                key: np.array([frame[key] for frame in self.frames], dtype).reshape(
                    len(self.frames), *shape
                )
                for key, (dtype, shape) in arrays.items()
            },
        )


class _Finite(Calculator):
    """Teacher that is never asked about positions that are not finite, to which it or the student
    of a round may lead: tblite ends the whole process then.
    """

    def __init__(self, teacher: Calculator) -> None:
        super().__init__()
        self.teacher = teacher
        self.implemented_properties = teacher.implemented_properties

    def calculate(
        self,
        atoms: Atoms,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        if not np.isfinite(atoms.positions).all():
            raise FloatingPointError("positions that are not finite")
        super().calculate(atoms, properties, system_changes)
        self.teacher.calculate(atoms, properties, system_changes)
        self.results = dict(self.teacher.results)


class _Limited:
    """Teacher that raises when it is called too often: augment-atoms would continue until it has
    its frames, however rare they are.
    """

    def __init__(self, teacher: Calculator, calls: int) -> None:
        self.teacher = teacher
        self.calls = calls

    def calculate(self, *arguments: Any) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise InputError("augment: too few geometries below the largest force")
        self.teacher.calculate(*arguments)
        self.results = self.teacher.results


def thermal_displacements(
    relaxed: Atoms, settings: NormalModes, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Displacements of the classical harmonic ensemble, (N, 3) angstrom, without the soft modes."""
    with TemporaryDirectory() as folder:
        vibrations = Vibrations(relaxed, name=folder + "/modes")
        vibrations.run()
        energies, modes = vibrations.get_vibrations().get_energies_and_modes()
    stiff = energies.real > SOFTEST_MODE * units.invcm
    hbar = units._hbar * units.J * units.s
    widths = np.sqrt(KB * settings.temperature_K) * hbar / energies.real[stiff]  # A sqrt(amu)
    for _ in range(settings.frames):
        yield np.tensordot(rng.normal(size=stiff.sum()) * widths, modes[stiff], 1)
