"""Chemistry of a student against its teacher: rotations, binding, conformers, bonds, isomers."""

import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, CalculatorError
from ase.io import read, write
from ase.optimize import LBFGS
from numpy.typing import NDArray
from rich.progress import MofNCompleteColumn, Progress
from scipy.stats import spearmanr

from mlff_student.analysis.bonds import BROKEN_BOND_DEVIATION
from mlff_student.archive.evidence import Evidence, Observation, content_sha256
from mlff_student.archive.graph import evaluate_graph, join
from mlff_student.core.errors import InputError
from mlff_student.core.figures import Figure, Threshold, record_of
from mlff_student.core.files import atomic_write, only_writer
from mlff_student.core.results import read_json, write_json
from mlff_student.core.settings import read_settings
from mlff_student.distill.sample import thermostat
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.engines.ase.run import MINIMISE_FORCE, MINIMISE_STEPS
from mlff_student.model.student import PRESETS
from mlff_student.reporting.verdict import Check, judge_figure
from mlff_student.structures.smiles import atoms_and_bonds, embed, rdkit_chem
from mlff_student.structures.torsions import rotatable_bonds, side_of_bond, turned
from mlff_student.teachers import make_teacher

CHEMISTRY = Path(__file__).with_name("chemistry.yaml")
PARTS = ("torsions", "dimers", "conformers", "bonds", "isomers")
KCAL_PER_MOL = units.kcal / units.mol  # eV
SEED = 1
EMBEDDED = 24  # conformers that RDKit makes of a molecule, of which the distinct are drawn from
DISTINCT = 0.1  # kcal/mol; conformers whose MMFF94 energies are closer count as the same
FLAT = 1e-3  # eV; an energy that changes by less neither rises nor falls
NEAR_R0 = 0.1  # of r0; the bond lengths of teacher and student differ by less
TURNED = 0.5  # |cosine| of a torsion angle from which on a molecule is one of the two isomers
FRICTION_PER_FS = 0.01
STEPS_PER_LOOK = 10  # MD steps between two looks at the torsion angle

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scans:
    """Parameters of the scans; see chemistry.yaml."""

    rotation_step_deg: float
    relaxation_fmax: float
    relaxation_steps: int
    conformers: int
    conformer_fmax: float
    conformer_steps: int
    dimer_distances: tuple[float, ...]
    bond_shortest: float
    bond_longest: float
    bond_step: float


@dataclass(frozen=True)
class MD:
    """Temperature, length and timestep of the MD of the isomers."""

    temperature_K: float
    ps: float
    timestep_fs: float


@dataclass(frozen=True)
class Place:
    """A bond or a torsion angle in a molecule.

    Attributes
    ----------
    smiles : str
        SMILES of the molecule.
    atoms : tuple of int
        The two atoms of the bond, or the four of the torsion angle.
    """

    smiles: str
    atoms: tuple[int, ...]


@dataclass(frozen=True)
class Limit:
    """The limit of a figure, which is different for each preset.

    Attributes
    ----------
    values : dict of str to float
        Limit of each preset.
    unit, source, bound : str
        As of `mlff_student.core.figures.Threshold`.
    """

    values: dict[str, float]
    unit: str
    source: str
    bound: str = "absolute"

    def threshold(self, preset: str) -> Threshold:
        """Return the limit of a preset."""
        return Threshold(self.values[preset], self.unit, self.source, self.bound)


@dataclass(frozen=True)
class Chemistry:
    """Content of chemistry.yaml: scans, MD, lists of molecules and limits."""

    scans: Scans
    md: MD
    torsions: dict[str, Place]
    dimers: dict[str, list[str]]
    dimer_curves: list[str]
    conformers: dict[str, str]
    bonds: dict[str, Place]
    isomers: dict[str, Place]
    limits: dict[str, Limit]


