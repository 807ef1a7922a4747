"""Factors that convert units where data enter or leave an engine.

Inside the package the units are angstrom, eV, amu and elementary charge. The factors come from
ase.units (CODATA 2014, which ASE's calculators use).
"""

from ase import units

NM = units.nm  # angstrom
KJ_PER_MOL = units.kJ / units.mol  # eV
KB = units.kB  # eV/kelvin


# Energy unit, time unit and default timestep (ps) of LAMMPS's unit styles.
LAMMPS_UNITS = {"metal": ("ev", "ps", 1e-3), "real": ("kcal/mol", "fs", 1e-3)}
