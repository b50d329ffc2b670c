// Products with packed weights: linear layers, and the two of a feed-forward part with the activation between.
#include "lanes/memory.h"
#include "packed/product.h"

namespace vmamba {
namespace VMAMBA_ISA {
namespace {

// Lay out the rows from `first` on of what goes in.
static void lay_out(const ProductInputs& in, int64_t width, int64_t dtype, int64_t first, const Tiles& tiles, float* to) {
  with_dtype(in.x.dtype, [&](auto type) {
    const char* from = static_cast<const char*>(in.x.data);
    const int64_t step = in.x.stride[0] * size_of(in.x.dtype);
    const Treatment treatment{in.norm != 0, static_cast<float>(in.eps), in.gate};
    lay_out_block<decltype(type)::value>(tiles, first, width, dtype, in.x.stride[0], treatment, to,
                                         [&](int64_t row, int) { return from + (first + row) * step; });
  });
}

}  // namespace

void pack_matrix(const PackMatrixArgs& args) {
  const int64_t words = words_of(args.in, args.dtype), outputs = round_up(args.out, LANES);
  const int64_t pair = args.dtype == FLOAT32 ? 1 : 2;
  for (int64_t first = 0; first < outputs; first += PANEL) {
    const int64_t wide = smaller(PANEL, outputs - first), base = first * words;
    for (int64_t i = 0; i < words; ++i) {
      for (int64_t j = 0; j < wide; ++j) {
        for (int64_t half = 0; half < pair; ++half) {
          const int64_t row = first + j, column = i * pair + half, to = (base + i * wide + j) * pair + half;
          const bool real = row < args.out && column < args.in;
          const float value = real ? args.weight[row * args.in + column] : 0.0f;
          if (pair == 1)
            static_cast<float*>(args.panels)[to] = value;
          else
            static_cast<uint16_t*>(args.panels)[to] = to_bfloat16(splat(value))[0];
        }
      }
    }
  }
}

void packed_linear(const LinearArgs& args) {
  const PackedMatrix& matrix = args.matrix;
  const Activation activation = static_cast<Activation>(args.activation);
  expect_fill(args.out.y.data, args.in.rows * matrix.out * size_of(args.out.y.dtype));
  share_blocks(args.sharing, args.in.rows, [&](int64_t first, int64_t rows, Part part, float* memory) {
    const Tiles tiles(rows);
    lay_out(args.in, matrix.in, matrix.dtype, first, tiles, memory);
    multiply_block(tiles, memory, matrix, activation, part,
                   [&](int64_t row, int64_t count, int64_t column, const float* sums) {
                     write(args.out, matrix.out, first + row, count, column, sums);
                   });
  });
}

void packed_mlp(const MlpArgs& args) {
  const PackedMatrix &one = args.first, &two = args.second;
  const Activation activation = static_cast<Activation>(args.activation);
  const int64_t words = words_of(one.in, one.dtype), hidden_words = words_of(two.in, two.dtype);
  expect_fill(args.out.y.data, args.in.rows * two.out * size_of(args.out.y.dtype));
  auto first_product = [&](int64_t first, const Tiles& tiles, Part part, float* laid_out, float* hidden) {
    lay_out(args.in, one.in, one.dtype, first, tiles, laid_out);
    multiply_block(tiles, laid_out, one, activation, part,
                   [&](int64_t row, int64_t count, int64_t column, const float* sums) {
                     write_tile(hidden + hidden_words * row, one.out, count, column, two.dtype, sums);
                   });
  };
  auto second_product = [&](int64_t first, const Tiles& tiles, Part part, const float* hidden) {
    multiply_block(tiles, hidden, two, Activation::none, part,
                   [&](int64_t row, int64_t count, int64_t column, const float* sums) {
                     write(args.out, two.out, first + row, count, column, sums);
                   });
  };
  if (args.sharing.column_parts == 1) {  // the hidden values of a block never leave the cache of the core that made them
    share_blocks(args.sharing, args.in.rows, [&](int64_t first, int64_t rows, Part part, float* memory) {
      const Tiles tiles(rows);
      float* hidden = memory + words * rows;
      first_product(first, tiles, part, memory, hidden);
      second_product(first, tiles, part, hidden);
    });
  } else {  // every second product needs all of its rows' hidden values
    float* hidden = static_cast<float*>(args.hidden);
    share_blocks(args.sharing, args.in.rows, [&](int64_t first, int64_t rows, Part part, float* memory) {
      first_product(first, Tiles(rows), part, memory, hidden + hidden_words * first);
    });
    share_blocks(args.sharing, args.in.rows, [&](int64_t first, int64_t rows, Part part, float*) {
      second_product(first, Tiles(rows), part, hidden + hidden_words * first);
    });
  }
}

}  // namespace VMAMBA_ISA
}  // namespace vmamba
