"""The quality gate: checks of a dataset between labelling and training."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from rich.console import Console
from rich.progress import track
from scipy.spatial import KDTree

from mlff_student.core.errors import InputError
from mlff_student.core.figures import Figure, Measured, Threshold, known_figures
from mlff_student.distill.dataset import (
    SPLITS,
    LabelledFrames,
    Summary,
    dataset_sha256,
    read_dataset,
)
from mlff_student.distill.sources import connectivity
from mlff_student.model.elements import ELEMENTS
from mlff_student.model.neighbours import complete_cell, neighbour_edges
from mlff_student.reporting.verdict import Check, judge_figure
from mlff_student.structures.checks import connected_fragments, perceive_bonds

GATE = Path(__file__).with_name("gate.yaml")
WORST = 10  # largest number of frames or structures that a check names
CONTACT_CUTOFF = 5.0  # angstrom, largest distance that is measured in a periodic frame
PAIRS_AT_ONCE = 1_000_000  # bounds the temporary memory, to 0.1 GB
TO_SIGMA = 1.4826  # standard deviation over median absolute deviation, of a normal distribution


class Criterion(NamedTuple):
    """One entry of gate.yaml.

    Attributes
    ----------
    threshold : Threshold
        Limit of the figure.
    remedy : str
        What to do if the figure is not within the limit.
    beyond : float
        Value beyond which a frame counts as an outlier; NaN if frames are not counted.
    floor : float
        Smallest robust standard deviation that is used; its unit is that of the values.
    asked : str
        "of any" if every dataset must pass, "by molecule" if only a dataset that is split by
        molecule must.
    """

    threshold: Threshold
    remedy: str
    beyond: float = np.nan
    floor: float = 0.0
    asked: str = "of any"


class GateCheck(NamedTuple):
    """A judged figure of a dataset.

    Attributes
    ----------
    check : Check
        The figure with its limit.
    criterion : Criterion
        Entry of gate.yaml.
    asked : bool
        Whether this dataset must pass the check.
    worst : list of str
        Frames or structures that are not within the limit, or near it; the worst first.
    """

    check: Check
    criterion: Criterion
    asked: bool
    worst: list[str]

    @property
    def figure(self) -> Figure:
        """The figure that was judged."""
        return self.check.figure

    @property
    def passed(self) -> bool:
        """Whether the figure is within its limit (NaN is not), or the dataset need not pass."""
        return not self.asked or self.check.passed

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Title, value, limit and outcome as text, for a table."""
        threshold = self.check.threshold
        unit = f" {threshold.unit}".rstrip()
        outcome = ("pass" if self.passed else "FAIL") if self.asked else "not asked"
        limit = f"at {threshold.bound} {threshold.value:.4g}{unit}"
        return self.figure.title, f"{self.figure.value:.4g}{unit}", limit, outcome


class Geometry(NamedTuple):
    """Distances between atoms in T frames; NaN for frames that are not finite.

    Attributes
    ----------
    shortest : ndarray
        (T,) shortest distance, angstrom; infinite for a single atom.
    closeness : ndarray
        (T,) smallest ratio of a distance to the sum of the covalent radii.
    duplicate : ndarray
        (T,) bool, whether an earlier frame has the same geometry.
    """

    shortest: np.ndarray
    closeness: np.ndarray
    duplicate: np.ndarray


class Energies(NamedTuple):
    """Energies of T frames after a fit to their compositions; NaN for frames that are not finite.

    Attributes
    ----------
    residual : ndarray
        (T,) energy that the fit does not explain, eV/atom.
    deviation : ndarray
        (T,) residual minus the median of the residuals of the molecule, eV/atom.
    sigma : float
        Robust standard deviation of the deviations, eV/atom.
    outlyingness : ndarray
        (T,) deviation of the frame from the median of its molecule, or of this median from that of
        all molecules, whichever is larger, in robust standard deviations.
    """

    residual: np.ndarray
    deviation: np.ndarray
    sigma: float
    outlyingness: np.ndarray


class Bonded(NamedTuple):
    """The frame of lowest energy of a structure, with its bonds.

    Attributes
    ----------
    structure : int
        Index of the structure in the dataset.
    atoms : Atoms
        The geometry.
    bonds : list of tuple of int
        Pairs of bonded atoms.
    """

    structure: int
    atoms: Atoms
    bonds: list[tuple[int, int]]


