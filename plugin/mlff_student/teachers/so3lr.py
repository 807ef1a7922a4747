"""The teacher SO3LR: the published weights, with electrostatics that do not depend on a cutoff.

SO3LR (Kabylda et al. 2025, doi:10.1021/jacs.5c09558) is a So3krates network plus three physical
terms: a short-range repulsion, dispersion between atoms, and the electrostatics of partial charges
q_i that the network predicts. The electrostatic energy is the sum of K q_i q_j v(r_ij) over all
pairs, with v(r) = erf(a r) / r and a = 1/4 per angstrom.

The calculator of `so3krates-torch` 0.2.1 cuts that sum off at 12 angstrom by default and shifts
each pair by its value at the cutoff r_c, but it leaves out the self term -v(r_c) / 2 sum_i q_i^2
that belongs to the shift (Wolf et al. 1999, doi:10.1063/1.478738). The charges depend on the
geometry, so the forces are wrong as well. This adapter has no cutoff in the electrostatics. In open
structures it sums over all pairs, in periodic ones over the reciprocal lattice: erf(a r) / r is
exactly the reciprocal part of an Ewald sum (Ewald 1921, doi:10.1002/andp.19213690304), and because
a is small, a few hundred lattice vectors are enough. Dispersion still ends at 12 angstrom in
periodic structures.

Energies of different compositions or total charges are not comparable. The constant that the
published model adds to each atom of any element, -163.618 eV, is left out here.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray
from torch import Tensor
from vesin import NeighborList

from mlff_student.archive.graph import refuse_for_vesin
from mlff_student.core.errors import InputError, MissingDependencyError
from mlff_student.model.student import DTYPES
from mlff_student.structures.checks import (
    charge_and_multiplicity,
    check_cell,
    check_distances,
)

ELEMENTS = ("H", "C", "N", "O", "F", "P", "S", "Cl")  # elements of the training data
ELEMENT_COUNT = 118  # length of the network's one-hot encoding of elements
COULOMB = 14.399645351950548  # K, eV angstrom / e^2, as in so3krates-torch
DISPERSION_CUTOFF = 12.0  # angstrom, for periodic structures; the default of so3krates-torch
DISPERSION_FADE = 2.0  # angstrom below the cutoff over which dispersion fades
RECIPROCAL_ACCURACY = 1e-10  # the smallest Gaussian factor exp(-k^2 / 4 a^2) that is summed
# Short-range edges in one call of the network. Measured on one core: calls with about this number
# take the least time per structure.
EDGES_PER_BATCH = 8000
LIQUID_NEIGHBOURS = 45  # measured number of atoms within the network's 4.5 angstrom in a liquid


class Labels(NamedTuple):
    """Energy, forces, stress and partial charges of one structure."""

    energy: float  # eV
    forces: NDArray[np.float64]  # (N, 3), eV/angstrom
    stress: NDArray[np.float64] | None  # (3, 3), eV/angstrom^3; None for an open structure
    charges: NDArray[np.float64]  # (N,), elementary charges


class SO3LR(Calculator):
    """ASE calculator of SO3LR with the corrected electrostatics.

    The total charge and the spin multiplicity are what the structure states; see
    `mlff_student.structures.checks.charge_and_multiplicity`.

    Parameters
    ----------
    dtype : str
        Precision, "float64" or "float32".
    device : str
        Device of torch, for example "cpu" or "cuda".

    Raises
    ------
    InputError
        The precision is unknown.
    MissingDependencyError
        so3krates-torch is not installed.
    """

    implemented_properties = ["energy", "forces", "stress", "charges"]  # noqa: RUF012

    def __init__(self, dtype: str = "float64", device: str = "cpu") -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is unknown; expected {' or '.join(DTYPES)}")
        self._model = _load_model(DTYPES[dtype], device)

    def calculate(
        self,
        atoms: Atoms,
        properties: Sequence[str] | None = None,
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute energy, forces, partial charges and, for a periodic structure, stress.

        Parameters
        ----------
        atoms : Atoms
            Structure, open or fully periodic.
        properties : Sequence[str] or None
            Not used; all properties are computed.
        system_changes : Sequence[str]
            Changes since the last call, as ASE passes them.

        Raises
        ------
        InputError
            SO3LR cannot label the structure; see `check_supported`.
        """
        super().calculate(atoms, properties, system_changes)
        (labels,) = _evaluate(self._model, [atoms])
        self.results = {
            "energy": labels.energy,
            "free_energy": labels.energy,
            "forces": labels.forces,
            "charges": labels.charges,
        }
        if labels.stress is not None:
            self.results["stress"] = full_3x3_to_voigt_6_stress(labels.stress)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Return the changes since the last call, also those of charge and spin, unlike ASE."""
        changes = super().check_state(atoms, tol)
        if self.atoms is not None and charge_and_multiplicity(atoms) != charge_and_multiplicity(
            self.atoms
        ):
            changes.append("initial_charges")
        return changes

    def label(self, structures: Sequence[Atoms]) -> list[Labels]:
        """Label many structures, in batches of about `EDGES_PER_BATCH` edges.

        Parameters
        ----------
        structures : Sequence[Atoms]
            Open and fully periodic structures in any mixture.

        Returns
        -------
        list of Labels
            Labels in the order of the structures.

        Raises
        ------
        InputError
            SO3LR cannot label one of the structures; see `check_supported`.
        """
        labels: dict[int, Labels] = {}
        for batch in _batches(structures):
            batch_labels = _evaluate(self._model, [structures[k] for k in batch])
            labels.update(zip(batch, batch_labels, strict=True))
        return [labels[k] for k in range(len(structures))]


def check_supported(atoms: Atoms) -> None:
    """Raise an error if SO3LR would compute meaningless labels for a structure.

    Parameters
    ----------
    atoms : Atoms
        Structure to check.

    Raises
    ------
    InputError
        There are no atoms; SO3LR was not trained on an element (it accepts all without a warning);
        positions are not finite; the structure is periodic along one or two directions only; the
        cell is not finite or has no volume; atoms are closer than 0.3 angstrom; the charge or spin
        multiplicity is not a whole number; or the number of electrons does not allow them.
    """
    if not len(atoms):
        raise InputError("the structure has no atoms")
    if unknown := sorted(set(atoms.symbols) - set(ELEMENTS)):
        raise InputError(
            f"SO3LR was trained on {', '.join(ELEMENTS)}; the structure has {', '.join(unknown)}"
        )
    if not np.isfinite(atoms.positions).all():
        raise InputError("the positions of the structure are not finite")
    if atoms.pbc.any() and not atoms.pbc.all():
        raise InputError(
            f"the structure is periodic along {atoms.pbc.tolist()}; SO3LR takes open and fully "
            "periodic structures. Make a slab or wire periodic along all directions, with vacuum"
        )
    check_cell(atoms)
    check_distances(atoms)
    charge, multiplicity = charge_and_multiplicity(atoms)
    if not (charge % 1 == 0 and multiplicity % 1 == 0 and multiplicity >= 1):
        raise InputError(
            f"the charge is {charge} and the spin multiplicity {multiplicity}; expected are whole "
            "numbers, and a multiplicity of 1 or more"
        )
    electrons = int(atoms.numbers.sum() - charge)
    if electrons % 2 == multiplicity % 2:
        raise InputError(
            f"{electrons} electrons cannot have the spin multiplicity {multiplicity:g}; give the "
            'charge and the multiplicity as atoms.info["charge"] and atoms.info["spin"]'
        )


def _evaluate(model: Any, structures: Sequence[Atoms]) -> list[Labels]:
    """Label structures that are all open or all periodic, in one call of the network."""
    for atoms in structures:
        check_supported(atoms)
    periodic = bool(structures[0].pbc.all())
    graph = _graph(structures, model.r_max, periodic, next(model.parameters()))
    model.r_max_lr = DISPERSION_CUTOFF if periodic else None
    model.electrostatic_potential.graph = graph
    output = model(graph, compute_stress=periodic)
    ends = np.cumsum([len(atoms) for atoms in structures])[:-1]

    def values(key: str) -> NDArray[np.float64]:
        return output[key].detach().double().cpu().numpy()

    return [
        Labels(float(energy), forces, stress, charges)
        for energy, forces, stress, charges in zip(
            values("energy"),
            np.split(values("forces"), ends),
            values("stress") if periodic else [None] * len(structures),
            np.split(values("partial_charges"), ends),
            strict=True,
        )
    ]


class ErfCoulomb(torch.nn.Module):
    """Electrostatic energy K sum_(i<j) q_i q_j erf(a r_ij) / r_ij without a cutoff.

    In open structures the sum goes over the pairs. In periodic ones it is an Ewald sum over the
    reciprocal lattice (see `reciprocal_energies`).

    The class replaces `ElectrostaticInteraction` of so3krates-torch and has the same arguments.
    Before `network` is called, `graph` must be set to the dictionary that it is called with. To
    obtain stress, the network applies a strain to the structure: the strained positions are in that
    dictionary, and the strained cells in `network.cell`.

    Parameters
    ----------
    network : torch.nn.Module
        Network that this module becomes a part of.
    """

    graph: dict[str, Tensor]

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self._network: tuple[Any] = (network,)  # a tuple, or the network would contain itself

    def forward(
        self,
        partial_charges: Tensor,
        senders_lr: Tensor,
        receivers_lr: Tensor,
        lengths_lr: Tensor,
        num_nodes: int,
        cutoff_lr: float | None = None,
        electrostatic_energy_scale: float = 4.0,
    ) -> Tensor:
        """Return the electrostatic energy of each atom.

        Parameters
        ----------
        partial_charges : Tensor
            (N,) or (N, 1), elementary charges.
        senders_lr, receivers_lr : Tensor
            (E,) int64, atoms of each directed pair; used for open structures.
        lengths_lr : Tensor
            (E,) or (E, 1), distance of each pair, angstrom; used for open structures.
        num_nodes : int
            Number of atoms N.
        cutoff_lr : float or None
            None for open structures; any number for periodic ones.
        electrostatic_energy_scale : float
            1 / a, angstrom.

        Returns
        -------
        Tensor
            (N, 1), eV.
        """
        charges = partial_charges.reshape(-1)
        if cutoff_lr is None:
            length = lengths_lr.reshape(-1)
            pairs = torch.erf(length / electrostatic_energy_scale) / length
            pairs = 0.5 * COULOMB * charges[receivers_lr] * charges[senders_lr] * pairs
            return charges.new_zeros(num_nodes).index_add(0, receivers_lr, pairs)[:, None]
        a = 1.0 / electrostatic_energy_scale
        cells = self._network[0].cell.view(-1, 3, 3)
        ends = self.graph["ptr"].tolist()
        energies = [
            reciprocal_energies(charges[i:j], self.graph["positions"][i:j], cell, a)
            for i, j, cell in zip(ends[:-1], ends[1:], cells, strict=True)
        ]
        return COULOMB * torch.cat(energies)[:, None]


def reciprocal_energies(charges: Tensor, positions: Tensor, cell: Tensor, a: float) -> Tensor:
    """Return the energies of charges in a periodic cell that interact by erf(a r) / r.

    Their sum is the reciprocal part of an Ewald sum (Ewald 1921, doi:10.1002/andp.19213690304),

        E = (2 pi / V) sum_k exp(-k^2 / 4 a^2) / k^2 |S(k)|^2 - a / sqrt(pi) sum_i q_i^2,

    with S(k) = sum_i q_i exp(i k r_i). The term k = 0 is left out, which means that the
    surroundings conduct and that a net charge is neutralised by a uniform background. The second
    term removes the interaction of each atom with itself; that with its own images remains.

    Parameters
    ----------
    charges : Tensor
        (N,), q_i, elementary charges.
    positions : Tensor
        (N, 3), r_i, angstrom.
    cell : Tensor
        (3, 3), lattice vectors as rows, angstrom.
    a : float
        Inverse range of the error function, per angstrom.

    Returns
    -------
    Tensor
        (N,), energy of each atom, e^2/angstrom.
    """
    longest = 2.0 * a * np.sqrt(-np.log(RECIPROCAL_ACCURACY))
    reach = np.ceil(longest * cell.detach().norm(dim=1).cpu().numpy() / (2.0 * np.pi)).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), -1)
    grid = grid.reshape(-1, 3)[grid.size // 6 + 1 :]  # one of each pair k, -k; without 0
    indices = torch.tensor(grid, dtype=cell.dtype, device=cell.device)
    waves = 2.0 * np.pi * indices @ torch.linalg.inv(cell).T  # (K, 3), per angstrom
    square = (waves**2).sum(1)
    near = square.detach() <= longest**2
    waves, square = waves[near], square[near]
    # The prefactor is 2 times 4 pi / V: the potential of k and of -k.
    weights = 8.0 * np.pi / torch.linalg.det(cell).abs() * torch.exp(-square / (4 * a * a)) / square
    phases = positions @ waves.T  # (N, K)
    cosines, sines = torch.cos(phases), torch.sin(phases)
    real, imaginary = weights * torch.stack([charges @ cosines, charges @ sines])  # of S(k), (K,)
    potentials = cosines @ real + sines @ imaginary
    return charges * (0.5 * potentials - a / np.sqrt(np.pi) * charges)


def _graph(
    structures: Sequence[Atoms], cutoff: float, periodic: bool, weight: Tensor
) -> dict[str, Any]:
    """Make the input of the network, in whose `edge_index` the receiver is first."""
    parts: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {"": [], "_lr": []}
    first = 0
    for atoms in structures:
        for name, reach in (("", cutoff), ("_lr", DISPERSION_CUTOFF if periodic else np.inf)):
            parts[name].append(_edges(atoms, reach, first))
        first += len(atoms)
    numbers = np.concatenate([atoms.numbers for atoms in structures])
    sizes = [len(atoms) for atoms in structures]
    floats: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}

    def integers(values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.long, device=weight.device)

    charge, multiplicity = np.array([charge_and_multiplicity(atoms) for atoms in structures]).T
    cells = torch.tensor(np.stack([atoms.cell.array for atoms in structures]), **floats)
    atomic = integers(numbers)
    graph: dict[str, Any] = {
        "positions": torch.tensor(np.concatenate([a.positions for a in structures]), **floats),
        "atomic_numbers": atomic,
        "node_attrs": torch.nn.functional.one_hot(atomic - 1, ELEMENT_COUNT).to(weight.dtype),
        "cell": cells.reshape(-1, 3),
        "batch": integers(np.repeat(np.arange(len(structures)), sizes)),
        "ptr": integers(np.concatenate([[0], np.cumsum(sizes)])),
        "head": integers(np.zeros(len(structures))),
        "total_charge": torch.tensor(charge, **floats),
        "total_spin": torch.tensor((multiplicity - 1.0) / 2.0, **floats),
    }
    for name, edges in parts.items():
        index, shifts = (np.concatenate(column, axis=-1) for column in zip(*edges, strict=True))
        graph[f"edge_index{name}"] = integers(index)
        graph[f"unit_shifts{name}"] = torch.tensor(shifts.T, **floats)
        owner = graph["batch"][graph[f"edge_index{name}"][0]]
        graph[f"shifts{name}"] = torch.einsum(
            "ei,eij->ej", graph[f"unit_shifts{name}"], cells[owner]
        )
    return graph


def _edges(atoms: Atoms, reach: float, first: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the edges (2, E) [receiver, sender] shorter than `reach`, with atoms counted from
    `first`, and the shifts (3, E) of the senders in lattice vectors.
    """
    if not np.isfinite(reach):
        index = np.array(np.nonzero(~np.eye(len(atoms), dtype=bool)))
        return index + first, np.zeros((3, index.shape[1]), dtype=np.int64)
    refuse_for_vesin(atoms, reach)
    search = NeighborList(cutoff=reach, full_list=True, n_threads=1)
    receivers, senders, shifts = search.compute(
        points=atoms.positions, box=atoms.cell.array, periodic=atoms.pbc, quantities="ijS"
    )
    return np.stack([receivers, senders]).astype(np.int64) + first, shifts.T.astype(np.int64)


