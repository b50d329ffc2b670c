#pragma once

#include "entry/struct.h"

namespace vmamba {

VMAMBA_STRUCT(VecmathArgs,
  int64_t function;  // exp, exp2, log1p on [0, 1], softplus, sigmoid, round to bfloat16, round to float16
  const float* x;
  float* y;
  int64_t count;
);

}  // namespace vmamba
