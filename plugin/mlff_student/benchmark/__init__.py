"""Benchmarks: how fast the models run on this machine."""

MOLECULE = "CC(=O)N[C@@H](C)C(=O)NC"  # alanine dipeptide, the molecule of the benchmarks by default
