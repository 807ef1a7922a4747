// Conversion of torch tensors to plain memory.
#pragma once

#include <ATen/core/Tensor.h>

namespace mlff_student {

// A contiguous tensor of the given type on the CPU.
inline at::Tensor on_cpu(const at::Tensor &tensor, at::ScalarType type) {
  return tensor.detach().to(at::kCPU, type).contiguous();
}

} // namespace mlff_student
