// Matrix products for rows of a map: the weight packed beforehand, norm and activation done while the rows are in cache.
//
// Rows are laid out in tiles of up to TILE_ROWS, tile[word / LANES][row][LANES], in words of 4 bytes: a float, or two
// bfloat16 values, which one instruction multiplies by two weights each. So the inner loop finds its rows' words at constant
// distances, laying out rows is copying whole vectors, and the vectors of one product's result are a tile for the next.
#pragma once

#include "lanes/activations.h"
#include "lanes/parallel.h"
#include "packed/product_args.h"

namespace vmamba {
namespace VMAMBA_ISA {
namespace {

// Sums that fit the registers beside two vectors of weights and one of the rows.
#if VMAMBA_LANES == 16
constexpr int TILE_ROWS = 14;
#elif defined(__aarch64__)
constexpr int TILE_ROWS = 12;
#else
constexpr int TILE_ROWS = 6;
#endif
constexpr int VECTORS = 2;
constexpr int PANEL = VECTORS * LANES;

constexpr int64_t FLOAT32 = static_cast<int64_t>(Dtype::float32);

VMAMBA_INLINE int64_t round_up(int64_t a, int64_t unit) { return (a + unit - 1) / unit * unit; }

// Words of a row of `width` values: whole vectors of them.
VMAMBA_INLINE int64_t words_of(int64_t width, int64_t dtype) {
  return dtype == FLOAT32 ? round_up(width, LANES) : round_up(width, 2 * LANES) / 2;
}

// ---- the inner loop ------------------------------------------------------------------------------------------

// sums[vector][row] = tile · panel + bias, for a panel of N vectors of outputs.
template <int ROWS, int N>
__attribute__((noinline)) void multiply_float32(const void* tile, const void* panel, int64_t words, const float* bias,
                                                float* sums) {
  const float* rows = static_cast<const float*>(tile);
  const float* weights = static_cast<const float*>(panel);
  Lanes sum[ROWS][N];
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < N; ++v) sum[m][v] = load(bias + v * LANES);
  }
  for (int64_t first = 0; first < words; first += LANES, rows += (ROWS - 1) * LANES) {
#pragma GCC unroll 2
    for (int i = 0; i < LANES; ++i, ++rows, weights += N * LANES) {
      Lanes weight[N];
#pragma GCC unroll 2
      for (int v = 0; v < N; ++v) {
        weight[v] = load(weights + v * LANES);
        __builtin_prefetch(weights + (8 * N + v) * LANES);
      }
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 2
        for (int v = 0; v < N; ++v) sum[m][v] = fma(weight[v], rows[m * LANES], sum[m][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < N; ++v) store(sums + (v * ROWS + m) * LANES, sum[m][v]);
  }
}

#if defined(VMAMBA_BFLOAT16_PRODUCTS) && VMAMBA_LANES == 16
template <int ROWS, int N>
__attribute__((noinline, target("avx512bf16"))) void multiply_bfloat16(const void* tile, const void* panel, int64_t words,
                                                                       const float* bias, float* sums) {
  const int32_t* rows = static_cast<const int32_t*>(tile);
  const int32_t* weights = static_cast<const int32_t*>(panel);
  __m512 sum[ROWS][N];
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < N; ++v) sum[m][v] = _mm512_loadu_ps(bias + v * LANES);
  }
  for (int64_t first = 0; first < words; first += LANES, rows += (ROWS - 1) * LANES) {
#pragma GCC unroll 2
    for (int i = 0; i < LANES; ++i, ++rows, weights += N * LANES) {
      __m512bh weight[N];
#pragma GCC unroll 2
      for (int v = 0; v < N; ++v) {
        weight[v] = (__m512bh)_mm512_loadu_si512(weights + v * LANES);
        __builtin_prefetch(weights + (8 * N + v) * LANES);
      }
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; ++m) {
        const __m512bh pair = (__m512bh)_mm512_set1_epi32(rows[m * LANES]);
#pragma GCC unroll 2
        for (int v = 0; v < N; ++v) sum[m][v] = _mm512_dpbf16_ps(sum[m][v], pair, weight[v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < N; ++v) _mm512_storeu_ps(sums + (v * ROWS + m) * LANES, sum[m][v]);
  }
}
#define VMAMBA_FOR_BFLOAT16(...) __VA_ARGS__
#else
#define VMAMBA_FOR_BFLOAT16(...)
#endif

using Multiply = void (*)(const void* tile, const void* panel, int64_t words, const float* bias, float* sums);

// By the tile's rows and the panel's vectors, each counted from 1.
template <int ROWS>
VMAMBA_INLINE Multiply multiply_for(int64_t rows, int64_t vectors, int64_t dtype) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) return multiply_for<ROWS - 1>(rows, vectors, dtype);
  }
  VMAMBA_FOR_BFLOAT16(if (dtype != FLOAT32) return vectors == 1 ? multiply_bfloat16<ROWS, 1> : multiply_bfloat16<ROWS, 2>;)
  (void)dtype;
  return vectors == 1 ? multiply_float32<ROWS, 1> : multiply_float32<ROWS, 2>;
}

