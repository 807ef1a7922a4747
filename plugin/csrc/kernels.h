// The loops over edges and channels, compiled once for each instruction set. They take and return
// plain pointers.
#pragma once

#include <cstdint>

namespace mlff_student {

constexpr int KNOT_ROWS = 3; // rows of a filter table at a knot: value, slope and curvature
constexpr int TABLE_ROWS = 2 * KNOT_ROWS; // rows that one distance needs, of two knots
constexpr int CHANNEL_MULTIPLE = 16;      // numbers of channels are multiples of it
constexpr int PANEL = CHANNEL_MULTIPLE;   // columns of a matrix that are stored together

// The geometry of a directed edge i <- j, the same for every layer. It fills one cache line.
struct alignas(64) EdgeGeometry {
  float value[TABLE_ROWS];      // weights of the table's rows in the filter
  float derivative[TABLE_ROWS]; // their weights in the filter's derivative, 1/angstrom
  float unit[3];                // r_ij / |r_ij|
  int32_t knot;                 // the lower of the two knots
};

// Messages from senders to receivers in one layer. Neighbours of row k are entries first[k] to
// first[k + 1].
struct MessageTask {
  int channels; // F
  int block;    // channels that are stored together in the filter table
  int64_t knots;
  const int64_t *first;      // (receivers + 1,)
  const int32_t *sender;     // (E,)
  const EdgeGeometry *edges; // (E,)
  const float *table;        // (F / block, knots, KNOT_ROWS, parts, block), see RadialTable
  const float *phi;          // (N, parts F)
  const float *q, *mu;       // (N, F), (N, 3, F) before the layer; mu is null in the first
  float *q_out, *mu_out;     // (receivers, F), (receivers, 3, F)
};

// The adjoint of the messages of one layer, from receivers to senders.
struct AdjointTask {
  int channels, block;
  int64_t knots;
  const int64_t *first;      // (N + 1,), by sender
  const int32_t *receiver;   // (E,), by sender
  const EdgeGeometry *edges; // (E,), by sender
  const float *table;
  const float *phi;        // (N, parts F)
  const float *mu;         // (N, 3, F) before the layer; null in the first
  const float *g_q, *g_mu; // (receivers, F), (receivers, 3, F) after the layer's messages
  int64_t receivers;       // later rows have no gradient of their own
  float *g_phi;            // (end - begin, 3F); unused in the first layer
  float *g_mu_out;         // (N, 3, F) before the layer; unused in the first
  float *g_edge;           // (E, 4), by sender; the gradient by distance and unit vector is added
};

// The matrix product y = x W, plus `start`. The columns of W are stored in panels of PANEL columns,
// in each of which the rows follow one another.
struct ProductTask {
  const float *x;      // (rows, depth), a row after the other
  const float *panels; // (columns / PANEL, panel_depth, PANEL), from the first row that is used
  const float *start;  // (rows, columns) with start_stride between rows; null: zero
  float *y;            // (rows, columns)
  int64_t rows, columns, depth;
  int64_t panel_depth;  // rows of W that are stored
  int64_t start_stride; // 0 adds the same row to all rows
};

// The functions of one instruction set. All counts of floats are multiples of CHANNEL_MULTIPLE.
struct Kernels {
  void (*messages)(const MessageTask &, int64_t begin, int64_t end);
  void (*messages_adjoint)(const AdjointTask &, int64_t begin, int64_t end);
  void (*product)(const ProductTask &);
  void (*silu)(const float *x, float *out, int64_t count);
  // out *= silu'(x)
  void (*times_silu_derivative)(const float *x, float *out, int64_t count);
  // norm = sqrt(sum_a v_a^2 + floor)
  void (*norms)(const float *v, float *norm, int64_t rows, int channels);
  // q += a_q + a_v norm, mu += a_v v; without the second if mu is null
  void (*update)(const float *a, const float *norm, const float *v, float *a_v, float *q, float *mu,
                 int64_t rows, int channels);
  // out = [g_q, g_q norm + sum_a g_mu_a v_a]
  void (*gate_adjoint)(const float *g_q, const float *g_mu, const float *norm, const float *v,
                       float *out, int64_t rows, int channels);
  // g_in = gradient by [q, norm]: g_q += its first half, g_v = g_mu a_v + v (g_norm / norm)
  void (*vector_adjoint)(const float *g_in, float *g_q, const float *g_mu, const float *a_v,
                         const float *norm, const float *v, float *g_v, int64_t rows, int channels);
};

// Returns the kernels of the instruction set in use.
const Kernels &kernels();

} // namespace mlff_student
