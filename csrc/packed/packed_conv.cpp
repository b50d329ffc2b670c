// Convolutions of channels-last maps as products of patches with a packed weight; layer norm and activation behind them.
#include "lanes/memory.h"
#include "packed/product.h"

namespace vmamba {
namespace VMAMBA_ISA {
namespace {

// Copy the patch of one place of the result; what lies outside the map is zero.
VMAMBA_INLINE void gather(const PackedConvArgs& args, int64_t place, char* patch) {
  const int64_t size = size_of(args.x.dtype), pixel = args.channels * size;
  const int64_t column = place % args.out_width, rest = place / args.out_width;
  const int64_t top = rest % args.out_height * args.stride - args.padding, left = column * args.stride - args.padding;
  const char* map = static_cast<const char*>(args.x.data) + rest / args.out_height * args.x.stride[0] * size;
  const int64_t before = left < 0 ? smaller(-left, args.kernel_width) : 0;
  const int64_t end = smaller(args.kernel_width, args.width - left);  // columns of the kernel inside: [before, end)
  for (int64_t i = 0; i < args.kernel_height; ++i, patch += args.kernel_width * pixel) {
    const int64_t row = top + i;
    if (row < 0 || row >= args.height || before >= end) {
      std::memset(patch, 0, static_cast<size_t>(args.kernel_width * pixel));
      continue;
    }
    const char* from = map + (row * args.x.stride[1] + (left + before) * args.x.stride[2]) * size;
    std::memset(patch, 0, static_cast<size_t>(before * pixel));
    if (args.x.stride[2] == args.channels) {
      std::memcpy(patch + before * pixel, from, static_cast<size_t>((end - before) * pixel));
    } else {
      for (int64_t j = before; j < end; ++j, from += args.x.stride[2] * size)
        std::memcpy(patch + j * pixel, from, static_cast<size_t>(pixel));
    }
    std::memset(patch + end * pixel, 0, static_cast<size_t>((args.kernel_width - end) * pixel));
  }
}

// Norm a row of results in place.
VMAMBA_INLINE void norm_row(const PackedConvArgs& args, float* row) {
  const int64_t width = args.matrix.out;
  float mean[1], factor[1];
  moments<Dtype::float32, 1>({row}, width, static_cast<float>(args.eps), mean, factor);
  for (int64_t c = 0; c < width; c += LANES)
    store(row + c, fma((load(row + c) - mean[0]) * factor[0], load(args.norm_weight + c), load(args.norm_bias + c)));
}

VMAMBA_INLINE void write_row(const PackedConvArgs& args, int64_t row, const float* values) {
  const int64_t width = args.matrix.out;
  with_dtype(args.y.dtype, [&](auto type) {
    constexpr Dtype T = decltype(type)::value;
    for (int64_t c = 0; c < width; c += LANES) {
      if (width - c >= LANES)
        store_as<T>(args.y.data, row * width + c, load(values + c));
      else
        store_some<T>(args.y.data, row * width + c, 1, static_cast<int>(width - c), load(values + c));
    }
  });
}

}  // namespace

void packed_conv(const PackedConvArgs& args) {
  const PackedMatrix& matrix = args.matrix;
  const Activation activation = static_cast<Activation>(args.activation);
  const int64_t places = args.batch * args.out_height * args.out_width;
  const int64_t words = words_of(matrix.in, matrix.dtype), width = round_up(matrix.out, LANES);
  expect_fill(args.y.data, places * matrix.out * size_of(args.y.dtype));
  const ProductOutputs out{Tensor{}, args.y};
  share_blocks(args.sharing, places, [&](int64_t first, int64_t rows, Part part, float* memory) {
    const Tiles tiles(rows);
    char* patches = reinterpret_cast<char*>(memory + words * rows);
    with_dtype(args.x.dtype, [&](auto type) {
      lay_out_block<decltype(type)::value>(tiles, first, matrix.in, matrix.dtype, matrix.in, Treatment{}, memory,
                                           [&](int64_t row, int count) {
                                             const int64_t bytes = matrix.in * size_of(args.x.dtype);
                                             for (int i = 0; i < count; ++i)
                                               gather(args, first + row + i, patches + i * bytes);
                                             return patches;
                                           });
    });
    if (!args.norm) {
      multiply_block(tiles, memory, matrix, activation, part,
                     [&](int64_t row, int64_t count, int64_t column, const float* sums) {
                       write(out, matrix.out, first + row, count, column, sums);
                     });
      return;
    }
    float* results = memory + words * rows + LAID_OUT_TOGETHER * round_up(matrix.in, LANES);
    multiply_block(tiles, memory, matrix, Activation::none, part,
                   [&](int64_t row, int64_t count, int64_t column, const float* sums) {
                     for (int64_t m = 0; m < count; ++m) store(results + (row + m) * width + column, load(sums + m * LANES));
                   });
    for (int64_t m = 0; m < rows; ++m) {
      norm_row(args, results + m * width);
      activate(results + m * width, width / LANES, activation);
      write_row(args, first + m, results + m * width);
    }
  });
}

}  // namespace VMAMBA_ISA
}  // namespace vmamba
