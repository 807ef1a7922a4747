"""Active learning: the teacher labels frames of a student's MD on which several students disagree.

The method is query by committee (Seung, Opper & Sompolinsky 1992, doi:10.1145/130385.130417), as
Gastegger, Behler & Marquetand 2017 (doi:10.1039/C7SC02267K) use it for potentials. The students of
the committee differ in their random seed or their size, and agree where they have seen data.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.io import read, write
from rich.progress import MofNCompleteColumn, Progress

from mlff_student.analysis.bonds import BROKEN_BOND_DEVIATION, bond_lengths
from mlff_student.archive.registry import checkpoint_path
from mlff_student.core.errors import InputError, MissingDependencyError, StudentError
from mlff_student.core.files import atomic_write, only_writer, sha256
from mlff_student.distill.dataset import read_summary
from mlff_student.distill.label import label_sources, on_cores
from mlff_student.distill.recipe import Recipe, Rounds
from mlff_student.distill.sample import Mover, relax_packed, thermostat
from mlff_student.distill.sources import LONGEST_NAME, Source, bonds_of, build, list_sources
from mlff_student.distill.train import train
from mlff_student.structures.checks import charge_and_multiplicity, check_distances

FRICTION_PER_FS = 0.01
FRAMES_EXAMINED = 40  # of the MD at each temperature
DISAGREEMENT = "disagreement_ev_per_angstrom"  # key of a proposed frame in its file


class Proposal(NamedTuple):
    """A frame of the student's MD.

    Attributes
    ----------
    atoms : Atoms
        The geometry.
    disagreement : float
        Largest standard deviation of the committee's forces on an atom, eV/angstrom; infinite if
        the MD broke right after this frame.
    """

    atoms: Atoms
    disagreement: float


class RoundSummary(NamedTuple):
    """What came out of a round.

    Attributes
    ----------
    simulated : int
        Number of structures whose MD was run.
    broken : int
        Number of them whose MD broke.
    disagreement : float
        Median over these structures of their largest disagreement, eV/angstrom.
    structures : int
        Number of structures with new labelled frames.
    frames : int
        Number of these frames.
    """

    simulated: int
    broken: int
    disagreement: float
    structures: int
    frames: int


class MDJob(NamedTuple):
    """The MD of one structure, for a worker process.

    Attributes
    ----------
    source : Source
        The structure, under the name that its frames get.
    students : tuple of Path
        Checkpoints of the committee.
    hashes : tuple of str
        SHA-256 of the checkpoints.
    settings : Rounds
        Settings of the MD.
    temperatures_K : list of float
        Temperatures, kelvin.
    seed : int
        Random seed of all draws for this structure.
    file : Path
        File to write, extended XYZ.
    """

    source: Source
    students: tuple[Path, ...]
    hashes: tuple[str, ...]
    settings: Rounds
    temperatures_K: list[float]
    seed: int
    file: Path


def run_rounds(
    recipe: Recipe,
    data: Path,
    workers: int,
    compiled: bool = True,
    students: Sequence[str | Path] = (),
) -> list[RoundSummary]:
    """Run the rounds of active learning of a recipe.

    In a round the students of a committee run MD of training structures, and the teacher labels the
    frames on which the committee disagrees. The same call resumes where a killed one stopped.

    Without `students` each round trains a committee of its own. Given students learn nothing
    between rounds, so that a call ends after one round; the next round starts when they were
    trained again.

    Parameters
    ----------
    recipe : Recipe
        A recipe with the section `rounds`.
    data : Path
        Folder with dataset.h5, to which the new frames are added. Its folder rounds/ receives the
        frames that are proposed in each round, and the committee that is trained.
    workers : int
        Number of processes on this machine, for MD and for the teacher.
    compiled : bool
        Whether torch.compile fuses the training step.
    students : sequence of str or Path
        Checkpoints or archives of two or more trained students, or names of shipped ones.

    Returns
    -------
    list of RoundSummary
        The rounds that are done.

    Raises
    ------
    InputError
        The recipe has no rounds, or no settings to train their preset with, or no temperatures for
        a group of structures; there is no dataset; a single student was given; a round was begun
        with other students; or MD could be run of no structure.
    ArchiveError
        A student cannot be read.
    """
    settings, dataset, folder = recipe.rounds, data / "dataset.h5", data / "rounds"
    if settings is None:
        raise InputError(
            "the recipe has no section `rounds`; add it, as in "
            "plugin/mlff_student/distill/condensed.yaml"
        )
    if not students and settings.model not in recipe.training:
        raise InputError(
            f"rounds.model: no preset {settings.model!r} in the recipe's training; it has "
            + ", ".join(recipe.training)
        )
    if len(students) == 1:
        raise InputError(f"a committee needs two students or more, got only {students[0]}")
    given = tuple(
        path if (path := Path(s)).is_file() else checkpoint_path(str(s)) for s in students
    )
    hashes = tuple(sha256(path) for path in given)
    _committee(given, hashes)
    read_summary(dataset)  # raises an error if there is no dataset
    trained_on = [
        source for source in list_sources(recipe.structures, recipe.seed) if source.split == "train"
    ]
    for group in {source.group for source in trained_on}:
        if settings.weights.get(group) or not settings.weights:
            _temperatures(recipe, group)  # raises an error before anything is run
    folder.mkdir(exist_ok=True)
    summaries: list[RoundSummary] = []
    before: list[str] = []
    with only_writer(folder, "wait for it, or give another --data folder"):
        for number in range(1, settings.count + 1):
            state = folder / f"round_{number}.json"
            record = json.loads(state.read_text()) if state.exists() else {}
            if "summary" in record:
                summaries.append(RoundSummary(**record["summary"]))
                before = record["students"]
                continue
            if given and before == list(hashes):
                break
            if record and record["students"] != list(hashes):
                raise InputError(
                    f"round {number} was begun with other students than "
                    f"{', '.join(map(str, given)) or 'a committee that is trained'}; give the same "
                    f"students, or delete {state} and {folder / state.stem}"
                )
            _write_json(state, {"students": hashes})
            committee = given or tuple(
                _trained_member(recipe, number, member, data, compiled)
                for member in range(settings.committee)
            )
            drawn = draw_structures(trained_on, settings, recipe.seed, number)
            jobs = _jobs(drawn, recipe, number, committee, folder / state.stem)
            _run_md(jobs, workers, f"student MD, round {number}")
            summary = _label_proposals(jobs, recipe, dataset, workers)
            _write_json(state, {"students": hashes, "summary": summary._asdict()})
            summaries.append(summary)
            before = list(hashes)
    return summaries


def draw_structures(
    sources: list[Source], settings: Rounds, seed: int, number: int
) -> list[Source]:
    """Draw the structures of a round.

    Parameters
    ----------
    sources : list of Source
        Structures that the students are trained on.
    settings : Rounds
        Gives the number of structures and the weights of their groups.
    seed : int
        Random seed.
    number : int
        Number of the round; other rounds draw other structures.

    Returns
    -------
    list of Source
        Structures of all groups in a random order. A group that has fewer structures than its share
        gives all of them.
    """
    groups: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        groups[source.group].append(source)
    weights = {
        group: settings.weights.get(group, 0.0) if settings.weights else float(len(members))
        for group, members in groups.items()
    }
    rng = np.random.default_rng([seed, number])
    drawn: list[Source] = []
    for group in sorted(groups):
        share = weights[group] / (sum(weights.values()) or 1.0)
        count = min(round(settings.structures * share), len(groups[group]))
        drawn += [groups[group][k] for k in rng.choice(len(groups[group]), count, replace=False)]
    return [drawn[k] for k in rng.permutation(len(drawn))]


def _jobs(
    sources: list[Source], recipe: Recipe, number: int, students: tuple[Path, ...], folder: Path
) -> list[MDJob]:
    """Return the jobs of a round; a seed depends on the name of its structure only."""
    assert recipe.rounds is not None
    folder.mkdir(exist_ok=True)
    hashes = tuple(map(sha256, students))
    jobs = []
    for source in sources:
        name = f"round{number}_{source.name}"
        if len(name.encode()) > LONGEST_NAME:
            raise InputError(f"the name {source.name!r} is too long for a round; shorten it")
        jobs.append(
            MDJob(
                source._replace(name=name),
                students,
                hashes,
                recipe.rounds,
                _temperatures(recipe, source.group),
                (recipe.seed + crc32(name.encode())) % 2**31,
                folder / f"{name}.extxyz",
            )
        )
    return jobs


def _temperatures(recipe: Recipe, group: str) -> list[float]:
    """Return the temperatures of a group's MD, kelvin."""
    assert recipe.rounds is not None
    sampling = recipe.sampling.get(group)
    temperatures = recipe.rounds.temperatures_K or (
        sampling.md.temperatures_K if sampling and sampling.md else []
    )
    if not temperatures:
        raise InputError(
            f"rounds.temperatures_K is missing, and sampling.{group} has no MD whose temperatures "
            "could be used; add it"
        )
    return temperatures


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def _trained_member(recipe: Recipe, number: int, member: int, data: Path, compiled: bool) -> Path:
    """Train one member up to round `number`, and return its checkpoint."""
    settings = recipe.rounds
    assert settings is not None  # `run_rounds` refuses such a recipe
    steps, folder = settings.steps * number, data / "rounds" / f"member_{member}"
    # No patience: a member that stops early would not learn the frames of later rounds.
    training = replace(recipe.training[settings.model], steps=steps, patience=0)
    own = replace(recipe, seed=recipe.seed + member, training={settings.model: training})
    train(own, settings.model, data / "dataset.h5", folder, compiled=compiled)
    return folder / "model.pt"


