"""How fast the models run on this machine."""

MOLECULE = "CC(=O)N[C@@H](C)C(=O)NC"  # alanine dipeptide, which is measured unless told otherwise
