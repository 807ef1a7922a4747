// SPDX-License-Identifier: GPL-2.0-or-later

// The library mlff_student_pair_torch.so.

#include "torch_backend.h"

#include "archive.h"
#include "elements.h"
#include "script.h"
#include "self_check.h"

#include <ATen/Parallel.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using namespace mlff_student;

struct Opened {
  Opened(const char *file, const std::string &content, const char *device)
      : archive(file, content), script(file, content, device) {
    for (const auto &element : archive.elements)
      atomic_numbers.push_back(atomic_number(element.c_str()));
    try {
      check_reference_numbers(archive.reference, archive.cutoff,
                              [this](auto... numbers) { script.from_edges(numbers...); });
    } catch (const std::exception &error) {
      throw std::runtime_error("model " + archive.name + ": " + error.what());
    }
  }

  const Archive archive;
  const Script script;
  std::vector<int64_t> atomic_numbers;
};

std::string reason;

// Returns what a call returns, or `failure` if it throws.
template <typename Result, typename Call> Result guarded(Result failure, const Call &call) {
  try {
    return call();
  } catch (const std::exception &error) {
    reason = error.what();
  } catch (...) {
    reason = "unknown error";
  }
  return failure;
}

void *open_script(const char *file, const void *bytes, std::size_t size, const char *device) {
  return guarded<void *>(nullptr, [&] {
    const std::string content(static_cast<const char *>(bytes), size);
    return std::make_unique<Opened>(file, content, device).release();
  });
}

void close_script(void *script) {
  const std::unique_ptr<Opened> owner(static_cast<Opened *>(script));
}

mlff_student_facts describe(const void *script) {
  const Archive &archive = static_cast<const Opened *>(script)->archive;
  const auto &atomic_numbers = static_cast<const Opened *>(script)->atomic_numbers;
  mlff_student_facts facts{};
  facts.name = archive.name.c_str();
  facts.teacher = archive.teacher.c_str();
  facts.metadata = archive.metadata.c_str();
  facts.cutoff = archive.cutoff;
  facts.parameters = archive.parameters;
  facts.atomic_numbers = atomic_numbers.data();
  facts.elements = atomic_numbers.size();
  return facts;
}

bool evaluate_edges(void *script, int threads, int64_t atoms, const int64_t *atomic_numbers,
                    int64_t edges, const int64_t *index, const double *vectors, double *energies,
                    double *gradient) {
  return guarded(false, [&] {
    if (at::get_num_threads() != threads) at::set_num_threads(threads);
    static_cast<const Opened *>(script)->script.from_edges(vectors, index, edges, atomic_numbers,
                                                           atoms, energies, gradient);
    return true;
  });
}

const char *last_error() { return reason.c_str(); }

} // namespace

extern "C" MLFF_STUDENT_API const TorchBackend *mlff_student_pair_torch() {
  static const TorchBackend backend{open_script, close_script, describe, evaluate_edges,
                                    last_error};
  return &backend;
}