class Curve(NamedTuple):
    """Energies of teacher and student at the same geometries, kcal/mol.

    Attributes
    ----------
    x : NDArray[np.float64]
        (F,) angle (degree), distance (of the equilibrium distance), or index of the conformer.
    teacher : NDArray[np.float64] or None
        (F,) energies of the teacher; None if only the student was evaluated.
    student : NDArray[np.float64]
        (F,) energies of the student.
    """

    x: Floats
    teacher: Floats | None
    student: Floats


@dataclass(frozen=True)
class Comparison:
    """Figures of one molecule, or of all molecules of a part.

    Attributes
    ----------
    part : str
        One of `PARTS`.
    name : str
        Name in chemistry.yaml; "all", or a class of dimers.
    figures : list of Figure
        What was measured.
    checks : list of Check
        Those figures that have a limit.
    curve : Curve or None
        Energies for the plots.
    """

    part: str
    name: str
    figures: list[Figure]
    checks: list[Check]
    curve: Curve | None = None

    def as_record(self) -> dict[str, Any]:
        """Return a flat record for JSON."""
        record = {"part": self.part, "name": self.name} | record_of(self.figures)
        if self.checks:
            record["limits"] = ", ".join(str(check.threshold) for check in self.checks)
            record["passed"] = all(check.passed for check in self.checks)
        return record


class LeftOut(NamedTuple):
    """A molecule that could not be compared.

    Attributes
    ----------
    part, name : str
        As of `Comparison`.
    reason : str
        Error of the teacher or the student.
    """

    part: str
    name: str
    reason: str


@dataclass(frozen=True)
class ChemistryReport:
    """A student compared with its teacher.

    Attributes
    ----------
    student, teacher : str
        Names of the two.
    preset : str
        Preset whose limits apply.
    comparisons : list of Comparison
        All results.
    left_out : list of LeftOut
        Molecules that could not be compared.
    folder : Path
        Folder for the results of this student and teacher.
    """

    student: str
    teacher: str
    preset: str
    comparisons: list[Comparison]
    left_out: list[LeftOut]
    folder: Path

    @property
    def checks(self) -> list[Check]:
        """All judged figures."""
        return [check for each in self.comparisons for check in each.checks]

    @property
    def passed(self) -> bool:
        """Whether all judged figures are within their limits."""
        return all(check.passed for check in self.checks)

    def evidence(self, command: str, date: str) -> Evidence:
        """Return the figures in the form of a checkpoint's summary.json.

        Parameters
        ----------
        command : str
            Command that repeats the measurement.
        date : str
            Day of the measurement, YYYY-MM-DD.
        """
        figures = [
            Observation(figure, {"part": each.part, "case": each.name})
            for each in self.comparisons
            for figure in each.figures
            if each.checks or each.part == "dimers"
        ]
        return Evidence(
            what=f"chemistry against {self.teacher}",
            command=command,
            date=date,
            figures=figures,
            made_from={CHEMISTRY.name: chemistry_sha256()},
        )


class _Case(NamedTuple):
    """Geometries that the teacher evaluates: a molecule or a dimer of one part."""

    part: str
    name: str
    definition: Any  # what the geometries depend on, with the parameters of the scans
    make: Callable[[Calculator], list[Atoms]]


class _Judge(NamedTuple):
    """What every comparison needs."""

    chemistry: Chemistry
    calculator: StudentForceFieldCalculator
    limits: dict[str, Threshold]

    def energies(self, frames: list[Atoms]) -> tuple[Floats, Floats]:
        """Return the energies of teacher and student, kcal/mol."""
        teacher = np.array([atoms.info["teacher_energy"] for atoms in frames]) / KCAL_PER_MOL
        return teacher, student_energies(self.calculator, frames)

    def check(self, *figures: Figure) -> list[Check]:
        """Compare figures with their limits."""
        return [judge_figure(figure, self.limits[figure.key]) for figure in figures]


def load_chemistry(path: Path = CHEMISTRY) -> Chemistry:
    """Read molecules, scans and limits.

    Parameters
    ----------
    path : Path
        YAML file in the form of chemistry.yaml.

    Raises
    ------
    InputError
        The file cannot be used.
    """
    return read_settings(path, Chemistry)