@lru_cache(maxsize=1)
def _committee(students: tuple[Path, ...], hashes: tuple[str, ...]) -> list[Mover]:
    """Return the calculators of a process; the hashes change when a student is trained further."""
    return [Mover(student) for student in students]


def _run_md(jobs: list[MDJob], workers: int, title: str) -> None:
    """Run the MD whose files are missing."""
    pending = [job for job in jobs if not job.file.exists()]
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as progress:
        bar = progress.add_task(title, total=len(jobs), completed=len(jobs) - len(pending))
        with closing(on_cores(workers, _simulate, pending)) as failures:
            for failure in failures:
                if failure:
                    progress.console.print(failure, markup=False, highlight=False)
                progress.advance(bar)


def _simulate(job: MDJob) -> str:
    """Run the MD of a job and write its proposals; return why there are none."""
    members = _committee(job.students, job.hashes)
    try:
        proposals = propose(job.source, members, job.settings, job.temperatures_K, job.seed)
    except MissingDependencyError:
        raise
    except Exception as error:  # RDKit finds no conformer, or a student lacks an element
        detail = error if isinstance(error, StudentError) else repr(error)
        return f"{job.source.name}: {detail}"
    for proposal in proposals:
        proposal.atoms.info[DISAGREEMENT] = proposal.disagreement
    with atomic_write(job.file) as temporary:
        write(temporary, [proposal.atoms for proposal in proposals], format="extxyz")
    return ""


