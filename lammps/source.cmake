# Finds a LAMMPS that was built from a source tree; sets LAMMPS_INCLUDE, LAMMPS_VERSION and
# MPI_INCLUDE. A problem is an error here, because whoever sets LAMMPS_SOURCE_DIR wants the plugin.
set(LAMMPS_INCLUDE "${LAMMPS_SOURCE_DIR}/src")
foreach(header pair.h version.h)
  if(NOT EXISTS "${LAMMPS_INCLUDE}/${header}")
    message(FATAL_ERROR "LAMMPS_SOURCE_DIR=${LAMMPS_SOURCE_DIR} is not a source tree of LAMMPS: \
it has no src/${header}. Give the folder that contains src/ and cmake/")
  endif()
endforeach()

# The version "22 Jul 2025" becomes the number 20250722.
file(READ "${LAMMPS_INCLUDE}/version.h" VERSION_TEXT)
if(NOT VERSION_TEXT MATCHES "LAMMPS_VERSION +\"([0-9]+) ([A-Z][a-z][a-z])[a-z]* ([0-9]+)")
  message(FATAL_ERROR "${LAMMPS_INCLUDE}/version.h has no version such as \"22 Jul 2025\"")
endif()
set(DAY "0${CMAKE_MATCH_1}")
set(YEAR "${CMAKE_MATCH_3}")
set(MONTHS Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec)
list(FIND MONTHS "${CMAKE_MATCH_2}" MONTH)
math(EXPR MONTH "${MONTH} + 101")
string(SUBSTRING "${MONTH}" 1 2 MONTH)
string(REGEX MATCH "..$" DAY "${DAY}")
set(LAMMPS_VERSION "${YEAR}${MONTH}${DAY}")

if(NOT MPI_INCLUDE)
  find_package(MPI COMPONENTS CXX)
  if(NOT MPI_CXX_FOUND)
    message(FATAL_ERROR "No MPI found. Give -DMPI_INCLUDE=FOLDER, the folder of the mpi.h that \
LAMMPS was built with. For a LAMMPS without MPI it is ${LAMMPS_INCLUDE}/STUBS")
  endif()
  set(MPI_INCLUDE "${MPI_CXX_INCLUDE_DIRS}")
endif()