// ---- tiles ---------------------------------------------------------------------------------------------------

// A block of rows cut into tiles that are as even as can be: the first `longer` have one row more than `least`.
struct Tiles {
  int64_t count, least, longer;

  explicit Tiles(int64_t rows) : count((rows + TILE_ROWS - 1) / TILE_ROWS), least(rows / count), longer(rows % count) {}
  int64_t first_row(int64_t tile) const { return tile * least + smaller(tile, longer); }
  int64_t rows(int64_t tile) const { return least + (tile < longer); }
};

// Put the vector of values that begins at `column`, a multiple of LANES, into a row of a tile.
VMAMBA_INLINE void put(float* tile, int64_t rows, int64_t row, int64_t column, int64_t dtype, Lanes values) {
  if (dtype == FLOAT32) {
    store(tile + (column * rows + row * LANES), values);
  } else {
    const int64_t chunk = column / PANEL;
    store_as<Dtype::bfloat16>(tile + (chunk * rows + row) * LANES, column % PANEL, values);
  }
}

VMAMBA_INLINE float sum_of(Lanes x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float lane[LANES];
  store(lane, x);
  for (int step = LANES / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lane[i] += lane[i + step];
  return lane[0];
#endif
}

template <Dtype type>
VMAMBA_INLINE Lanes load_column(const void* row, int64_t column, int64_t width) {
  const int64_t left = width - column;
  return left >= LANES ? load_as<type>(row, column) : load_some<type>(row, column, 1, static_cast<int>(left));
}

// Zero the lanes of a vector that begins at `column` which are not columns.
VMAMBA_INLINE Lanes only_columns(Lanes x, int64_t column, int64_t width) {
  if (width - column >= LANES) return x;
  float lane[LANES];
  store(lane, x);
  for (int64_t i = width - column; i < LANES; ++i) lane[i] = 0;
  return load(lane);
}

// Mean and 1 / standard deviation of N rows. Several at once, since each sum is a chain of dependent additions.
template <Dtype type, int N>
VMAMBA_INLINE void moments(const void* const (&row)[N], int64_t width, float eps, float (&mean)[N], float (&factor)[N]) {
  const float share = 1.0f / static_cast<float>(width);
  Lanes sum[N] = {}, squares[N] = {};
  for (int64_t c = 0; c < width; c += LANES)
    for (int i = 0; i < N; ++i) sum[i] += load_column<type>(row[i], c, width);
  for (int i = 0; i < N; ++i) mean[i] = sum_of(sum[i]) * share;
  for (int64_t c = 0; c < width; c += LANES)
    for (int i = 0; i < N; ++i) {
      const Lanes off = only_columns(load_column<type>(row[i], c, width) - mean[i], c, width);
      squares[i] = fma(off, off, squares[i]);
    }
  for (int i = 0; i < N; ++i) factor[i] = 1.0f / __builtin_sqrtf(sum_of(squares[i]) * share + eps);
}

// What happens to rows while they are laid out.
struct Treatment {
  bool norm = false;
  float eps = 0;
  Gate gate = {};
};

// Lay out rows m … m + N of a tile, treated. `from` is the first of them, dense, and row `number` of all; the next one is
// `stride` values further.
template <Dtype type, int N>
VMAMBA_INLINE void lay_out_rows(const void* from, int64_t number, int64_t stride, int64_t width, const Treatment& treatment,
                                float* tile, int64_t rows, int64_t m, int64_t dtype) {
  float mean[N], factor[N];
  const void* row[N];
  for (int i = 0; i < N; ++i) row[i] = static_cast<const char*>(from) + i * stride * size_of(static_cast<int64_t>(type));
  if (treatment.norm) moments<type>(row, width, treatment.eps, mean, factor);
  int64_t c = 0;
  for (; c < width; c += LANES)
    for (int i = 0; i < N; ++i) {
      Lanes x = load_column<type>(row[i], c, width);
      if (treatment.norm) x = (x - mean[i]) * factor[i];
      if (treatment.gate.values) {
        const Gate& gate = treatment.gate;
        x = fma(x, load(gate.weight + c), load(gate.bias + c)) *
            load_column<Dtype::float32>(gate.values + (number + i) * gate.stride, c, width);
      }
      put(tile, rows, m + i, c, dtype, only_columns(x, c, width));
    }
  const int64_t values = words_of(width, dtype) * (dtype == FLOAT32 ? 1 : 2);
  for (; c < values; c += LANES)
    for (int i = 0; i < N; ++i) put(tile, rows, m + i, c, dtype, Lanes{});
}

constexpr int LAID_OUT_TOGETHER = 4;  // rows

// Lay out a block of rows, the first of which is row `first` of all. at(row, N) is where row `row` of the block lies, with
// N - 1 more behind it, each `stride` values further. Tile t begins at words · tiles.first_row(t).
template <Dtype type, class At>
VMAMBA_INLINE void lay_out_block(const Tiles& tiles, int64_t first, int64_t width, int64_t dtype, int64_t stride,
                                 const Treatment& treatment, float* to, At&& at) {
  const int64_t words = words_of(width, dtype);
  for (int64_t t = 0; t < tiles.count; ++t) {
    const int64_t row = tiles.first_row(t), rows = tiles.rows(t);
    float* tile = to + words * row;
    int64_t m = 0;
    for (constexpr int N = LAID_OUT_TOGETHER; m + N <= rows; m += N)
      lay_out_rows<type, N>(at(row + m, N), first + row + m, stride, width, treatment, tile, rows, m, dtype);
    for (; m < rows; ++m)
      lay_out_rows<type, 1>(at(row + m, 1), first + row + m, stride, width, treatment, tile, rows, m, dtype);
  }
}

// ---- a block of rows times a matrix --------------------------------------------------------------------------

// Apply an activation to `count` vectors.
template <class F>
VMAMBA_INLINE void over_vectors(float* vectors, int64_t count, F&& f) {
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    const Pack<2> y = f(Pack<2>{{load(vectors + i * LANES), load(vectors + (i + 1) * LANES)}});
    store(vectors + i * LANES, y.part[0]);
    store(vectors + (i + 1) * LANES, y.part[1]);
  }
  if (i < count) store(vectors + i * LANES, f(Pack<1>{{load(vectors + i * LANES)}}).part[0]);
}

