"""Refuse structures for which a student's energy would be meaningless; find bonds by distance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, covalent_radii
from numpy.typing import NDArray

from mlff_student.archive.graph import edges_of
from mlff_student.core.errors import InputError
from mlff_student.model.elements import ELEMENTS

SHORTEST_DISTANCE = 0.3  # angstrom; no two nuclei come closer in any simulation
DEUTERIUM_MASS = 2.014  # amu
MASS_TOLERANCE = 5e-3  # relative; tables of elements differ by less, isotopes by more
BOND_TOLERANCE = 1.2  # atoms are bonded if closer than this times the sum of covalent radii
HOT_BOND_TOLERANCE = 1.3  # the same for hot structures: C-H bonds stretch as far at 1000 K
FARTHEST = 1e5  # largest coordinate, angstrom; molecules do not get there unless a run breaks
THINNEST = 0.3  # least height of a periodic cell, angstrom; the images within a cutoff grow as 1/h
# Names under which programs store the charge and the spin multiplicity of a structure in its
# `info`, in lower case and with underscores.
CHARGE_KEYS = (
    *("charge", "total_charge", "net_charge", "formal_charge", "molecular_charge"),
    *("totalcharge", "tot_charge", "system_charge", "molecule_charge"),
)
SPIN_KEYS = ("spin", "multiplicity", "spin_multiplicity", "mult", "total_spin")
UNPAIRED_KEYS = ("num_unpaired_electrons", "unpaired_electrons", "n_unpaired", "uhf")
# Bond order of carbon from a bond length r: exp((r1 - r) / 0.29), where r1 is the sum of the
# covalent radii (Pauling 1947, doi:10.1021/ja01195a024); 0.29 angstrom gives 2 for C=C and C=O.
BOND_ORDER_LENGTH = 0.29
# Sum of the bond orders of a carbon. In complete molecules it is 4 (2.7 in carbon monoxide and
# isocyanides). If one, two or three hydrogens are missing it is below these numbers, with few
# exceptions, such as tropone.
ONE_MISSING, TWO_MISSING, THREE_MISSING = 3.4, 2.5, 1.7
FRAGMENT_TOLERANCE = 1.5  # atoms closer than this times their radii are of one molecule, also hot


def check_structure(
    atoms: Atoms,
    elements: Sequence[str] = tuple(ELEMENTS),
    *,
    charged: bool = False,
    charge: float = 0.0,
) -> None:
    """Raise an error if the energy of a structure would be meaningless.

    Parameters
    ----------
    atoms : Atoms
        Structure to check.
    elements : Sequence[str]
        Chemical symbols of the elements that the student knows.
    charged : bool
        Whether ions are allowed; see `allows_charges`.
    charge : float
        Total charge if the structure states none, elementary charges.

    Raises
    ------
    InputError
        There are no atoms; a coordinate is NaN, infinite or above 1e5 angstrom; an element is
        unknown; the structure is a radical, or an ion that is not allowed; a periodic cell has no
        volume; two atoms are closer than 0.3 angstrom; or hydrogens are missing.
    """
    if len(atoms) == 0:
        raise InputError("the structure has no atoms")
    misplaced = ~(np.abs(atoms.positions) < FARTHEST).all(1)
    if misplaced.any():
        index = int(misplaced.argmax())
        raise InputError(
            f"atom {index} ({atoms.symbols[index]}) has the position {atoms.positions[index]}; "
            f"expected are finite coordinates below {FARTHEST:g} angstrom"
        )
    unknown = sorted(set(atoms.symbols) - set(elements))
    if unknown:
        raise InputError(
            f"the student does not know {', '.join(unknown)}; it knows {', '.join(elements)}"
        )
    check_cell(atoms)
    charge = _check_stated_charges(atoms, charged) or charge
    reach = 2.0 * FRAGMENT_TOLERANCE * covalent_radii[atoms.numbers].max()
    index, vectors = edges_of(atoms, max(SHORTEST_DISTANCE, reach))
    _check_distances(atoms, index, vectors)
    if len(bare := bare_atoms(atoms.numbers, index, vectors, np.zeros(len(atoms), dtype=np.int64))):
        raise InputError(
            f"atom {bare[0]} ({atoms.symbols[bare[0]]}) lacks hydrogens, judged by its geometry; "
            "students are trained on complete molecules. Add the hydrogens, for example with "
            "RDKit, Open Babel or PDBFixer"
        )
    check_parity(atoms.numbers, charge, charged=charged)


def allows_charges(metadata: Mapping[str, Any]) -> bool:
    """Return whether a model was trained on ions too, by the metadata of its archive.

    Parameters
    ----------
    metadata : Mapping[str, Any]
        Metadata of an archive; its `domain`, copied from the card, has the key `charged` if the
        recipe allowed charged molecules.
    """
    return (metadata.get("domain") or {}).get("charged") is True


def check_electrons(atoms: Atoms, *, charged: bool = False, charge: float = 0.0) -> None:
    """Refuse radicals, and ions unless they are allowed; a part of `check_structure`.

    The charge and the multiplicity are those that the structure states; see
    `charge_and_multiplicity`. Formal charges of single atoms (whole numbers in the initial charges)
    must cancel in each pair of bonded atoms, as in a nitro group; a zwitterion is refused. Without
    any statement, an odd number of electrons shows an ion or a radical. Where ions are allowed,
    only unpaired electrons and an odd number of electrons are refused.

    Parameters
    ----------
    atoms : Atoms
        Structure to check, with finite positions and a cell that `check_cell` accepts.
    charged : bool
        Whether ions are allowed; see `allows_charges`.
    charge : float
        Total charge if the structure states none, elementary charges.

    Raises
    ------
    InputError
        The structure has a charge, unpaired electrons, separated formal charges, or an odd number
        of electrons (but a single atom may have an odd number).
    """
    check_parity(atoms.numbers, _check_stated_charges(atoms, charged) or charge, charged=charged)


def check_parity(numbers: NDArray[np.int64], charge: float = 0.0, *, charged: bool = False) -> None:
    """Refuse an odd number of electrons; a part of `check_electrons`.

    Parameters
    ----------
    numbers : NDArray[np.int64]
        (N,), atomic numbers. A single atom may have an odd number of electrons.
    charge : float
        Total charge, elementary charges.
    charged : bool
        Whether ions are allowed.

    Raises
    ------
    InputError
        The structure has an odd number of electrons.
    """
    electrons = int(numbers.sum()) - round(charge)
    if len(numbers) < 2 or electrons % 2 == 0:
        return
    if charged:
        raise InputError(
            f"{Atoms(numbers).symbols} with the charge {charge:+g} has {electrons} electrons, an "
            "odd number: it is a radical, an atom is missing or too many, or its charge is not "
            "stated. State the total charge of an ion, for example atoms.info['charge'] = 1 (in "
            "ASE and in extended XYZ files) or charge=1 in student_force and openmm-ml"
        )
    raise InputError(
        f"{Atoms(numbers).symbols} has {electrons} electrons if it is neutral, an odd number: "
        "it is an ion or a radical, or an atom is missing or too many. The student was "
        "trained on neutral closed-shell molecules only"
    )


def _check_stated_charges(atoms: Atoms, charged: bool) -> float:
    """Check what a structure states, and return its charge, or 0 if it states none."""
    charge, multiplicity = charge_and_multiplicity(atoms)
    check_charge(charge, multiplicity, charged=charged)
    if not charged and (index := _separated_charge(atoms)) is not None:
        name = f"{index} ({atoms.symbols[index]})"
        raise uncancelled_charge(name, atoms.get_initial_charges()[index])
    return charge


def uncancelled_charge(atom: str, charge: float) -> InputError:
    """Return the error for an atom whose formal charge no bonded atom cancels.

    Parameters
    ----------
    atom : str
        Index and name of the atom.
    charge : float
        Its formal charge, elementary charges.
    """
    return InputError(
        f"atom {atom} has the formal charge {charge:+g}, which no bonded atom cancels: the "
        "structure has ions or is a zwitterion. The student was trained on neutral molecules "
        "only; use the neutral form"
    )


def check_charge(charge: float, multiplicity: float = 1, *, charged: bool = False) -> None:
    """Refuse a charge and a spin multiplicity that a student was not trained for.

    All students were trained on closed shells, because sampling refuses others.

    Parameters
    ----------
    charge : float
        Total charge, elementary charges.
    multiplicity : float
        Spin multiplicity, 1 for a closed shell.
    charged : bool
        Whether ions are allowed; see `allows_charges`.

    Raises
    ------
    InputError
        The charge is not 0, or no whole number if ions are allowed; or the multiplicity is not 1.
    """
    if multiplicity == 1 and (charge == 0 or (charged and float(charge).is_integer())):
        return
    expected = "a whole number" if charged else "0"
    raise InputError(
        f"charge {charge:g}, multiplicity {multiplicity:g}: the student was trained on "
        f"{'' if charged else 'neutral '}closed-shell molecules only (charge {expected}, "
        "multiplicity 1)"
    )


def charge_and_multiplicity(atoms: Atoms) -> tuple[float, float]:
    """Return the charge and the spin multiplicity that a structure states; 0 and 1 if it has none.

    They are taken from `atoms.info` (the keys `CHARGE_KEYS`, `SPIN_KEYS` and `UNPAIRED_KEYS`, in
    upper or lower case), and from the columns of an ASE database that are stored there. Without
    these keys the charge is the sum of the initial charges, rounded to a whole number because
    partial charges have rounding errors, and the multiplicity is one more than the absolute sum of
    the initial magnetic moments.

    Parameters
    ----------
    atoms : Atoms
        Structure.

    Returns
    -------
    charge : float
        Total charge, elementary charges.
    multiplicity : float
        Spin multiplicity. The value 0 in `info`, which some programs use for a closed shell, is
        returned as 1.

    Raises
    ------
    InputError
        A value is not a number, or two keys contradict each other.
    """
    # Of a row of a database ASE stores the columns under two keys.
    columns = (atoms.info.get(key) for key in ("data", "key_value_pairs"))
    stored = [column for column in columns if isinstance(column, dict)]
    info = {
        str(key).lower().replace("-", "_"): value
        for part in (*stored, atoms.info)
        for key, value in part.items()
        if not isinstance(value, bool | np.bool)  # ASE stores True for each word of a comment
    }
    charge, multiplicity = _stated(info, CHARGE_KEYS, 0.0), _stated(info, SPIN_KEYS, 1.0)
    unpaired = _stated(info, UNPAIRED_KEYS, 0.0)
    if unpaired is not None and multiplicity not in (None, unpaired + 1.0):
        raise InputError(
            f"the structure states {unpaired:g} unpaired electrons and the multiplicity "
            f"{multiplicity:g}; expected is the multiplicity {unpaired + 1:g}"
        )
    if unpaired is not None:
        multiplicity = unpaired + 1.0
    if charge is None:
        charge = _total(atoms, "initial_charges")
    if multiplicity is None:
        multiplicity = 1.0 + abs(_total(atoms, "initial_magmoms"))
    return charge, multiplicity


def _total(atoms: Atoms, name: str) -> float:
    """Return the sum of an array, rounded to a whole number; 0 if there is no such array."""
    if name not in atoms.arrays:
        return 0.0
    total = float(np.sum(atoms.arrays[name]))
    if not np.isfinite(total):
        raise InputError(f"the {name.replace('_', ' ')} of the structure sum to {total}")
    return float(round(total))


def _stated(info: dict[str, Any], keys: Sequence[str], zero: float) -> float | None:
    """Return the number that is stored under one of the keys, `zero` for 0; None without one."""
    values = {}
    for key in keys:
        if info.get(key) is None or str(info[key]) == "None":  # as extended XYZ stores None
            continue
        try:
            values[key] = float(np.sum(np.asarray(info[key], dtype=float))) or zero
        except (TypeError, ValueError):
            values[key] = np.nan
        if not np.isfinite(values[key]):
            raise InputError(
                f"the structure states {key} = {info[key]!r}; expected is a number. Correct or "
                f"delete atoms.info[{key!r}]"
            )
    if len(set(values.values())) > 1:
        text = ", ".join(f"{key} = {value:g}" for key, value in values.items())
        raise InputError(f"the structure states {text}; expected is one value")
    return next(iter(values.values()), None)


def _separated_charge(atoms: Atoms) -> int | None:
    """Return the first atom whose formal charge is not cancelled by that of a bonded atom.

    All molecules of the training have their formal charges in pairs of bonded atoms (nitro groups,
    N-oxides, azides, isocyanides). Partial charges are not formal charges and are left out.
    """
    charges = atoms.arrays.get("initial_charges")
    if charges is None or not charges.any() or (charges != np.round(charges)).any():
        return None
    charged, radii = np.flatnonzero(charges), covalent_radii[atoms.numbers]
    for index in charged:
        opposite = charged[charges[charged] * charges[index] < 0]
        if not len(opposite):
            return int(index)
        distances = atoms.get_distances(index, opposite, mic=bool(atoms.pbc.any()))
        if not (distances < HOT_BOND_TOLERANCE * (radii[index] + radii[opposite])).any():
            return int(index)
    return None


def deuterium(atoms: Atoms) -> NDArray[np.bool_]:
    """Return whether each atom is hydrogen with the mass of deuterium, (N,).

    Parameters
    ----------
    atoms : Atoms
        Structure.
    """
    near = np.abs(atoms.get_masses() - DEUTERIUM_MASS) < MASS_TOLERANCE * DEUTERIUM_MASS
    return near & (atoms.numbers == 1)


def check_masses(atoms: Atoms) -> None:
    """Refuse masses that the files of a run cannot keep.

    A topology in PDB form has elements and D for deuterium. With other masses the temperature and
    the density of a run would be computed wrongly afterwards.

    Parameters
    ----------
    atoms : Atoms
        Structure.

    Raises
    ------
    InputError
        An atom has neither the mass of its element nor that of deuterium.
    """
    masses, standard = atoms.get_masses(), atomic_masses[atoms.numbers]
    other = ~(np.abs(masses - standard) <= MASS_TOLERANCE * standard) & ~deuterium(atoms)
    if other.any():
        index = int(other.argmax())
        raise InputError(
            f"atom {index} ({atoms.symbols[index]}) has the mass {masses[index]:g}, its element "
            f"{standard[index]:g} amu; runs keep the masses of elements and of deuterium (D) only. "
            "Write the file with standard masses, or use the ASE calculator in a script of your own"
        )


def check_cell(atoms: Atoms) -> None:
    """Check the cell of a structure; a part of `check_structure` for when only the cell changed.

    Parameters
    ----------
    atoms : Atoms
        Structure to check.

    Raises
    ------
    InputError
        A lattice vector is NaN or infinite; or a periodic cell has no volume, or is thinner than
        0.3 angstrom.
    """
    if not np.isfinite(atoms.cell.array).all():
        raise InputError(f"the cell {atoms.cell.array.tolist()} is not finite")
    if not atoms.pbc.any():
        return
    cell = atoms.cell.complete()
    if not atoms.cell.array[atoms.pbc].any(1).all() or abs(cell.volume) < 1e-3:
        raise InputError(
            f"the structure is periodic along {atoms.pbc}, but its cell "
            f"{atoms.cell.array.tolist()} has no volume"
        )
    faces = np.cross(np.roll(cell.array, -1, axis=0), np.roll(cell.array, -2, axis=0))
    heights = abs(cell.volume) / np.linalg.norm(faces, axis=1)
    if heights[atoms.pbc].min() < THINNEST:
        raise InputError(
            f"the cell {atoms.cell.array.tolist()} is {heights[atoms.pbc].min():.3g} angstrom "
            f"thin; expected is at least {THINNEST} along each periodic direction"
        )


def check_distances(atoms: Atoms) -> None:
    """Check the distances; a part of `check_structure` for when only the positions changed.

    Parameters
    ----------
    atoms : Atoms
        Structure to check, with finite positions.

    Raises
    ------
    InputError
        Two atoms are closer than 0.3 angstrom.
    """
    _check_distances(atoms, *edges_of(atoms, SHORTEST_DISTANCE))


def _check_distances(atoms: Atoms, index: NDArray[np.int64], vectors: NDArray[np.float64]) -> None:
    distance = np.linalg.norm(vectors, axis=1)
    if distance.min(initial=np.inf) < SHORTEST_DISTANCE:
        closest = distance.argmin()
        i, j = sorted(index[:, closest].tolist())
        raise InputError(
            f"atoms {i} ({atoms.symbols[i]}) and {j} ({atoms.symbols[j]}) are "
            f"{distance[closest]:.3f} angstrom apart; expected at least {SHORTEST_DISTANCE}. "
            "Are the positions in angstrom?"
        )


def bare_atoms(
    numbers: NDArray[np.int64],
    index: NDArray[np.int64],
    vectors: NDArray[np.float64],
    owner: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Find the atoms that lack hydrogens, judged by the geometry of their bonds.

    Most files have no bond orders. In stable closed-shell molecules, however, a carbon with three
    neighbours is planar, a carbon with two is linear, and a carbon with one occurs only in carbon
    monoxide and isocyanides. Thermal motion bends complete molecules as far: at 1000 K each
    hundredth frame of an alkene has a carbon beyond the limits. So in a molecule with an even
    number of electrons, a carbon with two or three neighbours counts only if its bonds are too long
    for double bonds, and only together with another such carbon or if it lacks two hydrogens. An
    atom other than hydrogen that has no bond at all lacks hydrogens too (for example the oxygen of
    a water molecule), unless it is the only atom of its structure.

    Parameters
    ----------
    numbers : NDArray[np.int64]
        (N,), atomic numbers.
    index : NDArray[np.int64]
        (2, E), edges as `edges_of` returns them, with a cutoff longer than any bond.
    vectors : NDArray[np.float64]
        (E, 3), vectors of these edges, angstrom.
    owner : NDArray[np.int64]
        (N,), index of the structure that each atom belongs to.

    Returns
    -------
    NDArray[np.int64]
        Indices of the atoms that lack hydrogens, in ascending order.
    """
    from_heavy = numbers[index[0]] > 1
    (receiver, sender), vectors = index[:, from_heavy], vectors[from_heavy]
    distance = np.linalg.norm(vectors, axis=1)
    radii = covalent_radii[numbers]
    bonded = distance < HOT_BOND_TOLERANCE * (radii[receiver] + radii[sender])
    order = np.argsort(receiver[bonded], kind="stable")
    partner = numbers[sender[bonded][order]]
    bonds = (vectors[bonded] / distance[bonded, None])[order]  # unit vectors
    count = np.bincount(receiver[bonded], minlength=len(numbers))
    begin = count.cumsum() - count

    def bonds_of(carbons: NDArray[np.int64], bond: int) -> NDArray[np.float64]:
        return bonds[begin[carbons] + bond]

    carbon = numbers == 6
    among_others = np.bincount(owner)[owner] > 1
    bare = (count == 0) & (carbon | (among_others & (numbers > 1)))
    single, two, three = (np.flatnonzero(carbon & (count == k)) for k in (1, 2, 3))
    bare[single] = ~np.isin(partner[begin[single]], (7, 8))
    cosine = np.einsum("cx,cx->c", bonds_of(two, 0), bonds_of(two, 1))
    bare[two] = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))) <= 140.0
    # Height of the carbon above the plane through the ends of its three unit vectors: 0.33 for sp3,
    # near 0 for sp2, also in three-membered rings.
    a, b, c = (bonds_of(three, bond) for bond in range(3))
    normal = np.cross(b - a, c - a)
    height = np.abs(np.einsum("cx,cx->c", normal, a))
    bare[three] = height >= 0.25 * np.linalg.norm(normal, axis=1)
    bent = np.flatnonzero(bare & (count > 1))
    if len(bent) or len(single):
        heavy = bonded & (numbers[sender] > 1)
        excess = (radii[receiver] + radii[sender] - distance)[heavy] / BOND_ORDER_LENGTH
        order = count.astype(float)  # a bond with a hydrogen has the order 1
        np.add.at(order, receiver[heavy], np.exp(excess) - 1.0)
        bare[single] |= order[single] < THREE_MISSING
        near = distance < FRAGMENT_TOLERANCE * (radii[receiver] + radii[sender])
        molecule = _molecules(len(numbers), receiver[near], sender[near])
        odd = np.bincount(molecule, weights=numbers) % 2 > 0
        unsaturated = order[bent] < ONE_MISSING
        several = np.bincount(molecule[bent], weights=unsaturated, minlength=len(numbers)) > 1
        bare[bent] = (
            odd[molecule[bent]]
            | (unsaturated & several[molecule[bent]])
            | (order[bent] < TWO_MISSING)
        )
    return np.flatnonzero(bare)


