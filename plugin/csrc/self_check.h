// Checks that an archive computes the energy and forces that it computed when it was written.
#pragma once

#include "archive.h"
#include "evaluate.h"

namespace mlff_student {

// Evaluates the archive's reference molecule with `model`, or with the archive's TorchScript if
// `model` is null. Throws std::runtime_error if energy or forces differ by more than rounding.
void check_reference_numbers(const Archive &archive, const Model *model, Workspace &work);

} // namespace mlff_student
