// Conversion of torch tensors to plain memory.
#pragma once

#include "model.h"

#include <ATen/core/Tensor.h>

namespace mlff_student {

// A contiguous tensor of the given type on the CPU.
inline at::Tensor on_cpu(const at::Tensor &tensor, at::ScalarType type) {
  return tensor.detach().to(at::kCPU, type).contiguous();
}

inline Array to_array(const at::Tensor &tensor) {
  const at::Tensor values = on_cpu(tensor, at::kDouble);
  const double *data = values.const_data_ptr<double>();
  return {values.sizes().vec(), {data, data + values.numel()}};
}

} // namespace mlff_student