def _molecules(
    atoms: int, first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the lowest atom that each atom is connected to by bonds between two lists of atoms.

    `connected_fragments` does the same with SciPy, which the ASE calculator does not load.
    """
    label = np.arange(atoms)
    while True:
        before = label.copy()
        np.minimum.at(label, first, before[second])
        np.minimum.at(label, second, before[first])
        label = label[label]
        if (label == before).all():
            return label


def perceive_bonds(atoms: Atoms) -> list[tuple[int, int]]:
    """Find the pairs of atoms closer than 1.2 times the sum of their covalent radii.

    The radii are those of Cordero et al. 2008, doi:10.1039/b801115j.

    Parameters
    ----------
    atoms : Atoms
        Open or periodic structure.

    Returns
    -------
    list[tuple[int, int]]
        Pairs of atom indices (i < j) in ascending order; empty if `check_structure` would refuse
        the positions or the cell.
    """
    if len(atoms) == 0 or not (np.abs(atoms.positions) < FARTHEST).all():
        return []
    try:
        check_cell(atoms)
    except InputError:
        return []
    radii = covalent_radii[atoms.numbers]
    (first, second), vectors = edges_of(atoms, 2.0 * BOND_TOLERANCE * radii.max())
    near = np.linalg.norm(vectors, axis=1) < BOND_TOLERANCE * (radii[first] + radii[second])
    near &= first < second
    return sorted(set(zip(first[near].tolist(), second[near].tolist(), strict=True)))


def connected_fragments(atoms: int, bonds: list[tuple[int, int]]) -> NDArray[np.int_]:
    """Return the index of the bonded fragment that each atom belongs to.

    Parameters
    ----------
    atoms : int
        Number of atoms.
    bonds : list[tuple[int, int]]
        Pairs of bonded atoms.

    Returns
    -------
    NDArray[np.int_]
        (atoms,), index of the fragment. Fragments are counted in the order of their first atoms.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    i, j = np.array(bonds, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(i)), (i, j)), shape=(atoms, atoms))
    _, label = connected_components(graph, directed=False)
    order = np.unique(label, return_index=True)[1]
    return np.argsort(np.argsort(order))[label]
