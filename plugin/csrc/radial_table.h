// The radial filter W(r) = (Bessel(r) A + b) envelope(r) of a layer, tabulated as a Hermite spline
// on [0, cutoff]. Forces use the derivative of the spline, so they are the exact gradient of the
// energy.
//
// The spline is quintic: it has value, slope and curvature at each knot. A cubic spline needs eight
// times as many knots for the same error. They do not fit into the cache, and the derivative loses
// digits, because it is the difference of two nearly equal float32 values over a small spacing.
#pragma once

#include "buffer.h"
#include "kernels.h"

#include <vector>

namespace mlff_student {

class RadialTable {
public:
  // weight (parts F, R) and bias (parts F,) are the linear map of R radial functions. Distances
  // below `shortest` are squeezed towards it; see squeeze_distances of student.py.
  RadialTable(const std::vector<double> &weight, const std::vector<double> &bias, int channels,
              int parts, double cutoff, double shortest, int64_t knots);

  const float *data() const { return rows_.data(); }
  // Evaluates the spline and its slope at a distance, (outputs,) each, as the kernels do.
  void evaluate(const EdgeGeometry &edge, float *value, float *slope) const;

private:
  int channels_, parts_, block_;
  int64_t knots_;
  // (F / block, knots, KNOT_ROWS, parts, block). The rows are the value, the slope times the
  // spacing, and the curvature times the spacing squared.
  Buffer<float> rows_;
};

// Returns the number of channels that are stored together in a table.
constexpr int table_block(int channels) {
  return channels % (2 * CHANNEL_MULTIPLE) == 0 ? 2 * CHANNEL_MULTIPLE : CHANNEL_MULTIPLE;
}

// Computes the geometry of an edge vector for all tables of `knots` knots. Returns false if the
// vector is not finite or has no length.
bool locate(const double *vector, double cutoff, int64_t knots, EdgeGeometry &edge);

} // namespace mlff_student
