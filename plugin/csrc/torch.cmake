# Finds the torch of the Python environment, for the backend portable of LAMMPS. Sets TORCH_RELEASE, TORCH_LIB,
# TORCH_INCLUDE and TORCH_CXX11_ABI; TORCH_RELEASE is empty if there is no torch that this compiler
# compiles.
set(TORCH_RELEASE "")
set(TORCH_MISSING TRUE)
if(Python_FOUND)
  # find_package(Torch) is not used, because the CUDA wheel's configuration requires the CUDA
  # toolkit.
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c [[
import os, torch
release = ".".join(torch.__version__.split(".")[:2])
abi = int(torch.compiled_with_cxx11_abi())
print(os.path.dirname(torch.__file__), release, abi, sep=";", end="")
]]
    OUTPUT_VARIABLE TORCH_FACTS RESULT_VARIABLE TORCH_MISSING ERROR_QUIET)
endif()
if(TORCH_MISSING)
  skip("LAMMPS backend portable" "the Python that built the package had no torch")
  return()
endif()
list(POP_FRONT TORCH_FACTS TORCH_ROOT TORCH_RELEASE TORCH_CXX11_ABI)
set(TORCH_LIB "${TORCH_ROOT}/lib")
set(TORCH_INCLUDE "${TORCH_ROOT}/include" "${TORCH_ROOT}/include/torch/csrc/api/include")

# The headers of torch 2.14 and later are C++20. The check compiles one of them.
if(NOT TORCH_RELEASE VERSION_LESS 2.14)
  set(CMAKE_CXX_STANDARD 20)
endif()
unset(COMPILES_TORCH CACHE)
if("cxx_std_${CMAKE_CXX_STANDARD}" IN_LIST CMAKE_CXX_COMPILE_FEATURES)
  set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
  file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/torch.cpp" "#include <c10/core/TensorImpl.h>\n")
  try_compile(COMPILES_TORCH "${CMAKE_CURRENT_BINARY_DIR}/torch_check"
    "${CMAKE_CURRENT_BINARY_DIR}/torch.cpp"
    CMAKE_FLAGS "-DINCLUDE_DIRECTORIES=${TORCH_INCLUDE}"
    CXX_STANDARD ${CMAKE_CXX_STANDARD} CXX_STANDARD_REQUIRED ON CXX_EXTENSIONS OFF)
endif()
if(NOT COMPILES_TORCH)
  skip("LAMMPS backend portable"
       "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION} (${CMAKE_CXX_COMPILER}) cannot \
compile torch ${TORCH_RELEASE} as C++${CMAKE_CXX_STANDARD}; install g++ 10 or later, and set CXX to it")
  set(TORCH_RELEASE "")
  set(CMAKE_CXX_STANDARD 17)
  return()
endif()
record("${TORCH_RELEASE}" torch)
message(STATUS "torch ${TORCH_RELEASE} in ${TORCH_ROOT}, compiled as C++${CMAKE_CXX_STANDARD}")