@dataclass(frozen=True)
class GateReport(Measured):
    """A dataset judged by the quality gate.

    Attributes
    ----------
    dataset : Path
        The HDF5 file.
    checks : list of GateCheck
        One check for each entry of gate.yaml.
    statistics : list of Figure
        Further figures, which are not judged.
    texts : dict of str to str
        The file, its SHA-256, its teacher, and how it is split.
    atoms_of : Counter
        Number of atoms in all frames, by element.
    structures_of : Counter
        Number of structures that have an element, by element.
    frames : LabelledFrames
        All frames.
    splits : list of str
        (M,) split of each structure.
    geometry : Geometry
        Distances in all frames.
    energies : Energies
        Energies of all frames after the fit.
    failures : Counter
        Number of structures by the reason why frames are missing.
    """

    dataset: Path
    checks: list[GateCheck]
    statistics: list[Figure]
    texts: dict[str, str]
    atoms_of: Counter[str]
    structures_of: Counter[str]
    frames: LabelledFrames
    splits: list[str]
    geometry: Geometry
    energies: Energies
    failures: Counter[str]

    def figures(self) -> list[Figure]:
        """Return the judged figures and the further figures."""
        return [check.figure for check in self.checks] + self.statistics

    def facts(self) -> dict[str, str]:
        """Return what is known about the dataset as text."""
        return self.texts

    @property
    def passed(self) -> bool:
        """Whether the dataset passes all checks."""
        return all(check.passed for check in self.checks)

    @property
    def verdict(self) -> str:
        """GO, or NO-GO with the titles of the failed checks."""
        failed = [check.figure.title for check in self.checks if not check.passed]
        return f"NO-GO: {'; '.join(failed)}" if failed else "GO"


def load_gate(path: Path = GATE) -> dict[str, Criterion]:
    """Read the criteria of the gate.

    Parameters
    ----------
    path : Path
        YAML file in the form of gate.yaml.

    Returns
    -------
    dict of str to Criterion
        The criteria by the key of their figure.
    """
    gate = {}
    for key, entry in yaml.safe_load(path.read_text()).items():
        of_threshold = {name: entry.pop(name) for name in ("value", "unit", "source", "bound")}
        gate[key] = Criterion(Threshold(**of_threshold), **entry)
    return gate