def _label_proposals(
    jobs: list[MDJob], recipe: Recipe, dataset: Path, workers: int
) -> RoundSummary:
    """Label the frames on which the committee disagrees, and sum up the round."""
    largest, sources = [], []
    for source, file in ((job.source, job.file) for job in jobs if job.file.exists()):
        frames = read(file, index=":", format="extxyz", do_not_split_by_at_sign=True)
        largest.append(frames[0].info[DISAGREEMENT])
        starts = tuple(f for f in frames if f.info[DISAGREEMENT] > jobs[0].settings.disagreement)
        if starts:
            sources.append(source._replace(group="proposed", starts=starts))
    if not largest:
        raise InputError("MD could be run of no structure; the reasons are printed above")
    label_sources(sources, recipe, dataset, workers, split_by=recipe.structures.split_by)
    summary, names = read_summary(dataset), {source.name for source in sources}
    labelled = summary.labelled[[name in names for name in summary.names]]
    return RoundSummary(
        simulated=len(largest),
        broken=int(np.isinf(largest).sum()),
        disagreement=float(np.median(largest)),
        structures=int((labelled > 0).sum()),
        frames=int(labelled.sum()),
    )


def propose(
    source: Source,
    members: Sequence[Calculator],
    settings: Rounds,
    temperatures_K: Sequence[float],
    seed: int,
) -> list[Proposal]:
    """Run MD by a member drawn at random, and return the frames on which the committee disagrees.

    A box of packed molecules is relaxed first. The MD ends when a bond changes its length by more
    than 0.5 angstrom or two atoms collide; the frame before that has an infinite disagreement.

    Parameters
    ----------
    source : Source
        The structure; one of its starting geometries is drawn.
    members : sequence of Calculator
        ASE calculators of the committee.
    settings : Rounds
        MD settings, and the number of frames.
    temperatures_K : sequence of float
        Temperatures of the MD, one after another, kelvin.
    seed : int
        Random seed of the geometry, the velocities and the thermostat.

    Returns
    -------
    list of Proposal
        At most `settings.frames` frames, the largest disagreement first. They state the total
        charge and the multiplicity of the structure.

    Raises
    ------
    InputError
        The structure cannot be built, or a member cannot be used for it.
    """
    rng = np.random.default_rng(seed)
    starts = build(source, seed)
    start = starts[rng.integers(len(starts))].copy()
    start.set_constraint()  # all atoms move, also those that a file fixes
    charge, multiplicity = charge_and_multiplicity(start)
    start.info = {"charge": charge} if charge else {}
    start.info |= {"spin": multiplicity} if multiplicity != 1 else {}
    for member in members:
        member.get_forces(start)  # raises an error if the student is not for this structure
    runner = start.copy()
    runner.calc = members[int(rng.integers(len(members)))]
    bonds = np.array(bonds_of(source, start), int).reshape(-1, 2)

    def moves() -> Iterator[Callable[[], Any]]:
        yield partial(relax_packed, runner, source)
        interval = max(1, round(1000.0 * settings.ps / settings.timestep_fs / FRAMES_EXAMINED))
        for temperature in temperatures_K:
            md = thermostat(runner, temperature, settings.timestep_fs, FRICTION_PER_FS, rng)
            for _ in range(FRAMES_EXAMINED):
                yield partial(md.run, interval)

    frames = list(_trajectory(runner, moves(), bonds, members))
    if frames[-1].disagreement == np.inf:
        del frames[-2:-1]  # the same geometry, before it was known that the MD would break
    proposals = []
    for frame in sorted(frames, key=lambda frame: -frame.disagreement)[: settings.frames]:
        atoms = start.copy()
        atoms.positions = frame.atoms.positions
        proposals.append(Proposal(atoms, frame.disagreement))
    return proposals


def _trajectory(
    runner: Atoms,
    moves: Iterator[Callable[[], Any]],
    bonds: np.ndarray,
    members: Sequence[Calculator],
) -> Iterator[Proposal]:
    lengths = _lengths(runner, bonds)
    for move in moves:
        before = runner.copy()
        try:
            move()
            forces = np.array([member.get_forces(runner) for member in members])  # (M, N, 3)
            check_distances(runner)
        except (InputError, RuntimeError):  # atoms collide, or positions are not finite
            forces = np.array(np.nan)
        change = np.abs(_lengths(runner, bonds) - lengths).max(initial=0.0)
        if not np.isfinite(forces).all() or change > BROKEN_BOND_DEVIATION:
            yield Proposal(before, np.inf)
            return
        yield Proposal(runner.copy(), float(np.linalg.norm(forces.std(0), axis=1).max()))


def _lengths(atoms: Atoms, bonds: np.ndarray) -> np.ndarray:
    """Return the lengths of bonds to the nearest periodic images, angstrom."""
    cell = atoms.cell.complete().array[None] if atoms.pbc.any() else None
    return bond_lengths(atoms.positions[None], cell, bonds, periodic=atoms.pbc)[0]
