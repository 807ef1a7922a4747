"""Energies, forces and stresses of a file's frames: their names, signs and units in the wild."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.constraints import FixAtoms
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from mlff_student.core.errors import InputError

# The word of a name that says which label it is. A gradient is minus the force; a virial is minus
# the stress times the volume of the cell, as in extended XYZ files of QUIP, MACE and NequIP.
QUANTITIES = {
    "energy": "energy",
    "toten": "energy",
    "etot": "energy",
    "epot": "energy",
    "totenergy": "energy",
    "force": "forces",
    "forces": "forces",
    "gradient": "gradient",
    "gradients": "gradient",
    "stress": "stress",
    "virial": "virial",
    "virials": "virial",
}
NO_MEANING = {"total", "tot", "potential", "pot"}  # words that do not change what a label is
# Words that name the reference method and no particular one. Other words (pbe, ccsd, std, delta,
# MACE) may be another method, an uncertainty or a difference: the user names those.
REFERENCE = {"", "ref", "reference", "dft", "qm", "target", "true", "label", "labels"}
ENERGY_UNITS = {
    "ev": 1.0,
    "mev": 1e-3,
    "hartree": units.Hartree,
    "ha": units.Hartree,
    "eh": units.Hartree,
    "rydberg": units.Rydberg,
    "ry": units.Rydberg,
    "kcal/mol": units.kcal / units.mol,
    "kj/mol": units.kJ / units.mol,
}
PRESSURE_UNITS = {"gpa": units.GPa, "kbar": 0.1 * units.GPa}
LENGTH_UNITS = {
    "angstrom": 1.0,
    "ang": 1.0,
    "a": 1.0,
    "å": 1.0,
    "bohr": units.Bohr,
    "a0": units.Bohr,
    "nm": units.nm,
}
DATABASE = ("data", "key_value_pairs")  # names under which ASE puts the content of a database
SAME_ENERGY = 1e-6  # eV; two labels of a frame closer than this are equal
SAME_FORCE = 1e-5  # eV/angstrom; files round to eight decimals
SAME_STRESS = 1e-5  # eV/angstrom^3


class Labels(NamedTuple):
    """Labels of a frame: energy (eV), forces (N, 3) (eV/angstrom), and its stress if it has one.

    The stress is that of ASE: (6,) xx, yy, zz, yz, xz, xy, eV/angstrom^3, positive under tension.
    """

    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64] | None

    def same(self, other: "Labels") -> bool:
        """Return whether two methods, or two names of the same method, give the same labels."""
        energy = np.isclose(self.energy, other.energy, rtol=0.0, atol=SAME_ENERGY, equal_nan=True)
        forces = np.allclose(self.forces, other.forces, rtol=0.0, atol=SAME_FORCE, equal_nan=True)
        return bool(energy) and forces


def labels_of_frames(
    frames: Sequence[Atoms], source: str, method: str | None = None, metadata: Mapping = {}
) -> list[Labels]:
    """Return the labels of all frames of a file, which are of one method.

    The energy and the forces of a frame are in the results of ASE's reader, in `info` or `arrays`,
    or in the data of an ASE database, under any of the names that `parse_name` knows. The names of
    both have the same method: `REF_energy` does not go with `forces`.

    Parameters
    ----------
    frames : Sequence[Atoms]
        Frames as ASE reads them.
    source : str
        Name of the file, for messages.
    method : str or None
        Words of the names beside that of the label, such as "ccsd" for `ccsd_energy`. None means
        the names without such words and those of `REFERENCE`.
    metadata : Mapping
        Metadata of an ASE database; SchNetPack stores the units of the labels there.

    Raises
    ------
    InputError
        A frame has no energy or no forces; the labels of several methods differ; a label has
        another shape, or a unit that is not known; or the forces of fixed atoms are stored as zero.
    """
    wanted = REFERENCE if method is None else {" ".join(_words(method))}
    if _length(distance := str(metadata.get("_distance_unit", "angstrom"))) != 1.0:
        raise InputError(f"{source} has positions in {distance}; expected are angstrom")
    each = [
        _by_method(atoms, wanted, f"{source}, frame {k}", metadata)
        for k, atoms in enumerate(frames)
    ]
    for k, (methods, names) in enumerate(each):
        missing = _missing(methods, wanted)
        if missing:
            others = sorted(name for name, labels in methods.items() if not _absent(labels))
            others = [name for name in others if name not in ENERGY_UNITS]
            hint = "".join(f"; file:{source}#{name} uses those of {name!r}" for name in others)
            raise InputError(
                f"{source}, frame {k} (the first is 0): no {' and no '.join(missing)}"
                + (f" of {method!r}" if method is not None else "")
                + ". Expected are energy (eV) and forces (eV/angstrom), or names such as "
                "REF_energy and REF_forces, dft_energy and dft_forces; other names must be "
                f"renamed{hint}. Found: {', '.join(names) or 'no labels'}"
            )
    complete = [
        [name for name, labels in methods.items() if name in wanted and not _absent(labels)]
        for methods, _ in each
    ]
    common = [name for name in complete[0] if all(name in names for names in complete)]
    if not common:
        odd = next(k for k, names in enumerate(complete) if set(names) != set(complete[0]))
        raise InputError(
            f"{source}: the labels of frame 0 are called {_spoken(complete[0])}, those of frame "
            f"{odd} {_spoken(complete[odd])}; labels of several methods cannot be mixed. Rename "
            "them, or make a file for each method"
        )
    chosen = [
        [_labels(methods[name], atoms, f"{source}, frame {k}") for name in common]
        for k, ((methods, _), atoms) in enumerate(zip(each, frames, strict=True))
    ]
    for k, alternatives in enumerate(chosen):
        for name, other in zip(common[1:], alternatives[1:], strict=True):
            if not alternatives[0].same(other):
                raise InputError(
                    f"{source}, frame {k} (the first is 0) has labels of several methods: "
                    f"{alternatives[0].energy:.6f} eV under {_spoken(common[:1])}, "
                    f"{other.energy:.6f} eV under {_spoken([name])}. Remove one of them, or say "
                    f"which to use: file:{source}#{name or common[0]}"
                )
    return [alternatives[0] for alternatives in chosen]


def parse_name(name: str) -> tuple[str, str] | None:
    """Return which label a name stands for, and the other words of the name, lower case.

    Parameters
    ----------
    name : str
        Name such as "REF_energy", which gives ("energy", "ref"), or "TotEnergy" ("energy", "").

    Returns
    -------
    tuple of str, or None
        One of "energy", "free energy", "forces", "gradient", "stress", "virial" and the method;
        None for a name without exactly one word of `QUANTITIES`.
    """
    words = _words(name)
    labels = [word for word in words if word in QUANTITIES]
    if len(labels) != 1:
        return None
    quantity = QUANTITIES[labels[0]]
    rest = [word for word in words if word != labels[0] and word not in NO_MEANING]
    if quantity == "energy" and "free" in rest:
        quantity = "free energy"
        rest.remove("free")
    return quantity, " ".join(rest)


def _words(name: str) -> list[str]:
    """Return the words of snake_case, kebab-case and CamelCase names, lower case."""
    split = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+", name)
    return [word.lower() for word in split]


def _by_method(
    atoms: Atoms, wanted: set[str], frame: str, metadata: Mapping
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the labels of a frame by method and quantity, and all names in the frame.

    Those of the wanted methods are in eV and angstrom and have their shape.
    """
    arrays = {key: atoms.arrays[key] for key in atoms.arrays.keys() - {"numbers", "positions"}}
    places: list[Mapping[str, Any]] = [atoms.calc.results if atoms.calc else {}, atoms.info, arrays]
    places += [atoms.info[key] for key in DATABASE if isinstance(atoms.info.get(key), Mapping)]
    stated = _stated_units(atoms.info, metadata, frame)
    methods: dict[str, dict[str, Any]] = defaultdict(dict)
    names = []
    for place in places:
        for name, value in place.items():
            names += [name] if name not in DATABASE else []
            quantity, method = parse_name(name) or ("", "")
            per_atom = quantity in ("forces", "gradient")
            if not quantity or value is None or (place is arrays and not per_atom):
                continue
            if method in wanted:
                what = f"{frame} (the first is 0), {name}"
                value = _shaped(value, quantity, len(atoms), what)
                unit = stated.get((quantity, method), stated.get((quantity, "")))
                value = value * _factor(unit, quantity, what)
                known = methods[method].get(quantity, value)
                if not np.allclose(known, value, rtol=0.0, atol=SAME_FORCE, equal_nan=True):
                    raise InputError(
                        f"{what}: the file has another {quantity} under another form of this name; "
                        "remove one of them"
                    )
            methods[method].setdefault(quantity, value)
    if len(atoms) == 1 and not atoms.pbc.any():  # files often leave out the force, which is zero
        for labels in methods.values():
            labels.setdefault("forces", np.zeros((1, 3)))
    return methods, names


