"""Evaluation: the errors of a student on held-out molecules, and its checkpoint with a card."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from ase import units
from numpy.typing import NDArray
from torch import Tensor

from mlff_student.analysis.forces import force_errors
from mlff_student.archive.evidence import Evidence, Observation, add_evidence, content_sha256
from mlff_student.archive.registry import load_student
from mlff_student.archive.scripting import ArchiveModule, self_check_numbers
from mlff_student.core.errors import InputError
from mlff_student.core.figures import Figure, figures_of
from mlff_student.core.files import atomic_write, sha256
from mlff_student.core.results import write_json
from mlff_student.distill.dataset import (
    LabelledFrames,
    dataset_sha256,
    read_frames,
    read_summary,
)
from mlff_student.distill.graphs import frame_edges, predict_frames, relative_to_mean
from mlff_student.distill.recipe import Recipe
from mlff_student.model.elements import ELEMENTS
from mlff_student.model.neighbourhoods import REACH, Limits, neighbour_counts, neighbourhood_limits
from mlff_student.model.student import Student, parameter_count

COMPLEXES = ("dimer", "cluster", "liquid", "crystal")  # kinds of more than one molecule, in order
ACCURACY = "accuracy on held-out molecules"  # names of evidence
STABILITY = "constant energy of held-out molecules"
CAMPAIGN = "validation campaign"
OF_CARD = ("relative_energy_", "force_", "pressure_")  # starts of names of figures
RELATIVE = "relative_energy_rmse_ev_per_atom"
NOT_COMPARABLE = (
    "Energies of different molecules are not comparable, because a constant was fitted to the "
    "energy of each molecule in training. Energies of conformers, complexes and boxes can be "
    "compared if they consist of the same molecules."
)
DRIFT, FORCES = "drift_mev_per_atom_ps", "force_rmse_ev_per_angstrom"
# Rows of the table on MD of a card: evidence, key of the figure, step (None: any), title.
MD_ROWS = (
    (STABILITY, DRIFT, None, "held-out molecules, 10 ps: energy drift (meV/atom/ps)"),
    (STABILITY, "bond_deviation_angstrom", None, "the same: largest change of a bond length (Å)"),
    (CAMPAIGN, DRIFT, "nve", "molecules, 10 and 50 ps: energy drift (meV/atom/ps)"),
    (CAMPAIGN, FORCES, "nve", "the same: force RMSE against the teacher (eV/Å)"),
    (CAMPAIGN, DRIFT, "nve_1ns", "a molecule, 1 ns: energy drift (meV/atom/ps)"),
    (CAMPAIGN, "temperature_held_k", None, "temperatures that passed every limit (K)"),
    (CAMPAIGN, "timestep_held_fs", None, "timesteps that passed every limit (fs)"),
    (CAMPAIGN, "size_held", None, "sizes that passed every limit (atoms)"),
    (CAMPAIGN, "rdf_error_percent", None, "liquid boxes: error of g(r), worst pair (%)"),
    (CAMPAIGN, "density_change_percent", None, "liquid boxes: change of density at 1 bar (%)"),
)
SIZES = ((1, 8), (9, 16), (17, 24), (25, 32), (33, 400))  # smallest and largest number of atoms


def evaluate_student(student: Student, frames: LabelledFrames) -> dict[str, Any]:
    """Measure the errors of a student against the teacher's labels.

    The main figures are of frames of the teacher's MD of single molecules, or of all frames if
    there are none of these.

    Parameters
    ----------
    student : Student
        The student.
    frames : LabelledFrames
        Held-out frames.

    Returns
    -------
    dict
        The main figures, their names with units. Relative energies are those of frames relative to
        the mean of all frames of their structure. The keys `by_temperature_K`, `by_element`,
        `by_size` and `by_class` hold the same figures for parts of these frames. `complexes` and
        `complexes_by_temperature_K` hold them for frames of several molecules (dimers, clusters,
        liquids, crystals), kind by kind, with the errors of the pressure where it is labelled.

    Raises
    ------
    InputError
        There are no frames.
    """
    if not len(frames.energies):
        raise InputError("no held-out frames to measure on; see structures.held_out of the recipe")
    energies, forces, virials = predict_frames(student, frames)
    pressure_error = _pressures(virials, frames.cells) - _label_pressures(frames)
    label = frames.forces.double()
    count = frames.start.diff()
    kinds = np.array(frames.kinds)[frames.molecule.numpy()]
    simulated = np.array(frames.methods) == "md"
    complexes = complex_kinds(frames)
    single = torch.from_numpy(simulated & ~np.isin(kinds, complexes))
    single = single if single.any() else torch.ones_like(single)
    energy_error = (energies - frames.energies) / count
    relative_error = relative_to_mean(energies - frames.energies, frames.molecule) / count

    def errors(chosen: Tensor) -> dict[str, float]:
        rows = torch.repeat_interleave(chosen, count)
        return {
            "frames": int(chosen.sum()),
            "energy_rmse_ev_per_atom": float(energy_error[chosen].square().mean().sqrt()),
            RELATIVE: float(relative_error[chosen].square().mean().sqrt()),
            **force_errors(forces[rows], label[rows])._asdict(),
            **_pressure_errors(pressure_error[chosen]),
        }

    def table(groups: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
        return {name: errors(chosen) for name, chosen in groups if chosen.any()}

    def of_kind(kind: str) -> Tensor:
        return torch.from_numpy(kinds == kind)

    temperature = frames.temperatures[single]
    temperatures = sorted(set(temperature[temperature.isfinite()].tolist()))
    known = sorted(set(frames.temperatures[frames.temperatures.isfinite()].tolist()))
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
            (f"{smallest}-{largest} atoms", single & (count >= smallest) & (count <= largest))
            for smallest, largest in SIZES
        ),
        "by_class": table((kind, single & of_kind(kind)) for kind in sorted(set(frames.kinds))),
        "complexes": table((kind, of_kind(kind)) for kind in complexes),
        "complexes_by_temperature_K": {
            kind: table((f"{t:g}", of_kind(kind) & (frames.temperatures == t)) for t in known)
            for kind in complexes
            if (of_kind(kind) & frames.temperatures.isfinite()).any()
        },
    }


def _label_pressures(frames: LabelledFrames) -> Tensor:
    """Return (T,) the teacher's pressures, GPa; NaN for frames without a stress."""
    return -frames.stresses[:, :3].double().mean(1) / units.GPa


