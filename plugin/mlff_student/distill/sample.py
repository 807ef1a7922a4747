"""Sampling: new geometries of one structure, labelled by the teacher."""

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
from ase.optimize import BFGS, FIRE
from ase.stress import full_3x3_to_voigt_6_stress
from ase.vibrations import Vibrations

from mlff_student.core.errors import InputError, MissingDependencyError, StudentError
from mlff_student.core.units import KB
from mlff_student.distill.dataset import LabelledStructure
from mlff_student.distill.recipe import MD, Augmentation, Methods, NormalModes, Recipe
from mlff_student.distill.sources import Source, build
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.structures.checks import connected_fragments, perceive_bonds
from mlff_student.structures.smiles import embed
from mlff_student.structures.torsions import (
    relaxed_torsion,
    rotatable_bonds,
    side_of_bond,
    turned,
)
from mlff_student.teachers import make_teacher

BOX_RELAXATION_STEPS = 100  # of a packed box, whose molecules touch, before its dynamics
TORSION_RATTLE = 0.04  # angstrom, standard deviation of the displacements of turned molecules
CONTACT_SCALES = (0.8, 1.3)  # smallest and largest factor of the length of a bond
VOLUME_FACTORS = (0.8, 2.0)  # smallest and largest factor of the volume of a box
SOFTEST_MODE = 100.0  # 1/cm; softer modes are not harmonic, and their displacement has no bound
AUGMENT_CALLS = 500  # largest number of calls of the teacher for a frame
LABELLED_AS_READ = ("file", "proposed")  # groups without sampling methods in most recipes
NOT_LABELLED = np.float32(np.nan)


def label_source(source: Source, recipe: Recipe, seed: int) -> LabelledStructure:
    """Make all frames of one structure, labelled by the recipe's teacher.

    A frame is left out and counted if the teacher raises an error, gives a value that is not finite
    or a force above `recipe.largest_force`.

    Parameters
    ----------
    source : Source
        The structure.
    recipe : Recipe
        Says which teacher and which sampling methods to use.
    seed : int
        Random seed of all draws for this structure.

    Returns
    -------
    LabelledStructure
        The frames; `failure` says why some are missing.

    Raises
    ------
    InputError
        There is no such teacher.
    MissingDependencyError
        The teacher or the library of a sampling method is not installed.
    ArchiveError
        There is no student of the name in `md.by`.
    """
    teacher = _teacher(recipe.teacher, get_ident())
    teacher.reset()  # the labels do not depend on what this process labelled before
    return Labeller(source, teacher, recipe.largest_force, seed).run(
        recipe.sampling.get(source.group, Methods(starts=source.group in LABELLED_AS_READ))
    )


@cache
def _teacher(name: str, thread: int) -> Calculator:
    """Return the calculator of a thread, so that weights are not loaded for every structure.

    A calculator holds one structure, and a Dask worker has several threads.
    """
    return make_teacher(name)


@cache
def _student(name: str, thread: int) -> Calculator:
    return Mover(name)


class Mover(StudentForceFieldCalculator):
    """Student that moves atoms for the teacher, which labels them; ions are not refused."""

    def _start(self) -> None:
        super()._start()
        self._charged = True