def check_dataset(path: Path, quiet: bool = True) -> GateReport:
    """Judge a dataset by gate.yaml.

    A dataset with the attribute `split_by = trajectory` is of one structure on purpose. It need not
    pass the checks of elements, sizes and diversity, and its molecule may be in several splits.

    Parameters
    ----------
    path : Path
        HDF5 file.
    quiet : bool
        Whether to show no progress bar.

    Raises
    ------
    InputError
        There is no dataset, it is damaged or of another format, or no frame is finite.
    """
    summary, frames = read_dataset(path)
    attributes = summary.attributes
    if not len(frames.energies):
        raise InputError(
            f"{path} has no frames ({len(frames.names)} structures): its teacher failed, or "
            "`mlff-student distill sample` was stopped early; run it again"
        )
    gate = load_gate()
    of_molecules = attributes.get("split_by", "molecule") != "trajectory"
    finite = finite_frames(frames)
    if not finite.any():
        raise InputError(f"{path}: not one of {len(finite)} frames is finite; sample it again")
    geometry = scan_geometry(frames, finite, gate["duplicate_percent"].beyond, quiet)
    energies = fit_energies(frames, finite, gate["energy_outlier_percent"].floor)
    forces = force_outlyingness(frames, finite, gate["force_outlier_percent"].floor)
    largest = _largest(frames, frames.forces.abs().amax(1).numpy())
    lowest = list(lowest_frames(frames, finite, quiet))
    leaks, fallen = find_leaks(frames, summary.splits, lowest)
    of_structure = frame_sizes(frames)[np.unique(frames.molecule.numpy(), return_index=True)[1]]
    atoms_of, structures_of = count_elements(frames)
    frames_of = Counter(summary.splits[m] for m in frames.molecule.tolist())
    empty = [split for split in SPLITS if not frames_of[split]]
    missing = summary.attempted - summary.labelled

    thermal = np.isfinite(frames.temperatures.numpy())
    if not thermal.any():  # no frame has a temperature: all frames are judged as thermal
        thermal[:] = True
    energy_limit, force_limit = gate["energy_outlier_percent"], gate["force_outlier_percent"]
    energy_outlier = energies.outlyingness > energy_limit.beyond
    force_outlier = forces > force_limit.beyond
    distorted_outlier = ~thermal & (energy_outlier | force_outlier)
    overlapping = geometry.closeness < gate["overlapping_percent"].beyond

    measured: dict[str, tuple[float, list[str]]] = {  # value, and the worst frames or structures
        "success_percent": (
            100.0 * summary.labelled.sum() / summary.attempted.sum(),
            [
                f"{summary.names[m]}: {summary.labelled[m]} of {summary.attempted[m]} frames, "
                f"{summary.failures[m]}"
                for m in np.argsort(-missing, kind="stable")[:WORST]
                if missing[m]
            ],
        ),
        "nonfinite_frames": (
            float((~finite).sum()),
            [_frame_name(frames, k) for k in np.flatnonzero(~finite)[:WORST]],
        ),
        "shortest_distance_angstrom": (
            geometry.shortest[finite].min(),
            _worst(frames, geometry.shortest, "angstrom", finite, largest=False),
        ),
        "overlapping_percent": (
            100.0 * overlapping.mean(),
            _worst(frames, geometry.closeness, "of the radii", overlapping, largest=False),
        ),
        "duplicate_percent": (
            100.0 * geometry.duplicate.mean(),
            [_frame_name(frames, k) for k in np.flatnonzero(geometry.duplicate)[:WORST]],
        ),
        "energy_outlier_percent": (
            100.0 * energy_outlier[thermal].mean(),
            _worst(frames, energies.outlyingness, "robust sigmas", thermal & energy_outlier),
        ),
        "force_outlier_percent": (
            100.0 * force_outlier[thermal].mean(),
            _worst(frames, forces, "robust sigmas", thermal & force_outlier),
        ),
        "distorted_outlier_percent": (
            100.0 * distorted_outlier.sum() / max((~thermal).sum(), 1),
            _worst(frames, largest, "eV/angstrom", distorted_outlier),
        ),
        "largest_force_ev_per_angstrom": (
            largest[finite].max(),
            _worst(frames, largest, "eV/angstrom", finite),
        ),
        "empty_splits": (len(empty), empty),
        "elements_covered": (
            sum(atoms_of[symbol] > 0 for symbol in ELEMENTS),
            [symbol for symbol in ELEMENTS if not atoms_of[symbol]],
        ),
        "size_variation": (of_structure.std() / of_structure.mean(), []),
        "diversity_bits": (diversity(lowest), []),
        "leaked_molecules": (len(leaks), leaks[:WORST]),
    }
    checks = []
    for key, criterion in gate.items():
        value, worst = measured[key]
        check = judge_figure(known_figures()[key].figure(float(value)), criterion.threshold)
        asked = of_molecules or criterion.asked == "of any"
        checks.append(GateCheck(check, criterion, asked, worst))
    sizes = frame_sizes(frames)
    statistics = [
        Figure("structures", len(frames.names)),
        Figure("structures_without_frames", int((summary.labelled == 0).sum())),
        Figure("structures_fallen_apart", len(fallen)),
        Figure("frames", len(frames.energies)),
        Figure("frames_attempted", int(summary.attempted.sum())),
        Figure("atoms", len(frames.positions)),
        Figure("molecules", len(set(frames.identities))),
        Figure("size_mean_atoms", float(of_structure.mean())),
        Figure("size_largest_atoms", int(of_structure.max())),
        Figure("size_variation_of_frames", float(sizes.std() / sizes.mean())),
        Figure("energy_residual_rms", float(np.sqrt(np.nanmean(energies.residual**2))), "eV/atom"),
        Figure("energy_sigma_in_molecule", energies.sigma, "eV/atom"),
        Figure("force_rms", float(frames.forces.square().nanmean().sqrt()), "eV/angstrom"),
        *(Figure(f"frames_{split}", frames_of[split]) for split in SPLITS),
        *(Figure(f"atoms_{symbol}", atoms_of[symbol]) for symbol in ELEMENTS),
        *(Figure(f"structures_{symbol}", structures_of[symbol]) for symbol in ELEMENTS),
    ]
    texts = {
        "dataset": str(path),
        "sha256": dataset_sha256(path),
        "teacher": str(attributes.get("teacher", "")),
        "split_by": "molecule" if of_molecules else "trajectory",
        "fallen_apart": ", ".join(fallen[:WORST]),
    }
    return GateReport(
        dataset=path,
        checks=checks,
        statistics=statistics,
        texts=texts,
        atoms_of=atoms_of,
        structures_of=structures_of,
        frames=frames,
        splits=summary.splits,
        geometry=geometry,
        energies=energies,
        failures=_reasons(summary),
    )


