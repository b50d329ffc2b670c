// What Python passes to the packed products' kernels.
#pragma once

#include "entry/struct.h"
#include "lanes/activation_args.h"
#include "lanes/tensor.h"

namespace vmamba {

// A weight (out, in) as `pack_matrix` lays it out: panels of two vectors of outputs (the last one of one vector where that
// is enough), each [in][outputs]; in bfloat16 two inputs side by side, [in / 2][outputs][2]. Inputs are filled up with
// zeros to a multiple of 16 (float32) or 32 (bfloat16), outputs to a whole vector.
VMAMBA_STRUCT(PackedMatrix,
  const void* panels;  // aligned to 64 bytes, as all workspaces
  const float* bias;   // (out), filled up with zeros to a multiple of 32
  int64_t in, out;
  int64_t dtype;  // float32, or bfloat16 if vmamba_has_bfloat16_products says so: inputs are rounded to it, sums are float32
);

VMAMBA_STRUCT(PackMatrixArgs,
  const float* weight;  // (out, in), dense
  void* panels;         // 4 or 2 bytes for each of in × out, both rounded up to a multiple of 32
  int64_t in, out, dtype;
);

// gate · (weight · row + bias), or nothing where `values` is null.
VMAMBA_STRUCT(Gate,
  const float* values;  // (rows, in)
  int64_t stride;       // between rows
  const float *weight, *bias;  // (in), filled up to a multiple of 32
);

// The rows that go in, perhaps by way of a layer norm without weight and bias (those go into the matrix, or the gate).
VMAMBA_STRUCT(ProductInputs,
  int64_t rows;
  Tensor x;  // (rows, in), stride 1 along a row
  int64_t norm;
  double eps;
  Gate gate;
);

VMAMBA_STRUCT(ProductOutputs,
  Tensor residual;  // (rows, out), stride 1 along a row, to be added; or null
  Tensor y;         // the same; may be where the residual is
);

// How the work is shared. Neither number changes the result.
VMAMBA_STRUCT(ProductSharing,
  int64_t threads;
  int64_t block_rows;    // rows of one task, at most PRODUCT_ROWS
  int64_t column_parts;  // tasks that share a block of rows, each with some of the outputs
  float* workspace;      // for each thread block_rows * (widths of what goes in, each rounded up to 32)
  int64_t thread_floats;
);

constexpr int64_t PRODUCT_ROWS = 112;

// y = activation(norm(x) · matrix + bias) + residual
VMAMBA_STRUCT(LinearArgs,
  ProductInputs in;
  PackedMatrix matrix;
  int64_t activation;
  ProductOutputs out;
  ProductSharing sharing;
);

// y = activation(norm(x) · first + bias) · second + bias + residual
VMAMBA_STRUCT(MlpArgs,
  ProductInputs in;
  PackedMatrix first;
  int64_t activation;
  PackedMatrix second;
  ProductOutputs out;
  ProductSharing sharing;
  void* hidden;  // 4 * rows * width rounded up to 32, where column_parts > 1
);

// y = activation(norm(convolution(x) + bias)), a product of patches of the map: a row of the matrix's inputs is a patch,
// [kernel_height][kernel_width][channels].
VMAMBA_STRUCT(PackedConvArgs,
  int64_t batch, height, width, channels, out_height, out_width;
  int64_t kernel_height, kernel_width, stride, padding;
  Tensor x;  // (batch, height, width, channels), stride 1 over channels
  PackedMatrix matrix;
  int64_t norm;  // layer norm of the result, over its channels
  double eps;
  const float *norm_weight, *norm_bias;  // (out), filled up to a multiple of 32
  int64_t activation;
  Tensor y;  // (batch * out_height * out_width, out), dense
  // Every thread's memory holds besides the patches of its rows 4 patches more, and where there is a norm the rows' results.
  ProductSharing sharing;
);

}  // namespace vmamba