def _pressures(virials: Tensor, cells: Tensor) -> Tensor:
    """Return (T,) the potential part of the pressure, GPa."""
    volumes = cells.double().det().abs()
    return virials.diagonal(dim1=1, dim2=2).sum(1) / (3.0 * volumes * units.GPa)


def _pressure_errors(error: Tensor) -> dict[str, float]:
    """Return mean and root mean square of the errors that are finite; nothing if none is."""
    error = error[error.isfinite()]
    if not len(error):
        return {}
    return {
        "pressure_error_gpa": float(error.mean()),
        "pressure_rmse_gpa": float(error.square().mean().sqrt()),
    }


def complex_kinds(frames: LabelledFrames) -> list[str]:
    """Return the kinds of structures that consist of more than one molecule.

    Parameters
    ----------
    frames : LabelledFrames
        Frames; the identity of a complex is the identities of its molecules, joined by points.
    """
    joined = zip(frames.kinds, frames.identities, strict=True)
    others = {kind for kind, identity in joined if "." in identity} - set(COMPLEXES)
    return [*COMPLEXES, *sorted(others)]


def write_checkpoint(
    recipe: Recipe, recipe_file: Path, dataset: Path, trained: Path, name: str, output: Path
) -> dict[str, Any]:
    """Measure a trained student on the held-out molecules, and write its checkpoint folder.

    Parameters
    ----------
    recipe : Recipe
        Recipe that the student was trained by.
    recipe_file : Path
        YAML file of the recipe.
    dataset : Path
        HDF5 file that the student was trained on.
    trained : Path
        model.pt that `train` wrote, with metrics.csv beside it. The learning curve is written
        beside them as curve.png.
    name : str
        Name of the model.
    output : Path
        Folder that receives model.pt, card.json, summary.json and README.md.

    Returns
    -------
    dict
        The card: the content of card.json.

    Raises
    ------
    InputError
        The dataset has no held-out frames, or the folder cannot be written.
    ArchiveError
        `trained` is no checkpoint.
    """
    student, config = load_student(trained)
    training = torch.load(trained, weights_only=True)["training"]
    train_frames, test_frames = read_frames(dataset, "train"), read_frames(dataset, "test")
    of_complexes = complex_kinds(train_frames)
    single = [kind not in of_complexes for kind in train_frames.kinds]
    sizes = train_frames.start.diff()
    largest = max(
        (int(n) for n, k in zip(sizes, train_frames.molecule, strict=True) if single[k]),
        default=int(sizes.max()),
    )
    temperatures = train_frames.temperatures[train_frames.temperatures.isfinite()]
    complexes = sorted(set(train_frames.kinds) & set(of_complexes))
    charged = recipe.structures.charged
    systems = "closed-shell organic molecules"
    systems += " and ions" if charged else ", neutral, in vacuum"
    if complexes:
        plurals = [f"{kind.replace('_', ' ')}s" for kind in complexes]
        systems += f"; {', '.join(plurals)} of them"
    summary = read_summary(dataset)
    free = any(
        entry.get("settings", {}).get("free_molecule_energies") for entry in training["history"]
    )
    card = {
        "name": name,
        "parameters": parameter_count(student),
        "model_sha256": sha256(trained),
        "teacher": recipe.teacher,
        "dataset_sha256": dataset_sha256(dataset),
        "recipe": recipe_file.name,
        "recipe_sha256": sha256(recipe_file),
        "split_by": str(summary.attributes.get("split_by", "molecule")),
        "training": training
        | {
            "molecules": sum(single),
            "complexes": len(single) - sum(single),
            "frames": len(train_frames.energies),
        },
        "accuracy": {"held_out_molecules": evaluate_student(student, test_frames)},
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
            "charged": charged,
            "neighbours": known_neighbourhoods(train_frames),
        },
        "held_out": {"test": test_frames.names},
        "limits": [NOT_COMPARABLE] if free else [],
        "self_check": self_check_numbers(ArchiveModule(student, config, name, recipe.teacher)),
    }
    output.mkdir(parents=True, exist_ok=True)
    with atomic_write(output / "model.pt") as temporary:
        temporary.write_bytes(trained.read_bytes())
    write_json(output / "card.json", card)
    accuracy = accuracy_evidence(card, recipe_content_sha256(recipe_file, trained.parent.name))
    write_readme(output, card, add_evidence(output, name, [accuracy]))
    plot_curve(trained.with_name("metrics.csv"), trained.with_name("curve.png"))
    return card


