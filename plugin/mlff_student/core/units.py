"""Conversion at the edge of an engine. Inside the package: angstrom, eV, amu, elementary charge.

Factors come from ase.units (CODATA 2014, as ASE's calculators use).
"""

from ase import units

NM = units.nm  # angstrom
KJ_PER_MOL = units.kJ / units.mol  # eV
KB = units.kB  # eV/kelvin


# What LAMMPS's unit styles give energies and times in, and the default timestep in ps.
LAMMPS_UNITS = {"metal": ("ev", "ps", 1e-3), "real": ("kcal/mol", "fs", 1e-3)}