static void activate(float* vectors, int64_t count, Activation activation) {
  switch (activation) {
    case Activation::gelu:
      return over_vectors(vectors, count, [](auto x) __attribute__((always_inline)) { return gelu(x, tail(x)); });
    case Activation::silu:
      return over_vectors(vectors, count, [](auto x) __attribute__((always_inline)) { return silu(x); });
    case Activation::none: return;
  }
}

// One of `count` parts of a matrix's panels.
struct Part {
  int64_t number, count;
};

// keep(first row, rows, column, sums) for every tile and every vector of outputs in a part of the panels.
template <class F>
VMAMBA_INLINE void multiply_block(const Tiles& tiles, const float* laid_out, const PackedMatrix& matrix, Activation activation,
                                  Part part, F&& keep) {
  const int64_t words = words_of(matrix.in, matrix.dtype), vectors = (matrix.out + LANES - 1) / LANES;
  const int64_t panels = (matrix.out + PANEL - 1) / PANEL;
  const int64_t begin = panels * part.number / part.count, end = panels * (part.number + 1) / part.count;
  alignas(64) float sums[VECTORS * TILE_ROWS * LANES];
  for (int64_t p = begin; p < end; ++p) {
    const float* panel = static_cast<const float*>(matrix.panels) + p * words * PANEL;
    const int64_t count = smaller(VECTORS, vectors - p * VECTORS);
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t row = tiles.first_row(t), rows = tiles.rows(t);
      const float* bias = matrix.bias + p * PANEL;
      multiply_for<TILE_ROWS>(rows, count, matrix.dtype)(laid_out + words * row, panel, words, bias, sums);
      activate(sums, count * rows, activation);
      for (int64_t v = 0; v < count; ++v) keep(row, rows, p * PANEL + v * LANES, sums + v * rows * LANES);
    }
  }
}

