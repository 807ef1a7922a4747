"""How fast the kernels are, on this machine and beside what they are to reach."""