def _reasons(summary: Summary) -> Counter[str]:
    """Count structures by the reason why frames are missing; numbers in it are replaced by #."""
    reasons: Counter[str] = Counter()
    for failure in filter(None, summary.failures):
        reasons.update({re.sub(r"\d[\d.e+-]*", "#", reason) for reason in failure.split("; ")})
    return reasons


def finite_frames(frames: LabelledFrames) -> np.ndarray:
    """Find the frames that can be trained on.

    Their energies, positions, forces and cell are finite, a periodic cell has a volume, and the
    stress is finite or NaN as a whole.

    Parameters
    ----------
    frames : LabelledFrames
        T frames.

    Returns
    -------
    ndarray
        (T,) bool.
    """
    good = np.isfinite(frames.energies.numpy())
    atoms = frame_sizes(frames)
    number = np.repeat(np.arange(len(atoms)), atoms)  # frame of each atom
    for values in (frames.positions, frames.forces):
        good &= np.bincount(number, ~np.isfinite(values.numpy()).all(1), len(atoms)) == 0
    stresses = frames.stresses.numpy()
    good &= np.isfinite(stresses).all(1) | np.isnan(stresses).all(1)
    good &= np.isfinite(frames.cells.numpy()).all((1, 2))
    for k in np.flatnonzero(frames.pbc.any(1).numpy()):
        volume = torch.linalg.det(complete_cell(frames.cells[k].double(), frames.pbc[k]))
        good[k] &= bool(volume.abs() > 1e-3)  # angstrom^3; NaN of a zero vector is not
    return good


def scan_geometry(
    frames: LabelledFrames, finite: np.ndarray, same: float, quiet: bool = True
) -> Geometry:
    """Measure distances between atoms, and find duplicates.

    Two frames of one molecule (equal identity and composition) are duplicates if their distances,
    sorted within each pair of elements, differ by no more than `same`. The geometries are then
    equal except for a rotation, translation, reflection or permutation of equal atoms. Periodic
    frames are compared by their volume and their shortest distances.

    Parameters
    ----------
    frames : LabelledFrames
        T frames.
    finite : ndarray
        (T,) bool, frames to measure.
    same : float
        Largest difference of a distance between duplicates, angstrom.
    quiet : bool
        Whether to show no progress bar.
    """
    count = len(finite)
    shortest, closeness = np.full(count, np.nan), np.full(count, np.nan)
    duplicate = np.zeros(count, bool)
    start, numbers = frames.start.numpy(), frames.atomic_numbers.numpy()
    groups: dict[Any, list[int]] = defaultdict(list)
    for k in np.flatnonzero(finite):
        composition = np.sort(numbers[start[k] : start[k + 1]]).tobytes()
        key = frames.identities[frames.molecule[k]], composition, bool(frames.pbc[k].any())
        groups[key].append(int(k))
    for (_, composition, periodic), members in track(
        groups.items(), "distances", console=Console(stderr=True), disable=quiet
    ):
        sorted_numbers = np.frombuffer(composition, numbers.dtype)
        if periodic:
            distances = [_periodic_distances(frames, k) for k in members]
        else:
            distances = _open_distances(frames, members, sorted_numbers)
        prints = []
        for k, (near, ratio, fingerprint) in zip(members, distances, strict=True):
            shortest[k], closeness[k] = near, ratio
            prints.append(fingerprint)
        # Exact copies are found first: n of them would make n^2 pairs in the tree.
        unique, first = np.unique(np.array(prints), axis=0, return_index=True)
        copies = np.ones(len(members), bool)
        copies[first] = False
        for i, j in KDTree(unique).query_pairs(same, p=np.inf):
            copies[max(first[i], first[j])] = True
        duplicate[np.array(members)[copies]] = True
    return Geometry(shortest, closeness, duplicate)


