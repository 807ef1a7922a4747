# Writes build.json, which is installed beside the libraries: the releases of torch and LAMMPS that
# they were built for, and the reason why a part is missing. mlff_student/core/paths.py reads it.
set_property(GLOBAL PROPERTY BUILD_RECORD "{\"missing\": {}}")

# Sets the value at a key, or at a path of keys.
function(record value)
  string(REGEX REPLACE "[\"\\\\\n]" " " value "${value}")
  get_property(text GLOBAL PROPERTY BUILD_RECORD)
  string(JSON text SET "${text}" ${ARGN} "\"${value}\"")
  set_property(GLOBAL PROPERTY BUILD_RECORD "${text}")
endfunction()

# Notes that parts are not built.
function(skip parts reason)
  foreach(part IN LISTS parts)
    message(STATUS "Without ${part}: ${reason}")
    record("${reason}" missing "${part}")
  endforeach()
endfunction()

function(write_record)
  get_property(text GLOBAL PROPERTY BUILD_RECORD)
  file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/build.json" "${text}\n")
endfunction()
cmake_language(DEFER CALL write_record)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/build.json" DESTINATION mlff_student/lib)
