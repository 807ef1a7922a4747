"""Errors of a student on held-out molecules, and the card that tells a user of them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..elements import ELEMENTS
from ..files import atomic_write
from ..student import PRESETS, Student, parameter_count
from .dataset import Frames, read_split, sha256
from .recipe import Recipe
from .train import build_graphs, forces_from_gradient, make_batch

LARGE_ANGLE_FLOOR = 0.1  # eV/angstrom; the direction of a smaller force is noise


class ForceErrors(NamedTuple):
    """Errors of forces over a set of atoms."""

    atoms: int
    force_rmse_ev_per_angstrom: float
    force_mae_ev_per_angstrom: float
    force_r2: float
    force_angle_deg: float  # mean, of teacher forces above 0.1 eV/angstrom


def force_errors(found: Tensor, label: Tensor) -> ForceErrors:
    """Errors of forces (A, 3) against the teacher's."""
    error = found - label
    cosine = torch.nn.functional.cosine_similarity(found, label, dim=1)
    angles = torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))
    residual, spread = error.square().sum(), (label - label.mean()).square().sum()
    return ForceErrors(
        atoms=len(label),
        force_rmse_ev_per_angstrom=float(error.square().mean().sqrt()),
        force_mae_ev_per_angstrom=float(error.abs().mean()),
        force_r2=float(1.0 - residual / spread),
        force_angle_deg=float(angles[label.norm(dim=1) > LARGE_ANGLE_FLOOR].mean()),
    )


def predict_frames(student: Student, frames: Frames, batch: int = 32) -> tuple[Tensor, Tensor]:
    """Total energies (T,) in eV and forces (A, 3) in eV/angstrom of all frames."""
    graphs = build_graphs(frames, student)
    energies, forces = [], []
    for first in range(0, len(frames.energies), batch):
        part = make_batch(graphs, list(range(first, min(first + batch, len(frames.energies)))))
        receiver, sender = part.edge_index[0], part.edge_index[1]
        vectors = (part.positions[sender] - part.positions[receiver]).double()
        atoms = len(part.species)
        each, gradient = student(vectors, part.edge_index, part.species, atoms)
        energies.append(torch.zeros(len(part.atoms)).double().index_add(0, part.frame, each))
        forces.append(forces_from_gradient(gradient, part.edge_index, atoms))
    return torch.cat(energies), torch.cat(forces)


def evaluate_split(student: Student, frames: Frames) -> dict[str, Any]:
    """Errors over all frames, by temperature, by element and by class of molecule."""
    energies, forces = predict_frames(student, frames)
    label = frames.forces.double()
    count = frames.start.diff()
    temperature = torch.repeat_interleave(frames.temperatures, count)
    kinds = sorted(set(frames.kinds))
    kind_of_molecule = torch.tensor([kinds.index(kind) for kind in frames.kinds])
    kind = torch.repeat_interleave(kind_of_molecule[frames.molecule], count)

    def errors(rows: Tensor) -> dict[str, float]:
        return force_errors(forces[rows], label[rows])._asdict()

    energy_error = (energies - frames.energies) / count
    return {
        "molecules": len(frames.names),
        "frames": len(frames.energies),
        "energy_rmse_ev_per_atom": float(energy_error.square().mean().sqrt()),
        **force_errors(forces, label)._asdict(),
        "by_temperature_K": {
            str(round(float(t))): errors(temperature == t) for t in frames.temperatures.unique()
        },
        "by_element": {
            symbol: errors(frames.atomic_numbers == number)
            for symbol, (number, _) in ELEMENTS.items()
            if (frames.atomic_numbers == number).any()
        },
        "by_class": {name: errors(kind == index) for index, name in enumerate(kinds)},
    }


def write_checkpoint(
    recipe: Recipe, recipe_file: Path, model: str, dataset: Path, trained: Path, output: Path
) -> dict[str, Any]:
    """Measure a trained student on the held-out molecules and write its checkpoint folder.

    Parameters
    ----------
    trained : model.pt that `train` wrote, with metrics.csv beside it.
    output : folder; receives model.pt, metrics.csv (the learning curve), card.json and README.md.

    Returns
    -------
    The card.
    """
    checkpoint = torch.load(trained, weights_only=True)
    student = Student(PRESETS[model])
    student.load_state_dict(checkpoint["weights"])
    student.eval().requires_grad_(False)
    train_frames, test_frames = read_split(dataset, "train"), read_split(dataset, "test")
    settings = recipe.sampling
    card = {
        "name": model,
        "parameters": parameter_count(student),
        "teacher": recipe.teacher,
        "dataset_sha256": sha256(dataset),
        "recipe": recipe_file.name,
        "recipe_sha256": sha256(recipe_file),
        "training": checkpoint["training"]
        | {"molecules": len(train_frames.names), "frames": len(train_frames.energies)},
        "accuracy": {"held_out_molecules": evaluate_split(student, test_frames)},
        "domain": {
            "elements": list(PRESETS[model].elements),
            "temperatures_K": settings.temperatures_K,
            "largest_molecule_atoms": settings.largest,
            "largest_force_ev_per_angstrom": round(float(train_frames.forces.norm(dim=1).max()), 2),
            "systems": "single neutral closed-shell organic molecules in vacuum",
        },
        "held_out": {"test": test_frames.names},
    }
    output.mkdir(parents=True, exist_ok=True)
    for source in (trained, trained.with_name("metrics.csv")):
        with atomic_write(output / source.name) as temporary:
            temporary.write_bytes(source.read_bytes())
    with atomic_write(output / "card.json") as temporary:
        temporary.write_text(json.dumps(card, indent=2) + "\n")
    with atomic_write(output / "README.md") as temporary:
        temporary.write_text(card_text(card))
    return card


def card_text(card: dict[str, Any]) -> str:
    """The card in words."""
    test, training, domain = (
        card["accuracy"]["held_out_molecules"],
        card["training"],
        card["domain"],
    )
    rows = [("all", test), *((f"{t} K", e) for t, e in test["by_temperature_K"].items())]
    rows += list(test["by_element"].items())
    lines = [
        f"# {card['name']}",
        "",
        f"A student of {card['parameters']:,} parameters, distilled from {card['teacher']} on "
        f"{training['frames']:,} frames of MD of {training['molecules']} organic molecules "
        f"({training['steps']:,} optimiser steps, {training['seconds'] / 60:.0f} minutes on one "
        f"CPU core). Recipe: `{card['recipe']}`.",
        "",
        f"Measured on {test['frames']:,} frames of {test['molecules']} molecules never seen: "
        f"energy RMSE {1e3 * test['energy_rmse_ev_per_atom']:.1f} meV/atom, and forces:",
        "",
        "| held-out molecules | RMSE (eV/angstrom) | MAE (eV/angstrom) | R² | angle (deg) |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {e['force_rmse_ev_per_angstrom']:.3f} | {e['force_mae_ev_per_angstrom']:.3f} "
        f"| {e['force_r2']:.4f} | {e['force_angle_deg']:.1f} |"
        for name, e in rows
    ]
    lines += [
        "",
        f"**Domain.** {domain['systems'].capitalize()}; elements {', '.join(domain['elements'])}; "
        f"up to {domain['largest_molecule_atoms']} atoms; teacher MD at "
        f"{', '.join(f'{t:g}' for t in domain['temperatures_K'])} K.",
        "",
        "**Not for.** Ions, radicals, reactions, excited states, metals. Liquids, solids and "
        "complexes: it has seen no two molecules together. It learns its teacher, errors included, "
        "and this is a first distillation: check it against the teacher on your own molecule.",
        "",
    ]
    return "\n".join(lines)
