// Reads an archive without Python: its metadata, its weights for the kernels, and its TorchScript,
// which is loaded only for `from_edges`, and only if it is the code that this version writes.
// This header includes nothing of torch, because headers of torch and of an engine may conflict.
#pragma once

#include "model.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace mlff_student {

// A molecule, and the energy and forces that were computed for it when the archive was written.
struct ReferenceNumbers {
  std::vector<int64_t> atomic_numbers; // (N,)
  std::vector<double> positions;       // (N, 3), angstrom
  double energy = 0.0;                 // eV
  std::vector<double> forces;          // (N, 3), eV/angstrom
};

class Archive {
public:
  // Reads `content`, the bytes of a file. `file` is the file's name in error messages; `device` is
  // "cpu" or "cuda". Throws std::runtime_error if the content is no archive of this format, if it
  // contains other code than this version writes, if the metadata contradict the module, or if the
  // hash of its weights is not the hash that was stored when the archive was written.
  Archive(const std::string &file, const std::string &content, const std::string &device);
  ~Archive();

  // Weights and buffers of the student, for the constructor of Model.
  const Arrays &weights() const;

  // Calls the archive's TorchScript method from_edges. Input: edge vectors (edges, 3) in angstrom,
  // the edge index (2, edges) with receivers in row 0 and senders in row 1, and atomic numbers
  // (atoms,). Output: energies (atoms,) in eV and their gradient by the edge vectors (edges, 3) in
  // eV/angstrom.
  void from_edges(const double *edge_vectors, const int64_t *edge_index, int64_t edges,
                  const int64_t *atomic_numbers, int64_t atoms, double *energies,
                  double *gradient) const;

  std::string name, teacher, dtype;
  int64_t parameters = 0;
  double cutoff = 0.0; // angstrom
  std::vector<std::string> elements;
  ReferenceNumbers reference;

private:
  struct Script;
  std::unique_ptr<Script> script_;
};

} // namespace mlff_student
