// An archive without Python: its facts, its weights for the kernels, and its own TorchScript. This
// header includes none of torch: an engine's headers and those of torch may not agree.
#pragma once

#include "model.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace mlff_student {

// A molecule, and the energy and forces that the writer of the archive computed for it.
struct ReferenceNumbers {
  std::vector<int64_t> atomic_numbers; // (N,)
  std::vector<double> positions;       // (N, 3), angstrom
  double energy = 0.0;                 // eV
  std::vector<double> forces;          // (N, 3), eV/angstrom
};

class Archive {
public:
  // From the bytes of a file; `file` is its name in errors, `device` "cpu" or "cuda". Throws
  // std::runtime_error that says what was found and what to do, also where the weights are not
  // those that the archive was written with.
  Archive(const std::string &file, const std::string &content, const std::string &device);
  ~Archive();

  // For Model.
  Arrays weights() const;

  // The archive's method from_edges: energies (atoms,) in eV and their gradient (edges, 3) in
  // eV/angstrom, from edge vectors (edges, 3) and edge index (2, edges), [receivers, senders].
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
