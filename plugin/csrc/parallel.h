// Divides work into pieces of fixed size, so that no result depends on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>

namespace mlff_student {

constexpr int64_t ROWS_AT_ONCE = 64; // atoms whose features stay in the second-level cache

constexpr int64_t count_pieces(int64_t rows) { return (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE; }

// Returns `threads`, or 1 in a process that was forked after a loop had run on several threads:
// OpenMP would wait for them there, and they do not exist.
int usable_threads(int threads);

// Calls work(begin, end) for each piece of [0, rows), on at most `threads` threads.
template <typename Work> void in_pieces(int threads, int64_t rows, const Work &work) {
  const int64_t pieces = count_pieces(rows);
  const auto run = [&](int64_t piece) {
    work(piece * ROWS_AT_ONCE, std::min(rows, (piece + 1) * ROWS_AT_ONCE));
  };
  const int team = static_cast<int>(std::min<int64_t>(usable_threads(threads), pieces));
  if (team <= 1) {
    for (int64_t piece = 0; piece < pieces; piece++) run(piece);
    return;
  }
  std::exception_ptr failure; // an exception must not leave a parallel region
#pragma omp parallel for num_threads(team) schedule(static)
  for (int64_t piece = 0; piece < pieces; piece++) {
    try {
      run(piece);
    } catch (...) {
#pragma omp critical(mlff_student_failure)
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

} // namespace mlff_student
