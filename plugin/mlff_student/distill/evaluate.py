"""Errors of a student on held-out molecules, and the card that tells a user of them."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlff_student.analysis.forces import force_errors
from mlff_student.archive.registry import load_student
from mlff_student.core.errors import InputError
from mlff_student.core.files import atomic_write, sha256
from mlff_student.core.results import write_json
from mlff_student.distill.dataset import Frames, read_frames, read_summary
from mlff_student.distill.graphs import build_graphs, forces_from_gradient, frame_edges, make_batch
from mlff_student.distill.recipe import Recipe
from mlff_student.model.elements import ELEMENTS
from mlff_student.model.neighbourhoods import REACH, Limits, neighbour_counts, neighbourhood_limits
from mlff_student.model.student import Student, parameter_count

COMPLEXES = ("dimer", "cluster", "liquid", "crystal")  # kinds of more than one molecule
SIZES = ((1, 8), (9, 16), (17, 24), (25, 32), (33, 400))  # atoms, least and most


def predict_frames(student: Student, frames: Frames, batch: int = 32) -> tuple[Tensor, Tensor]:
    """Total energies (T,) in eV and forces (A, 3) in eV/angstrom of all frames."""
    graphs = build_graphs(frames, student)
    energies, forces = [], []
    for first in range(0, len(frames.energies), batch):
        part = make_batch(graphs, list(range(first, min(first + batch, len(frames.energies)))))
        atoms = len(part.species)
        each, gradient = student(part.vectors.double(), part.edge_index, part.species, atoms)
        energies.append(torch.zeros(len(part.atoms)).double().index_add(0, part.frame, each))
        forces.append(forces_from_gradient(gradient, part.edge_index, atoms))
    return torch.cat(energies), torch.cat(forces)


def evaluate_frames(student: Student, frames: Frames) -> dict[str, Any]:
    """Errors of a student against the labels.

    The headline figures are of teacher MD of single molecules (of all frames where there is none);
    `by_temperature_K`, `by_element`, `by_size` and `by_class` split them up, and `complexes` holds
    frames of several molecules (dimers, clusters, liquids, crystals), kind by kind.

    Raises
    ------
    InputError : no frames.
    """
    if not len(frames.energies):
        raise InputError("no held-out frames to measure on; see structures.held_out of the recipe")
    energies, forces = predict_frames(student, frames)
    label = frames.forces.double()
    count = frames.start.diff()
    kinds = np.array(frames.kinds)[frames.molecule.numpy()]
    simulated = np.array(frames.methods) == "md"
    single = torch.from_numpy(simulated & ~np.isin(kinds, COMPLEXES))
    single = single if single.any() else torch.ones_like(single)
    energy_error = (energies - frames.energies) / count

    def errors(chosen: Tensor) -> dict[str, float]:
        rows = torch.repeat_interleave(chosen, count)
        return {
            "frames": int(chosen.sum()),
            "energy_rmse_ev_per_atom": float(energy_error[chosen].square().mean().sqrt()),
            **force_errors(forces[rows], label[rows])._asdict(),
        }

    def table(groups: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
        return {name: errors(chosen) for name, chosen in groups if chosen.any()}

    def of_kind(kind: str) -> Tensor:
        return torch.from_numpy(kinds == kind)

    temperature = frames.temperatures[single]
    temperatures = sorted(set(temperature[temperature.isfinite()].tolist()))
    rows = torch.repeat_interleave(single, count)
    of_element = {
        symbol: rows & (frames.atomic_numbers == number) for symbol, (number, _) in ELEMENTS.items()
    }
    return {
        "molecules": len(frames.molecule[single].unique()),
        **errors(single),
        "by_temperature_K": table(
            (f"{t:g}", single & (frames.temperatures == t)) for t in temperatures
        ),
        "by_element": {
            symbol: force_errors(forces[chosen], label[chosen])._asdict()
            for symbol, chosen in of_element.items()
            if chosen.any()
        },
        "by_size": table(
            (f"{least}-{most} atoms", single & (count >= least) & (count <= most))
            for least, most in SIZES
        ),
        "by_class": table((kind, single & of_kind(kind)) for kind in sorted(set(frames.kinds))),
        "complexes": table((kind, of_kind(kind)) for kind in COMPLEXES),
    }


def write_checkpoint(
    recipe: Recipe, recipe_file: Path, dataset: Path, trained: Path, name: str, output: Path
) -> dict[str, Any]:
    """Measure a trained student on the held-out molecules and write its checkpoint folder.

    Parameters
    ----------
    trained : model.pt that `train` wrote, with metrics.csv beside it.
    name : of the model.
    output : folder; receives model.pt, metrics.csv and curve.png (learning curve), card.json and
        README.md.

    Returns
    -------
    The card.
    """
    student, _ = load_student(trained)
    training = torch.load(trained, weights_only=True)["training"]
    train_frames, test_frames = read_frames(dataset, "train"), read_frames(dataset, "test")
    single = [kind not in COMPLEXES for kind in train_frames.kinds]
    sizes = train_frames.start.diff()
    largest = max(
        (int(n) for n, k in zip(sizes, train_frames.molecule, strict=True) if single[k]),
        default=int(sizes.max()),
    )
    temperatures = train_frames.temperatures[train_frames.temperatures.isfinite()]
    complexes = sorted(set(train_frames.kinds) & set(COMPLEXES))
    systems = "neutral closed-shell organic molecules in vacuum"
    if complexes:
        systems += f", {', '.join(f'{kind}s' for kind in complexes)} of them"
    summary = read_summary(dataset)
    card = {
        "name": name,
        "parameters": parameter_count(student),
        "model_sha256": sha256(trained),
        "teacher": recipe.teacher,
        "dataset_sha256": sha256(dataset),
        "recipe": recipe_file.name,
        "recipe_sha256": sha256(recipe_file),
        "split_by": str(summary.attributes.get("split_by", "molecule")),
        "training": training
        | {
            "molecules": sum(single),
            "complexes": len(single) - sum(single),
            "frames": len(train_frames.energies),
        },
        "accuracy": {"held_out_molecules": evaluate_frames(student, test_frames)},
        "domain": {
            "elements": [
                symbol
                for symbol, (number, _) in ELEMENTS.items()
                if (train_frames.atomic_numbers == number).any()
            ],
            "temperatures_K": temperatures.unique().tolist(),
            "largest_molecule_atoms": largest,
            "largest_force_ev_per_angstrom": round(float(train_frames.forces.norm(dim=1).max()), 2),
            "systems": systems,
            "neighbours": known_neighbourhoods(train_frames),
        },
        "held_out": {"test": test_frames.names},
    }
    output.mkdir(parents=True, exist_ok=True)
    for source in (trained, trained.with_name("metrics.csv")):
        with atomic_write(output / source.name) as temporary:
            temporary.write_bytes(source.read_bytes())
    write_json(output / "card.json", card)
    with atomic_write(output / "README.md") as temporary:
        temporary.write_text(card_text(card))
    plot_curve(output / "metrics.csv", output / "curve.png")
    return card


def known_neighbourhoods(frames: Frames) -> Limits:
    """What neighbours the atoms of frames have; see `mlff_student.model.neighbourhoods`."""
    numbers = torch.tensor([number for number, _ in ELEMENTS.values()])
    species = torch.full((int(numbers.max()) + 1,), -1)
    species[numbers] = torch.arange(len(numbers))
    kinds = species[frames.atomic_numbers]

    def counts() -> Iterator[tuple[Tensor, Tensor]]:
        for frame, edge_index, vectors in frame_edges(frames, REACH):
            some = frame.unique()
            if not len(some):  # a frame whose atoms are all alone teaches nothing of neighbours
                continue
            rows = torch.cat([torch.arange(*frames.start[k : k + 2]) for k in some.tolist()])
            place = torch.zeros(len(kinds), dtype=torch.int64)
            place[rows] = torch.arange(len(rows))
            edges = place[edge_index + frames.start[frame]]
            mine = kinds[rows]
            yield neighbour_counts(vectors.norm(dim=1), edges, mine, len(numbers)), mine

    return neighbourhood_limits(counts(), list(ELEMENTS))


def plot_curve(metrics: Path, output: Path) -> None:
    """Force errors over the steps of a training."""
    from mlff_student.reporting.plots import single_figure

    with open(metrics, newline="") as stream:
        rows = list(csv.DictReader(stream))
    steps = [int(row["step"]) for row in rows]
    with single_figure(output, "step", "force RMSE (eV/Å)", yscale="log") as axes:
        for kind in ("train", "validation"):
            values = [float(row[f"{kind}_force_rmse_ev_per_angstrom"]) for row in rows]
            axes.plot(steps, values, marker=".", label=kind)  # a short run has one point


def card_text(card: dict[str, Any]) -> str:
    """The card in words."""
    test, training, domain = (
        card["accuracy"]["held_out_molecules"],
        card["training"],
        card["domain"],
    )
    specialised = card["split_by"] == "trajectory"
    unseen = "of trajectories" if specialised else f"of {test['molecules']} molecules"
    lines = [
        f"# {card['name']}",
        "",
        f"A student of {card['parameters']:,} parameters, distilled from {card['teacher']} on "
        f"{training['frames']:,} frames of {training['molecules']:,} "
        + ("trajectories of one molecule" if specialised else "molecules")
        + (f" and {training['complexes']:,} complexes" if training["complexes"] else "")
        + f" ({training['steps']:,} optimiser steps, {training['seconds'] / 60:.0f} minutes of "
        f"{training['processes']} process on {training['device']}). Recipe: `{card['recipe']}`.",
        "",
        f"Measured on {test['frames']:,} frames of teacher MD {unseen} never seen: energy RMSE "
        f"{1e3 * test['energy_rmse_ev_per_atom']:.1f} meV/atom, and forces:",
        "",
        "| held out | atoms | RMSE (eV/Å) | MAE (eV/Å) | R² | angle (deg) |",
        "|---|---|---|---|---|---|",
    ]
    tables = [
        {"all": test},
        {f"{t} K": row for t, row in test["by_temperature_K"].items()},
        test["by_element"],
        test["by_size"],
        test["by_class"],
        test["complexes"],
    ]
    lines += [
        f"| {name} | {e['atoms']:,} | {e['force_rmse_ev_per_angstrom']:.3f} "
        f"| {e['force_mae_ev_per_angstrom']:.3f} | {e['force_r2']:.4f} "
        f"| {e['force_angle_deg']:.1f} |"
        for table in tables
        for name, e in table.items()
    ]
    trained_at = ", ".join(f"{t:g}" for t in domain["temperatures_K"])
    scope = (
        "It knows the molecule that it was made for and nothing else."
        if specialised
        else "It learns its teacher, errors included: check it against the teacher on yours."
    )
    lines += [
        "",
        f"**Domain.** {domain['systems'].capitalize()}; elements {', '.join(domain['elements'])}; "
        f"molecules of up to {domain['largest_molecule_atoms']} atoms; teacher MD at "
        f"{trained_at} K; forces up to {domain['largest_force_ev_per_angstrom']:g} eV/Å.",
        "",
        "**Not for.** Ions, radicals, reactions, excited states, metals; interactions beyond "
        f"the cutoff of 5 Å. {scope}",
        "",
        "![force errors over the steps of the training](curve.png)",
        "",
    ]
    return "\n".join(lines)
