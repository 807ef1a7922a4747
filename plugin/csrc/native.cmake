# Builds the native kernels. mlff_student_core is a static library that uses neither Python, torch
# nor an engine. libmlff_student.so is the library behind mlff_student.h. libmlff_student_torch.so
# has the torch operators, which Python loads (mlff_student/archive/operator.py).

set(CSRC "${CMAKE_CURRENT_SOURCE_DIR}/csrc")
add_library(mlff_student_core STATIC
  "${CSRC}/archive.cpp"
  "${CSRC}/capi.cpp"
  "${CSRC}/contents.cpp"
  "${CSRC}/dispatch.cpp"
  "${CSRC}/evaluate.cpp"
  "${CSRC}/json.cpp"
  "${CSRC}/layers.cpp"
  "${CSRC}/model.cpp"
  "${CSRC}/parallel.cpp"
  "${CSRC}/radial_table.cpp"
  "${CSRC}/repulsion.cpp"
  "${CSRC}/self_check.cpp"
  "${CSRC}/sha256.cpp")

# Compiles kernels.cpp for one instruction set. dispatch.cpp chooses among them at run time.
function(add_kernels isa)
  add_library(mlff_student_${isa} OBJECT "${CSRC}/kernels.cpp")
  target_compile_definitions(mlff_student_${isa} PRIVATE MLFF_STUDENT_ISA=${isa})
  target_compile_options(mlff_student_${isa} PRIVATE
    -O3 -fno-math-errno -fvisibility=hidden -Wall -Wextra ${ARGN})
  set_target_properties(mlff_student_${isa} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_sources(mlff_student_core PRIVATE $<TARGET_OBJECTS:mlff_student_${isa}>)
endfunction()
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  add_kernels(generic -Wno-psabi)
  add_kernels(avx2 -march=x86-64-v3)
  add_kernels(avx512 -march=x86-64-v4 -mprefer-vector-width=512)
  target_compile_definitions(mlff_student_core PRIVATE MLFF_STUDENT_X86)
else()
  add_kernels(generic -Wno-psabi)
endif()

target_include_directories(mlff_student_core PUBLIC "${CSRC}")
target_compile_options(mlff_student_core PUBLIC
  -O2 -fopenmp -fvisibility=hidden -Wall -Wextra "-fmacro-prefix-map=${REPOSITORY}/=")
set_target_properties(mlff_student_core PROPERTIES POSITION_INDEPENDENT_CODE ON)
# What is loaded into torch uses its OpenMP, so that there is one set of threads.
target_link_libraries(mlff_student_core INTERFACE
  $<$<NOT:$<BOOL:$<TARGET_PROPERTY:OPENMP_OF_TORCH>>>:-fopenmp>)
if(TORCH_RELEASE AND NOT TORCH_CXX11_ABI) # torch before 2.7
  target_compile_definitions(mlff_student_core PUBLIC _GLIBCXX_USE_CXX11_ABI=0)
endif()

# vesin is located without importing it.
set(VESIN_ROOT "" CACHE PATH "Folder of vesin's include and lib; if empty, that of the wheel")
set(VESIN "${VESIN_ROOT}")
if(Python_FOUND AND NOT VESIN)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c [[
import os
from importlib import metadata, util
print(os.path.dirname(util.find_spec("vesin").origin), metadata.version("vesin"), sep=";", end="")
]]
    OUTPUT_VARIABLE VESIN ERROR_QUIET)
  list(POP_BACK VESIN VESIN_RELEASE)
endif()
if(NOT EXISTS "${VESIN}/include/vesin.h" OR NOT EXISTS "${VESIN}/lib/libvesin.so")
  skip("native kernels;torch operators"
       "no vesin with header and library was found; install vesin in the Python environment")
  return()
endif()
message(STATUS "Native kernels: vesin ${VESIN_RELEASE} in ${VESIN}")

# The package brings its own copy of vesin's library, so that it depends on no other file. The copy has
# a name of its own: the loader would take another vesin of the same name that is in the process
# already, and structures of vesin.h differ between releases. Without patchelf the library of VESIN is
# used where it is.
set(VESIN_LIBRARY "${VESIN}/lib/libvesin.so")
set(VESIN_RPATH "${VESIN}/lib")
find_program(PATCHELF patchelf)
if(PATCHELF)
  set(VESIN_LIBRARY "${CMAKE_CURRENT_BINARY_DIR}/libmlff_student_vesin.so")
  set(VESIN_RPATH "")
  execute_process(
    COMMAND "${PATCHELF}" --set-soname libmlff_student_vesin.so --output "${VESIN_LIBRARY}"
            "${VESIN}/lib/libvesin.so"
    COMMAND_ERROR_IS_FATAL ANY)
  install(FILES "${VESIN_LIBRARY}" DESTINATION mlff_student/lib)
endif()
if(VESIN_RELEASE)
  record("${VESIN_RELEASE}" vesin)
endif()

# Adds a shared library of these sources with the core and the neighbour list. It exports what the
# map says.
function(add_native_library target name map)
  add_library(${target} SHARED "${CSRC}/neighbours.cpp" "${CSRC}/structures.cpp" ${ARGN})
  target_include_directories(${target} SYSTEM PRIVATE "${VESIN}/include")
  target_compile_definitions(${target} PRIVATE VESIN_SHARED)
  target_link_libraries(${target} PRIVATE mlff_student_core "${VESIN_LIBRARY}")
  set_target_properties(${target} PROPERTIES OUTPUT_NAME ${name} LINK_DEPENDS "${CSRC}/${map}")
  target_link_options(${target} PRIVATE
    "LINKER:--version-script=${CSRC}/${map}" LINKER:-Bsymbolic-functions)
  install(TARGETS ${target} LIBRARY DESTINATION mlff_student/lib)
endfunction()

# capi.cpp is in the core too, but the linker would take from there only what other files call.
add_native_library(mlff_student_native mlff_student capi.map "${CSRC}/capi.cpp")
target_link_options(mlff_student_native PRIVATE LINKER:--no-undefined)
set_target_properties(mlff_student_native PROPERTIES
  INSTALL_RPATH "$ORIGIN;${VESIN_RPATH}")
install(FILES "${CSRC}/mlff_student.h" DESTINATION mlff_student/include)

# The torch operators are compiled without torch. They are loaded into a torch, which has then loaded
# libtorch_cpu.so; the empty library of that name makes the loader look there for their symbols.
file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/empty.cpp" "")
add_library(mlff_student_no_torch SHARED "${CMAKE_CURRENT_BINARY_DIR}/empty.cpp")
set_target_properties(mlff_student_no_torch PROPERTIES
  OUTPUT_NAME torch_cpu LIBRARY_OUTPUT_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/no_torch")
add_library(mlff_student_operators SHARED "${CSRC}/operators.cpp" "${CSRC}/sha256.cpp")
target_compile_options(mlff_student_operators PRIVATE
  -O2 -fvisibility=hidden -Wall -Wextra "-fmacro-prefix-map=${REPOSITORY}/=")
target_link_options(mlff_student_operators PRIVATE
  LINKER:--no-as-needed "LINKER:--version-script=${CSRC}/nothing.map")
target_link_libraries(mlff_student_operators PRIVATE mlff_student_native mlff_student_no_torch)
set_target_properties(mlff_student_operators PROPERTIES
  OUTPUT_NAME mlff_student_torch LINK_DEPENDS "${CSRC}/nothing.map"
  BUILD_RPATH_USE_ORIGIN ON INSTALL_RPATH "$ORIGIN")
install(TARGETS mlff_student_operators LIBRARY DESTINATION mlff_student/lib)
