"""Define the tables of a log, their columns and units, whichever program wrote them."""

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import units as ase_units
from numpy.typing import NDArray

from mlff_student.core.errors import InputError
from mlff_student.core.units import KJ_PER_MOL

# Field that a column fills, by the column's name in small letters and without its unit.
NAMES = {
    "time": "time_ps",
    "step": "step",
    # This project's run.csv
    "time_ps": "time_ps",
    "potential_ev": "potential_ev",
    "kinetic_ev": "kinetic_ev",
    "total_ev": "total_ev",
    "temperature_k": "temperature_k",
    "volume_angstrom3": "volume_angstrom3",
    "density_g_per_cm3": "density_g_per_cm3",
    "pressure_gpa": "pressure_gpa",
    # OpenMM's StateDataReporter
    "potential energy": "potential_ev",
    "kinetic energy": "kinetic_ev",
    "total energy": "total_ev",
    "temperature": "temperature_k",
    "box volume": "volume_angstrom3",
    "density": "density_g_per_cm3",
    # ASE's MDLogger
    "epot": "potential_ev",
    "ekin": "kinetic_ev",
    "etot": "total_ev",
    "t": "temperature_k",
    # LAMMPS: headers of columns, and the keywords of thermo_style
    "poteng": "potential_ev",
    "kineng": "kinetic_ev",
    "toteng": "total_ev",
    "temp": "temperature_k",
    "volume": "volume_angstrom3",
    "e_pair": "e_pair",
    "e_mol": "e_mol",
    "pe": "potential_ev",
    "ke": "kinetic_ev",
    "etotal": "total_ev",
    "vol": "volume_angstrom3",
    "epair": "e_pair",
    "emol": "e_mol",
}
ENERGIES = ("potential_ev", "kinetic_ev", "total_ev", "e_pair", "e_mol")
FACTORS = {
    "": 1.0,
    "ps": 1.0,
    "fs": 1e-3,
    "ns": 1e3,
    "ev": 1.0,
    "kj/mol": KJ_PER_MOL,
    "kj/mole": KJ_PER_MOL,
    "kcal/mol": ase_units.kcal / ase_units.mol,
    "k": 1.0,
    "a^3": 1.0,
    "nm^3": 1e3,
    "g/ml": 1.0,
    "g/cm^3": 1.0,
}


@dataclass(frozen=True, eq=False)  # two tables are never the same
class LogTable:
    """One table of a log, such as a LAMMPS log has for each command `run`.

    Attributes
    ----------
    kind : str
        "run" (molecular dynamics), "minimize" or "rerun".
    columns : dict of str to NDArray[np.float64]
        Columns of known fields, (rows,), in the units of `Thermo`; "step" has timesteps.
    header : str
        Names of all columns in the file.
    timestep_ps : float or None
        Timestep, ps. None if the log does not have it, or it varied.
    varying_timestep : bool
        Whether the program changed the timestep during the run (LAMMPS's fix dt/reset).
    per_atom : bool
        Whether energies are divided by the number of atoms.
    ended : bool
        Whether the program wrote that the run ended.
    dumps : frozenset of str
        Names of the dump files that were open, as the commands in the log have them.
    integrators : frozenset of str
        Commands of the fixes that integrate, thermostat or change the pressure, likewise.
    """

    kind: str
    columns: dict[str, NDArray[np.float64]]
    header: str
    timestep_ps: float | None = None
    varying_timestep: bool = False
    per_atom: bool = False
    ended: bool = False
    dumps: frozenset[str] = frozenset()
    integrators: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))


@dataclass(frozen=True)
class Log:
    """All tables of a log file.

    Attributes
    ----------
    path : Path
        File.
    tables : tuple of LogTable
        Tables that have rows, in the order of the file.
    lammps_units : str
        Unit style of LAMMPS, "metal" or "real". Empty for other programs.
    continued : str
        Name of the file in which LAMMPS continued its log (command `log`), else empty.
    """

    path: Path
    tables: tuple[LogTable, ...]
    lammps_units: str = ""
    continued: str = ""


def field_of(name: str) -> tuple[str, str]:
    """Return the field that a column of this name fills (empty: none), and the column's unit."""
    match = re.fullmatch(r"(.*?)\s*(?:[(\[](.*)[)\]])?", name.strip())
    text, unit = match.groups() if match else (name, "")
    return NAMES.get(text.lower(), ""), (unit or "").lower()


def columns_of(names: Sequence[str], rows: "array[float]") -> dict[str, NDArray[np.float64]]:
    """Return the columns of known fields, in the units of `Thermo`.

    Parameters
    ----------
    names : Sequence[str]
        Names of the columns, with units.
    rows : array[float]
        Values of all rows, which follow each other; an array needs little memory.

    Raises
    ------
    InputError
        A unit is unknown.
    """
    values = np.array(rows).reshape(len(rows) // max(1, len(names)), len(names))
    columns = {}
    for name, column in zip(names, values.T, strict=True):
        known, unit = field_of(name)
        if known:
            if unit not in FACTORS:
                units = ", ".join(filter(None, FACTORS))
                raise InputError(f"column {name!r}: unknown unit; known units: {units}")
            columns[known] = column * FACTORS[unit]
    return columns