def chemistry_sha256() -> str:
    """Return the hash of what chemistry.yaml makes measured, without the limits."""
    values = asdict(load_chemistry())
    del values["limits"]
    return content_sha256(values)


def preset_of(channels: int) -> str:
    """Return the preset whose limits apply to a student: the largest that is not wider than it.

    Parameters
    ----------
    channels : int
        Number of channels of the student.
    """
    by_width = sorted(PRESETS, key=lambda name: PRESETS[name].channels)
    narrower = [name for name in by_width if PRESETS[name].channels <= channels]
    return (narrower or by_width[:1])[-1]


def compare_chemistry(
    student: str,
    teacher: str,
    folder: Path,
    parts: Sequence[str] = PARTS,
    preset: str = "",
    chemistry: Chemistry | None = None,
) -> ChemistryReport:
    """Compare a student with a teacher.

    The geometries with the teacher's energies are kept in the folder `labels` of `folder`, and the
    results of the student's MD in `md`, so that the same call resumes after a kill and other
    students are compared without the teacher.

    Parameters
    ----------
    student : str
        Shipped name, or path of a checkpoint or an archive.
    teacher : str
        Name of a teacher; see `mlff_student.teachers.registry.make_teacher`.
    folder : Path
        Folder to write.
    parts : sequence of str
        Those of `PARTS` that are compared.
    preset : str
        Preset whose limits apply; if empty, that of the student's number of channels.
    chemistry : Chemistry or None
        Molecules, scans and limits; those of chemistry.yaml if None.

    Raises
    ------
    ArchiveError
        The student cannot be found or read.
    InputError
        The teacher, a part or the preset is unknown, another process writes into the folder, or
        nothing could be compared.
    MissingDependencyError
        The teacher's package is not installed.
    """
    chemistry = chemistry or load_chemistry()
    for what, names, known in (("part", parts, PARTS), ("preset", [preset], ("", *PRESETS))):
        if unknown := [name for name in names if name not in known]:
            raise InputError(
                f"unknown {what} {unknown[0]!r}; known are {', '.join(filter(None, known))}"
            )
    calculator = StudentForceFieldCalculator(student)
    metadata = calculator.archive.metadata
    reference = make_teacher(teacher)
    preset = preset or preset_of(metadata["channels"])
    teacher_name = re.sub(r"[^\w.-]+", "_", teacher)
    output = folder / f"{metadata['name']}-{teacher_name}"
    output.mkdir(parents=True, exist_ok=True)
    limits = {key: limit.threshold(preset) for key, limit in chemistry.limits.items()}
    judge = _Judge(chemistry, calculator, limits)
    comparisons: dict[str, dict[str, Comparison]] = {part: {} for part in PARTS}
    left_out: list[LeftOut] = []

    def compare(part: str, name: str, comparison: Callable[[], Comparison]) -> None:
        try:
            comparisons[part][name] = comparison()
        except (InputError, CalculatorError, RuntimeError) as error:
            left_out.append(LeftOut(part, name, str(error)))

    labels = folder / "labels" / teacher_name
    md = folder / "md" / f"{metadata['name']}-{metadata['weights_sha256'][:12]}"
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with only_writer(folder, "wait, or give another folder with -o"), Progress(*columns) as bars:
        cases = [case for case in _cases(chemistry) if case.part in parts]
        for case in bars.track(cases, description="teacher and student"):
            compare(case.part, case.name, lambda case=case: _case(judge, case, reference, labels))
        for name in chemistry.isomers if "isomers" in parts else ():
            compare("isomers", name, lambda name=name: _isomer(judge, name, md, bars))
    rows = [each for of_part in comparisons.values() for each in of_part.values()]
    if not rows:
        reasons = "; ".join(f"{each.name}: {each.reason}" for each in left_out)
        raise InputError(f"nothing could be compared: {reasons}")
    rows += _binding(judge, comparisons["dimers"])
    rows += _ranking(judge, comparisons["conformers"].values())
    return ChemistryReport(metadata["name"], teacher, preset, rows, left_out, output)