def _shaped(value: Any, quantity: str, atoms: int, what: str) -> NDArray[np.float64]:
    """Return a label as (), (N, 3) or (6,) from any form that files have."""
    try:
        label = np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} is {value!r}; expected are numbers") from error
    if quantity in ("energy", "free energy"):
        size, shape = 1, ()
    elif quantity in ("forces", "gradient"):
        size, shape = 3 * atoms, (atoms, 3)
    else:
        size, shape = 6, (6,)
        if label.size == 9:
            label = full_3x3_to_voigt_6_stress(label.reshape(3, 3))
    if label.size != size or label.ndim > max(len(shape), 1):
        raise InputError(f"{what} has the shape {label.shape}; expected is {shape}")
    return label.reshape(shape)


def _absent(labels: Mapping[str, Any]) -> list[str]:
    absent = [] if {"energy", "free energy"} & labels.keys() else ["energy"]
    return absent if {"forces", "gradient"} & labels.keys() else [*absent, "forces"]


def _missing(methods: Mapping[str, Mapping[str, Any]], wanted: set[str]) -> list[str]:
    """Return what the most complete of the wanted methods lacks."""
    known = [_absent(labels) for name, labels in methods.items() if name in wanted]
    return min(known, key=len, default=["energy", "forces"])


def _labels(found: Mapping[str, NDArray[np.float64]], atoms: Atoms, frame: str) -> Labels:
    """Return the labels of one method with the signs of ASE."""
    energy = float(found.get("energy", found.get("free energy", np.nan)))
    forces = found["forces"] if "forces" in found else -found["gradient"]
    if "gradient" in found and not np.allclose(forces, -found["gradient"], atol=SAME_FORCE):
        raise InputError(f"{frame} (the first is 0): the forces are not minus the gradient")
    stress = found.get("stress")
    if "virial" in found and atoms.cell.rank == 3:
        of_virial = -found["virial"] / atoms.get_volume()
        stress = of_virial if stress is None else stress
        if not np.allclose(stress, of_virial, rtol=1e-3, atol=SAME_STRESS):
            raise InputError(
                f"{frame} (the first is 0): the stress {stress.tolist()} is not minus the virial "
                f"over the volume, {of_virial.tolist()}. Expected are a stress in eV/angstrom^3, "
                "positive under tension, and a virial in eV; correct or remove one of them"
            )
    _refuse_constrained(forces, atoms, frame)
    return Labels(energy, forces, stress)


