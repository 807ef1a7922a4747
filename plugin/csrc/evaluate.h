// All layers in a row: what clients call that exchange nothing between them.
#pragma once

#include "layers.h"
#include "neighbours.h"

namespace mlff_student {

// Energies (n_local,) in eV and their gradient by the edge vectors (E, 3) in eV/angstrom, from a
// graph that is complete and the species of its nodes.
void evaluate_graph(const Model &model, Workspace &work, int64_t n_local, double *energies,
                    double *gradient);

// What the layers leave out: reference energies and repulsion, and the network's gradient by the
// edge vectors. For clients that call the layers themselves.
void finish(const Model &model, const Workspace &work, int64_t n_local, double *energies,
            double *gradient);

// Forces (N, 3) in eV/angstrom and virial (3, 3) in eV, - sum r_ij (x) dE/dr_ij.
void gather_forces(const Graph &graph, const double *gradient, double *forces, double *virial);

} // namespace mlff_student
