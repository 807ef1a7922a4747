// The polynomial that takes the filters and the repulsion smoothly to zero, as in repulsion.py.
#pragma once

namespace mlff_student {

struct Envelope {
  double value, slope, curvature; // the last two are derivatives by x
};

// 1 - 28 x^6 + 48 x^7 - 21 x^8 for x from 0 to 1 (arXiv:2003.03123, equation 8 with p = 6). It is 0
// at x = 1, with slope and curvature 0.
inline Envelope envelope(double x) {
  const double x4 = x * x * x * x, x5 = x4 * x, gap = 1.0 - x;
  return {1.0 - x5 * x * (28.0 - x * (48.0 - 21.0 * x)), -168.0 * x5 * gap * gap,
          -168.0 * x4 * gap * (5.0 - 7.0 * x)};
}

} // namespace mlff_student
