// Runs the TorchScript of an archive, if it is the code that this version writes. Only the parts
// that link torch use it. This header includes nothing of torch, because headers of torch and of an
// engine may conflict.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace mlff_student {

class Script {
public:
  // `content` is the bytes of a file, `file` the file's name in error messages, and `device` "cpu"
  // or "cuda". Throws std::runtime_error if the content contains other code than this version
  // writes; weights and metadata are checked by Archive.
  Script(const std::string &file, const std::string &content, const std::string &device);
  ~Script();

  // Calls the archive's method from_edges. Input: edge vectors (edges, 3) in angstrom, the edge
  // index (2, edges) with receivers in row 0 and senders in row 1, and atomic numbers (atoms,).
  // Output: energies (atoms,) in eV and their gradient by the edge vectors (edges, 3) in
  // eV/angstrom.
  void from_edges(const double *edge_vectors, const int64_t *edge_index, int64_t edges,
                  const int64_t *atomic_numbers, int64_t atoms, double *energies,
                  double *gradient) const;

private:
  struct State;
  std::unique_ptr<State> state_;
};

} // namespace mlff_student