def _refuse_constrained(forces: NDArray[np.float64], atoms: Atoms, frame: str) -> None:
    """Refuse forces that were stored as zero on the atoms that a constraint fixes."""
    fixed = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            fixed[constraint.index] = True
    if fixed.any() and not forces[fixed].any() and forces[~fixed].any():
        raise InputError(
            f"{frame} (the first is 0): the forces of the fixed atoms "
            f"{np.flatnonzero(fixed)[:5].tolist()} are zero, so that they seem to be stored after "
            "the constraint was applied. Store the forces of the method "
            "(get_forces(apply_constraint=False)), or remove the constraint from the file if the "
            "forces are right"
        )


def _stated_units(
    info: Mapping[str, Any], metadata: Mapping, frame: str
) -> dict[tuple[str, str], str]:
    """Return the units that a file states for a label of a method, or of all methods ("")."""
    stated = dict(metadata.get("_property_unit_dict", {}))
    for name, unit in info.items():
        words = _words(name)
        if not isinstance(unit, str) or not {"unit", "units"} & set(words):
            continue
        rest = " ".join(word for word in words if word not in ("unit", "units"))
        stated[rest] = unit
        if not rest and unit.lower() in ENERGY_UNITS.keys() - {"ev"}:
            raise InputError(
                f"{frame} (the first is 0): {name} is {unit!r}, which says nothing of the forces; "
                "expected are eV and eV/angstrom, or energy_unit and forces_unit"
            )
    return {parsed: str(unit) for name, unit in stated.items() if (parsed := parse_name(name))}


def _factor(unit: str | None, quantity: str, what: str) -> float:
    """Return the value in eV and angstrom of a unit such as "kcal/mol/Ang"."""
    if unit is None:
        return 1.0
    text = unit.lower().replace(" ", "").replace("**", "").replace("^", "")
    if quantity == "stress" and text in PRESSURE_UNITS:
        return PRESSURE_UNITS[text]
    energy, length = text, 1.0
    if quantity not in ("energy", "free energy", "virial"):
        energy, _, name = text.rpartition("/")
        volume = quantity == "stress" and name.endswith("3")
        length = _length(name[:-1]) ** 3 if volume else _length(name)
    factor = ENERGY_UNITS.get(energy, np.nan) / length
    if np.isnan(factor):
        raise InputError(
            f"{what} has the unit {unit!r}; known are {', '.join(ENERGY_UNITS)}, for forces these "
            f"per {', '.join(LENGTH_UNITS)}, and for stresses GPa and kbar"
        )
    return factor


def _length(unit: str) -> float:
    return LENGTH_UNITS.get(unit.lower(), np.nan)


def _spoken(methods: Sequence[str]) -> str:
    return " and ".join(f"{f'{name}_' if name else ''}energy" for name in methods)
