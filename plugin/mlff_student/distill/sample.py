"""Teacher MD over the molecule library. Each molecule is one file, written whole or not at all,
so that a killed run goes on where it stopped.
"""

import hashlib
import os
import random
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase import units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from rich.progress import track

from ..errors import InputError
from ..files import atomic_write
from ..teachers import make_teacher
from .dataset import SPLITS
from .molecules import Molecule, embed, read_library
from .recipe import Recipe, SamplingRecipe


def choose_molecules(recipe: Recipe) -> list[Molecule]:
    """Molecules of the library that are sampled: those always wanted, then one of each class in
    turn. Within a class a hash decides, so that a longer library does not reshuffle the rest.
    """

    def draw(molecule: Molecule) -> bytes:
        return hashlib.sha256(f"{recipe.seed} {molecule.smiles}".encode()).digest()

    library = read_library()
    chosen = [molecule for molecule in library if molecule.name in recipe.sampling.always]
    by_kind: dict[str, list[Molecule]] = defaultdict(list)
    for molecule in sorted(set(library) - set(chosen), key=draw):
        by_kind[molecule.kind].append(molecule)
    turns = zip_longest(*(by_kind[kind] for kind in sorted(by_kind)))
    others = [molecule for turn in turns for molecule in turn if molecule]
    return chosen + others[: recipe.sampling.molecules - len(chosen)]


def sample_molecule(
    molecule: Molecule, teacher: str, settings: SamplingRecipe, seed: int
) -> dict[str, Any] | None:
    """Frames of one molecule's teacher MD.

    Returns
    -------
    Arrays atomic_numbers (N,), positions (T, N, 3) angstrom, energies (T,) eV, forces (T, N, 3)
    eV/angstrom, temperatures (T,) kelvin; or None for a molecule above the size limit.
    """
    atoms, _ = embed(molecule.smiles)
    if len(atoms) > settings.largest:
        return None
    atoms.calc = make_teacher(teacher)
    rng = np.random.default_rng(seed)
    kept: dict[str, list[Any]] = defaultdict(list)
    for temperature in settings.temperatures_K:
        MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
        md = Langevin(
            atoms,
            timestep=settings.timestep_fs * units.fs,
            temperature_K=temperature,
            friction=settings.friction_per_fs / units.fs,
            fixcm=False,  # fixing it makes small molecules hotter than asked for
            rng=rng,
        )
        md.run(settings.equilibration)
        for _ in range(settings.frames):
            md.run(settings.interval)
            forces = atoms.get_forces(apply_constraint=False)
            if np.isfinite(forces).all() and abs(forces).max() < settings.largest_force:
                kept["positions"].append(atoms.positions.astype(np.float32))
                kept["energies"].append(atoms.get_potential_energy())
                kept["forces"].append(forces.astype(np.float32))
                kept["temperatures"].append(temperature)
    arrays = {key: np.array(values) for key, values in kept.items()}
    return arrays | {"atomic_numbers": atoms.numbers} if arrays else None


def _sample_to_file(
    molecule: Molecule, teacher: str, settings: SamplingRecipe, seed: int, path: Path
) -> int:
    os.environ["OMP_NUM_THREADS"] = "1"
    arrays = sample_molecule(molecule, teacher, settings, seed)
    if arrays is None:
        return 0
    with atomic_write(path) as temporary:
        with open(temporary, "wb") as stream:
            np.savez(stream, smiles=molecule.smiles, kind=molecule.kind, **arrays)
    return len(arrays["energies"])


def sample(recipe: Recipe, folder: Path, workers: int) -> tuple[int, list[str]]:
    """Run the teacher over the recipe's molecules, one process a worker.

    Parameters
    ----------
    folder : receives `<name>.npz` a molecule; those there already are kept.

    Returns
    -------
    frames : number labelled now.
    failures : one line for each molecule that gave none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frames, failures = 0, []
    chosen = enumerate(choose_molecules(recipe))  # the number is a molecule's own seed
    pending = [(k, m) for k, m in chosen if not (folder / f"{m.name}.npz").exists()]
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers when they load the teacher
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = {
            pool.submit(
                _sample_to_file,
                molecule,
                recipe.teacher,
                recipe.sampling,
                recipe.seed + index,
                folder / f"{molecule.name}.npz",
            ): molecule
            for index, molecule in pending
        }
        for job in track(as_completed(jobs), total=len(jobs), description="teacher MD"):
            try:
                count = job.result()
            except Exception as error:  # a teacher may raise anything: count it, name it, go on
                failures.append(f"{jobs[job].name}: {type(error).__name__}: {error}")
                continue
            frames += count
            if not count:
                failures.append(f"{jobs[job].name}: too large or no usable frame")
    return frames, failures


def write_dataset(recipe: Recipe, folder: Path, output: Path) -> dict[str, int]:
    """Gather the samples of the recipe's molecules into one HDF5 file.

    Whole molecules are held out, drawn with the recipe's seed from those not in `always`.

    Returns
    -------
    Number of frames in each split.

    Raises
    ------
    InputError : the folder holds no samples.
    """
    always = recipe.sampling.always
    names = [molecule.name for molecule in choose_molecules(recipe)]
    paths = [path for name in names if (path := folder / f"{name}.npz").exists()]
    if not paths:
        raise InputError(f"no samples (*.npz) in {folder}; run `mlff-student distill sample` first")
    drawn = [path.stem for path in paths if path.stem not in always]
    random.Random(recipe.seed).shuffle(drawn)
    split_of = {}
    for split, fraction in recipe.sampling.held_out.items():
        for _ in range(round(fraction * len(paths))):
            if not drawn:
                raise InputError(
                    f"sampling.held_out asks for more than the {len(paths)} molecules less those "
                    "in sampling.always"
                )
            split_of[drawn.pop()] = split
    counts = dict.fromkeys(SPLITS, 0)
    with atomic_write(output) as temporary, h5py.File(temporary, "w") as file:
        for split in SPLITS:
            members = [path for path in paths if split_of.get(path.stem, "train") == split]
            loaded = [dict(np.load(path)) for path in members]
            lengths = [len(one["energies"]) for one in loaded]
            atoms = [len(one["atomic_numbers"]) for one in loaded]
            group = file.create_group(split)
            group["names"] = [path.stem for path in members]
            group["smiles"] = [str(one["smiles"]) for one in loaded]
            group["kinds"] = [str(one["kind"]) for one in loaded]
            group["molecule"] = np.repeat(np.arange(len(members)), lengths)
            group["start"] = np.concatenate([[0], np.cumsum(np.repeat(atoms, lengths))])
            for key in ("positions", "forces"):
                group[key] = np.concatenate([one[key].reshape(-1, 3) for one in loaded])
            group["atomic_numbers"] = np.concatenate(
                [np.tile(one["atomic_numbers"], n) for one, n in zip(loaded, lengths, strict=True)]
            )
            for key in ("energies", "temperatures"):
                group[key] = np.concatenate([one[key] for one in loaded]).astype(np.float64)
            counts[split] = sum(lengths)
    return counts
