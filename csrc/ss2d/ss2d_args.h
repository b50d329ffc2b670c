// What Python passes to the fused operator's kernels.
#pragma once

#include "entry/struct.h"
#include "lanes/tensor.h"

namespace vmamba {

// Pixels between two saved states. A multiple of every instruction set's lane count; the same for all of them, so that
// the saved states' shape depends on nothing but the inputs'.
constexpr int SS2D_CHUNK = 64;
constexpr int SS2D_DIRECTIONS = 4;  // of a scan mode; orders given as places may be any number

// How a direction of a scan mode reads the map, as a sum of these.
enum Ss2dReading : int64_t { by_column = 1, flip_h = 2, flip_w = 4 };

VMAMBA_STRUCT(Ss2dShape,
  int64_t batch, height, width, channels, rank, states;
  int64_t directions;
  int64_t reading[4];  // of 4 directions, where no places are given
  int64_t softplus;
  int64_t threads;
);

// pixels = height * width; columns = rank + 2 * states; channels of x and columns of x_dbl have stride 1.
VMAMBA_STRUCT(Ss2dInputs,
  Tensor x;                 // (batch, pixels, channels)
  Tensor x_dbl;             // (batch, pixels, directions, columns)
  const float* dt_weight;   // (directions, channels, rank)
  const float* dt_bias;     // (directions, channels) or null
  const float* A;           // (directions * channels, states)
  const float* D;           // (directions * channels) or null
  // Which pixel each direction reads as its t-th, (directions, pixels), each a permutation: for orders that are no scan
  // mode's, on maps of any number of axes, whose height is then 1. Or null.
  const int32_t* places;
);

VMAMBA_STRUCT(Ss2dForwardArgs,
  Ss2dShape shape;
  Ss2dInputs in;
  float* y;      // (batch, pixels, channels)
  // (batch, directions, chunks - 1, states, channels), the states at the start of each chunk but the first; or null
  float* saved;
  float* workspace;         // threads * workspace_floats
  int64_t workspace_floats; // columns * 64 + (columns + 66) * channels rounded up to 16
);

VMAMBA_STRUCT(Ss2dBackwardArgs,
  Ss2dShape shape;
  Ss2dInputs in;
  const float* dy;     // (batch, pixels, channels)
  const float* saved;  // as above
  float* dx;           // (batch, pixels, channels)
  float* dx_dbl;       // (batch, pixels, directions, columns)
  float *d_dt_weight, *d_dt_bias, *dA, *dD;  // contiguous, shapes of the inputs; null where the input is
  float* workspace;          // threads * workspace_floats
  int64_t workspace_floats;  // 2 * columns * 64 + (columns + 66) * the first slice's channels
  // The work is cut into slices of channels (as even as units of 16 allow, the larger ones first) and groups of images,
  // by the shape alone. What they sum over only a part of is kept apart and added up at the end in index order.
  int64_t slices;
  int64_t group_images;  // groups = ceil(batch / group_images)
  float* slice_sums;       // (slices, batch, pixels, directions, columns), or null for one slice
  float* group_sums;       // (groups, directions * (rank + states + 1) + 1, channels rounded up to 16)
);

}  // namespace vmamba
