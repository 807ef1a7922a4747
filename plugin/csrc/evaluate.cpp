#include "evaluate.h"

#include "parallel.h"

#include <cmath>

namespace mlff_student {

void evaluate_graph(const Model &model, Workspace &work, int64_t n_local, double *energies,
                    double *gradient) {
  embed(model, work);
  const std::size_t depth = model.layers.size();
  for (std::size_t layer = 0; layer < depth; layer++) forward_layer(model, work, layer);
  readout(model, work, n_local);
  for (std::size_t layer = depth; layer-- > 0;) adjoint_layer(model, work, layer);
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
        double *g = gradient + 3 * e;
        edge_gradient(work, e, g);
        if (i >= n_local) continue;
        const double *r = &graph.vectors[3 * e];
        const double distance = std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
        const int32_t other = work.species[graph.sender[e]];
        if (!model.repulsion.reaches(distance, species, other)) continue;
        // Half of a pair's repulsion belongs to each of its two directed edges.
        const auto pair = model.repulsion(distance, species, other);
        repulsion += 0.5 * pair.energy;
        for (int a = 0; a < 3; a++) g[a] += 0.5 * pair.derivative / distance * r[a];
      }
      if (i < n_local) energies[i] = work.eps[i] + model.references[species] + repulsion;
    }
  });
}

void gather_forces(const Workspace &work, const double *gradient, double *forces, double *virial) {
  const Graph &graph = work.graph;
  const int64_t pieces = count_pieces(graph.nodes);
  thread_local Buffer<std::array<double, 9>> memory;
  std::array<double, 9> *shares = memory.reserve(pieces); // of the virial, one for each piece
  in_pieces(work.threads, graph.nodes, [&](int64_t begin, int64_t end) {
    auto &share = shares[begin / ROWS_AT_ONCE];
    share = {};
    for (int64_t i = begin; i < end; i++) {
      double f[3] = {};
      if (i < graph.receivers)
        for (int64_t e = graph.first[i]; e < graph.first[i + 1]; e++)
          for (int a = 0; a < 3; a++) {
            f[a] += gradient[3 * e + a];
            for (int b = 0; b < 3; b++)
              share[3 * a + b] -= graph.vectors[3 * e + a] * gradient[3 * e + b];
          }
      for (int64_t k = graph.sender_first[i]; k < graph.sender_first[i + 1]; k++)
        for (int a = 0; a < 3; a++) f[a] -= gradient[3 * int64_t{graph.edge_of[k]} + a];
      for (int a = 0; a < 3; a++) forces[3 * i + a] = f[a];
    }
  });
  for (int k = 0; k < 9; k++) virial[k] = 0.0;
  for (int64_t piece = 0; piece < pieces; piece++)
    for (int k = 0; k < 9; k++) virial[k] += shares[piece][k];
}

} // namespace mlff_student
