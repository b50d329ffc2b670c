// What Python passes about a tensor. All fields are 8 bytes wide so that both sides lay the structs out alike.
#pragma once

#include "entry/struct.h"

namespace vmamba {

enum class Dtype : int64_t { float32 = 0, bfloat16 = 1, float16 = 2 };

constexpr int64_t size_of(int64_t dtype) { return dtype == static_cast<int64_t>(Dtype::float32) ? 4 : 2; }

// Strides are in elements; axes that the tensor does not have are unused. An absent tensor has data == nullptr.
VMAMBA_STRUCT(Tensor,
  void* data;
  int64_t dtype;
  int64_t stride[4];
);

}  // namespace vmamba