def _case(judge: _Judge, case: _Case, teacher: Calculator, labels: Path) -> Comparison:
    frames = _labelled(case, teacher, labels)
    check_elements(judge.calculator, frames)
    return COMPARE[case.part](judge, case.name, frames)


def check_elements(calculator: StudentForceFieldCalculator, frames: Iterable[Atoms]) -> None:
    """Raise an error for the first structure with an element that the student does not know.

    Parameters
    ----------
    calculator : StudentForceFieldCalculator
        The student.
    frames : iterable of Atoms
        Structures.

    Raises
    ------
    InputError
        The student does not know an element.
    """
    known = calculator.archive.metadata["elements"]
    for atoms in frames:
        if unknown := sorted(set(atoms.symbols) - set(known)):
            raise InputError(
                f"the student does not know {', '.join(unknown)}; it knows {', '.join(known)}"
            )


def student_energies(calculator: StudentForceFieldCalculator, frames: list[Atoms]) -> Floats:
    """Return the student's energies, also of stretched molecules that a calculator would refuse.

    Parameters
    ----------
    calculator : StudentForceFieldCalculator
        The student.
    frames : list of Atoms
        F open structures of elements that the student knows.

    Returns
    -------
    NDArray[np.float64]
        (F,) energies, kcal/mol.
    """
    energies = []
    for rows in calculator.batches(frames):
        graph = join(frames[rows], calculator.archive.metadata["cutoff"])
        evaluation = evaluate_graph(calculator.evaluator, graph)
        energies.append(np.bincount(graph.owner, evaluation.energies))
    return np.concatenate(energies) / KCAL_PER_MOL


def barriers(teacher: Floats, student: Floats) -> Floats:
    """Return the height of each maximum of the teacher's rotation above its minimum, for both.

    Parameters
    ----------
    teacher, student : NDArray[np.float64]
        (F,) energies along a full rotation.

    Returns
    -------
    NDArray[np.float64]
        (B, 2) barriers of the teacher, which are not negative, and of the student between the same
        geometries, which are negative where the student takes the barrier for a minimum.
    """
    top = (teacher >= np.roll(teacher, 1)) & (teacher >= np.roll(teacher, -1))
    low = teacher.argmin()
    return np.stack([teacher[top] - teacher[low], student[top] - student[low]], axis=1)


def centred_errors(teacher: Floats, student: Floats) -> Floats:
    """Return the student's errors after the mean of each method's energies is removed.

    Parameters
    ----------
    teacher, student : NDArray[np.float64]
        (F,) energies.
    """
    return (student - student.mean()) - (teacher - teacher.mean())


def slope(teacher: Floats, student: Floats) -> float:
    """Return the slope of the least-squares line through the origin, student against teacher.

    Parameters
    ----------
    teacher, student : NDArray[np.float64]
        (D,) binding energies.
    """
    return float(teacher @ student / (teacher @ teacher))


def falls(ratio: Floats, energy: Floats) -> tuple[int, float]:
    """Count the steps away from the energy minimum at which the energy falls instead of rises.

    Parameters
    ----------
    ratio : NDArray[np.float64]
        (F,) length of the bond over the teacher's r0, ascending. The student's minimum is the
        lowest energy within `NEAR_R0` of 1.
    energy : NDArray[np.float64]
        (F,) energies, kcal/mol.

    Returns
    -------
    steps : int
        Number of steps, in both directions, in which the energy falls by more than `FLAT`.
    turnover : float
        Smallest length over r0 beyond which a longer bond has a lower energy; NaN if there is none.
    """
    near = np.flatnonzero(np.abs(ratio - 1.0) < NEAR_R0 + 1e-9)
    middle = near[energy[near].argmin()]
    change = np.diff(energy) * KCAL_PER_MOL
    stretching = change[middle:] < -FLAT
    steps = int(stretching.sum() + (change[:middle] > FLAT).sum())
    turnover = float(ratio[middle + stretching.argmax()]) if stretching.any() else np.nan
    return steps, turnover


