// Evaluates the network layer by layer, forward and adjoint, so that an engine can exchange
// features of ghost atoms between the calls.
#pragma once

#include "buffer.h"
#include "kernels.h"
#include "model.h"

namespace mlff_student {

// Directed edges i <- j between nodes. Nodes are atoms and, in an engine with domains, ghost atoms;
// only the first `receivers` nodes receive. A client fills `first`, `sender` and `vectors`, and
// then calls `complete`; or it fills `first` alone, and `complete` copies the others.
struct Graph {
  // Sets the sizes and makes room for what the client fills.
  void resize(int64_t nodes, int64_t receivers, int64_t edges);
  // Computes the other members; throws std::invalid_argument if an edge names no node, or if a
  // vector is not finite or has no length. Edges are copied from arrays that are not null. The
  // checks and copies are in loops that read the edges anyway: by themselves they take 2 % of a
  // step of the smallest student.
  void complete(const Model &model, int threads, const int32_t *senders = nullptr,
                const double *edge_vectors = nullptr);
  std::size_t bytes() const; // memory in use

  int64_t nodes = 0, receivers = 0, edges = 0;
  Buffer<int64_t> first;  // (receivers + 1,); edges of receiver i are first[i] to first[i + 1]
  Buffer<int32_t> sender; // (E,)
  Buffer<double> vectors; // (E, 3), x_j - x_i, angstrom
  Buffer<EdgeGeometry> geometry; // (E,)
  // The same edges, sorted by sender.
  Buffer<int64_t> sender_first;            // (nodes + 1,)
  Buffer<int32_t> receiver_of;             // (E,) by sender
  Buffer<int32_t> edge_of;                 // (E,) by sender; number of the edge in the order above
  Buffer<int32_t> place_of;                // (E,) the inverse of edge_of
  Buffer<EdgeGeometry> geometry_by_sender; // (E,)
};

// Throws std::invalid_argument if an edge vector is not finite or has no length, and therefore no
// direction.
void check_vectors(const double *vectors, int64_t count);

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

// Memory of one evaluation, kept for the next one. For l > 0: the client copies the rows of atoms
// in `layers[l].q` and `layers[l].mu` to the rows of their ghosts before `forward_layer(l)`, and
// adds the rows of ghosts in `g_q` and `g_mu` to the rows of their atoms after `adjoint_layer(l)`.
struct Workspace {
  std::size_t bytes() const; // memory in use

  int threads = 1; // largest number of threads of the loops over atoms
  Graph graph;
  Buffer<int32_t> species;        // (N,)
  std::vector<LayerState> layers; // one more than the model has; the last holds the result
  Buffer<float> readout_z;        // (receivers, readout channels)
  Buffer<double> eps;             // (n_local,), eV
  Buffer<float> g_q, g_mu;        // (N, F), (N, 3, F); gradient by the features before the layer
  Buffer<float> g_q_next, g_mu_next;
  Buffer<float> g_edge; // (E, 4), by sender; gradient by distance and unit vector
};

// Sets the initial features of all nodes. The client has filled the graph and the species.
void embed(const Model &model, Workspace &work);

// Computes layers[depth + 1] from layers[depth], for the nodes that receive.
void forward_layer(const Model &model, Workspace &work, std::size_t depth);

// Computes the network energies `eps` of the first n_local nodes, and the gradient of their sum by
// the features after the last layer.
void readout(const Model &model, Workspace &work, int64_t n_local);

// Computes the gradient by the features of layers[depth] from the gradient by layers[depth + 1]
// (except for depth 0), and adds the share of the layer to g_edge.
void adjoint_layer(const Model &model, Workspace &work, std::size_t depth);

// Computes the gradient of sum(eps) by one edge vector, (3,) in eV/angstrom. All adjoint layers
// must have run.
void edge_gradient(const Workspace &work, int64_t edge, double *gradient);

} // namespace mlff_student
