// This file is compiled once for each instruction set, which is also the name of its namespace. It
// includes no header with inline functions: the linker would keep one copy of such a function,
// which may be the copy for an instruction set that this processor does not have.
#include "kernels.h"

#include <utility>

#ifndef MLFF_STUDENT_ISA
#define MLFF_STUDENT_ISA generic
#endif

namespace mlff_student {
namespace MLFF_STUDENT_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

using Vec = float __attribute__((vector_size(4 * LANES), may_alias));
using IntVec = int32_t __attribute__((vector_size(4 * LANES), may_alias));
using Quad = float __attribute__((vector_size(16), may_alias));

constexpr float NORM_FLOOR = 1e-8f; // as in student.py

inline Vec load(const float *p) { return *reinterpret_cast<const Vec *>(p); }
inline void store(float *p, Vec x) { *reinterpret_cast<Vec *>(p) = x; }

// Of each four lanes: [a0 + a2, b0 + b2, a1 + a3, b1 + b3], the first half of a transposed sum.
template <int... I> inline Vec pair_sum(Vec a, Vec b, std::integer_sequence<int, I...>) {
  const IntVec low = {((I & ~3) + ((I & 3) >> 1) + (I & 1) * LANES)...};
  const IntVec high = {((I & ~3) + 2 + ((I & 3) >> 1) + (I & 1) * LANES)...};
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
}

// Of each four lanes: [a0 + a2, a1 + a3, b0 + b2, b1 + b3], the second half of it.
template <int... I> inline Vec couple_sum(Vec a, Vec b, std::integer_sequence<int, I...>) {
  const IntVec low = {((I & ~3) + (I & 1) + ((I & 2) >> 1) * LANES)...};
  const IntVec high = {((I & ~3) + 2 + (I & 1) + ((I & 2) >> 1) * LANES)...};
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
}

// Returns [sum a, sum b, sum c, sum d]. At 16 lanes these are 13 instructions; four separate sums
// would be 32.
inline Quad sums(Vec a, Vec b, Vec c, Vec d) {
  constexpr std::make_integer_sequence<int, LANES> lanes{};
  const Vec all = couple_sum(pair_sum(a, b, lanes), pair_sum(c, d, lanes), lanes);
  union {
    Vec whole;
    Quad part[LANES / 4];
  } split = {all};
  Quad total = split.part[0];
  for (int k = 1; k < LANES / 4; k++) total += split.part[k];
  return total;
}

// Returns e^x with a relative error of 1e-7. Arguments below -87 and above 88 are set to these
// values.
inline Vec exponential(Vec x) {
  x = x < -87.0f ? Vec{} - 87.0f : x;
  x = x > 88.0f ? Vec{} + 88.0f : x;
  const float shift = 12582912.0f; // 1.5 2^23; adding and subtracting it rounds to an integer
  const Vec n = (x * 1.44269504f + shift) - shift;
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f; // ln 2 is split into two parts
  Vec p = Vec{} + 1.9875691500e-4f; // polynomial of expf in the Cephes library
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const IntVec exponent = (__builtin_convertvector(n, IntVec) + 127) << 23;
  return p * reinterpret_cast<const Vec &>(exponent);
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }

inline Vec root(Vec x) {
  for (int k = 0; k < LANES; k++) x[k] = __builtin_sqrtf(x[k]);
  return x;
}

// Returns the filter, or its derivative, for one vector of channels.
inline Vec hermite(const float *rows, int stride, const float (&weight)[TABLE_ROWS]) {
  Vec sum = load(rows) * weight[0];
  for (int k = 1; k < TABLE_ROWS; k++) sum += load(rows + k * stride) * weight[k];
  return sum;
}

// The sums of one receiver over its neighbours stay in registers, for V vectors of channels at
// once. The loop over blocks of channels is the outermost, so that one block of the table stays in
// the second-level cache for all receivers of a task.
template <int V, bool FIRST> void messages(const MessageTask &task, int64_t begin, int64_t end) {
  constexpr int PARTS = FIRST ? 2 : 3;
  constexpr int WIDTH = V * LANES;
  const int f = task.channels, block = task.block, stride = PARTS * block;
  for (int channel = 0; channel < f; channel += WIDTH) {
    const float *table =
        task.table + channel / block * (task.knots * KNOT_ROWS * stride) + channel % block;
    for (int64_t i = begin; i < end; i++) {
      Vec q[V], mu[3][V];
      for (int v = 0; v < V; v++) {
        const int64_t c = channel + v * LANES;
        q[v] = load(task.q + i * f + c);
        for (int a = 0; a < 3; a++) mu[a][v] = FIRST ? Vec{} : load(task.mu + (3 * i + a) * f + c);
      }
      for (int64_t e = task.first[i]; e < task.first[i + 1]; e++) {
        const EdgeGeometry &edge = task.edges[e];
        const int64_t j = task.sender[e];
        const float *rows = table + int64_t{edge.knot} * (KNOT_ROWS * stride);
        const float *phi = task.phi + j * (PARTS * f) + channel;
        const float *mu_j = task.mu + (FIRST ? 0 : 3 * j * f + channel);
        for (int v = 0; v < V; v++) {
          const int c = v * LANES;
          q[v] += load(phi + c) * hermite(rows + c, stride, edge.value);
          const Vec x_u = load(phi + f + c) * hermite(rows + block + c, stride, edge.value);
          for (int a = 0; a < 3; a++) mu[a][v] += x_u * edge.unit[a];
          if constexpr (!FIRST) {
            const Vec x_mu =
                load(phi + 2 * f + c) * hermite(rows + 2 * block + c, stride, edge.value);
            for (int a = 0; a < 3; a++) mu[a][v] += x_mu * load(mu_j + a * f + c);
          }
        }
      }
      for (int v = 0; v < V; v++) {
        const int64_t c = channel + v * LANES;
        store(task.q_out + i * f + c, q[v]);
        for (int a = 0; a < 3; a++) store(task.mu_out + (3 * i + a) * f + c, mu[a][v]);
      }
    }
  }
}

// The adjoint of `messages`: sums the gradients of a sender over its receivers.
template <int V, bool FIRST>
void messages_adjoint(const AdjointTask &task, int64_t begin, int64_t end) {
  constexpr int PARTS = FIRST ? 2 : 3;
  constexpr int WIDTH = V * LANES;
  const int f = task.channels, block = task.block, stride = PARTS * block;
  for (int channel = 0; channel < f; channel += WIDTH) {
    const float *table =
        task.table + channel / block * (task.knots * KNOT_ROWS * stride) + channel % block;
    for (int64_t j = begin; j < end; j++) {
      Vec g_phi[3][V] = {}, g_mu_j[3][V] = {};
      const float *phi = task.phi + j * (PARTS * f) + channel;
      const float *mu = task.mu + (FIRST ? 0 : 3 * j * f + channel);
      if (!FIRST && j < task.receivers)
        for (int v = 0; v < V; v++)
          for (int a = 0; a < 3; a++)
            g_mu_j[a][v] = load(task.g_mu + (3 * j + a) * f + channel + v * LANES);
      for (int64_t k = task.first[j]; k < task.first[j + 1]; k++) {
        const EdgeGeometry &edge = task.edges[k];
        const int64_t i = task.receiver[k];
        const float *rows = table + int64_t{edge.knot} * (KNOT_ROWS * stride);
        const float *g_q = task.g_q + i * f + channel;
        const float *g_mu = task.g_mu + 3 * i * f + channel;
        // All filters are evaluated first, so that the weights of the rows stay in registers.
        Vec w[PARTS][V], dw[PARTS][V];
        for (int part = 0; part < PARTS; part++)
          for (int v = 0; v < V; v++) {
            const float *at = rows + part * block + v * LANES;
            w[part][v] = hermite(at, stride, edge.value);
            dw[part][v] = hermite(at, stride, edge.derivative);
          }
        Vec g_distance = {}, g_unit[3] = {};
        for (int v = 0; v < V; v++) {
          const int c = v * LANES;
          const Vec g[3] = {load(g_mu + c), load(g_mu + f + c), load(g_mu + 2 * f + c)};
          const Vec g_x_q = load(g_q + c);
          const Vec g_x_u = g[0] * edge.unit[0] + g[1] * edge.unit[1] + g[2] * edge.unit[2];
          const Vec phi_u = load(phi + f + c), x_u = phi_u * w[1][v];
          g_distance += g_x_q * load(phi + c) * dw[0][v] + g_x_u * phi_u * dw[1][v];
          for (int a = 0; a < 3; a++) g_unit[a] += g[a] * x_u;
          if constexpr (!FIRST) {
            const Vec phi_mu = load(phi + 2 * f + c), x_mu = phi_mu * w[2][v];
            const Vec g_x_mu =
                g[0] * load(mu + c) + g[1] * load(mu + f + c) + g[2] * load(mu + 2 * f + c);
            g_distance += g_x_mu * phi_mu * dw[2][v];
            g_phi[0][v] += g_x_q * w[0][v];
            g_phi[1][v] += g_x_u * w[1][v];
            g_phi[2][v] += g_x_mu * w[2][v];
            for (int a = 0; a < 3; a++) g_mu_j[a][v] += g[a] * x_mu;
          }
        }
        reinterpret_cast<Quad *>(task.g_edge)[k] +=
            sums(g_distance, g_unit[0], g_unit[1], g_unit[2]);
      }
      if constexpr (!FIRST)
        for (int v = 0; v < V; v++)
          for (int part = 0; part < 3; part++) {
            const int64_t c = channel + v * LANES;
            store(task.g_phi + (3 * (j - begin) + part) * f + c, g_phi[part][v]);
            store(task.g_mu_out + (3 * j + part) * f + c, g_mu_j[part][v]);
          }
    }
  }
}

// Vectors of channels at once. AVX-512 has registers for two; other processors take 16 channels.
constexpr int NARROW = CHANNEL_MULTIPLE / LANES;
constexpr int WIDE = LANES == 16 ? 2 : NARROW;

void messages_any(const MessageTask &task, int64_t begin, int64_t end) {
  const bool wide = task.block % (WIDE * LANES) == 0;
  if (!task.mu)
    wide ? messages<WIDE, true>(task, begin, end) : messages<NARROW, true>(task, begin, end);
  else
    wide ? messages<WIDE, false>(task, begin, end) : messages<NARROW, false>(task, begin, end);
}

void messages_adjoint_any(const AdjointTask &task, int64_t begin, int64_t end) {
  const bool wide = task.block % (WIDE * LANES) == 0;
  if (!task.mu)
    wide ? messages_adjoint<WIDE, true>(task, begin, end)
         : messages_adjoint<NARROW, true>(task, begin, end);
  else
    wide ? messages_adjoint<WIDE, false>(task, begin, end)
         : messages_adjoint<NARROW, false>(task, begin, end);
}

// A tile of the product stays in registers: R rows of x by V vectors of columns. Of 32 registers
// (AVX-512) 24 hold the tile, of 16 (AVX2, SSE) 12 or 8; the others hold a row of W and a number of
// x.
#if defined(__AVX512F__)
constexpr int TILE_ROWS = 12, TILE_PANELS = 2;
#elif defined(__AVX__)
constexpr int TILE_ROWS = 6, TILE_PANELS = 1;
#else
constexpr int TILE_ROWS = 2, TILE_PANELS = 1;
#endif

// The terms of an element are added up in blocks of so many, and then the blocks. A single sum of
// all terms would have a larger rounding error.
constexpr int64_t TERMS = 64;

template <int R, int V> void product_tile(const ProductTask &task, int64_t row, int64_t column) {
  const float *panel = task.panels + column * task.panel_depth, *x = task.x + row * task.depth;
  float *y = task.y + row * task.columns + column;
  const float *before = task.start ? task.start + row * task.start_stride + column : nullptr;
  int64_t stride = task.start_stride; // between rows of `before`
  for (int64_t k = 0; k < task.depth;) {
    const int64_t end = k + TERMS < task.depth ? k + TERMS : task.depth;
    Vec sum[R][V] = {};
    for (; k < end; k++) {
      Vec w[V];
      for (int v = 0; v < V; v++) {
        const int c = v * LANES;
        w[v] = load(panel + c / PANEL * task.panel_depth * PANEL + k * PANEL + c % PANEL);
      }
      for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) sum[r][v] += w[v] * x[r * task.depth + k];
    }
    if (before)
      for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) sum[r][v] += load(before + r * stride + v * LANES);
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) store(y + r * task.columns + v * LANES, sum[r][v]);
    before = y, stride = task.columns;
  }
}

