// The functions of torch's stable ABI that the operators use, so that they are compiled without
// torch's headers and one library serves every torch from 2.9 on.
//
// From torch/csrc/inductor/aoti_torch/c/shim.h and macros.h of torch 2.9. The functions are in
// libtorch_cpu.so.
#pragma once

#include <cstdint>

extern "C" {

using AOTITorchError = int32_t;                     // 0: no error
using AtenTensorHandle = struct AtenTensorOpaque *; // owns a tensor
using TorchLibraryHandle = class TorchLibraryOpaque *;
// An argument or result of an operator: an integer, or an AtenTensorHandle.
using StableIValue = uint64_t;
using TorchOperator = void(StableIValue *stack, uint64_t inputs, uint64_t outputs);

AOTITorchError aoti_torch_library_init_fragment(const char *name, const char *file, uint32_t line,
                                                TorchLibraryHandle *library);
AOTITorchError aoti_torch_library_init_impl(const char *name, const char *dispatch_key,
                                            const char *file, uint32_t line,
                                            TorchLibraryHandle *library);
AOTITorchError aoti_torch_library_def(TorchLibraryHandle library, const char *schema);
AOTITorchError aoti_torch_library_impl(TorchLibraryHandle library, const char *name,
                                       TorchOperator *function);

AOTITorchError aoti_torch_empty_strided(int64_t dimensions, const int64_t *sizes,
                                        const int64_t *strides, int32_t dtype, int32_t device_type,
                                        int32_t device_index, AtenTensorHandle *tensor);
AOTITorchError aoti_torch_copy_(AtenTensorHandle to, AtenTensorHandle from, int32_t non_blocking);
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor);
AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle tensor, void **data);
AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, int64_t *dimensions);
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle tensor, int64_t **sizes);
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, int32_t *dtype);
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle tensor, int32_t *device_type);
AOTITorchError aoti_torch_is_contiguous(AtenTensorHandle tensor, bool *contiguous);

int32_t aoti_torch_device_type_cpu();
int32_t aoti_torch_dtype_bool();
int32_t aoti_torch_dtype_float64();
int32_t aoti_torch_dtype_int64();
int32_t aoti_torch_dtype_uint8();
}
