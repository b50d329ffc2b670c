// What Python passes to the selective scan's kernels.
#pragma once

#include "entry/struct.h"
#include "lanes/tensor.h"

namespace vmamba {

// Steps between two saved states. A multiple of every instruction set's lane count; the same for all of them, so that
// the saved states' shape depends on nothing but the inputs'.
constexpr int CHUNK = 32;

// With l steps there are ceil(l / CHUNK) chunks; the states at the start of each but the first are saved.
VMAMBA_STRUCT(ScanShape,
  int64_t batch, groups, channels /* of one group */, states, length;
  int64_t softplus;
  int64_t threads;
);

VMAMBA_STRUCT(ScanInputs,
  Tensor u, delta;                    // (batch, groups * channels, length)
  Tensor B, C;                        // (batch, groups, states, length)
  const float *A, *D, *delta_bias;    // (groups * channels, states), (groups * channels) or null, likewise
);

VMAMBA_STRUCT(ScanForwardArgs,
  ScanShape shape;
  ScanInputs in;
  float* y;          // (batch, groups * channels, length)
  float* saved;      // (batch, chunks - 1, states, groups * channels) or null; may be longer
  float* workspace;  // batch * groups * round_up(channels, 16) * states * 2
  // Each may be absent:
  Tensor z;                        // the gate, (batch, groups * channels, length)
  const float* initial;            // the state to begin with, contiguous (batch, groups * channels, states)
  float *last, *ungated;           // the state at the end, likewise; y before the gate, like y
);

VMAMBA_STRUCT(ScanBackwardArgs,
  ScanShape shape;
  ScanInputs in;
  Tensor dy;                     // (batch, groups * channels, length)
  const float* saved;            // as above
  void *du, *ddelta, *dB, *dC;   // contiguous, shapes and dtypes of u, delta, B and C
  float *dA, *dD, *ddelta_bias;  // contiguous; the last two null where the input is
  float* workspace;              // batch * groups * round_up(channels, 16) * states * 3
  // Sums over a part only, added up at the end in index order: dB and dC over one slice of a group's channels
  // (2, slices, batch, groups, states, length); dA, dD, ddelta_bias over one image
  // (states + 2, batch, groups * channels).
  float *slice_sums, *image_sums;
  int64_t slice_channels;  // a multiple of 16; slices = ceil(channels / slice_channels)
  // Each may be absent:
  Tensor z;                           // as above
  const float *ungated, *initial;     // as above
  const float* dlast;                 // of the state at the end
  void* dz;                           // contiguous, shape and dtype of z
  float* dinitial;
);

}  // namespace vmamba