// Computes `panels` panels of columns for all rows. The rows are divided evenly among the tiles.
template <int V, int... I>
void product_columns(const ProductTask &task, int64_t column, std::integer_sequence<int, I...>) {
  using Tile = void (*)(const ProductTask &, int64_t, int64_t);
  static constexpr Tile of_rows[] = {product_tile<I + 1, V>...};
  const int64_t tiles = (task.rows + TILE_ROWS - 1) / TILE_ROWS;
  for (int64_t tile = 0, row = 0; tile < tiles; tile++) {
    const int64_t end = task.rows * (tile + 1) / tiles;
    of_rows[end - row - 1](task, row, column);
    row = end;
  }
}

void product(const ProductTask &task) {
  constexpr std::make_integer_sequence<int, TILE_ROWS> rows{};
  int64_t column = 0;
  for (; column + TILE_PANELS * PANEL <= task.columns; column += TILE_PANELS * PANEL)
    product_columns<TILE_PANELS * PANEL / LANES>(task, column, rows);
  if (column < task.columns) product_columns<PANEL / LANES>(task, column, rows);
}

void silu(const float *x, float *out, int64_t count) {
  for (int64_t k = 0; k < count; k += LANES) store(out + k, load(x + k) * sigmoid(load(x + k)));
}

void times_silu_derivative(const float *x, float *out, int64_t count) {
  for (int64_t k = 0; k < count; k += LANES) {
    const Vec gate = sigmoid(load(x + k)), value = load(x + k) * gate;
    store(out + k, load(out + k) * (gate + value * (1.0f - gate)));
  }
}