def recipe_content_sha256(path: Path, model: str) -> str:
    """Return a SHA-256 of what a recipe says about the data and the training of one model.

    Comments do not change it, and neither do the settings of other models.

    Parameters
    ----------
    path : Path
        YAML file of the recipe.
    model : str
        Key of its `training`; if there is no such key, the settings of all models count.
    """
    values = yaml.safe_load(path.read_text())
    training = values["training"]
    return content_sha256(values | {"training": training.get(model, training)})


def accuracy_evidence(card: dict[str, Any], recipe_sha256: str, date: str = "") -> Evidence:
    """Return the evidence for summary.json that a card holds: the errors on held-out frames.

    Parameters
    ----------
    card : dict
        Content of card.json.
    recipe_sha256 : str
        Hash of the recipe's content, from `recipe_content_sha256`.
    date : str
        Day of the measurement, YYYY-MM-DD; today if empty.
    """
    test, training = card["accuracy"]["held_out_molecules"], card["training"]
    groups: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, test)]
    groups += [({"temperature_K": float(t)}, row) for t, row in test["by_temperature_K"].items()]
    groups += [({"element": symbol}, row) for symbol, row in test["by_element"].items()]
    groups += [({"kind": kind}, row) for kind, row in test["complexes"].items()]
    groups += [
        ({"kind": kind, "temperature_K": float(t)}, row)
        for kind, rows in test.get("complexes_by_temperature_K", {}).items()
        for t, row in rows.items()
    ]
    observations = [
        Observation(figure, where)
        for where, row in groups
        for figure in (
            Figure("energy_rmse", row.get("energy_rmse_ev_per_atom", np.nan), "eV/atom"),
            *(f for f in figures_of(row) if f.name.startswith(OF_CARD)),
        )
    ]
    counts = {
        "held_out_frames": test["frames"],
        "held_out_molecules": test["molecules"],
        "training_frames": training["frames"],
        "training_molecules": training["molecules"],
        "training_complexes": training["complexes"],
        "training_steps": training["steps"],
    }
    return Evidence(
        what=ACCURACY,
        command=f"mlff-student distill evaluate {card['recipe']} --data DATA "
        f"--model {card['name']} -o CHECKPOINT",
        date=date or datetime.now(UTC).strftime("%Y-%m-%d"),
        made_from={card["recipe"]: recipe_sha256, "dataset.h5": card["dataset_sha256"]},
        figures=[
            *(Observation(Figure(name, count)) for name, count in counts.items()),
            Observation(Figure("training_time", training["seconds"], "s")),
            *observations,
        ],
    )


