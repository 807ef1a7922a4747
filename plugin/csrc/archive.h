// Reads an archive: its metadata, its weights for the kernels, and the numbers of its self-check.
#pragma once

#include "model.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mlff_student {

// A molecule, and the energy and forces that were computed for it when the archive was written.
struct ReferenceNumbers {
  std::vector<int64_t> atomic_numbers; // (N,)
  std::vector<double> positions;       // (N, 3), angstrom
  double energy = 0.0;                 // eV
  std::vector<double> forces;          // (N, 3), eV/angstrom
};

struct Archive {
  // Reads `content`, the bytes of a file. `file` is the file's name in error messages. Throws
  // std::runtime_error if the content is no archive of this format, or if the weights contradict
  // the metadata or do not have the hash that was stored when the archive was written. The archive
  // may also contain TorchScript, which is not looked at; see script.h.
  Archive(const std::string &file, std::string_view content);

  std::string name, teacher, dtype, metadata; // the last is JSON
  int64_t parameters = 0;
  double cutoff = 0.0; // angstrom
  std::vector<std::string> elements;
  ReferenceNumbers reference; // without atoms if there is no self-check, as without TorchScript
  Arrays weights;             // and buffers of the student, for the constructor of Model
};

} // namespace mlff_student
