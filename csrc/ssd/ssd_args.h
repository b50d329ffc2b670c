// What Python passes to the kernel of Mamba-2's scan.
#pragma once

#include "entry/struct.h"
#include "lanes/tensor.h"

namespace vmamba {

constexpr int SSD_STEPS = 4;      // positions that are computed at a time
constexpr int SSD_PRODUCTS = 16;  // floats kept for them: C_i·B_j for j <= i, row by row; the others are unused
constexpr int SSD_MOST_CHANNELS = 64;  // of one task

// All tensors have stride 1 along their last axis; all but x are float32. There is either A or log_decay.
VMAMBA_STRUCT(SsdForwardArgs,
  int64_t batch, places, heads, width /* channels of a head */, states, directions;
  Tensor x;              // (batch, places, heads * width)
  Tensor dt;             // (batch, places, directions, heads): the step, or with A what softplus makes it of
  Tensor log_decay;      // likewise, the log of what a step leaves of the state; or absent
  Tensor B, C;           // (batch, places, directions, states)
  const float *A, *dt_bias;  // (directions, heads): softplus(dt + dt_bias) A is the log of the decay; or null
  const float* D;            // the skip, (heads * width), of all directions together; or null
  const int32_t* order;  // the place that each direction reads as its t-th, (directions, places); null for t itself
  float* y;              // contiguous, like x: the sum over the directions
  // Contiguous (batch, states, heads * width), with one direction; or null:
  const float* start;
  float* last;
  int64_t part;      // channels of one task, a multiple of 16, at most SSD_MOST_CHANNELS
  int64_t threads;
  float* products;   // batch * directions * ceil(places / 4) * 16
  float* workspace;  // threads * workspace_floats
  int64_t workspace_floats;  // states * (part + 1), rounded up to a multiple of 16
);

}  // namespace vmamba
