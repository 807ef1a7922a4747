// Checks that an archive computes the energy and forces that it computed when it was written.
#pragma once

#include "archive.h"

#include <functional>

namespace mlff_student {

// Computes the same as Script::from_edges.
using FromEdges = std::function<void(const double *edge_vectors, const int64_t *edge_index,
                                     int64_t edges, const int64_t *atomic_numbers, int64_t atoms,
                                     double *energies, double *gradient)>;

// Evaluates the reference molecule of an archive. Throws std::runtime_error if energy or forces
// differ from the stored ones by more than rounding.
void check_reference_numbers(const ReferenceNumbers &expected, double cutoff,
                             const FromEdges &from_edges);

} // namespace mlff_student
