// SPDX-License-Identifier: GPL-2.0-or-later

// The plugin that LAMMPS loads. It uses the C library interface of LAMMPS alone, so that it loads
// into every LAMMPS. It checks that the library of the pair style (registration.cpp) was built for
// this LAMMPS and its MPI, and then opens that library. Otherwise it says what was expected, what
// was found and what to do, and LAMMPS continues without the style.

#include <dlfcn.h>
#include <mpi.h>

#include <cstdint>
#include <cstdio>
#include <string>

namespace {

#if defined(OPEN_MPI)
constexpr const char *MPI_LIBRARY = "Open MPI";
#elif defined(MPI_STUBS)
constexpr const char *MPI_LIBRARY = "no MPI";
#else
constexpr const char *MPI_LIBRARY = "MPICH"; // and all that have its binary interface
#endif
#if defined(LAMMPS_BIGBIG)
constexpr int TAGINT = sizeof(int64_t);
#else
constexpr int TAGINT = sizeof(int32_t);
#endif
constexpr int BIGINT = sizeof(int64_t);
constexpr const char *REBUILD =
    "In the Python environment of this LAMMPS, `mlff-student doctor` prints the command that "
    "builds it again";

// Finds the LAMMPS that calls the plugin. A program may have loaded it without making its symbols
// visible to other libraries; they are made visible, since the library of the pair style uses them.
void *library_of(void *function) {
  Dl_info info;
  if (dladdr(function, &info) && info.dli_fname)
    if (void *library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_GLOBAL))
      return library;
  return dlopen(nullptr, RTLD_LAZY); // LAMMPS is part of the program
}

template <typename Function> Function *symbol(void *library, const char *name) {
  return reinterpret_cast<Function *>(dlsym(library, name));
}

// The functions of LAMMPS's library.h that are used here; null where a LAMMPS does not have one.
struct CInterface {
  void *library;
  int (*version)(void *lmp);
  int (*setting)(void *lmp, const char *name);
  int (*has_mpi)();
  void (*error)(void *lmp, int type, const char *text);

  explicit CInterface(void *library)
      : library(library), version(symbol<int(void *)>(library, "lammps_version")),
        setting(symbol<int(void *, const char *)>(library, "lammps_extract_setting")),
        has_mpi(symbol<int()>(library, "lammps_config_has_mpi_support")),
        error(symbol<void(void *, int, const char *)>(library, "lammps_error")) {}

  const char *mpi_library() const {
    if (has_mpi && !has_mpi()) return "no MPI";
    return dlsym(library, "ompi_mpi_comm_world") ? "Open MPI" : "MPICH";
  }
};

std::string last_error() {
  const char *text = dlerror();
  return text ? text : "unknown reason";
}

// Returns what makes the pair style unusable in this LAMMPS, or nothing. Opens its library.
std::string obstacle(const CInterface &lammps, void *lmp, void *&pair_style) {
  const auto differs = [](const std::string &what, const std::string &expected,
                          const std::string &found) {
    return "built for " + what + expected + ", found " + found + ". " + REBUILD;
  };
  if (!lammps.version || !lammps.setting)
    return "built for a LAMMPS whose C library interface is visible, found none. Build LAMMPS with "
           "-D BUILD_SHARED_LIBS=yes";
  if (const int found = lammps.version(lmp); found != MLFF_STUDENT_LAMMPS_VERSION)
    return differs("LAMMPS ", std::to_string(MLFF_STUDENT_LAMMPS_VERSION), std::to_string(found));
  // These differ if LAMMPS was configured with other -DLAMMPS_SIZES.
  const auto sizes = [](int tag, int big) {
    return std::to_string(tag) + " and " + std::to_string(big) + " bytes";
  };
  const int tag = lammps.setting(lmp, "tagint"), big = lammps.setting(lmp, "bigint");
  if (tag != TAGINT || big != BIGINT)
    return differs("atom IDs and step numbers of ", sizes(TAGINT, BIGINT), sizes(tag, big));
  const bool old_abi = dlsym(lammps.library, "_ZN9LAMMPS_NS5utils8strmatchERKSsS2_");
  if (old_abi == MLFF_STUDENT_LAMMPS_ABI)
    return differs("a LAMMPS compiled with _GLIBCXX_USE_CXX11_ABI=",
                   std::to_string(MLFF_STUDENT_LAMMPS_ABI), std::to_string(!old_abi));
  if (const std::string found = lammps.mpi_library(); found != MPI_LIBRARY)
    return differs("a LAMMPS with ", MPI_LIBRARY, found);

  Dl_info own;
  dladdr(reinterpret_cast<void *>(&library_of), &own);
  const std::string path = own.dli_fname;
  pair_style = dlopen((path.substr(0, path.find_last_of('/') + 1) + "mlff_student_pair.so").c_str(),
                      RTLD_NOW | RTLD_LOCAL);
  if (!pair_style) return "its library does not load: " + last_error() + ". " + REBUILD;
  return "";
}

} // namespace

extern "C" void lammpsplugin_init(void *lmp, void *handle, void *register_plugin) {
  const CInterface lammps(library_of(register_plugin));
  void *pair_style = nullptr;
  const std::string reason = obstacle(lammps, lmp, pair_style);
  if (reason.empty()) {
    const auto add = symbol<void(void *, void *, void *)>(pair_style, "mlff_student_register");
    return add(lmp, handle, register_plugin);
  }
  if (lammps.setting && lammps.setting(lmp, "world_rank") != 0) return;
  const std::string text = "Pair style mlff_student is not available: " + reason;
  if (lammps.error)
    lammps.error(lmp, 0, text.c_str()); // type 0 is a warning, on the screen and in the log file
  else
    std::fprintf(stderr, "WARNING: %s\n", text.c_str());
}
