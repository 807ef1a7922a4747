#include "evaluate.h"

#include "parallel.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace mlff_student {

void evaluate_graph(const Model &model, Workspace &work, int64_t n_local, double *energies,
                    double *gradient) {
  embed(model, work);
  const std::size_t depth = model.layers.size();
  for (std::size_t layer = 0; layer < depth; layer++) forward_layer(model, work, layer);
  readout(model, work, n_local);
  for (std::size_t layer = gradient ? depth : 0; layer-- > 0;) adjoint_layer(model, work, layer);
  assemble(model, work, n_local, energies, gradient);
}

void assemble(const Model &model, const Workspace &work, int64_t n_local, double *energies,
              double *gradient) {
  const Graph &graph = work.graph;
  in_pieces(work.threads, graph.receivers, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int32_t species = work.species[i];
      double repulsion = 0.0;
      for (int64_t e = graph.first[i]; e < graph.first[i + 1]; e++) {
        if (gradient) edge_gradient(work, e, gradient + 3 * e);
        if (i >= n_local) continue;
        const double *r = &graph.vectors[3 * e];
        const double distance = std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
        const int32_t other = work.species[graph.sender[e]];
        if (!model.repulsion.reaches(distance, species, other)) continue;
        // Half of a pair's repulsion belongs to each of its two directed edges.
        const auto pair = model.repulsion(distance, species, other);
        repulsion += 0.5 * pair.energy;
        for (int a = 0; gradient && a < 3; a++)
          gradient[3 * e + a] += 0.5 * pair.derivative / distance * r[a];
      }
      if (i < n_local) energies[i] = work.eps[i] + model.references[species] + repulsion;
    }
  });
}

void evaluate_edges(const Model &model, Workspace &work, EdgeMemory &memory, int64_t atoms,
                    const Edges &edges, int64_t n_local, double *energies, double *gradient) {
  // A counting sort by receiver; edges of the same receiver keep their order.
  Graph &graph = work.graph;
  graph.resize(atoms, atoms, edges.count);
  const int64_t *receiver = edges.index, *sender = receiver + edges.count;
  std::fill_n(graph.first.data(), atoms + 1, 0);
  for (int64_t e = 0; e < edges.count; e++) graph.first[receiver[e] + 1]++;
  for (int64_t i = 0; i < atoms; i++) graph.first[i + 1] += graph.first[i];
  int64_t *next = memory.next.reserve(atoms), *position = memory.position.reserve(edges.count);
  std::copy_n(graph.first.data(), atoms, next);
  for (int64_t e = 0; e < edges.count; e++) {
    const int64_t at = position[e] = next[receiver[e]]++;
    graph.sender[at] = static_cast<int32_t>(sender[e]);
    std::copy_n(edges.vectors + 3 * e, 3, &graph.vectors[3 * at]);
  }
  graph.complete(model, work.threads);
  double *sorted = memory.gradient.reserve(3 * edges.count);
  evaluate_graph(model, work, n_local, energies, sorted);
  for (int64_t e = 0; e < edges.count; e++)
    std::copy_n(sorted + 3 * position[e], 3, gradient + 3 * e);
}

namespace {

using Virial = std::array<double, 9>;

// Adds the virial of an edge.
void add(Virial &to, const double *vector, const double *gradient) {
  for (int a = 0; a < 3; a++)
    for (int b = 0; b < 3; b++) to[3 * a + b] -= vector[a] * gradient[b];
}

} // namespace

void gather_forces(const Workspace &work, const double *gradient, double *forces, double *virial,
                   double *virials) {
  const Graph &graph = work.graph;
  const int64_t pieces = count_pieces(graph.nodes);
  thread_local Buffer<Virial> memory;
  Virial *shares = memory.reserve(pieces); // of the virial, one for each piece
  in_pieces(work.threads, graph.nodes, [&](int64_t begin, int64_t end) {
    Virial &share = shares[begin / ROWS_AT_ONCE];
    share = {};
    for (int64_t i = begin; i < end; i++) {
      double f[3] = {};
      Virial own{};
      if (i < graph.receivers)
        for (int64_t e = graph.first[i]; e < graph.first[i + 1]; e++) {
          for (int a = 0; a < 3; a++) f[a] += gradient[3 * e + a];
          add(own, &graph.vectors[3 * e], gradient + 3 * e);
        }
      for (int k = 0; k < 9; k++) share[k] += own[k];
      for (int64_t k = graph.sender_first[i]; k < graph.sender_first[i + 1]; k++) {
        const int64_t e = graph.edge_of[k];
        for (int a = 0; a < 3; a++) f[a] -= gradient[3 * e + a];
        if (virials) add(own, &graph.vectors[3 * e], gradient + 3 * e);
      }
      if (forces) std::copy_n(f, 3, forces + 3 * i);
      for (int k = 0; virials && k < 9; k++) virials[9 * i + k] = 0.5 * own[k];
    }
  });
  if (!virial) return;
  std::fill_n(virial, 9, 0.0);
  for (int64_t piece = 0; piece < pieces; piece++)
    for (int k = 0; k < 9; k++) virial[k] += shares[piece][k];
}

} // namespace mlff_student