def count_isomerisations(cosines: Floats) -> int:
    """Count the changes between cis and trans in a series of torsion angles.

    A molecule belongs to the isomer that it reached last, with a |cosine| of more than `TURNED`, so
    that motion about 90 degrees does not count several times.

    Parameters
    ----------
    cosines : NDArray[np.float64]
        (T,) cosines of the torsion angle.
    """
    isomers = np.sign(cosines[np.abs(cosines) > TURNED])
    return int((np.diff(isomers) != 0).sum())


def stretched(atoms: Atoms, bonds: list[tuple[int, int]], bond: Sequence[int], by: float) -> Atoms:
    """Return a copy in which one bond has another length, and both its sides are rigid.

    Parameters
    ----------
    atoms : Atoms
        Molecule.
    bonds : list of tuple of int
        Pairs of bonded atoms.
    bond : sequence of int
        The two atoms of a bond that is in no ring; the side of the second moves.
    by : float
        New length over the present one.
    """
    near, far = bond
    copy = atoms.copy()
    vector = atoms.positions[far] - atoms.positions[near]
    copy.positions[side_of_bond(len(atoms), bonds, (near, far))] += (by - 1.0) * vector
    return copy


def conformers(smiles: str, count: int) -> list[Atoms]:
    """Return conformers of a molecule, relaxed with MMFF94, from its whole range of energies.

    Parameters
    ----------
    smiles : str
        SMILES of the molecule.
    count : int
        Largest number of conformers; fewer are returned if fewer are distinct.

    Raises
    ------
    InputError
        RDKit finds no conformer.
    """
    from rdkit.Chem import AllChem

    chem = rdkit_chem()
    molecule = chem.AddHs(chem.MolFromSmiles(smiles))
    members = list(AllChem.EmbedMultipleConfs(molecule, EMBEDDED, randomSeed=SEED))
    if not members:
        raise InputError(f"RDKit found no conformer for {smiles!r}")
    outcomes = AllChem.MMFFOptimizeMoleculeConfs(molecule, maxIters=1000)
    energies = np.array([energy for _, energy in outcomes])
    order = np.argsort(energies)
    distinct = order[np.concatenate([[True], np.diff(energies[order]) > DISTINCT])]
    chosen = distinct[np.unique(np.linspace(0, len(distinct) - 1, count).round().astype(int))]
    return [
        atoms_and_bonds(chem.Mol(molecule, confId=members[index]))[0] for index in chosen.tolist()
    ]


def _cases(chemistry: Chemistry) -> list[_Case]:
    """List what the teacher evaluates."""
    scans = chemistry.scans

    def case(part: str, name: str, entry: Any, make: Callable[..., list[Atoms]]) -> _Case:
        def made(teacher: Calculator) -> list[Atoms]:
            return make(entry, scans, teacher)

        place = asdict(entry) if isinstance(entry, Place) else entry
        return _Case(part, name, [place, asdict(scans), EMBEDDED, DISTINCT], made)

    dimers = [name for names in chemistry.dimers.values() for name in names]
    return [
        *(case("torsions", name, place, _rotations) for name, place in chemistry.torsions.items()),
        *(case("bonds", name, place, _relaxed) for name, place in chemistry.bonds.items()),
        *(
            case("dimers", name, [name, name in chemistry.dimer_curves], _dimer_frames)
            for name in dimers
        ),
        *(case("conformers", name, s, _conformers) for name, s in chemistry.conformers.items()),
    ]


def _relaxed(place: Place, scans: Scans, teacher: Calculator) -> list[Atoms]:
    atoms, _ = embed(place.smiles, SEED)
    return [_relax(atoms, teacher, scans.relaxation_fmax, scans.relaxation_steps)]


