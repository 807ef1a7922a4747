#include "repulsion.h"

#include <cmath>

namespace mlff_student {

Repulsion::Pair Repulsion::operator()(double distance, int32_t first, int32_t second) const {
  if (!reaches(distance, first, second)) return {0.0, 0.0};
  const int64_t pair = first * species + second;
  double screening = 0.0, screening_derivative = 0.0;
  for (int k = 0; k < 4; k++) {
    const double term = weights[k] * std::exp(-rates[k] * distance / lengths[pair]);
    screening += term;
    screening_derivative -= term * rates[k] / lengths[pair];
  }
  const double x = distance / ranges[pair], x5 = x * x * x * x * x;
  const double fade = 1.0 - x5 * x * (28.0 - x * (48.0 - 21.0 * x));
  const double fade_derivative = -168.0 * x5 * (1.0 - x) * (1.0 - x) / ranges[pair];
  const double bare = charges[pair] / distance, energy = bare * screening * fade;
  return {energy, bare * (screening_derivative * fade + screening * fade_derivative) -
                      energy / distance};
}

} // namespace mlff_student