// Write one vector of outputs of some rows, from `first` on, with the residual added.
static void write(const ProductOutputs& out, int64_t width, int64_t first, int64_t rows, int64_t column, const float* sums) {
  const int count = static_cast<int>(smaller(LANES, width - column));
  const int64_t to = first * out.y.stride[0] + column, from = first * out.residual.stride[0] + column;
  with_dtype(out.y.dtype, [&](auto type) {
    constexpr Dtype T = decltype(type)::value;
    auto over_rows = [&](auto&& residual, auto&& put) __attribute__((always_inline)) {
      for (int64_t m = 0; m < rows; ++m)
        put(to + m * out.y.stride[0], load(sums + m * LANES) + residual(from + m * out.residual.stride[0]));
    };
    auto nothing = [](int64_t) { return Lanes{}; };
    auto put = [&](int64_t at, Lanes x) { store_as<T>(out.y.data, at, x); };
    auto put_some = [&](int64_t at, Lanes x) { store_some<T>(out.y.data, at, 1, count, x); };
    if (count == LANES)
      out.residual.data ? over_rows([&](int64_t at) { return load_as<T>(out.residual.data, at); }, put)
                        : over_rows(nothing, put);
    else
      out.residual.data ? over_rows([&](int64_t at) { return load_some<T>(out.residual.data, at, 1, count); }, put_some)
                        : over_rows(nothing, put_some);
  });
}

// Write one vector of outputs as part of the next product's tile.
VMAMBA_INLINE void write_tile(float* tile, int64_t width, int64_t rows, int64_t column, int64_t dtype, const float* sums) {
  for (int64_t m = 0; m < rows; ++m) put(tile, rows, m, column, dtype, load(sums + m * LANES));
  if (dtype != FLOAT32 && column % PANEL == 0 && column + LANES >= width)
    for (int64_t m = 0; m < rows; ++m) put(tile, rows, m, column + LANES, dtype, Lanes{});
}

// ---- sharing -------------------------------------------------------------------------------------------------

// body(first row, rows, part, this worker's memory) for every block of rows and part of the columns.
template <class F>
VMAMBA_INLINE void share_blocks(const ProductSharing& sharing, int64_t rows, F&& body) {
  const int64_t blocks = (rows + sharing.block_rows - 1) / sharing.block_rows, parts = sharing.column_parts;
  share_tasks(blocks * parts, sharing.threads, sharing.workspace, sharing.thread_floats, [&](int64_t task, float* memory) {
    const int64_t first = task / parts * sharing.block_rows;
    body(first, smaller(sharing.block_rows, rows - first), Part{task % parts, parts}, memory);
  });
}

}  // namespace
}  // namespace VMAMBA_ISA
}  // namespace vmamba
