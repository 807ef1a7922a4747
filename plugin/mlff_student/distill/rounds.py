"""Active learning: the teacher labels frames of a student's MD on which several students disagree.

The method is query by committee (Seung, Opper & Sompolinsky 1992, doi:10.1145/130385.130417), as
Gastegger, Behler & Marquetand 2017 (doi:10.1039/C7SC02267K) use it for potentials. The students of
the committee start from different random weights, and agree where they have seen data.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from rich.progress import track

from mlff_student.analysis.bonds import BROKEN_BOND_DEVIATION
from mlff_student.core.errors import InputError
from mlff_student.core.files import atomic_write
from mlff_student.distill.dataset import read_summary
from mlff_student.distill.label import label_sources
from mlff_student.distill.recipe import Recipe, Rounds
from mlff_student.distill.sources import build, list_sources
from mlff_student.distill.train import train
from mlff_student.engines.ase.calculator import StudentForceFieldCalculator
from mlff_student.structures.checks import SHORTEST_DISTANCE, perceive_bonds

FRICTION_PER_FS = 0.01
FRAMES_EXAMINED = 40  # of each trajectory


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


def run_rounds(recipe: Recipe, data: Path, workers: int, compiled: bool = True) -> list[int]:
    """Run all rounds of active learning of a recipe.

    A round trains the committee, runs MD of its first member and labels the frames on which the
    committee disagrees. The same call resumes where a killed one stopped.

    Parameters
    ----------
    recipe : Recipe
        A recipe with the section `rounds`.
    data : Path
        Folder with dataset.h5, to which the new frames are added. Its folder rounds/ receives the
        committee, and a file for each round that is done.
    workers : int
        Number of teacher processes on this machine.
    compiled : bool
        Whether torch.compile fuses the training step.

    Returns
    -------
    list[int]
        Number of structures labelled in each round.

    Raises
    ------
    InputError
        The recipe has no rounds, or no settings to train their preset with.
    """
    if recipe.rounds is None:
        raise InputError("the recipe has no section `rounds`; add it, as in benchmarks/rounds.yaml")
    if recipe.rounds.model not in recipe.training:
        raise InputError(
            f"rounds.model: no preset {recipe.rounds.model!r} in the recipe's training; it has "
            + ", ".join(recipe.training)
        )
    settings, dataset = recipe.rounds, data / "dataset.h5"
    molecules = [
        source
        for source in list_sources(recipe.structures, recipe.seed)
        if source.split == "train" and source.group == "molecule"
    ]
    counts = []
    for number in range(1, settings.count + 1):
        prefix, ended = f"round{number}_", data / "rounds" / f"round_{number}.done"
        if ended.exists():  # its committee was trained further since, and proposes other frames
            counts.append(int(ended.read_text()))
            continue
        members = []
        for member in range(settings.committee):
            folder = data / "rounds" / f"member_{member}"
            train(
                _member_recipe(recipe, number, member),
                settings.model,
                dataset,
                folder,
                compiled=compiled,
            )
            members.append(StudentForceFieldCalculator(folder / "model.pt"))
        rng = np.random.default_rng([recipe.seed, number])
        chosen = rng.choice(len(molecules), min(settings.structures, len(molecules)), replace=False)
        sources = []
        for k in track(chosen.tolist(), description=f"student MD, round {number}"):
            seed = int(rng.integers(2**31))
            try:
                atoms = build(molecules[k], seed)[0]
            except InputError:  # RDKit may find no conformer from this random seed
                continue
            proposals = propose(atoms, members, settings, seed)
            if proposals:
                starts = tuple(proposal.atoms for proposal in proposals)
                name = prefix + molecules[k].name
                sources.append(molecules[k]._replace(name=name, group="proposed", starts=starts))
        label_sources(sources, recipe, dataset, workers, split_by=recipe.structures.split_by)
        summary = read_summary(dataset)
        labelled = zip(summary.names, summary.labelled, strict=True)
        counts.append(sum(name.startswith(prefix) and frames > 0 for name, frames in labelled))
        with atomic_write(ended) as temporary:
            temporary.write_text(f"{counts[-1]}\n")
    return counts


def _member_recipe(recipe: Recipe, number: int, member: int) -> Recipe:
    """Return the recipe by which one member is trained up to round `number`."""
    settings = recipe.rounds
    assert settings is not None  # `run_rounds` refuses such a recipe
    steps = settings.steps * number
    # No patience: a member that stops early would not learn the frames of later rounds.
    training = replace(recipe.training[settings.model], steps=steps, patience=0)
    return replace(recipe, seed=recipe.seed + member, training={settings.model: training})


def propose(
    atoms: Atoms, members: Sequence[Calculator], settings: Rounds, seed: int
) -> list[Proposal]:
    """Run MD by the first member, and return the frames on which the committee disagrees most.

    The MD ends when a bond changes its length by more than 0.5 angstrom or two atoms collide; the
    frame before that has an infinite disagreement.

    Parameters
    ----------
    atoms : Atoms
        Starting geometry.
    members : sequence of Calculator
        ASE calculators of the committee.
    settings : Rounds
        MD settings, the number of frames and the least disagreement.
    seed : int
        Random seed of the velocities and of the thermostat.

    Returns
    -------
    list of Proposal
        At most `settings.frames` frames, the largest disagreement first.
    """
    rng = np.random.default_rng(seed)
    bonds = np.array(perceive_bonds(atoms)).reshape(-1, 2)
    lengths = _lengths(atoms, bonds)
    runner = atoms.copy()
    runner.calc = members[0]
    thermalize_momenta(runner, temperature_K=settings.temperature_K, rng=rng)
    md = Langevin(
        runner,
        timestep=settings.timestep_fs * units.fs,
        temperature_K=settings.temperature_K,
        friction=FRICTION_PER_FS / units.fs,
        fixcm=False,
        rng=rng,
    )
    interval = max(1, round(1000.0 * settings.ps / settings.timestep_fs / FRAMES_EXAMINED))
    frames = _trajectory(runner, md, interval, bonds, lengths, members)
    proposals = [frame for frame in frames if frame.disagreement > settings.disagreement]
    return sorted(proposals, key=lambda proposal: -proposal.disagreement)[: settings.frames]


def _trajectory(
    runner: Atoms,
    md: Langevin,
    interval: int,
    bonds: np.ndarray,
    lengths: np.ndarray,
    members: Sequence[Calculator],
) -> Iterator[Proposal]:
    for _ in range(FRAMES_EXAMINED):
        before = runner.copy()
        try:
            md.run(interval)
            forces = np.array([member.get_forces(runner) for member in members])  # (M, N, 3)
        except (InputError, RuntimeError):  # a student was given positions that are not finite
            forces = np.array(np.nan)
        distances = runner.get_all_distances()[np.triu_indices(len(runner), 1)]
        broken = not np.isfinite(forces).all() or distances.min(initial=np.inf) < SHORTEST_DISTANCE
        change = np.abs(_lengths(runner, bonds) - lengths).max(initial=0.0)
        if broken or change > BROKEN_BOND_DEVIATION:
            yield Proposal(before, np.inf)
            return
        yield Proposal(runner.copy(), float(np.linalg.norm(forces.std(0), axis=1).max()))


def _lengths(atoms: Atoms, bonds: np.ndarray) -> np.ndarray:
    return np.linalg.norm(atoms.positions[bonds[:, 0]] - atoms.positions[bonds[:, 1]], axis=1)