void norms(const float *v, float *norm, int64_t rows, int f) {
  for (int64_t row = 0; row < rows; row++, v += 3 * f, norm += f)
    for (int c = 0; c < f; c += LANES) {
      const Vec x = load(v + c), y = load(v + f + c), z = load(v + 2 * f + c);
      store(norm + c, root(x * x + y * y + z * z + NORM_FLOOR));
    }
}

void update(const float *a, const float *norm, const float *v, float *a_v, float *q, float *mu,
            int64_t rows, int f) {
  for (int64_t row = 0; row < rows; row++, a += 2 * f, norm += f, v += 3 * f, a_v += f, q += f) {
    for (int c = 0; c < f; c += LANES) {
      const Vec gate = load(a + f + c);
      store(a_v + c, gate);
      store(q + c, load(q + c) + load(a + c) + gate * load(norm + c));
      for (int k = 0; mu && k < 3 * f; k += f)
        store(mu + k + c, load(mu + k + c) + gate * load(v + k + c));
    }
    if (mu) mu += 3 * f;
  }
}

void gate_adjoint(const float *g_q, const float *g_mu, const float *norm, const float *v,
                  float *out, int64_t rows, int f) {
  for (int64_t row = 0; row < rows; row++) {
    for (int c = 0; c < f; c += LANES) {
      store(out + c, load(g_q + c));
      Vec gate = load(g_q + c) * load(norm + c);
      for (int k = 0; k < 3 * f; k += f) gate += load(g_mu + k + c) * load(v + k + c);
      store(out + f + c, gate);
    }
    out += 2 * f, g_q += f, g_mu += 3 * f, norm += f, v += 3 * f;
  }
}

void vector_adjoint(const float *g_in, float *g_q, const float *g_mu, const float *a_v,
                    const float *norm, const float *v, float *g_v, int64_t rows, int f) {
  for (int64_t row = 0; row < rows; row++) {
    for (int c = 0; c < f; c += LANES) {
      const Vec gate = load(a_v + c), g = load(g_q + c);
      const Vec along = (load(g_in + f + c) + g * gate) / load(norm + c);
      store(g_q + c, g + load(g_in + c));
      for (int k = 0; k < 3 * f; k += f)
        store(g_v + k + c, load(g_mu + k + c) * gate + load(v + k + c) * along);
    }
    g_in += 2 * f, g_q += f, g_mu += 3 * f, a_v += f, norm += f, v += 3 * f, g_v += 3 * f;
  }
}

} // namespace

extern const Kernels table;
const Kernels table = {messages_any, messages_adjoint_any,  product,
                       silu,         times_silu_derivative, norms,
                       update,       gate_adjoint,          vector_adjoint};

} // namespace MLFF_STUDENT_ISA
} // namespace mlff_student
