// SPDX-License-Identifier: GPL-2.0-or-later

// What the pair style takes from mlff_student_pair_torch.so, which evaluates the TorchScript of
// archives (backend portable). The library is opened when it is needed, because LAMMPS would start
// ten times slower with torch in its process. Only C crosses this file: the pair style may be
// compiled with another C++ ABI than torch.

#pragma once

#include "mlff_student.h"

#include <cstddef>
#include <cstdint>

namespace mlff_student {

// The functions of the library. `error` returns the reason of the last failure.
struct TorchBackend {
  // Loads the TorchScript of an archive of `size` bytes, whose name in messages is `file`, for the
  // device "cpu" or "cuda"; returns null on failure.
  void *(*open)(const char *file, const void *bytes, std::size_t size, const char *device);
  void (*close)(void *script);
  mlff_student_facts (*describe)(const void *script); // the pointers are valid until it is closed
  // Evaluates directed edges, as mlff_student_evaluate_edges does; returns false on failure.
  bool (*evaluate_edges)(void *script, int threads, int64_t atoms, const int64_t *atomic_numbers,
                         int64_t edges, const int64_t *index, const double *vectors,
                         double *energies, double *gradient);
  const char *(*error)();
};

// Returns why the native kernels cannot evaluate an archive that is as it should be; null if there
// is no such reason.
const char *why_not_native(const char *file, const void *bytes, std::size_t size);

// Opens the library that lies beside the pair style; returns null, and the reason, on failure.
const TorchBackend *open_torch_backend(const char **reason);

} // namespace mlff_student