def _rotations(place: Place, scans: Scans, teacher: Calculator) -> list[Atoms]:
    """Return a molecule at all angles of a rotation about a bond, with everything else rigid."""
    (atoms,) = _relaxed(place, scans, teacher)
    bonds = embed(place.smiles, SEED)[1]
    (torsion,) = [
        each for each in rotatable_bonds(atoms, bonds) if set(each[1:3]) == set(place.atoms)
    ]
    frames = []
    for angle in np.arange(0.0, 360.0, scans.rotation_step_deg):
        frame = turned(atoms, bonds, torsion, float(angle))
        frame.info["x"] = float(frame.get_dihedral(*torsion))
        frames.append(frame)
    return sorted(frames, key=lambda frame: frame.info["x"])


def _dimer_frames(entry: list[Any], scans: Scans, _: Calculator) -> list[Atoms]:
    """Return a dimer, its two molecules and, if there is a curve, the dimer at other distances."""
    from ase.data.s22 import create_s22_system, get_number_of_dimer_atoms

    name, with_curve = entry
    dimer = create_s22_system(name)
    dimer.set_initial_magnetic_moments(None)
    first = np.arange(len(dimer)) < get_number_of_dimer_atoms(name)[0]
    frames = [dimer, dimer[first], dimer[~first]]
    vector = frames[2].get_center_of_mass() - frames[1].get_center_of_mass()
    for distance in scans.dimer_distances if with_curve else ():
        frame = dimer.copy()
        frame.positions[~first] += (distance - 1.0) * vector
        frame.info["x"] = distance
        frames.append(frame)
    return frames


def _conformers(smiles: str, scans: Scans, teacher: Calculator) -> list[Atoms]:
    return [
        _relax(atoms, teacher, scans.conformer_fmax, scans.conformer_steps)
        for atoms in conformers(smiles, scans.conformers)
    ]


def _relax(atoms: Atoms, calculator: Calculator, fmax: float, steps: int) -> Atoms:
    atoms.calc = calculator
    LBFGS(atoms, logfile=os.devnull).run(fmax=fmax, steps=steps)
    return atoms.copy()  # without the calculator


def _labelled(case: _Case, teacher: Calculator, folder: Path) -> list[Atoms]:
    """Return the frames of a case with the teacher's energies (eV); from its file if it exists."""
    name = re.sub(r"[^\w.=#-]+", "_", case.name)
    path = folder / f"{case.part}-{name}-{content_sha256(case.definition)[:8]}.extxyz"
    if path.is_file():
        return read(path, ":")
    frames = case.make(teacher)
    label = getattr(teacher, "label", None)
    energies = [each.energy for each in label(frames)] if label else []
    for index, atoms in enumerate(frames):
        if not label:
            atoms.calc = teacher
            energies.append(atoms.get_potential_energy())
        atoms.calc = None
        atoms.info["teacher_energy"] = float(energies[index])
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        write(temporary, frames, format="extxyz")
    return frames


def _torsion(judge: _Judge, name: str, frames: list[Atoms]) -> Comparison:
    """Return the barrier of a rotation that is farthest beyond its limit, or nearest to it."""
    teacher, student = judge.energies(frames)
    heights = barriers(teacher, student)
    limits = [barrier_threshold(judge.limits, height) for height in heights[:, 0]]
    worst = np.argmax(abs(heights[:, 1] - heights[:, 0]) / [limit.value for limit in limits])
    of_teacher, of_student = heights[worst].tolist()
    error = Figure("barrier_error", of_student - of_teacher, "kcal/mol")
    rmse = float(np.sqrt(np.mean(centred_errors(teacher, student) ** 2)))
    figures = [
        Figure("barrier_teacher", of_teacher, "kcal/mol"),
        Figure("barrier", of_student, "kcal/mol"),
        error,
        Figure("barrier_error", 100.0 * error.value / of_teacher, "%"),
        Figure("torsion_rmse", rmse, "kcal/mol"),
    ]
    check = judge_figure(error, limits[worst])
    angles = np.array([atoms.info["x"] for atoms in frames])
    return Comparison("torsions", name, figures, [check], Curve(angles, teacher, student))