class Labeller:
    """Makes and collects the frames of one structure.

    Parameters
    ----------
    source : Source
        The structure.
    teacher : Calculator
        ASE calculator that labels the frames.
    largest_force : float
        Largest force component of a frame that is kept, eV/angstrom.
    seed : int
        Random seed of all draws for this structure.
    """

    def __init__(
        self, source: Source, teacher: Calculator, largest_force: float, seed: int
    ) -> None:
        self.source = source
        self.teacher = _Finite(teacher)
        self.largest_force = largest_force
        self.rng = np.random.default_rng(seed)
        self.seed = seed
        self.proposed: list[tuple[Atoms, str, float]] = []  # geometry, method, temperature
        self.info: dict[str, Any] = {}  # total charge and spin of the structure
        self.attempted = 0
        self.failures: list[str] = []

    def run(self, methods: Methods) -> LabelledStructure:
        """Make the frames of all starting geometries by all methods.

        Parameters
        ----------
        methods : Methods
            Sampling methods of the structure's group.

        Raises
        ------
        ArchiveError
            There is no student of the name in `methods.md.by`.
        MissingDependencyError
            The library of a sampling method is not installed.
        """
        atoms, mover = Atoms(), self.teacher
        if methods.md and methods.md.by != "teacher":
            mover = _student(methods.md.by, get_ident())
        with self._counted():
            for start in build(self.source, self.seed):
                atoms = start.copy()
                atoms.set_constraint()  # all atoms move, also those that a file fixes
                self._check_periodicity(atoms)
                self.info = atoms.info
                atoms.calc = self.teacher
                if methods.starts:
                    self._add(self._rattled(atoms, methods.rattle), "start")
                for _ in range(methods.contacts):
                    self._add(self._with_contact(atoms), "contact")
                self._turn(atoms, methods.torsions)
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
        return self._gather(atoms, self._labelled())

    @contextmanager
    def _counted(self, planned: int = 0) -> Iterator[None]:
        """Store the error that a teacher raises, and count `planned` frames as attempted then."""
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
        """Propose a geometry, rounded to float32 because the dataset stores float32."""
        self.attempted += 1
        proposed = atoms.copy()
        proposed.set_constraint()
        proposed.info = dict(self.info)
        proposed.positions = atoms.positions.astype(np.float32)
        proposed.cell[:] = atoms.cell.array.astype(np.float32)
        self.proposed.append((proposed, method, temperature))

    def _labelled(self) -> list[dict[str, Any]]:
        """Label all proposed geometries; leave out those that the teacher cannot label."""
        frames = []
        labels = self._labels([atoms for atoms, _, _ in self.proposed])
        for (atoms, method, temperature), label in zip(self.proposed, labels, strict=True):
            if label is None:
                continue
            energy, forces, stress = label
            if not (np.isfinite(energy) and np.isfinite(forces).all()):
                self.failures.append(f"{method}: labels that are not finite")
            elif abs(forces).max() > self.largest_force:
                self.failures.append(f"{method}: force of {abs(forces).max():.0f} eV/angstrom")
            else:
                frames.append(
                    {
                        "methods": method,
                        "positions": atoms.positions,
                        "forces": forces,
                        "energies": energy,
                        "temperatures": temperature,
                        "cells": atoms.cell.array,
                        "pbc": atoms.pbc,
                        "stresses": stress,
                    }
                )
        return frames

    def _labels(self, structures: list[Atoms]) -> list[tuple[float, Any, Any] | None]:
        """Return energy, forces and stress of each structure; None if the teacher refuses it.

        A teacher that labels many structures in one call (`SO3LR.label`) is asked for all at once.
        """
        label = getattr(self.teacher.teacher, "label", None)
        if label:
            with self._counted():
                return [
                    (each.energy, each.forces, _voigt(each.stress)) for each in label(structures)
                ]
        labels: list[tuple[float, Any, Any] | None] = []
        for atoms in structures:
            labels.append(None)
            with self._counted():
                atoms.calc = self.teacher
                forces = atoms.get_forces(apply_constraint=False)
                labels[-1] = atoms.get_potential_energy(), forces, self._stress(atoms)
        return labels

    def _check_periodicity(self, atoms: Atoms) -> None:
        """Refuse slabs and wires for tblite, which computes them as periodic along three axes."""
        if (
            atoms.pbc.any()
            and not atoms.pbc.all()
            and "tblite" in str(type(self.teacher.teacher).__mro__)
        ):
            raise InputError(
                f"GFN-xTB cannot label a structure that is periodic along {atoms.pbc.tolist()}; "
                "give an open or a fully periodic structure, or another teacher"
            )

    def _stress(self, atoms: Atoms) -> np.ndarray:
        if atoms.pbc.all() and "stress" in self.teacher.implemented_properties:
            return atoms.get_stress(apply_constraint=False)
        return np.full(6, NOT_LABELLED)

    def _rattled(self, atoms: Atoms, width: float) -> Atoms:
        rattled = atoms.copy()
        rattled.positions += self.rng.normal(scale=width, size=(len(atoms), 3)) if width else 0.0
        return rattled

    def _with_contact(self, atoms: Atoms) -> Atoms:
        """Return a copy with one bond stretched or compressed.

        All atoms on one side of the bond move; if the bond is in a ring, only one atom moves.
        """
        moved = self._rattled(atoms, 0.02)
        bonds = perceive_bonds(atoms)
        if bonds:
            bond = bonds[self.rng.integers(len(bonds))]
            side = side_of_bond(len(atoms), bonds, bond)
            vector = atoms.get_distance(*bond, mic=atoms.pbc.any(), vector=True)
            moved.positions[side] += (self.rng.uniform(*CONTACT_SCALES) - 1.0) * vector
        return moved

    def _turn(self, atoms: Atoms, count: int) -> None:
        """Add frames in which one bond of a molecule is turned, every second one relaxed."""
        if not count or len(self.source.smiles) != 1:
            return
        smiles = self.source.smiles[0]
        bonds = embed(smiles, self.seed)[1]
        torsions = rotatable_bonds(atoms, bonds)
        for index in range(count if torsions else 0):
            torsion = torsions[self.rng.integers(len(torsions))]
            moved = turned(atoms, bonds, torsion, self.rng.uniform(0.0, 360.0))
            relaxed = relaxed_torsion(smiles, moved, torsion) if index % 2 else None
            self._add(self._rattled(relaxed or moved, TORSION_RATTLE), "torsion")

    def _at_another_volume(self, atoms: Atoms) -> Atoms:
        """Return an earlier frame (or the structure itself) in a box of another volume.

        The molecules are moved apart or together as rigid bodies.
        """
        moved = atoms.copy()
        earlier = [frame for frame, method, _ in self.proposed if method != "volume"]
        if earlier:
            moved.positions = earlier[self.rng.integers(len(earlier))].positions
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
            generated = generate_structures(atoms, teacher, [], config)
        for rattled in generated[1:]:  # the first is the structure itself
            self._add(rattled, "augment")

    def _displace(self, atoms: Atoms, settings: NormalModes) -> None:
        """Add frames of the classical harmonic ensemble around the relaxed structure."""
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
        if mover is not self.teacher:
            runner.info.clear()  # students have no input for the total charge
        with self._counted():
            relax_packed(runner, self.source)
        for temperature in settings.temperatures_K:
            broken = True
            with self._counted(settings.frames):
                md = thermostat(
                    runner, temperature, settings.timestep_fs, settings.friction_per_fs, self.rng
                )
                md.run(settings.equilibration)
                for _ in range(settings.frames):
                    md.run(settings.interval)
                    self._add(runner, "md", temperature)
                broken = False
            if broken:  # the teacher raised an error: the next temperature starts anew
                runner.positions = atoms.positions

    def _gather(self, atoms: Atoms, frames: list[dict[str, Any]]) -> LabelledStructure:
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
            methods=[frame["methods"] for frame in frames],
            **{
                key: np.array([frame[key] for frame in frames], dtype).reshape(len(frames), *shape)
                for key, (dtype, shape) in arrays.items()
            },
        )


