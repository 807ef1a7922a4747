// A layer's radial filter W(r) = (Bessel(r) A + b) envelope(r), tabulated as a Hermite spline on
// [0, cutoff]. The derivative in use is that of the spline, so forces belong to the energy.
//
// The spline is quintic: value, slope and curvature at each knot. A cubic one needs eight times the
// knots for the same error, falls out of the cache with them, and loses digits in its derivative,
// which is a difference of two nearly equal float32 values over a small spacing.
#pragma once

#include "buffer.h"
#include "kernels.h"

#include <vector>

namespace mlff_student {

class RadialTable {
public:
  // weight (parts F, R), bias (parts F,) of the linear map of R radial functions; distances below
  // `shortest` are squeezed towards it, see squeeze_distances of student.py.
  RadialTable(const std::vector<double> &weight, const std::vector<double> &bias, int channels,
              int parts, double cutoff, double shortest, int64_t knots);

  const float *data() const { return rows_.data(); }
  // The spline at a distance, (outputs,) each, as the kernels evaluate it.
  void evaluate(const EdgeGeometry &edge, float *value, float *slope) const;

private:
  int channels_, parts_, block_;
  int64_t knots_;
  // (F / block, knots, 3, parts, block): value, slope times spacing, curvature times its square
  Buffer<float> rows_;
};

// Channels that lie together in a table.
constexpr int table_block(int channels) { return channels % 32 == 0 ? 32 : 16; }

// Where an edge vector lies in every table of `knots` knots. False if it is not finite.
bool locate(const double *vector, double cutoff, int64_t knots, EdgeGeometry &edge);

} // namespace mlff_student
