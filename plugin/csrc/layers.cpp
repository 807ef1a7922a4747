#include "layers.h"

#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

namespace mlff_student {

namespace {

enum class Start { ZERO, BIAS, KEEP };

// Computes y = x W^T, plus b or the old y; x is (rows, inputs), y (rows, outputs). `from` and
// `inputs` choose columns of W.
void apply(const Linear &map, const float *x, float *y, int64_t rows, Start start, int64_t from,
           int64_t inputs) {
  const float *before[] = {nullptr, map.bias.data(), y};
  kernels().product({x, map.panels.data() + from * PANEL, before[static_cast<int>(start)], y, rows,
                     map.outputs, inputs, map.inputs, start == Start::KEEP ? map.outputs : 0});
}

void apply(const Linear &map, const float *x, float *y, int64_t rows, Start start) {
  apply(map, x, y, rows, start, 0, map.inputs);
}

// Computes g_x = g_y W, plus the old g_x: the adjoint of `apply`.
void apply_adjoint(const Linear &map, const float *g_y, float *g_x, int64_t rows, Start start) {
  kernels().product({g_y, map.adjoint_panels.data(), start == Start::KEEP ? g_x : nullptr, g_x,
                     rows, map.inputs, map.outputs, map.stored_outputs,
                     start == Start::KEEP ? map.inputs : 0});
}

// Working memory of the calling thread for one piece, `width` floats for each row.
float *scratch(int64_t width) {
  thread_local Buffer<float> memory;
  return memory.reserve(ROWS_AT_ONCE * width);
}

} // namespace

void Graph::resize(int64_t new_nodes, int64_t new_receivers, int64_t new_edges) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  if (new_nodes > most || new_edges > most)
    throw std::invalid_argument("mlff_student: the system has " + std::to_string(new_nodes) +
                                " atoms and " + std::to_string(new_edges) +
                                " edges; the kernels allow at most " + std::to_string(most) +
                                " of each");
  nodes = new_nodes, receivers = new_receivers, edges = new_edges;
  first.reserve(receivers + 1);
  sender.reserve(edges);
  vectors.reserve(3 * edges);
}

std::size_t Graph::bytes() const {
  return first.bytes() + sender.bytes() + vectors.bytes() + geometry.bytes() +
         sender_first.bytes() + receiver_of.bytes() + edge_of.bytes() + place_of.bytes() +
         geometry_by_sender.bytes();
}

std::size_t Workspace::bytes() const {
  std::size_t sum = graph.bytes() + species.bytes() + readout_z.bytes() + eps.bytes() +
                    g_q.bytes() + g_mu.bytes() + g_q_next.bytes() + g_mu_next.bytes() +
                    g_edge.bytes();
  for (const LayerState &state : layers)
    sum += state.q.bytes() + state.mu.bytes() + state.phi.bytes() + state.v.bytes() +
           state.norm.bytes() + state.z.bytes() + state.a_v.bytes();
  return sum;
}

void Graph::complete(const Model &model, int threads, const int32_t *senders,
                     const double *edge_vectors) {
  // A counting sort by sender; edges of the same sender keep their order.
  sender_first.reserve(nodes + 1);
  receiver_of.reserve(edges);
  edge_of.reserve(edges);
  place_of.reserve(edges);
  std::fill_n(sender_first.data(), nodes + 1, 0);
  if (senders) std::copy_n(senders, edges, sender.data());
  for (int64_t e = 0; e < edges; e++) {
    if (sender[e] < 0 || sender[e] >= nodes)
      throw std::invalid_argument("mlff_student: edge " + std::to_string(e) + " names node " +
                                  std::to_string(sender[e]) + " of " + std::to_string(nodes));
    sender_first[sender[e] + 1]++;
  }
  for (int64_t j = 0; j < nodes; j++) sender_first[j + 1] += sender_first[j];
  for (int64_t i = 0; i < receivers; i++)
    for (int64_t e = first[i]; e < first[i + 1]; e++) {
      const int64_t at = sender_first[sender[e]]++;
      receiver_of[at] = static_cast<int32_t>(i);
      edge_of[at] = static_cast<int32_t>(e);
      place_of[e] = static_cast<int32_t>(at);
    }
  for (int64_t j = nodes; j > 0; j--) sender_first[j] = sender_first[j - 1];
  sender_first[0] = 0;

  geometry.reserve(edges);
  geometry_by_sender.reserve(edges);
  std::atomic<bool> usable{true};
  in_pieces(threads, receivers, [&](int64_t begin, int64_t end) {
    const int64_t from = first[begin], to = first[end];
    if (edge_vectors) std::copy_n(edge_vectors + 3 * from, 3 * (to - from), &vectors[3 * from]);
    for (int64_t e = from; e < to; e++) {
      if (!locate(&vectors[3 * e], model.cutoff, model.knots, geometry[e])) usable = false;
      // Stored a second time, so that the adjoint of every layer reads it in order.
      geometry_by_sender[place_of[e]] = geometry[e];
    }
  });
  if (!usable) check_vectors(vectors.data(), edges);
}

