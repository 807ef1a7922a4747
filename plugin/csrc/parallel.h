// Work in pieces of fixed size, so that no number depends on how many threads share them.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace mlff_student {

constexpr int64_t ROWS_AT_ONCE = 64; // atoms; their features stay in the second-level cache

// One thread for MKL's products while it lives: a product split over threads rounds differently.
class SequentialProducts {
public:
  SequentialProducts();
  ~SequentialProducts();
  SequentialProducts(const SequentialProducts &) = delete;
  SequentialProducts &operator=(const SequentialProducts &) = delete;

private:
  int before_;
};

// work(begin, end) for each piece of [0, rows).
template <typename Work> void in_pieces(int64_t rows, const Work &work) {
  const int64_t pieces = (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
  const auto run_pieces = [&](int64_t first, int64_t last) {
    const SequentialProducts guard;
    for (int64_t piece = first; piece < last; piece++)
      work(piece * ROWS_AT_ONCE, std::min(rows, (piece + 1) * ROWS_AT_ONCE));
  };
  if (pieces <= 1)
    run_pieces(0, pieces);
  else
    at::parallel_for(0, pieces, 1, run_pieces);
}

} // namespace mlff_student
