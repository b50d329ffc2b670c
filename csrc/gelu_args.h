// What Python passes to the GELU kernels (src/vmamba/ops/mlp.py has the same structs).
#pragma once

#include <cstdint>

namespace vmamba {

// Dense float32 arrays. Each result may lie where an input lies.
struct GeluForwardArgs {
  const float* x;
  float* y;
  int64_t count, threads;
};

struct GeluBackwardArgs {
  const float *x, *dy;
  float *dx, *y;
  int64_t count, threads;
};

}  // namespace vmamba
