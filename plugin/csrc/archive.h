// An archive without Python: what it says of itself, its weights for the kernels, and its own
// TorchScript. No torch in this header: an engine's headers and those of torch may not agree.
#pragma once

#include "model.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace mlff_student {

class Archive {
public:
  // From the bytes of a file; `file` is its name in errors, `device` "cpu" or "cuda". Throws
  // std::runtime_error that says what was found and what to do.
  Archive(const std::string &file, const std::string &content, const std::string &device);
  ~Archive();

  // For Model.
  Arrays weights() const;

  // SHA-256 over all weights and buffers, as `weights_sha256` of the metadata says it.
  std::string weights_hash() const;

  // The archive's method from_edges: energies (atoms,) in eV and their gradient (edges, 3) in
  // eV/angstrom, from edge vectors (edges, 3) and edge index (2, edges), [receivers, senders].
  void from_edges(const double *edge_vectors, const int64_t *edge_index, int64_t edges,
                  const int64_t *atomic_numbers, int64_t atoms, double *energies,
                  double *gradient) const;

  std::string name, teacher, dtype;
  int64_t parameters = 0;
  double cutoff = 0.0; // angstrom
  std::vector<std::string> elements;
  std::string metadata; // JSON

private:
  struct Script;
  std::unique_ptr<Script> script_;
};

} // namespace mlff_student
