# Builds the native kernels. mlff_student_core is a static library that uses neither Python, torch
# nor an engine. libmlff_student.so is the library behind mlff_student.h. libmlff_student_torch.so
# has the torch operators, which Python loads (mlff_student/archive/native.py).

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

# vesin is only linked against, so it is located without importing it.
set(VESIN_ROOT "" CACHE PATH "Folder of vesin's include and lib; if empty, that of the wheel")
set(VESIN "${VESIN_ROOT}")
if(Python_FOUND AND NOT VESIN)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c [[
import os
from importlib import util
print(os.path.dirname(util.find_spec("vesin").origin), end="")
]]
    OUTPUT_VARIABLE VESIN ERROR_QUIET)
endif()
if(NOT EXISTS "${VESIN}/include/vesin.h" OR NOT EXISTS "${VESIN}/lib/libvesin.so")
  skip("native kernels;torch operators"
       "no vesin with header and library was found; install vesin in the Python environment")
  return()
endif()
message(STATUS "Native kernels: vesin in ${VESIN}")

# Adds a shared library of these sources with the core and the neighbour list. It exports what the
# map says.
function(add_native_library target name map)
  add_library(${target} SHARED "${CSRC}/neighbours.cpp" "${CSRC}/structures.cpp" ${ARGN})
  target_include_directories(${target} SYSTEM PRIVATE "${VESIN}/include")
  target_compile_definitions(${target} PRIVATE VESIN_SHARED)
  target_link_libraries(${target} PRIVATE mlff_student_core "${VESIN}/lib/libvesin.so")
  set_target_properties(${target} PROPERTIES OUTPUT_NAME ${name} LINK_DEPENDS "${CSRC}/${map}")
  target_link_options(${target} PRIVATE
    "LINKER:--version-script=${CSRC}/${map}" LINKER:-Bsymbolic-functions)
  install(TARGETS ${target} LIBRARY DESTINATION mlff_student/lib)
endfunction()

# capi.cpp is in the core too, but the linker would take from there only what other files call.
add_native_library(mlff_student_native mlff_student capi.map "${CSRC}/capi.cpp")
target_link_options(mlff_student_native PRIVATE LINKER:--no-undefined)
set_target_properties(mlff_student_native PROPERTIES
  INSTALL_RPATH "$ORIGIN/../../vesin/lib;${VESIN}/lib")
install(FILES "${CSRC}/mlff_student.h" DESTINATION mlff_student/include)

if(TORCH_RELEASE)
  add_native_library(mlff_student_operators mlff_student_torch nothing.map "${CSRC}/registration.cpp")
  target_include_directories(mlff_student_operators SYSTEM PRIVATE ${TORCH_INCLUDE})
  target_link_libraries(mlff_student_operators PRIVATE
    "${TORCH_LIB}/libtorch_cpu.so" "${TORCH_LIB}/libc10.so")
  set_target_properties(mlff_student_operators PROPERTIES
    OPENMP_OF_TORCH ON
    INSTALL_RPATH "$ORIGIN/../../torch/lib;$ORIGIN/../../vesin/lib;${TORCH_LIB};${VESIN}/lib")
endif()
