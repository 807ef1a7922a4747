// Which instruction set the kernels in use are compiled for.
#pragma once

#include <string>

namespace mlff_student {

std::string instruction_set(); // "avx512", "avx2" or "generic"

// Another one, an empty name for the best; throws if this processor does not run it. For tests and
// measurements; not while a student is evaluated.
void use_instruction_set(const std::string &name);

} // namespace mlff_student