def known_neighbourhoods(frames: LabelledFrames) -> Limits:
    """Return the limits of the numbers of neighbours that the atoms of the frames have.

    The instrument warns outside of them; see `mlff_student.model.neighbourhoods`.

    Parameters
    ----------
    frames : LabelledFrames
        Training frames.
    """
    numbers = torch.tensor([number for number, _ in ELEMENTS.values()])
    species = torch.full((int(numbers.max()) + 1,), -1)
    species[numbers] = torch.arange(len(numbers))
    kinds = species[frames.atomic_numbers]

    def counts() -> Iterator[tuple[NDArray[np.floating], NDArray[np.int64]]]:
        for frame, edge_index, vectors in frame_edges(frames, REACH):
            members = frame.unique()
            if not len(members):  # no atom has a neighbour
                continue
            rows = torch.cat([torch.arange(*frames.start[k : k + 2]) for k in members.tolist()])
            place = torch.zeros(len(kinds), dtype=torch.int64)
            place[rows] = torch.arange(len(rows))
            edges = place[edge_index + frames.start[frame]].numpy()
            kind = kinds[rows].numpy()
            yield neighbour_counts(vectors.norm(dim=1).numpy(), edges, kind, len(numbers)), kind

    return neighbourhood_limits(counts(), list(ELEMENTS))


def plot_curve(metrics: Path, output: Path) -> None:
    """Plot the force errors over the steps of a training.

    Parameters
    ----------
    metrics : Path
        metrics.csv that `train` wrote.
    output : Path
        PNG file to write.
    """
    from mlff_student.reporting.plots import single_figure

    with open(metrics, newline="") as stream:
        rows = list(csv.DictReader(stream))
    steps = [int(row["step"]) for row in rows]
    with single_figure(output, "step", "force RMSE (eV/Å)", yscale="log") as axes:
        for kind in ("train", "validation"):
            values = [float(row[f"{kind}_force_rmse_ev_per_angstrom"]) for row in rows]
            axes.plot(steps, values, marker=".", label=kind)  # a short run has one point


def write_readme(folder: Path, card: dict[str, Any], evidence: Sequence[Evidence]) -> None:
    """Write README.md of a checkpoint folder from its card and its evidence.

    Parameters
    ----------
    folder : Path
        Checkpoint folder.
    card : dict
        Content of card.json.
    evidence : sequence of Evidence
        Content of summary.json.
    """
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(card_text(card, evidence))


