// Checks of the arguments of the C API, and the way from exceptions to statuses.
#pragma once

#include "handle.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>

namespace mlff_student {

constexpr int MAX_THREADS = 1024; // OpenMP ends the process if it cannot start a thread

// Stores the reason of an error, without the prefix that exceptions of the core have, and returns
// the status.
int fail(int status, const char *text);

// Runs a function and returns a status, that of a std::runtime_error being `at_runtime`.
template <typename Function>
int guarded(const Function &function, int at_runtime = MLFF_STUDENT_INTERNAL) noexcept {
  try {
    function();
    return MLFF_STUDENT_OK;
  } catch (const std::bad_alloc &) {
    return fail(MLFF_STUDENT_NO_MEMORY, "there is not enough memory");
  } catch (const std::invalid_argument &error) {
    return fail(MLFF_STUDENT_BAD_INPUT, error.what());
  } catch (const std::runtime_error &error) {
    return fail(at_runtime, error.what());
  } catch (const std::exception &error) {
    return fail(MLFF_STUDENT_INTERNAL, error.what());
  } catch (...) {
    return fail(MLFF_STUDENT_INTERNAL, "an unknown error");
  }
}

[[noreturn]] inline void refuse(const std::string &text) { throw std::invalid_argument(text); }

inline void check_pointer(const void *pointer, const char *name) {
  if (!pointer) refuse(std::string(name) + " is NULL");
}

inline void check_threads(int threads) {
  if (threads < 1 || threads > MAX_THREADS)
    refuse("threads is " + std::to_string(threads) + ", expected 1 to " +
           std::to_string(MAX_THREADS));
}

inline void check_count(int64_t count, const char *name,
                        int64_t most = std::numeric_limits<int32_t>::max()) {
  if (count < 0 || count > most)
    refuse(std::string(name) + " is " + std::to_string(count) + ", expected 0 to " +
           std::to_string(most));
}

inline std::string brief(double number) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.10g", number);
  return text;
}

inline std::string text_of(const double *vector) {
  return "(" + brief(vector[0]) + ", " + brief(vector[1]) + ", " + brief(vector[2]) + ")";
}

inline bool is_finite(const double *vector) {
  return std::isfinite(vector[0]) && std::isfinite(vector[1]) && std::isfinite(vector[2]);
}

inline void set_species(const Model &model, const int64_t *atomic_numbers, int64_t count,
                        Workspace &to) {
  if (count > 0) check_pointer(atomic_numbers, "atomic_numbers");
  int32_t *species = to.species.reserve(count);
  for (int64_t i = 0; i < count; i++) species[i] = model.species(atomic_numbers[i]);
}

inline void check_energies(const double *energies, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    if (!std::isfinite(energies[i]))
      refuse("the energy of atom " + std::to_string(i) + " is not finite; do two atoms coincide?");
}

} // namespace mlff_student
