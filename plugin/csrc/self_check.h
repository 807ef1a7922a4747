// Whether an archive computes here what it computed where it was written.
#pragma once

#include "archive.h"
#include "evaluate.h"

namespace mlff_student {

// Evaluates the archive's reference molecule by `model`, or by the archive's own TorchScript if
// that is null. Throws std::runtime_error if its energy or forces differ by more than rounding.
void check_reference_numbers(const Archive &archive, const Model *model, Workspace &work);

} // namespace mlff_student
