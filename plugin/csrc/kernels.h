// The loops over edges and channels, compiled once for each instruction set; plain pointers in,
// plain pointers out.
#pragma once

#include <cstdint>

namespace mlff_student {

// Rows of a filter table that one distance needs: value, slope and curvature at two knots.
constexpr int TABLE_ROWS = 6;

// What a directed edge i <- j is to every layer: one cache line.
struct alignas(64) EdgeGeometry {
  float value[TABLE_ROWS];      // weights of the rows in the filter
  float derivative[TABLE_ROWS]; // the same in its derivative, 1/angstrom
  float unit[3];                // r_ij / |r_ij|
  int32_t knot;                 // the lower one
};

// Compressed rows: neighbours of row k are entries first[k] to first[k + 1].
struct MessageTask {
  int channels; // F
  int block;    // channels that lie together in the filter table
  int64_t knots;
  const int64_t *first;        // (receivers + 1,)
  const int32_t *sender;       // (E,)
  const EdgeGeometry *edges;   // (E,)
  const float *table;          // (F / block, knots, 3, parts, block), see RadialTable
  const float *phi;            // (N, parts F)
  const float *q, *mu;         // (N, F), (N, 3, F) before the layer; mu null in the first
  float *q_out, *mu_out;       // (receivers, F), (receivers, 3, F)
};

struct AdjointTask {
  int channels, block;
  int64_t knots;
  const int64_t *first;      // (N + 1,), by sender
  const int32_t *receiver;   // (E,), by sender
  const EdgeGeometry *edges; // (E,), by sender
  const float *table;
  const float *phi;          // (N, parts F)
  const float *mu;           // (N, 3, F) before the layer, null in the first
  const float *g_q, *g_mu;   // (receivers, F), (receivers, 3, F) after the layer's messages
  int64_t receivers;         // rows beyond have no gradient of their own
  float *g_phi;              // (end - begin, 3F); unused in the first layer
  float *g_mu_out;           // (N, 3, F) before the layer; unused in the first
  float *g_edge;             // (E, 4), by sender: by distance and unit vector; added to
};

// Rows are `count` vectors of a length that is a multiple of 16.
struct Kernels {
  void (*messages)(const MessageTask &, int64_t begin, int64_t end);
  void (*messages_adjoint)(const AdjointTask &, int64_t begin, int64_t end);
  void (*silu)(const float *x, float *out, int64_t count);
  // out *= silu'(x)
  void (*times_silu_derivative)(const float *x, float *out, int64_t count);
  // norm = sqrt(sum_a v_a^2 + floor)
  void (*norms)(const float *v, float *norm, int64_t rows, int channels);
  // q += a_q + a_v norm, mu += a_v v; mu null: not wanted
  void (*update)(const float *a, const float *norm, const float *v, float *a_v, float *q, float *mu,
                 int64_t rows, int channels);
  // out = [g_q, g_q norm + sum_a g_mu_a v_a]
  void (*gate_adjoint)(const float *g_q, const float *g_mu, const float *norm, const float *v,
                       float *out, int64_t rows, int channels);
  // g_in = gradient by [q, norm]: g_q += its first half, g_v = g_mu a_v + v (g_norm / norm)
  void (*vector_adjoint)(const float *g_in, float *g_q, const float *g_mu, const float *a_v,
                         const float *norm, const float *v, float *g_v, int64_t rows,
                         int channels);
};

// Those of the instruction set in use: the best that this processor runs.
const Kernels &kernels();

} // namespace mlff_student