void check_vectors(const double *vectors, int64_t count) {
  for (int64_t e = 0; e < count; e++) {
    const double *r = vectors + 3 * e, square = r[0] * r[0] + r[1] * r[1] + r[2] * r[2];
    if (square > 0.0 && std::isfinite(square)) continue;
    const std::string edge = "mlff_student: edge vector " + std::to_string(e);
    if (square == 0.0) throw std::invalid_argument(edge + " has no length; do two atoms coincide?");
    char text[100];
    std::snprintf(text, sizeof(text), "(%.10g, %.10g, %.10g)", r[0], r[1], r[2]);
    throw std::invalid_argument(edge + " is NaN or infinite: " + text);
  }
}

void embed(const Model &model, Workspace &work) {
  const int64_t nodes = work.graph.nodes, f = model.channels;
  work.layers.resize(model.layers.size() + 1);
  float *q = work.layers[0].q.reserve(nodes * f);
  for (int64_t i = 0; i < nodes; i++)
    std::memcpy(q + i * f, &model.embedding[work.species[i] * f], f * sizeof(float));
  // Memory of the later layers, so that an engine can fill rows of ghosts before a layer runs.
  for (std::size_t depth = 1; depth < work.layers.size(); depth++) {
    work.layers[depth].q.reserve(nodes * f);
    work.layers[depth].mu.reserve(3 * nodes * f);
  }
}

void forward_layer(const Model &model, Workspace &work, std::size_t depth) {
  const Kernels &run = kernels();
  const Graph &graph = work.graph;
  const Layer &layer = model.layers[depth];
  LayerState &state = work.layers[depth];
  LayerState &next = work.layers[depth + 1];
  const int64_t f = model.channels, parts = filter_parts(depth);
  const bool last = depth + 1 == model.layers.size();

  float *phi = state.phi.reserve(graph.nodes * parts * f);
  in_pieces(work.threads, graph.nodes, [&](int64_t begin, int64_t end) {
    float *h = scratch(f); // (rows, F)
    run.silu(&state.q[begin * f], h, (end - begin) * f);
    apply(layer.message, h, phi + begin * parts * f, end - begin, Start::BIAS);
  });

  float *v_all = state.v.reserve(3 * graph.receivers * f);
  float *norm_all = state.norm.reserve(graph.receivers * f);
  float *z_all = state.z.reserve(graph.receivers * f);
  float *a_v_all = state.a_v.reserve(graph.receivers * f);
  const MessageTask task = {model.channels,      table_block(model.channels),
                            model.knots,         graph.first.data(),
                            graph.sender.data(), graph.geometry.data(),
                            layer.filter.data(), phi,
                            state.q.data(),      depth == 0 ? nullptr : state.mu.data(),
                            next.q.data(),       next.mu.data()};
  in_pieces(work.threads, graph.receivers, [&](int64_t begin, int64_t end) {
    const int64_t rows = end - begin;
    run.messages(task, begin, end);
    float *q = &next.q[begin * f], *mu = &next.mu[3 * begin * f];
    float *v = v_all + 3 * begin * f, *norm = norm_all + begin * f, *z = z_all + begin * f;
    float *h = scratch(3 * f), *a = h + rows * f; // (rows, F), (rows, 2F)
    apply(layer.mix, mu, v, 3 * rows, Start::ZERO);
    run.norms(v, norm, rows, model.channels);
    apply(layer.update_in, q, z, rows, Start::BIAS, 0, f);
    apply(layer.update_in, norm, z, rows, Start::KEEP, f, f);
    run.silu(z, h, rows * f);
    apply(layer.update_out, h, a, rows, Start::BIAS);
    run.update(a, norm, v, a_v_all + begin * f, q, last ? nullptr : mu, rows, model.channels);
  });
}

namespace {

// Returns the energy with its lower bound, and its derivative: squeeze_energies of student.py.
std::pair<double, double> squeeze_energy(double eps, double lowest) {
  constexpr double DEPTH = 2.0; // eV
  if (eps >= lowest) return {eps, 1.0};
  const double bent = std::tanh((lowest - eps) / DEPTH);
  return {lowest - DEPTH * bent, 1.0 - bent * bent};
}

} // namespace

