# Builds the plugin when pip installs, and then its backend portable. If one fails, the rest is
# installed without it, and build.json gets the reason.
function(build target part libraries)
  list(TRANSFORM libraries PREPEND "${BUILD_DIR}/")
  file(REMOVE ${libraries})
  set(LOG "${BUILD_DIR}/${target}.log")
  execute_process(
    # In the C locale compilers quote in ASCII, which file(STRINGS) reads.
    COMMAND "${CMAKE_COMMAND}" -E env LC_ALL=C
            "${CMAKE_COMMAND}" --build "${BUILD_DIR}" --target ${target}
    RESULT_VARIABLE FAILED OUTPUT_FILE "${LOG}" ERROR_FILE "${LOG}")
  if(FAILED)
    file(REMOVE ${libraries})
    file(STRINGS "${LOG}" ERRORS REGEX "error|Error" LIMIT_COUNT 1)
    message(WARNING "The ${part} does not compile for LAMMPS ${LAMMPS_VERSION}: ${ERRORS}")
    string(REGEX REPLACE "[\"\\\\;\n]" " " ERRORS "${ERRORS}")
    set(RECORD "$ENV{DESTDIR}${CMAKE_INSTALL_PREFIX}/mlff_student/lib/build.json")
    file(READ "${RECORD}" TEXT)
    string(JSON TEXT SET "${TEXT}" missing "${part}"
      "\"it does not compile for LAMMPS ${LAMMPS_VERSION} (${ERRORS})\"")
    file(WRITE "${RECORD}" "${TEXT}\n")
  endif()
endfunction()
build(mlff_studentplugin "LAMMPS plugin" "mlff_student_pair.so;mlff_studentplugin.so")
if(TORCH_RELEASE)
  build(mlff_student_pair_torch "LAMMPS backend portable" "mlff_student_pair_torch.so")
endif()