def card_text(card: dict[str, Any], evidence: Sequence[Evidence] = ()) -> str:
    """Return the page of a model in Markdown: accuracy, figures of MD, limits, use and origin.

    Parameters
    ----------
    card : dict
        Content of card.json.
    evidence : sequence of Evidence
        Content of summary.json.
    """
    test, training, domain = (
        card["accuracy"]["held_out_molecules"],
        card["training"],
        card["domain"],
    )
    name, teacher = card["name"], card["teacher"]
    specialised = card["split_by"] == "trajectory"
    unseen = "of trajectories" if specialised else f"of {test['molecules']} molecules"
    tables = [
        {"all": test},
        {f"{t} K": row for t, row in test["by_temperature_K"].items()},
        test["by_element"],
        test["complexes"],
    ]
    accuracy = [
        f"| {group} | {e['atoms']:,} | {e['force_rmse_ev_per_angstrom']:.3f} "
        f"| {e['force_mae_ev_per_angstrom']:.3f} | {e['force_r2']:.4f} "
        f"| {e['force_angle_deg']:.1f} |"
        for table in tables
        for group, e in table.items()
    ]
    trained_at = ", ".join(f"{t:g}" for t in domain["temperatures_K"])
    scope = (
        "Use it only for the molecule that it was made for."
        if specialised
        else f"It has learned the errors of {teacher} too: compare it with {teacher} on your own "
        "molecules."
    )
    lines = [
        f"# {name}",
        "",
        f"A force field of {card['parameters']:,} parameters that predicts the energies and forces "
        f"of {teacher}.",
        "",
        "## How accurate it is",
        "",
        f"Errors relative to {teacher} on {test['frames']:,} frames of its MD {unseen} that were "
        f"not trained on. {_energy_text(test)} "
        "`card.json` also has the errors by size and class of the molecules.",
        "",
        "| held out | atoms | force RMSE (eV/Å) | MAE (eV/Å) | R² | angle (deg) |",
        "|---|---|---|---|---|---|",
        *accuracy,
        "",
        *_md_lines(evidence),
        "## Limits",
        "",
        f"Made for {domain['systems']}; elements {', '.join(domain['elements'])}; molecules of up "
        f"to {domain['largest_molecule_atoms']} atoms; trained at {trained_at} K and on forces of "
        f"up to {domain['largest_force_ev_per_angstrom']:g} eV/Å. Do not use it for "
        + ("" if domain.get("charged") else "ions, ")
        + "radicals, reactions, excited states or metals, or where interactions beyond the cutoff "
        f"of 5 Å matter. {scope}",
        "",
        *(f"- {limit}" for limit in card.get("limits", ())),
        *([""] if card.get("limits") else []),
        "## How to use it",
        "",
        "    from mlff_student import StudentForceFieldCalculator",
        "",
        f'    atoms.calc = StudentForceFieldCalculator("{name}")  # or the path of this folder',
        "",
        "## How it was made",
        "",
        f"Trained by the recipe `{card['recipe']}` on {training['frames']:,} frames of "
        f"{training['molecules']:,} "
        + ("trajectories of one molecule" if specialised else "molecules")
        + (f" and {training['complexes']:,} complexes" if training["complexes"] else "")
        + f": {training['steps']:,} optimiser steps in {training['seconds'] / 60:.0f} minutes "
        f"({training['processes']} process on {training['device']}). SHA-256:",
        "",
        f"    weights  {card['model_sha256']}",
        f"    dataset  {card['dataset_sha256']}",
        "",
        "`summary.json` has all figures that were measured with these weights, and the commands "
        "that measure them again; `mlff-student models --check` says which figures are current.",
        "",
    ]
    return "\n".join(lines)


def _energy_text(test: dict[str, Any]) -> str:
    """Return a sentence on the energy errors of the held-out frames."""
    text = f"The energy RMSE is {1e3 * test['energy_rmse_ev_per_atom']:.1f} meV/atom"
    if RELATIVE in test:
        text += f", and {1e3 * test[RELATIVE]:.1f} for energies relative to the mean of a molecule"
    return text + "."


def _md_lines(evidence: Sequence[Evidence]) -> list[str]:
    """Return the lines of the section on MD; none if there is no evidence on MD."""
    figures = {each.what: each.figures for each in evidence}
    rows = []
    for what, key, step, title in MD_ROWS:
        values = [
            figure.value
            for figure, where in figures.get(what, ())
            if figure.key == key and step in (None, where.get("step", ""))
        ]
        if values:
            low, high = f"{min(values):.3g}", f"{max(values):.3g}"
            rows.append(f"| {title} | {low if low == high else f'{low} to {high}'} |")
    return ["## Results in MD", "", "| | |", "|---|---|", *rows, ""] if rows else []
