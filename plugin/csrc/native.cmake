# Builds the native kernels: the static library mlff_student_core, which uses neither Python nor an
# engine, and libmlff_student.so, which Python loads (mlff_student/archive/native.py).

set(CSRC "${CMAKE_CURRENT_SOURCE_DIR}/csrc")
add_library(mlff_student_core STATIC
  "${CSRC}/archive.cpp"
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
target_include_directories(mlff_student_core SYSTEM PUBLIC ${TORCH_INCLUDE})
target_compile_definitions(mlff_student_core PUBLIC _GLIBCXX_USE_CXX11_ABI=${TORCH_CXX11_ABI})
# OpenMP is a compiler option and not a linked library: the runtime must be the one of torch.
target_compile_options(mlff_student_core PUBLIC
  -O2 -fopenmp -Wall -Wextra "-fmacro-prefix-map=${REPOSITORY}/=")
target_link_libraries(mlff_student_core PUBLIC
  "${TORCH_LIB}/libtorch_cpu.so" "${TORCH_LIB}/libc10.so" ${CMAKE_DL_LIBS})
set_target_properties(mlff_student_core PROPERTIES POSITION_INDEPENDENT_CODE ON)

# vesin is only linked against, so it is located without importing it.
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c [[
import os
from importlib import util
root = os.path.dirname(util.find_spec("vesin").origin)
assert os.path.exists(os.path.join(root, "include", "vesin.h"))
assert os.path.exists(os.path.join(root, "lib", "libvesin.so"))
print(root, end="")
]]
  OUTPUT_VARIABLE VESIN_ROOT RESULT_VARIABLE VESIN_MISSING ERROR_QUIET)
if(VESIN_MISSING)
  skip("native kernels" "no vesin wheel with header and library was found; install vesin")
  return()
endif()
message(STATUS "Native kernels: vesin in ${VESIN_ROOT}")

add_library(mlff_student_native SHARED "${CSRC}/neighbours.cpp" "${CSRC}/registration.cpp")
target_include_directories(mlff_student_native SYSTEM PRIVATE "${VESIN_ROOT}/include")
target_compile_definitions(mlff_student_native PRIVATE VESIN_SHARED)
target_link_libraries(mlff_student_native PRIVATE
  mlff_student_core "${VESIN_ROOT}/lib/libvesin.so")
set_target_properties(mlff_student_native PROPERTIES
  OUTPUT_NAME mlff_student
  INSTALL_RPATH "$ORIGIN/../../torch/lib;$ORIGIN/../../vesin/lib;${TORCH_LIB};${VESIN_ROOT}/lib")
install(TARGETS mlff_student_native LIBRARY DESTINATION mlff_student/lib)
