// The network layer by layer, forward and adjoint, so that an engine can exchange features of ghost
// atoms between the calls.
#pragma once

#include "buffer.h"
#include "kernels.h"
#include "model.h"

namespace mlff_student {

// Directed edges i <- j. Nodes are atoms and, in an engine that has them, ghosts; only the first
// `receivers` nodes receive. A client fills `first`, `sender` and `vectors`, then calls `complete`.
struct Graph {
  // Sizes of what the client fills.
  void resize(int64_t nodes, int64_t receivers, int64_t edges);
  // The rest from that; throws if a vector is not finite.
  void complete(const Model &model);
  std::size_t bytes() const; // held

  int64_t nodes = 0, receivers = 0, edges = 0;
  Buffer<int64_t> first;    // (receivers + 1,) edges of receiver i: first[i] to first[i + 1]
  Buffer<int32_t> sender;   // (E,)
  Buffer<double> vectors;   // (E, 3), x_j - x_i, angstrom
  Buffer<EdgeGeometry> geometry; // (E,)
  // The transposed list.
  Buffer<int64_t> sender_first; // (nodes + 1,)
  Buffer<int32_t> receiver_of;  // (E,) by sender
  Buffer<int32_t> edge_of;      // (E,) by sender: number of the edge
  Buffer<int32_t> place_of;     // (E,) its inverse
  Buffer<EdgeGeometry> geometry_by_sender; // (E,)
};

// What one layer starts from, and what its adjoint needs of its forward pass.
struct LayerState {
  Buffer<float> q;    // (N, F)
  Buffer<float> mu;   // (N, 3, F), unused in the first layer
  Buffer<float> phi;  // (N, parts F)
  Buffer<float> v;    // (receivers, 3, F)
  Buffer<float> norm; // (receivers, F)
  Buffer<float> z;    // (receivers, F)
  Buffer<float> a_v;  // (receivers, F)
};

// Memory of one evaluation, kept for the next one. Ghost rows of `layers[l].q`, `.mu` must hold
// their owners' values before `forward_layer(l)`, l > 0; after `adjoint_layer(l)`, l > 0, those of
// `g_q`, `g_mu` hold what is to be added to the owners'.
struct Workspace {
  std::size_t bytes() const; // held

  Graph graph;
  Buffer<int32_t> species;        // (N,)
  std::vector<LayerState> layers; // one more than the model has: the last holds its result
  Buffer<float> readout_z;        // (receivers, readout channels)
  Buffer<double> eps;             // (n_local,), eV
  Buffer<float> g_q, g_mu;        // (N, F), (N, 3, F): by the features before the layer
  Buffer<float> g_q_next, g_mu_next;
  Buffer<float> g_edge; // (E, 4), by sender: by the distance and the unit vector
};

// Features of all nodes from graph and species, which the client has filled.
void embed(const Model &model, Workspace &work);

// layers[depth + 1] from layers[depth], on the rows that receive.
void forward_layer(const Model &model, Workspace &work, std::size_t depth);

// eps of the first n_local nodes, and the gradient of their sum by the last features.
void readout(const Model &model, Workspace &work, int64_t n_local);

// Gradient by the features of layers[depth] (but for depth 0) from that by layers[depth + 1], and
// the layer's share in g_edge.
void adjoint_layer(const Model &model, Workspace &work, std::size_t depth);

// d sum(eps) / d edge vector, (3,) in eV/angstrom, once all layers have added their share.
void edge_gradient(const Workspace &work, int64_t edge, double *gradient);

} // namespace mlff_student
