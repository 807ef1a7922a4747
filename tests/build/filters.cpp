// The tabulated filters as a C function, for test_native.py.
#include "radial_table.h"

using namespace mlff_student;

// Writes value and slope (count, outputs) of a filter at distances (count,). Returns the number of
// distances that were evaluated.
extern "C" int64_t tabulated_filter(const double *weight, const double *bias, int channels,
                                    int parts, int functions, double cutoff, double shortest,
                                    int64_t knots, int64_t count, const double *distances,
                                    float *value, float *slope) {
  const int outputs = parts * channels;
  const RadialTable table({weight, weight + outputs * functions}, {bias, bias + outputs}, channels,
                          parts, cutoff, shortest, knots);
  for (int64_t k = 0; k < count; k++) {
    const double vector[3] = {distances[k], 0.0, 0.0};
    EdgeGeometry edge{};
    if (!locate(vector, cutoff, knots, edge)) return k;
    table.evaluate(edge, value + k * outputs, slope + k * outputs);
  }
  return count;
}
