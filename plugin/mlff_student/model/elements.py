"""Atomic number and covalent radius of the elements that a student can know.

The table is here because training must run where ASE is not installed. A test compares it with
ASE's.
"""

# symbol: (atomic number, covalent radius in angstrom, Cordero et al. 2008, doi:10.1039/b801115j)
ELEMENTS = {
    "H": (1, 0.31),
    "C": (6, 0.76),
    "N": (7, 0.71),
    "O": (8, 0.66),
    "F": (9, 0.57),
    "P": (15, 1.07),
    "S": (16, 1.05),
    "Cl": (17, 1.02),
    "Br": (35, 1.20),
}
