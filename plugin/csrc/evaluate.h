// Evaluates all layers of a student, for clients that exchange nothing between the layers.
#pragma once

#include "layers.h"

namespace mlff_student {

// Computes energies (n_local,) in eV and the gradient of their sum by the edge vectors (E, 3) in
// eV/angstrom; without the gradient if the pointer is null. `work` must hold a graph that is
// complete, and the species of its nodes.
void evaluate_graph(const Model &model, Workspace &work, int64_t n_local, double *energies,
                    double *gradient);

// Puts together the same energies and gradient after the layers have run: adds reference energies
// and repulsion to the network's. For clients that call the layers themselves.
void assemble(const Model &model, const Workspace &work, int64_t n_local, double *energies,
              double *gradient);

// Directed edges i <- j in any order.
struct Edges {
  int64_t count;
  const int64_t *index;  // (2, count), receivers and then senders
  const double *vectors; // (count, 3), x_j - x_i, angstrom
};

// Memory of evaluate_edges, kept for the next call.
struct EdgeMemory {
  Buffer<int64_t> next, position; // (N,), (E,); where edges go when they are sorted
  Buffer<double> gradient;        // (E, 3), sorted
};

// Evaluates edges among `atoms` atoms. `work` must hold the species of the atoms. Energies
// (n_local,) and gradient (E, 3) are in the order of the input.
void evaluate_edges(const Model &model, Workspace &work, EdgeMemory &memory, int64_t atoms,
                    const Edges &edges, int64_t n_local, double *energies, double *gradient);

// Computes forces (N, 3) in eV/angstrom, the virial (3, 3) in eV, which is the negative sum over
// edges of the outer products of r_ij and dE/dr_ij, and its shares (N, 3, 3), to which each edge
// adds a half at each of its atoms. What has a null pointer is not computed.
void gather_forces(const Workspace &work, const double *gradient, double *forces, double *virial,
                   double *virials);

} // namespace mlff_student