void readout(const Model &model, Workspace &work, int64_t n_local) {
  const Kernels &run = kernels();
  const Graph &graph = work.graph;
  const Linear &in = model.readout[0];
  const Buffer<float> &weight = model.readout_weight;
  const int64_t f = model.channels, r = model.readout_channels;
  const float *q = work.layers.back().q.data();
  double *eps = work.eps.reserve(n_local);
  float *g_q = work.g_q.reserve(graph.nodes * f), *g_mu = work.g_mu.reserve(3 * graph.nodes * f);
  work.g_q_next.reserve(graph.nodes * f);
  work.g_mu_next.reserve(3 * graph.nodes * f);
  std::fill_n(work.g_edge.reserve(4 * graph.edges), 4 * graph.edges, 0.0f);
  in_pieces(work.threads, graph.receivers, [&](int64_t begin, int64_t end) {
    std::fill(g_mu + 3 * begin * f, g_mu + 3 * end * f, 0.0f);
    const int64_t rows = std::max<int64_t>(std::min(end, n_local) - begin, 0);
    std::fill(g_q + (begin + rows) * f, g_q + end * f, 0.0f);
    if (rows == 0) return;
    float *z = scratch(2 * r), *h = z + rows * r; // (rows, R) each
    apply(in, q + begin * f, z, rows, Start::BIAS);
    run.silu(z, h, rows * r);
    for (int64_t row = 0; row < rows; row++) {
      double sum = model.readout_bias;
      for (int64_t c = 0; c < r; c++) sum += static_cast<double>(h[row * r + c]) * weight[c];
      const auto [energy, slope] = squeeze_energy(sum, model.lowest);
      eps[begin + row] = energy;
      for (int64_t c = 0; c < r; c++) h[row * r + c] = static_cast<float>(slope * weight[c]);
    }
    run.times_silu_derivative(z, h, rows * r);
    apply_adjoint(in, h, g_q + begin * f, rows, Start::ZERO);
  });
}

void adjoint_layer(const Model &model, Workspace &work, std::size_t depth) {
  const Kernels &run = kernels();
  const Graph &graph = work.graph;
  const Layer &layer = model.layers[depth];
  const LayerState &state = work.layers[depth];
  const int64_t f = model.channels;
  const bool first = depth == 0;

  float *g_q_all = work.g_q.data(), *g_mu_all = work.g_mu.data();
  in_pieces(work.threads, graph.receivers, [&](int64_t begin, int64_t end) {
    const int64_t rows = end - begin;
    float *g_q = g_q_all + begin * f, *g_mu = g_mu_all + 3 * begin * f;
    const float *v = &state.v[3 * begin * f], *norm = &state.norm[begin * f];
    const float *z = &state.z[begin * f], *a_v = &state.a_v[begin * f];
    float *g_a = scratch(6 * f);                            // (rows, 2F)
    float *g_h = g_a + 2 * rows * f, *g_v = g_h + rows * f; // (rows, F), (rows, 3, F)
    run.gate_adjoint(g_q, g_mu, norm, v, g_a, rows, model.channels);
    apply_adjoint(layer.update_out, g_a, g_h, rows, Start::ZERO);
    run.times_silu_derivative(z, g_h, rows * f);
    apply_adjoint(layer.update_in, g_h, g_a, rows, Start::ZERO);
    run.vector_adjoint(g_a, g_q, g_mu, a_v, norm, v, g_v, rows, model.channels);
    apply_adjoint(layer.mix, g_v, g_mu, 3 * rows, Start::KEEP);
  });

  const AdjointTask task = {model.channels,
                            table_block(model.channels),
                            model.knots,
                            graph.sender_first.data(),
                            graph.receiver_of.data(),
                            graph.geometry_by_sender.data(),
                            layer.filter.data(),
                            state.phi.data(),
                            first ? nullptr : state.mu.data(),
                            g_q_all,
                            g_mu_all,
                            graph.receivers,
                            nullptr,
                            work.g_mu_next.data(),
                            work.g_edge.data()};
  in_pieces(work.threads, graph.nodes, [&](int64_t begin, int64_t end) {
    const int64_t rows = end - begin;
    if (first) return run.messages_adjoint(task, begin, end);
    float *g_phi = scratch(3 * f); // (rows, 3F)
    AdjointTask piece = task;
    piece.g_phi = g_phi;
    run.messages_adjoint(piece, begin, end);
    float *g_q = &work.g_q_next[begin * f];
    apply_adjoint(layer.message, g_phi, g_q, rows, Start::ZERO);
    run.times_silu_derivative(&state.q[begin * f], g_q, rows * f);
    const int64_t own = std::min(end, graph.receivers);
    for (int64_t k = begin * f; k < own * f; k++) work.g_q_next[k] += g_q_all[k];
  });
  if (first) return;
  std::swap(work.g_q, work.g_q_next);
  std::swap(work.g_mu, work.g_mu_next);
}

void edge_gradient(const Workspace &work, int64_t edge, double *gradient) {
  const EdgeGeometry &geometry = work.graph.geometry[edge];
  const float *g = &work.g_edge[4 * int64_t{work.graph.place_of[edge]}];
  const double *r = &work.graph.vectors[3 * edge];
  double along = 0.0;
  for (int a = 0; a < 3; a++) along += static_cast<double>(g[1 + a]) * geometry.unit[a];
  const double inverse = 1.0 / std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
  for (int a = 0; a < 3; a++)
    gradient[a] = g[0] * static_cast<double>(geometry.unit[a]) +
                  (g[1 + a] - along * geometry.unit[a]) * inverse;
}

} // namespace mlff_student
