// Divides work into pieces of fixed size, so that no result depends on the number of threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace mlff_student {

constexpr int64_t ROWS_AT_ONCE = 64; // atoms whose features stay in the second-level cache

// Limits MKL to one thread while the object exists, because a matrix product that is split over
// threads rounds differently.
class SequentialProducts {
public:
  SequentialProducts();
  ~SequentialProducts();
  SequentialProducts(const SequentialProducts &) = delete;
  SequentialProducts &operator=(const SequentialProducts &) = delete;

private:
  int threads_before_;
};

constexpr int64_t count_pieces(int64_t rows) { return (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE; }

// Calls work(begin, end) for each piece of [0, rows), on the threads of torch.
template <typename Work> void in_pieces(int64_t rows, const Work &work) {
  const int64_t pieces = count_pieces(rows);
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