def _batches(structures: Sequence[Atoms]) -> Iterator[list[int]]:
    """Divide structures into batches, all open or all periodic and of similar sizes, by index."""
    order = sorted(
        range(len(structures)), key=lambda k: (structures[k].pbc.all(), len(structures[k]))
    )
    batch: list[int] = []
    edges = 0
    for k in order:
        size = len(structures[k])
        expected = size * min(size - 1, LIQUID_NEIGHBOURS)
        mixed = batch and structures[batch[0]].pbc.all() != structures[k].pbc.all()
        if batch and (mixed or edges + expected > EDGES_PER_BATCH):
            yield batch
            batch, edges = [], 0
        batch.append(k)
        edges += expected
    if batch:
        yield batch


@cache
def _load_model(dtype: torch.dtype, device: str) -> Any:
    """Load the published network with `ErfCoulomb` and without the constant energy of an atom."""
    try:
        path = resources.files("so3krates_torch") / "pretrained" / "so3lr" / "so3lr.model"
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "SO3LR needs its package: pip install 'mlff-student[so3lr]'"
        ) from error
    with resources.as_file(path) as file:
        # weights_only=False, because the package's own file contains its classes.
        model = torch.load(file, map_location=device, weights_only=False)
    model = model.to(dtype).eval().requires_grad_(False)
    model.atomic_energy_output_block.energy_shifts.data.zero_()  # -163.618 eV for every element
    model.dispersion_energy_cutoff_lr_damping = DISPERSION_FADE
    model.electrostatic_potential = ErfCoulomb(model)
    return model
