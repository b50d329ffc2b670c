// What Python passes to the GELU kernels.
#pragma once

#include "entry/struct.h"

namespace vmamba {

// Dense float32 arrays. Each result may lie where an input lies.
VMAMBA_STRUCT(GeluForwardArgs,
  const float* x;
  float* y;
  int64_t count, threads;
);

VMAMBA_STRUCT(GeluBackwardArgs,
  const float *x, *dy;
  float *dx, *y;
  int64_t count, threads;
);

}  // namespace vmamba
