#include "radial_table.h"

#include "envelope.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace mlff_student {

namespace {

// Distances below this fraction of `shortest` are all squeezed to the same value.
constexpr double SQUEEZED_FROM = 6.0 / 11.0;

// Returns the distance that enters the filters, and its first two derivatives: squeeze_distances of
// student.py.
std::array<double, 3> squeeze(double distance, double shortest) {
  if (distance >= shortest) return {distance, 1.0, 0.0};
  const double width = 1.0 - SQUEEZED_FROM;
  const double t = std::max((distance / shortest - SQUEEZED_FROM) / width, 0.0), t2 = t * t;
  return {shortest * (1.0 + 0.5 * width * (t2 * t2 * (5.0 - t * (6.0 - 2.0 * t)) - 1.0)),
          t2 * t * (10.0 - t * (15.0 - 6.0 * t)),
          30.0 * t2 * (1.0 - t) * (1.0 - t) / (width * shortest)};
}

// Computes the exact filter and its first two derivatives at a distance, (outputs,) each.
void exact_filter(const std::vector<double> &weight, const std::vector<double> &bias, double cutoff,
                  double shortest, double true_distance, double *value, double *slope,
                  double *curvature) {
  const std::size_t outputs = bias.size(), functions = weight.size() / outputs;
  const auto [distance, squeeze1, squeeze2] = squeeze(true_distance, shortest);
  const Envelope fade = envelope(std::min(distance / cutoff, 1.0));
  const double fade1 = fade.slope / cutoff, fade2 = fade.curvature / (cutoff * cutoff);
  std::vector<double> radial(functions), radial1(functions), radial2(functions);
  for (std::size_t n = 0; n < functions; n++) {
    const double frequency = (n + 1) * M_PI / cutoff, angle = frequency * distance;
    const double square = frequency * frequency;
    radial[n] = std::sin(angle) / distance;
    radial1[n] = (std::cos(angle) * frequency - radial[n]) / distance;
    radial2[n] = -square * radial[n] - 2.0 * radial1[n] / distance;
  }
  for (std::size_t c = 0; c < outputs; c++) {
    double sum = bias[c], sum1 = 0.0, sum2 = 0.0;
    for (std::size_t n = 0; n < functions; n++) {
      sum += weight[c * functions + n] * radial[n];
      sum1 += weight[c * functions + n] * radial1[n];
      sum2 += weight[c * functions + n] * radial2[n];
    }
    value[c] = sum * fade.value;
    const double first = sum1 * fade.value + sum * fade1;
    slope[c] = first * squeeze1;
    curvature[c] = (sum2 * fade.value + 2.0 * sum1 * fade1 + sum * fade2) * squeeze1 * squeeze1 +
                   first * squeeze2;
  }
}

} // namespace

RadialTable::RadialTable(const std::vector<double> &weight, const std::vector<double> &bias,
                         int channels, int parts, double cutoff, double shortest, int64_t knots)
    : channels_(channels), parts_(parts), block_(table_block(channels)), knots_(knots) {
  const int64_t outputs = parts * channels, stride = parts * block_;
  const double spacing = cutoff / (knots - 1);
  const double scale[KNOT_ROWS] = {1.0, spacing, spacing * spacing};
  rows_.reserve(knots * KNOT_ROWS * outputs);
  std::vector<double> exact[KNOT_ROWS];
  for (auto &row : exact) row.resize(outputs);
  for (int64_t knot = 0; knot < knots; knot++) {
    exact_filter(weight, bias, cutoff, shortest, knot * spacing, exact[0].data(), exact[1].data(),
                 exact[2].data());
    for (int row = 0; row < KNOT_ROWS; row++)
      for (int part = 0; part < parts; part++)
        for (int c = 0; c < channels; c++)
          rows_[((c / block_ * knots + knot) * KNOT_ROWS + row) * stride + part * block_ +
                c % block_] = static_cast<float>(exact[row][part * channels + c] * scale[row]);
  }
}

void RadialTable::evaluate(const EdgeGeometry &edge, float *value, float *slope) const {
  const int64_t stride = parts_ * block_;
  for (int part = 0; part < parts_; part++)
    for (int c = 0; c < channels_; c++) {
      const float *row = rows_.data() + (c / block_ * knots_ + edge.knot) * KNOT_ROWS * stride +
                         part * block_ + c % block_;
      float w = 0.0f, d = 0.0f;
      for (int k = 0; k < TABLE_ROWS; k++) {
        w += row[k * stride] * edge.value[k];
        d += row[k * stride] * edge.derivative[k];
      }
      value[part * channels_ + c] = w;
      slope[part * channels_ + c] = d;
    }
}

bool locate(const double *vector, double cutoff, int64_t knots, EdgeGeometry &edge) {
  const double distance =
      std::sqrt(vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2]);
  if (!(distance > 0.0 && std::isfinite(distance))) return false;
  const double inverse_spacing = (knots - 1) / cutoff;
  const double x = std::min(distance * inverse_spacing, static_cast<double>(knots - 1));
  const int32_t knot = static_cast<int32_t>(std::min<int64_t>(x, knots - 2));
  const double t = x - knot, s = 1.0 - t, tt = t * t, ss = s * s;
  // The weights of value, slope and curvature at t = 0, then at t = 1.
  const double value[TABLE_ROWS] = {
      ss * s * (1.0 + t * (3.0 + 6.0 * t)), ss * s * t * (1.0 + 3.0 * t),  0.5 * ss * s * tt,
      tt * t * (1.0 + s * (3.0 + 6.0 * s)), -tt * t * s * (1.0 + 3.0 * s), 0.5 * tt * t * ss};
  const double derivative[TABLE_ROWS] = {
      -30.0 * tt * ss, ss * (1.0 - 3.0 * t) * (1.0 + 5.0 * t), 0.5 * t * ss * (2.0 - 5.0 * t),
      30.0 * tt * ss,  tt * (1.0 - 3.0 * s) * (1.0 + 5.0 * s), -0.5 * tt * s * (2.0 - 5.0 * s)};
  for (int k = 0; k < TABLE_ROWS; k++) {
    edge.value[k] = static_cast<float>(value[k]);
    edge.derivative[k] = static_cast<float>(derivative[k] * inverse_spacing);
  }
  const double inverse = 1.0 / distance;
  for (int a = 0; a < 3; a++) edge.unit[a] = static_cast<float>(vector[a] * inverse);
  edge.knot = knot;
  return true;
}

} // namespace mlff_student
