#include "dispatch.h"

#include "kernels.h"

#include <atomic>
#include <stdexcept>

namespace mlff_student {

namespace generic {
extern const Kernels table;
}
#ifdef MLFF_STUDENT_X86
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

namespace {

struct Choice {
  const char *name;
  const Kernels &kernels;
};

#ifdef MLFF_STUDENT_X86
// The features that loops over floats may use under -march=x86-64-v3 and -march=x86-64-v4.
bool runs_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
#endif

// Returns the choice of that name, or the best if the name is empty; null if this processor does
// not run it.
const Choice *choose(const std::string &name) {
  const auto matches = [&name](const Choice &choice) {
    return name.empty() || name == choice.name;
  };
#ifdef MLFF_STUDENT_X86
  static const Choice avx512_choice{"avx512", avx512::table}, avx2_choice{"avx2", avx2::table};
  if (matches(avx512_choice) && runs_avx512()) return &avx512_choice;
  if (matches(avx2_choice) && runs_avx2()) return &avx2_choice;
#endif
  static const Choice generic_choice{"generic", generic::table};
  return matches(generic_choice) ? &generic_choice : nullptr;
}

std::atomic<const Choice *> &choice() {
  static std::atomic<const Choice *> current{choose("")};
  return current;
}

} // namespace

const Kernels &kernels() { return choice().load()->kernels; }
const char *instruction_set() { return choice().load()->name; }

void use_instruction_set(const std::string &name) {
  const Choice *chosen = choose(name);
  if (!chosen)
    throw std::invalid_argument("mlff_student: this processor or this build has no kernels for '" +
                                name + "'; choose avx512, avx2 or generic");
  choice() = chosen;
}

} // namespace mlff_student
