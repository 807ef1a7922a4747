#include "repulsion.h"

#include "envelope.h"

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
  const Envelope fade = envelope(distance / ranges[pair]);
  const double fade_derivative = fade.slope / ranges[pair];
  const double bare = charges[pair] / distance, energy = bare * screening * fade.value;
  return {energy, bare * (screening_derivative * fade.value + screening * fade_derivative) -
                      energy / distance};
}

} // namespace mlff_student
