# Reads a source tree of LAMMPS; sets LAMMPS_INCLUDE, LAMMPS_VERSION and MPI_INCLUDE.
set(LAMMPS_INCLUDE "${LAMMPS_SOURCE_DIR}/src")
foreach(header pair.h version.h)
  if(NOT EXISTS "${LAMMPS_INCLUDE}/${header}")
    lammps_unusable("LAMMPS_SOURCE_DIR=${LAMMPS_SOURCE_DIR} is not a source tree of LAMMPS: it has \
no src/${header}. Give the folder that contains src/ and cmake/; for a LAMMPS that was installed \
without its sources give LAMMPS_PREFIX")
  endif()
endforeach()

# The version "22 Jul 2025" becomes the number 20250722.
file(READ "${LAMMPS_INCLUDE}/version.h" VERSION_TEXT)
if(NOT VERSION_TEXT MATCHES "LAMMPS_VERSION +\"([0-9]+) ([A-Z][a-z][a-z])[a-z]* ([0-9]+)")
  lammps_unusable("${LAMMPS_INCLUDE}/version.h has no version such as \"22 Jul 2025\"")
endif()
set(DAY "0${CMAKE_MATCH_1}")
set(YEAR "${CMAKE_MATCH_3}")
set(MONTHS Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec)
list(FIND MONTHS "${CMAKE_MATCH_2}" MONTH)
math(EXPR MONTH "${MONTH} + 101")
string(SUBSTRING "${MONTH}" 1 2 MONTH)
string(REGEX MATCH "..$" DAY "${DAY}")
set(LAMMPS_VERSION "${YEAR}${MONTH}${DAY}")
find_mpi()
