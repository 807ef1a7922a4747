// Evaluates all layers of a student, for clients that exchange nothing between the layers.
#pragma once

#include "layers.h"
#include "neighbours.h"

namespace mlff_student {

// Computes energies (n_local,) in eV and the gradient of their sum by the edge vectors (E, 3) in
// eV/angstrom. `work` must hold a graph that is complete, and the species of its nodes.
void evaluate_graph(const Model &model, Workspace &work, int64_t n_local, double *energies,
                    double *gradient);

// Puts together the same energies and gradient after the layers have run: adds reference energies
// and repulsion to the network's. For clients that call the layers themselves.
void assemble(const Model &model, const Workspace &work, int64_t n_local, double *energies,
              double *gradient);

// Computes forces (N, 3) in eV/angstrom and the virial (3, 3) in eV, which is the negative sum over
// edges of the outer products of r_ij and dE/dr_ij.
void gather_forces(const Workspace &work, const double *gradient, double *forces, double *virial);

} // namespace mlff_student
