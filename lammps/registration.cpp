// SPDX-License-Identifier: GPL-2.0-or-later

// Registers pair style mlff_student with a running LAMMPS. The plugin (mlff_studentplugin.cpp)
// calls this function after it has checked that this library fits that LAMMPS.

#include "pair_mlff_student.h"

#include "lammps.h"

using namespace LAMMPS_NS;

namespace {

// The struct of lammpsplugin.h (https://docs.lammps.org/Developer_plugins.html), a header that is
// not installed with LAMMPS.
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

} // namespace

extern "C" void mlff_student_register(void *lmp, void *handle, void *register_plugin) {
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
