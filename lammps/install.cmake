# Builds the plugin when pip installs. If that fails, the rest is installed without it, and
# build.json gets the reason.
set(LOG "${BUILD_DIR}/lammps_plugin.log")
file(REMOVE "${BUILD_DIR}/mlff_student_pair.so" "${BUILD_DIR}/mlff_studentplugin.so")
execute_process(
  # In the C locale compilers quote in ASCII, which file(STRINGS) reads.
  COMMAND "${CMAKE_COMMAND}" -E env LC_ALL=C
          "${CMAKE_COMMAND}" --build "${BUILD_DIR}" --target mlff_studentplugin
  RESULT_VARIABLE FAILED OUTPUT_FILE "${LOG}" ERROR_FILE "${LOG}")
if(FAILED)
  file(REMOVE "${BUILD_DIR}/mlff_student_pair.so" "${BUILD_DIR}/mlff_studentplugin.so")
  file(STRINGS "${LOG}" ERRORS REGEX "error|Error" LIMIT_COUNT 1)
  message(WARNING "The LAMMPS plugin does not compile for LAMMPS ${LAMMPS_VERSION}: ${ERRORS}")
  string(REGEX REPLACE "[\"\\\\;\n]" " " ERRORS "${ERRORS}")
  set(RECORD "$ENV{DESTDIR}${CMAKE_INSTALL_PREFIX}/mlff_student/lib/build.json")
  file(READ "${RECORD}" TEXT)
  string(JSON TEXT SET "${TEXT}" missing "LAMMPS plugin"
    "\"the pair style does not compile for LAMMPS ${LAMMPS_VERSION} (${ERRORS})\"")
  file(WRITE "${RECORD}" "${TEXT}\n")
endif()
