// Tests that a step of MD allocates nothing after the first steps. It counts all calls of the
// allocator, in the libraries too. Exit status 1: a step allocates; 2: the counting does not work.
#include "random_weights.h"

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

namespace {
std::atomic<int64_t> allocations{0};
}

// glibc lets a program replace its allocator. These are the other names of glibc's functions.
extern "C" {
void *__libc_malloc(std::size_t);
void *__libc_calloc(std::size_t, std::size_t);
void *__libc_realloc(void *, std::size_t);
void *__libc_memalign(std::size_t, std::size_t);
void __libc_free(void *);

void *malloc(std::size_t bytes) {
  allocations++;
  return __libc_malloc(bytes);
}
void *calloc(std::size_t count, std::size_t bytes) {
  allocations++;
  return __libc_calloc(count, bytes);
}
void *realloc(void *memory, std::size_t bytes) {
  allocations++;
  return __libc_realloc(memory, bytes);
}
void *memalign(std::size_t alignment, std::size_t bytes) {
  allocations++;
  return __libc_memalign(alignment, bytes);
}
void *aligned_alloc(std::size_t alignment, std::size_t bytes) { return memalign(alignment, bytes); }
int posix_memalign(void **memory, std::size_t alignment, std::size_t bytes) {
  *memory = memalign(alignment, bytes);
  return *memory ? 0 : ENOMEM;
}
void free(void *memory) { __libc_free(memory); }
}

int main() {
  constexpr int64_t ATOMS = 300, WARM = 10, STEPS = 30;
  constexpr double EDGE = 14.0, CUTOFF = 4.0; // angstrom
  std::mt19937 random(7);
  std::uniform_real_distribution<double> place(0.0, EDGE), shake(-0.01, 0.01);
  const auto *model = model_of(random_weights(64, 3, 8, random), CUTOFF);
  auto *work = mlff_student_new_workspace();
  std::vector<double> positions(3 * ATOMS), energies(ATOMS), forces(3 * ATOMS), virials(9 * ATOMS);
  std::vector<int64_t> numbers;
  for (double &x : positions) x = place(random);
  for (int64_t i = 0; i < ATOMS; i++) numbers.push_back(1 + i % 3);
  const double cell[9] = {EDGE, 0, 0, 0, EDGE, 0, 0, 0, EDGE};
  double virial[9];
  const mlff_student_system system = {ATOMS, positions.data(), numbers.data(), cell, nullptr};
  const mlff_student_results results = {energies.data(), forces.data(), virial, virials.data()};
  bool good = true;
  const auto step = [&] {
    for (double &x : positions) x += shake(random);
    good = mlff_student_evaluate(model, work, 1, &system, &results) == MLFF_STUDENT_OK && good;
  };

  allocations = 0;
  step();
  const int64_t first = allocations;
  for (int64_t k = 1; k < WARM; k++) step();
  allocations = 0;
  for (int64_t k = 0; k < STEPS; k++) step();
  const int64_t steady = allocations;
  std::printf("%ld allocations in the first step, %ld in %ld more after %ld; %s\n", first, steady,
              STEPS, WARM, good ? "" : mlff_student_error());
  if (first == 0 || !good) return 2;
  return steady == 0 ? 0 : 1;
}