def relax_packed(runner: Atoms, source: Source) -> None:
    """Relax a box of packed molecules for at most `BOX_RELAXATION_STEPS` steps.

    Other structures stay as they are.

    Parameters
    ----------
    runner : Atoms
        Structure with its calculator; its positions are changed.
    source : Source
        What the structure was built from.
    """
    if runner.pbc.any() and len(source.smiles) > 1:
        FIRE(runner, logfile=None).run(fmax=1.0, steps=BOX_RELAXATION_STEPS)


def thermostat(
    runner: Atoms,
    temperature_K: float,
    timestep_fs: float,
    friction_per_fs: float,
    rng: np.random.Generator,
) -> Langevin:
    """Draw velocities, and return Langevin MD at the same temperature.

    Parameters
    ----------
    runner : Atoms
        Structure with its calculator.
    temperature_K : float
        Temperature, kelvin.
    timestep_fs : float
        Timestep, femtosecond.
    friction_per_fs : float
        Friction, 1/femtosecond.
    rng : Generator
        Source of the random numbers.
    """
    thermalize_momenta(runner, temperature_K=temperature_K, rng=rng)
    return Langevin(
        runner,
        timestep=timestep_fs * units.fs,
        temperature_K=temperature_K,
        friction=friction_per_fs / units.fs,
        fixcm=False,  # a fixed centre of mass makes small molecules too hot
        rng=rng,
    )


def _voigt(stress: np.ndarray | None) -> np.ndarray:
    """Return the stress (6,) in the order of the dataset, NaN if there is none."""
    if stress is None:
        return np.full(6, NOT_LABELLED)
    return full_3x3_to_voigt_6_stress(stress)


class _Finite(Calculator):
    """Teacher that is protected from positions that are not finite.

    MD by the teacher or by a student may lead to such positions, and tblite then ends the process.
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
    """Teacher that raises an error when it is called too often.

    Without the limit augment-atoms would continue until it has all its frames, however rare they
    are.
    """

    def __init__(self, teacher: Calculator, calls: int) -> None:
        self.teacher = teacher
        self.calls = calls

    def calculate(self, *arguments: Any) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise InputError("augment: too few geometries have forces below the largest force")
        self.teacher.calculate(*arguments)
        self.results = self.teacher.results


def thermal_displacements(
    relaxed: Atoms, settings: NormalModes, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Draw displacements of the classical harmonic ensemble.

    The coordinate of each mode has the variance k_B T / omega^2, with the angular frequency omega
    of the mode. Modes below 100 1/cm stay at zero.

    Parameters
    ----------
    relaxed : Atoms
        Relaxed structure with its calculator.
    settings : NormalModes
        Temperature and number of displacements.
    rng : Generator
        Source of the random numbers.

    Yields
    ------
    ndarray
        (N, 3) displacement of each atom, angstrom.
    """
    with TemporaryDirectory() as folder:
        vibrations = Vibrations(relaxed, name=folder + "/modes")
        vibrations.run()
        energies, modes = vibrations.get_vibrations().get_energies_and_modes()
    stiff = energies.real > SOFTEST_MODE * units.invcm
    hbar = units._hbar * units.J * units.s
    widths = np.sqrt(KB * settings.temperature_K) * hbar / energies.real[stiff]  # A sqrt(amu)
    for _ in range(settings.frames):
        yield np.tensordot(rng.normal(size=stiff.sum()) * widths, modes[stiff], 1)
