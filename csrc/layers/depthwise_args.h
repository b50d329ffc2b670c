// What Python passes to the depthwise convolution's kernels.
#pragma once

#include "entry/struct.h"
#include "lanes/activation_args.h"
#include "lanes/tensor.h"

namespace vmamba {

constexpr int TAPS = 9;  // 3 × 3, in rows

VMAMBA_STRUCT(DepthwiseInputs,
  int64_t batch, height, width, channels;
  int64_t activation;  // what follows, as an Activation; of backward none or silu
  int64_t threads;
  Tensor x;             // (batch, height, width, channels), stride 1 over channels
  const float* weight;  // (TAPS, channels)
  const float* bias;    // (channels) or null
);

VMAMBA_STRUCT(DepthwiseForwardArgs,
  DepthwiseInputs in;  // x of any type
  void* y;             // (batch, height, width, channels), of the type of x
);

VMAMBA_STRUCT(DepthwiseBackwardArgs,
  DepthwiseInputs in;     // x in float32
  Tensor dy;              // (batch, height, width, channels), stride 1 over channels
  float* dx;              // (batch, height, width, channels)
  float* image_sums;      // (batch, TAPS + 1, channels): gradients of weight and bias over one image
  float* sums;            // (TAPS + 1, channels): over all
  float* workspace;       // threads * 3 * width * task_channels
  int64_t task_channels;  // a multiple of 16
);

}  // namespace vmamba