def _dimer(judge: _Judge, name: str, frames: list[Atoms]) -> Comparison:
    """Return binding energies: those of the dimers minus those of the molecules in the dimer."""
    teacher, student = (energies - energies[1:3].sum() for energies in judge.energies(frames))
    figures = [
        Figure("binding_teacher", float(teacher[0]), "kcal/mol"),
        Figure("binding", float(student[0]), "kcal/mol"),
    ]
    scan = frames[3:]
    if not scan:
        return Comparison("dimers", name, figures, [])
    rmse = float(np.sqrt(np.mean((student[3:] - teacher[3:]) ** 2)))
    figures.append(Figure("dimer_curve_rmse", rmse, "kcal/mol"))
    distances = np.array([atoms.info["x"] for atoms in scan])
    return Comparison("dimers", name, figures, [], Curve(distances, teacher[3:], student[3:]))


def _conformer_set(judge: _Judge, name: str, frames: list[Atoms]) -> Comparison:
    teacher, student = (energies - energies.mean() for energies in judge.energies(frames))
    figures = [
        Figure("conformer_spearman", float(spearmanr(teacher, student).statistic)),
        Figure("conformer_mae", float(np.abs(student - teacher).mean()), "kcal/mol"),
        Figure("conformers", len(frames)),
    ]
    curve = Curve(np.arange(len(frames), dtype=float), teacher, student)
    return Comparison("conformers", name, figures, [], curve)


def _bond(judge: _Judge, name: str, frames: list[Atoms]) -> Comparison:
    scans, place = judge.chemistry.scans, judge.chemistry.bonds[name]
    count = round((scans.bond_longest - scans.bond_shortest) / scans.bond_step)
    ratio = np.linspace(scans.bond_shortest, scans.bond_longest, count + 1)
    bonds = embed(place.smiles, SEED)[1]
    scan = [stretched(frames[0], bonds, place.atoms, float(by)) for by in ratio]
    energies = student_energies(judge.calculator, scan)
    steps, turnover = falls(ratio, energies)
    figures = [Figure("bond_curve_falls", steps)]
    checks = judge.check(*figures)
    if np.isfinite(turnover):
        figures.append(Figure("bond_turnover", turnover))
    return Comparison("bonds", name, figures, checks, Curve(ratio, None, energies))


COMPARE = {
    "torsions": _torsion,
    "dimers": _dimer,
    "conformers": _conformer_set,
    "bonds": _bond,
}


def barrier_threshold(limits: dict[str, Threshold], barrier: float) -> Threshold:
    """Return the limit of the error of a barrier: relative or absolute, whichever is larger.

    Parameters
    ----------
    limits : dict of str to Threshold
        Limits by the key of the figure.
    barrier : float
        Barrier of the teacher, kcal/mol.
    """
    relative, absolute = limits["barrier_error_percent"], limits["barrier_error_kcal_per_mol"]
    value = max(0.01 * relative.value * barrier, absolute.value)
    return Threshold(round(value, 3), "kcal/mol", f"{relative.source} {absolute.source}")


def _binding(judge: _Judge, dimers: dict[str, Comparison]) -> list[Comparison]:
    """Return the slope and the mean error of binding energies, of all dimers and by class."""
    groups = {"all": list(dimers)} | {
        kind: [name for name in names if name in dimers]
        for kind, names in judge.chemistry.dimers.items()
    }
    comparisons = []
    for group, names in groups.items():
        if names:
            pairs = [[figure.value for figure in dimers[name].figures[:2]] for name in names]
            teacher, student = np.array(pairs).T
            deviation = Figure("binding_slope_deviation", slope(teacher, student) - 1.0)
            mae = Figure("binding_mae", float(abs(student - teacher).mean()), "kcal/mol")
            checks = judge.check(deviation) if group == "all" else []
            comparisons.append(Comparison("dimers", group, [deviation, mae], checks))
    return comparisons


