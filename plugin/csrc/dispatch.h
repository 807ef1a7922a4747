// Chooses the instruction set of the kernels.
#pragma once

#include <string>

namespace mlff_student {

// Returns the instruction set in use: "avx512", "avx2" or "generic".
const char *instruction_set();

// Switches to another instruction set; an empty name is the best that this processor runs. Throws
// std::invalid_argument if the processor does not run it. It is for tests and measurements, and
// must not be called while a student is evaluated.
void use_instruction_set(const std::string &name);

} // namespace mlff_student