def _open_distances(
    frames: LabelledFrames, members: list[int], numbers: np.ndarray
) -> Iterator[tuple[float, float, np.ndarray]]:
    """Return shortest distance, its ratio to the radii, and fingerprint of each open frame.

    Parameters
    ----------
    frames : LabelledFrames
        All frames.
    members : list of int
        Frames of one molecule.
    numbers : ndarray
        (N,) sorted atomic numbers, which all members have.
    """
    i, j = np.triu_indices(len(numbers), 1)
    pair = np.stack([numbers[i], numbers[j]], 1)
    order = np.lexsort(pair.T)
    i, j, pair = i[order], j[order], pair[order]
    radii = covalent_radii[pair].sum(1)
    blocks = np.flatnonzero((np.diff(pair, axis=0) != 0).any(1)) + 1  # where the elements change
    start = frames.start.numpy()
    at_once = max(1, PAIRS_AT_ONCE // max(len(i), 1))
    for k in range(0, len(members), at_once):
        atoms = np.array(
            [
                start[m] + np.argsort(frames.atomic_numbers[start[m] : start[m + 1]].numpy())
                for m in members[k : k + at_once]
            ]
        )
        positions = frames.positions.numpy()[atoms].astype(float)  # (T, N, 3)
        distances = np.linalg.norm(positions[:, i] - positions[:, j], axis=2)  # (T, P)
        near = distances.min(1, initial=np.inf)
        ratio = (distances / radii).min(1, initial=np.inf)
        for block in np.split(distances, blocks, axis=1):
            block.sort(axis=1)
        # A column of zeros is added, because a single atom has no distances.
        prints = np.pad(distances, ((0, 0), (1, 0))).astype(np.float32)
        yield from zip(near, ratio, prints, strict=True)


def _periodic_distances(frames: LabelledFrames, k: int) -> tuple[float, float, np.ndarray]:
    """Return the same as `_open_distances` for one periodic frame."""
    atoms = slice(int(frames.start[k]), int(frames.start[k + 1]))
    vectors, (i, j) = neighbour_edges(
        frames.positions[atoms].double(), frames.cells[k].double(), frames.pbc[k], CONTACT_CUTOFF
    )
    distances = torch.linalg.vector_norm(vectors, dim=1).numpy()
    radii = covalent_radii[frames.atomic_numbers[atoms].numpy()]
    ratio = (distances / (radii[i] + radii[j])).min(initial=np.inf)
    edge = np.abs(np.linalg.det(frames.cells[k].double().numpy())) ** (1 / 3)
    fingerprint = np.full(8 * len(radii), CONTACT_CUTOFF, np.float32)
    kept = np.sort(distances)[: len(fingerprint)]
    fingerprint[: len(kept)] = kept
    return distances.min(initial=np.inf), ratio, np.append(fingerprint, np.float32(edge))


def fit_energies(frames: LabelledFrames, finite: np.ndarray, floor: float) -> Energies:
    """Fit the energies per atom to the compositions by least squares, and find outliers.

    Parameters
    ----------
    frames : LabelledFrames
        T frames.
    finite : ndarray
        (T,) bool, frames to use.
    floor : float
        Smallest standard deviation that is used, eV/atom.
    """
    sizes = frame_sizes(frames)
    elements, column = np.unique(frames.atomic_numbers.numpy(), return_inverse=True)
    cell = np.repeat(np.arange(len(sizes)), sizes) * len(elements) + column
    counts = np.bincount(cell, minlength=len(sizes) * len(elements)).reshape(len(sizes), -1)
    fractions = counts / sizes[:, None]  # (T, elements)
    per_atom = np.where(finite, frames.energies.numpy() / sizes, np.nan)
    references = np.linalg.lstsq(fractions[finite], per_atom[finite], rcond=None)[0]
    residual = per_atom - fractions @ references

    names, identity = np.unique(frames.identities, return_inverse=True)
    identity = identity[frames.molecule.numpy()]  # (T,)
    known = np.flatnonzero(finite)
    known = known[np.argsort(identity[known], kind="stable")]
    groups, first, members = np.unique(identity[known], return_index=True, return_counts=True)
    medians, has_others = np.full(len(names), np.nan), np.zeros(len(names), bool)
    medians[groups] = [np.median(part) for part in np.split(residual[known], first[1:])]
    has_others[groups] = members > 1  # a single frame is its own median
    deviation = residual - medians[identity]
    sigma = _robust_sigma(deviation[has_others[identity]], floor)
    between = medians - np.median(medians[groups])
    between_sigma = _robust_sigma(between, floor)
    outlyingness = np.maximum(np.abs(deviation) / sigma, np.abs(between / between_sigma)[identity])
    return Energies(residual, deviation, sigma, outlyingness)


def force_outlyingness(frames: LabelledFrames, finite: np.ndarray, floor: float) -> np.ndarray:
    """Compare the force components with the robust standard deviation of their element.

    Parameters
    ----------
    frames : LabelledFrames
        T frames.
    finite : ndarray
        (T,) bool, frames to use.
    floor : float
        Smallest standard deviation that is used, eV/angstrom.

    Returns
    -------
    ndarray
        (T,) largest force component of each frame, in standard deviations.
    """
    numbers, forces = frames.atomic_numbers.numpy(), frames.forces.numpy()
    usable = np.repeat(finite, frame_sizes(frames))
    scaled = np.full(len(numbers), np.nan)
    for number in np.unique(numbers):
        which = usable & (numbers == number)
        scaled[which] = np.abs(forces[which]).max(1) / _robust_sigma(forces[which], floor)
    return _largest(frames, scaled)


def _robust_sigma(values: np.ndarray, floor: float) -> float:
    """Return the standard deviation about zero, by the median, which outliers do not change."""
    values = np.abs(values[np.isfinite(values)])
    return max(floor, TO_SIGMA * float(np.median(values))) if len(values) else floor


def lowest_frames(
    frames: LabelledFrames, finite: np.ndarray, quiet: bool = True
) -> Iterator[Bonded]:
    """Find the frame of lowest energy of each structure, whose bonds are the least distorted.

    Parameters
    ----------
    frames : LabelledFrames
        T frames.
    finite : ndarray
        (T,) bool, frames to use.
    quiet : bool
        Whether to show no progress bar.

    Yields
    ------
    Bonded
        The frame with its bonds.
    """
    molecule = frames.molecule.numpy()
    energies = np.where(finite, frames.energies.numpy(), np.inf)
    order = np.lexsort((energies, molecule))
    chosen = order[np.unique(molecule[order], return_index=True)[1]]
    for k in track(chosen[finite[chosen]], "bonds", console=Console(stderr=True), disable=quiet):
        atoms = slice(int(frames.start[k]), int(frames.start[k + 1]))
        geometry = Atoms(
            frames.atomic_numbers[atoms].numpy(),
            frames.positions[atoms].double().numpy(),
            cell=frames.cells[k].numpy(),
            pbc=frames.pbc[k].numpy(),
        )
        yield Bonded(int(molecule[k]), geometry, perceive_bonds(geometry))


def diversity(lowest: list[Bonded]) -> float:
    """Compute the Shannon entropy of the atoms' environments, H = -sum_e p_e log2 p_e.

    The environment e of an atom is its element and the elements of the atoms that it is bonded to
    (closer than 1.2 times the sum of the covalent radii): C(C, H, H, O) is one environment, and
    C(C, C, H, O) is another. p_e is the share of an environment among all atoms in the frames of
    lowest energy. 2^H is the number of equally frequent environments that would be as diverse.
    See Shannon 1948, doi:10.1002/j.1538-7305.1948.tb01338.x.

    Parameters
    ----------
    lowest : list of Bonded
        Frame of lowest energy of each structure.

    Returns
    -------
    float
        H, bits; 0 if all atoms have the same environment.
    """
    environments: Counter[Any] = Counter()
    for _, atoms, bonds in lowest:
        neighbours: list[list[int]] = [[] for _ in range(len(atoms))]
        for i, j in bonds:
            neighbours[i].append(atoms.numbers[j])
            neighbours[j].append(atoms.numbers[i])
        environments.update(
            (number, *sorted(near)) for number, near in zip(atoms.numbers, neighbours, strict=True)
        )
    shares = np.array(list(environments.values())) / environments.total()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def find_leaks(
    frames: LabelledFrames, splits: list[str], lowest: list[Bonded]
) -> tuple[list[str], list[str]]:
    """Find molecules that occur in more than one split, in two ways.

    First by identity, where each component of a complex counts. Then by the composition and bonds
    of single molecules, independent of their identities: stereoisomers and conformers have the same
    bonds, and tautomers do not.

    Parameters
    ----------
    frames : LabelledFrames
        Frames of M structures.
    splits : list of str
        (M,) split of each structure.
    lowest : list of Bonded
        Frame of lowest energy of each structure.

    Returns
    -------
    leaks : list of str
        A line for each such molecule, with the names and splits of its structures.
    fallen : list of str
        Names of single molecules whose frame of lowest energy has several parts without bonds
        between them; these are not compared. The molecule may have broken, or its bonds may be
        longer than 1.2 times the sum of the radii, as in F2.
    """
    places: dict[str, dict[str, str]] = defaultdict(dict)  # a structure of each split
    for name, identity, split in zip(frames.names, frames.identities, splits, strict=True):
        for component in identity.split("."):
            places[component].setdefault(split, f"{name} ({split})")
    leaks = [
        f"{component}: {', '.join(of_splits.values())}"
        for component, of_splits in places.items()
        if len(of_splits) > 1
    ]
    fallen = []
    alike: dict[str, list[Bonded]] = defaultdict(list)
    for molecule in lowest:
        if "." not in frames.identities[molecule.structure]:
            if connected_fragments(len(molecule.atoms), molecule.bonds).any():
                fallen.append(frames.names[molecule.structure])
            else:
                alike[connectivity(molecule.atoms)].append(molecule)
    for code, members in alike.items():
        for first, second in combinations(members, 2):
            k, m = first.structure, second.structure
            if (
                splits[k] != splits[m]
                and frames.identities[k] != frames.identities[m]
                and _same_graph(first, second)
            ):
                leaks.append(
                    f"{code.split()[0]}: {frames.names[k]} ({splits[k]}) has the bonds of "
                    f"{frames.names[m]} ({splits[m]})"
                )
    return leaks, fallen


def _same_graph(first: Bonded, second: Bonded) -> bool:
    """Return whether two molecules have the same bonds.

    Equal hashes are not enough: decalin and bicyclopentyl have the same hash.
    """
    import networkx

    graphs = []
    for _, atoms, bonds in (first, second):
        graph = networkx.Graph(bonds)
        graph.add_nodes_from((k, {"symbol": symbol}) for k, symbol in enumerate(atoms.symbols))
        graphs.append(graph)
    return networkx.is_isomorphic(*graphs, node_match=lambda a, b: a == b)


def count_elements(frames: LabelledFrames) -> tuple[Counter[str], Counter[str]]:
    """Count the atoms of each element in all frames, and the structures that have the element.

    Returns
    -------
    atoms_of, structures_of : Counter
        Numbers by chemical symbol.
    """
    numbers = frames.atomic_numbers.numpy()
    molecule = np.repeat(frames.molecule.numpy(), frame_sizes(frames))
    pairs = np.unique(np.stack([numbers, molecule]), axis=1)[0]
    return (
        Counter({chemical_symbols[z]: int(n) for z, n in enumerate(np.bincount(numbers)) if n}),
        Counter({chemical_symbols[z]: int(n) for z, n in enumerate(np.bincount(pairs)) if n}),
    )


def frame_sizes(frames: LabelledFrames) -> np.ndarray:
    """Return the number of atoms of each frame, (T,) int64."""
    return np.diff(frames.start.numpy())


def _largest(frames: LabelledFrames, values: np.ndarray) -> np.ndarray:
    """Return the largest of the atoms' values (A,) in each frame, (T,)."""
    return np.maximum.reduceat(values, frames.start.numpy()[:-1])


def _frame_name(frames: LabelledFrames, k: int) -> str:
    m = frames.molecule[k]
    return f"{frames.names[m]}, frame {k - int(torch.searchsorted(frames.molecule, m))}"


def _worst(
    frames: LabelledFrames, values: np.ndarray, unit: str, which: np.ndarray, largest: bool = True
) -> list[str]:
    """Name the frames with the largest (or smallest) values among `which`."""
    chosen = np.flatnonzero(which)
    order = chosen[np.argsort(-values[chosen] if largest else values[chosen], kind="stable")]
    return [f"{_frame_name(frames, k)}: {values[k]:.3g} {unit}" for k in order[:WORST]]