def _ranking(judge: _Judge, ranked: Collection[Comparison]) -> list[Comparison]:
    """Return the means of the molecules' Spearman coefficients and of the errors of conformers."""
    if not ranked:
        return []
    values = np.array([[figure.value for figure in each.figures] for each in ranked])
    spearman, mae, count = values.T
    figures = [
        Figure("conformer_spearman", float(spearman.mean())),
        Figure("conformer_mae", float(np.average(mae, weights=count)), "kcal/mol"),
    ]
    return [Comparison("conformers", "all", figures, judge.check(*figures))]


def _isomer(judge: _Judge, name: str, folder: Path, bars: Progress) -> Comparison:
    """Run MD of an isomer by the student, unless its file is there; count the changes."""
    place, md = judge.chemistry.isomers[name], judge.chemistry.md
    check_elements(judge.calculator, [embed(place.smiles, SEED)[0]])
    path = folder / f"{name}-{content_sha256([asdict(place), asdict(md)])[:8]}.json"
    if not path.is_file():
        bar = bars.add_task(f"MD of {name}", total=round(1e3 * md.ps / md.timestep_fs))
        count, ps = run_isomer(
            judge.calculator, place, md, lambda: bars.advance(bar, STEPS_PER_LOOK)
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"isomerisations": count, "stable_ps": ps})
        bars.remove_task(bar)
    result = read_json(path)
    broken = result["stable_ps"] < md.ps - 1e-6
    changes = Figure("isomerisations", np.nan if broken else result["isomerisations"])  # NaN fails
    figures = [changes, Figure("stable", result["stable_ps"], "ps")]
    return Comparison("isomers", name, figures, judge.check(changes))


def run_isomer(
    calculator: StudentForceFieldCalculator,
    place: Place,
    md: MD,
    progress: Callable[[], None] = lambda: None,
) -> tuple[int, float]:
    """Run Langevin dynamics of a molecule, and count the changes of a torsion angle.

    Parameters
    ----------
    calculator : StudentForceFieldCalculator
        The student.
    place : Place
        Molecule, and the torsion angle in it.
    md : MD
        Temperature, length and timestep of the run.
    progress : Callable
        Function that is called after every `STEPS_PER_LOOK` steps.

    Returns
    -------
    isomerisations : int
        Number of changes between cis and trans.
    stable_ps : float
        Time until a bond broke or the student refused the structure, ps; otherwise the length of
        the run.
    """
    atoms, bonds = embed(place.smiles, SEED)
    atoms.calc = calculator
    rng = np.random.default_rng(SEED)
    cosines, time_ps = [np.cos(np.radians(atoms.get_dihedral(*place.atoms)))], 0.0
    try:
        LBFGS(atoms, logfile=os.devnull).run(fmax=MINIMISE_FORCE, steps=MINIMISE_STEPS)
        dynamics = thermostat(atoms, md.temperature_K, md.timestep_fs, FRICTION_PER_FS, rng)
        i, j = np.array(bonds).T
        lengths = np.linalg.norm(atoms.positions[i] - atoms.positions[j], axis=1)
        while time_ps < md.ps - 1e-6:
            dynamics.run(STEPS_PER_LOOK)
            now = np.linalg.norm(atoms.positions[i] - atoms.positions[j], axis=1)
            if not (abs(now - lengths) < BROKEN_BOND_DEVIATION).all():
                break
            time_ps += 1e-3 * STEPS_PER_LOOK * md.timestep_fs
            cosines.append(np.cos(np.radians(atoms.get_dihedral(*place.atoms))))
            progress()
    except InputError:  # atoms too close, or positions that are not finite
        pass
    return count_isomerisations(np.array(cosines)), round(time_ps, 6)
