// What forward and backward of the fused operator share: the order of the pixels, a chunk's columns, the step sizes.
//
// A task walks some lane blocks (LANES channels each) of one image through the directions, chunk by chunk. A chunk's
// low-rank steps, B and C are first laid out as rows over its pixels, so that the loops below read them as scalars at
// constant distances. Everything else of a chunk stays in tiles, [pixel][lane], that fit the first-level cache.
#pragma once

#include "lanes/lanes.h"
#include "lanes/parallel.h"
#include "ss2d/ss2d_args.h"
#include "ss2d/ss2d_math.h"

#define VMAMBA_NOINLINE __attribute__((noinline))  // hot loops, which then have the registers to themselves

namespace vmamba {
namespace VMAMBA_ISA {
namespace {

constexpr int PIXELS = SS2D_CHUNK;
constexpr int GROUP = 8;  // pixels that are projected together: each weight is loaded once for all

static_assert(PIXELS % LANES == 0 && PIXELS % GROUP == 0, "chunks are whole transposes and whole groups");

typedef float Tile[PIXELS * LANES + LANES];  // one vector more, so that neighbouring tiles do not share sets of the cache

VMAMBA_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
VMAMBA_INLINE int64_t pixel_count(const Ss2dShape& shape) { return shape.height * shape.width; }
VMAMBA_INLINE int64_t column_count(const Ss2dShape& shape) { return shape.rank + 2 * shape.states; }
VMAMBA_INLINE int64_t chunk_count(const Ss2dShape& shape) { return ceil_div(pixel_count(shape), PIXELS); }

// ---- scan orders ---------------------------------------------------------------------------------------------

// The t-th pixel of a direction is places[t], or without those start + (t / line) * line_step + (t % line) * step.
struct Walk {
  const int32_t* places;
  int64_t start, line, line_step, step;
  // Whether neighbouring pixels are a multiple of 4 KiB apart. Then they share one set of the first-level cache: what a load
  // fetches is driven out by the loads after it before the store to the same place comes, and each store waits.
  bool colliding;
};

// Along places from one pixel to the next the distance changes: what most of the first ones have in common decides.
VMAMBA_INLINE bool collide(const int32_t* places, int64_t pixels, int64_t pixel_bytes) {
  const int64_t steps = smaller(pixels, PIXELS) - 1;
  int64_t found = 0;
  for (int64_t t = 0; t < steps; ++t) found += (places[t + 1] - places[t]) * pixel_bytes % 4096 == 0;
  return 2 * found > steps;
}

VMAMBA_INLINE Walk walk_of(const Ss2dShape& shape, const Ss2dInputs& in, int direction) {
  const int64_t pixel_bytes = shape.channels * 4, line_bytes = shape.width * pixel_bytes;
  if (in.places) {
    const int32_t* places = in.places + direction * pixel_count(shape);
    return {places, 0, 1, 0, 0, collide(places, pixel_count(shape), pixel_bytes)};
  }
  const int64_t reading = shape.reading[direction];
  const int64_t down = reading & flip_h ? -shape.width : shape.width, right = reading & flip_w ? -1 : 1;
  const int64_t start = (reading & flip_h ? pixel_count(shape) - shape.width : 0) + (reading & flip_w ? shape.width - 1 : 0);
  if (reading & by_column) return {nullptr, start, shape.height, right, down, line_bytes % 4096 == 0};
  return {nullptr, start, shape.width, down, right, pixel_bytes % 4096 == 0};
}

// The direction that runs as the turn-th. The second half of an even number is mostly the first half backwards; so they go
// there and back, and what one used last the next finds in the cache. The first is always 0.
VMAMBA_INLINE int direction_at(const Ss2dShape& shape, int turn) {
  const int half = static_cast<int>(shape.directions / 2);
  return shape.directions % 2 ? turn : turn / 2 + turn % 2 * half;
}

struct Chunk {
  int64_t length;
  // Beyond `length` the last pixel again.
  int64_t pixel[PIXELS];
  int64_t x[PIXELS], y[PIXELS];  // where x, and maps of all channels, have the pixel
};

// The chunk that begins at the first-th pixel of the walk.
VMAMBA_INLINE void place_chunk(const Ss2dShape& shape, const Walk& walk, int64_t x_stride, int64_t first, Chunk& chunk) {
  chunk.length = smaller(pixel_count(shape) - first, PIXELS);
  if (walk.places) {
    for (int64_t t = 0; t < chunk.length; ++t) chunk.pixel[t] = walk.places[first + t];
  } else {
    int64_t inside = first % walk.line, line = walk.start + first / walk.line * walk.line_step;
    for (int64_t t = 0; t < chunk.length; ++t) {
      chunk.pixel[t] = line + inside * walk.step;
      if (++inside == walk.line) {
        inside = 0;
        line += walk.line_step;
      }
    }
  }
  for (int64_t t = chunk.length; t < PIXELS; ++t) chunk.pixel[t] = chunk.pixel[chunk.length - 1];
  for (int64_t t = 0; t < PIXELS; ++t) {
    chunk.x[t] = chunk.pixel[t] * x_stride;
    chunk.y[t] = chunk.pixel[t] * shape.channels;
  }
}

// ---- memory --------------------------------------------------------------------------------------------------

// The first `count` lanes; the others are 0, and memory beyond is not touched.
template <Dtype type>
VMAMBA_INLINE Lanes load_first(const void* base, int64_t index, int count) {
#if defined(__AVX512F__)
  const uint32_t mask = (1u << count) - 1u;
  if constexpr (type == Dtype::float32) {
    return (Lanes)_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), static_cast<const float*>(base) + index);
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(base) + index;
    const Halves x = (Halves)_mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), from);
    return type == Dtype::bfloat16 ? from_bfloat16(x) : from_float16(x);
  }
#else
  return count == LANES ? load_as<type>(base, index) : load_some<type>(base, index, 1, count);
#endif
}

VMAMBA_INLINE void store_first(float* base, int64_t index, int count, Lanes x) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(base + index, static_cast<__mmask16>((1u << count) - 1u), (__m512)x);
#else
  if (count == LANES) return store(base + index, x);
  store_some<Dtype::float32>(base, index, 1, count, x);
#endif
}

// out[column * out_step + row] = base[row_at(row) + column] * factor; rows up to the next multiple of LANES become 0.
template <Dtype type, class RowAt>
VMAMBA_INLINE void transpose_in(const void* base, RowAt&& row_at, int64_t rows, int64_t columns, float* out,
                                int64_t out_step, float factor = 1.0f) {
  for (int64_t r = 0; r < rows; r += LANES) {
    for (int64_t c = 0; c < columns; c += LANES) {
      const int some = static_cast<int>(smaller(columns - c, LANES));
      Lanes tile[LANES];
      for (int i = 0; i < LANES; ++i) tile[i] = r + i < rows ? load_first<type>(base, row_at(r + i) + c, some) : Lanes{};
      transpose(tile);
      for (int i = 0; i < some; ++i) store(out + (c + i) * out_step + r, tile[i] * factor);
    }
  }
}

// The reverse: base[row_at(row) + column] = in[column * in_step + row].
template <class RowAt>
VMAMBA_INLINE void transpose_out(float* base, RowAt&& row_at, int64_t rows, int64_t columns, const float* in,
                                 int64_t in_step) {
  for (int64_t r = 0; r < rows; r += LANES) {
    for (int64_t c = 0; c < columns; c += LANES) {
      const int some = static_cast<int>(smaller(columns - c, LANES));
      Lanes tile[LANES];
      for (int i = 0; i < LANES; ++i) tile[i] = i < some ? load(in + (c + i) * in_step + r) : Lanes{};
      transpose(tile);
      for (int i = 0; i < LANES && r + i < rows; ++i) store_first(base, row_at(r + i) + c, some, tile[i]);
    }
  }
}

// ---- a chunk's contents --------------------------------------------------------------------------------------

// The columns of x_dbl over the chunk's pixels: rows[column * PIXELS + t]. B is multiplied by ln 2, see ss2d_math.h.
VMAMBA_NOINLINE void load_columns(const Ss2dShape& shape, const Tensor& x_dbl, int64_t image, int direction,
                                  const Chunk& chunk, float* rows) {
  const int64_t offset = image * x_dbl.stride[0] + direction * x_dbl.stride[2];
  with_dtype(x_dbl.dtype, [&](auto type) {
    transpose_in<decltype(type)::value>(
        x_dbl.data, [&](int64_t t) { return offset + chunk.pixel[t] * x_dbl.stride[1]; }, chunk.length,
        column_count(shape), rows, PIXELS);
  });
  float* B = rows + shape.rank * PIXELS;
  for (int64_t i = 0; i < shape.states * PIXELS; i += LANES) store(B + i, load(B + i) * LN_2);
}

VMAMBA_INLINE void prefetch_columns(const Ss2dShape& shape, const Tensor& x_dbl, int64_t image, int direction,
                                    const Chunk& chunk) {
  const int64_t size = size_of(x_dbl.dtype), bytes = column_count(shape) * size;
  const char* base = static_cast<const char*>(x_dbl.data) + (image * x_dbl.stride[0] + direction * x_dbl.stride[2]) * size;
  for (int64_t t = 0; t < chunk.length; ++t) {
    const char* row = base + chunk.pixel[t] * x_dbl.stride[1] * size;
    __builtin_prefetch(row, 0, 2);
    for (int64_t at = 64; at < bytes + 60; at += 64) __builtin_prefetch(row + at, 0, 2);
  }
}

// A lane block: its first channel and how many of its lanes are channels.
struct Block {
  int64_t channel;
  int count;
};

VMAMBA_INLINE Block block_at(const Ss2dShape& shape, int64_t channel) {
  return {channel, static_cast<int>(smaller(shape.channels - channel, LANES))};
}

// One direction's parameters of a lane block, lanes over channels, and the block's state or its adjoint.
struct Strand {
  float* weights;  // [rank], times log2(e)
  float* A;        // [states]
  float* bias;     // times log2(e)
  float* state;    // [states]
};

VMAMBA_INLINE int64_t strand_floats(const Ss2dShape& shape) { return (column_count(shape) + 1) * LANES; }

VMAMBA_INLINE Strand strand_at(const Ss2dShape& shape, float* memory) {
  float* A = memory + shape.rank * LANES;
  float* bias = A + shape.states * LANES;
  return {memory, A, bias, bias + LANES};
}

// Fetch a direction's parameters and clear the state.
void start_strand(const Ss2dShape& shape, const Ss2dInputs& in, int direction, Block block, const Strand& strand) {
  const int64_t first = direction * shape.channels + block.channel, rank = shape.rank, states = shape.states;
  auto weights_of = [&](int64_t c) { return (first + c) * rank; };
  transpose_in<Dtype::float32>(in.dt_weight, weights_of, block.count, rank, strand.weights,
                               LANES, LOG2_E);
  transpose_in<Dtype::float32>(in.A, [&](int64_t c) { return (first + c) * states; }, block.count, states, strand.A, LANES);
  for (int64_t j = 0; j < states; ++j) store(strand.state + j * LANES, Lanes{});
  store(strand.bias, in.dt_bias ? load_first<Dtype::float32>(in.dt_bias, first, block.count) * LOG2_E : Lanes{});
}

// D summed over the directions, each of which adds its D u to the same pixel.
VMAMBA_INLINE Lanes total_skip(const Ss2dShape& shape, const float* D, Block block) {
  Lanes sum = {};
  for (int k = 0; D && k < shape.directions; ++k)
    sum += load_first<Dtype::float32>(D, k * shape.channels + block.channel, block.count);
  return sum;
}

// Where the states before the first-th pixel (a multiple of PIXELS, not 0) are kept; states are shape.channels apart.
VMAMBA_INLINE int64_t saved_at(const Ss2dShape& shape, int64_t image, int direction, int64_t first, Block block) {
  const int64_t chunk = (image * shape.directions + direction) * (chunk_count(shape) - 1) + first / PIXELS - 1;
  return chunk * shape.states * shape.channels + block.channel;
}

constexpr int64_t TILE = sizeof(Tile) / sizeof(float);

// A map at the chunk's pixels becomes, or grows by, tiles of a task's lane blocks, TILE floats apart. All blocks of a pixel
// together: they lie in sets of the cache of their own (see Walk).
VMAMBA_NOINLINE void merge(bool first, const Chunk& chunk, int64_t channels, const float* tiles, float* map) {
  for (int64_t t = 0; t < chunk.length; ++t) {
    const float* from = tiles + t * LANES;
    for (int64_t c = 0; c < channels; c += LANES, from += TILE) {
      float* to = map + chunk.y[t] + c;
      const int count = static_cast<int>(smaller(channels - c, LANES));
      if (count == LANES)
        store(to, first ? load(from) : load(to) + load(from));
      else
        store_first(to, 0, count, first ? load(from) : load_first<Dtype::float32>(to, 0, count) + load(from));
    }
  }
}

template <int N>
struct Count {
  static constexpr int value = N;
};

// bias + weights · low-rank step, for N pixels from t on.
template <int N>
VMAMBA_INLINE void project(const float* rows, const float* weights, Lanes bias, int64_t rank, int64_t t, Lanes (&step)[N]) {
  for (int p = 0; p < N; ++p) step[p] = bias;
  for (int64_t i = 0; i < rank; ++i) {
    const Lanes weight = load(weights + i * LANES);
    const float* row = rows + i * PIXELS + t;
#pragma GCC unroll 8
    for (int p = 0; p < N; ++p) step[p] = fma(weight, splat(row[p]), step[p]);
  }
}

// f(t, Count) for GROUP pixels at a time, and for the rest half as many where that is enough. The last ones may lie beyond
// `length`, where a chunk repeats its last pixel.
template <class F>
VMAMBA_INLINE void in_groups(int64_t length, F&& f) {
  int64_t t = 0;
  for (; t + GROUP / 2 < length; t += GROUP) f(t, Count<GROUP>{});
  if (t < length) f(t, Count<GROUP / 2>{});
}

// f(first, Count) over 0 .. total in steps of the compile-time constant `most`, and what remains.
template <int most, class F>
VMAMBA_INLINE void in_blocks(int64_t total, F&& f) {
  int64_t first = 0;
  for (; first + most <= total; first += most) f(first, Count<most>{});
  if constexpr (most > 1) {
    const int64_t left = total - first;
    if (most > 7 && left == 7) f(first, Count<7>{});
    if (most > 6 && left == 6) f(first, Count<6>{});
    if (most > 5 && left == 5) f(first, Count<5>{});
    if (most > 4 && left == 4) f(first, Count<4>{});
    if (most > 3 && left == 3) f(first, Count<3>{});
    if (most > 2 && left == 2) f(first, Count<2>{});
    if (left == 1) f(first, Count<1>{});
  }
}

}  // namespace
}  // namespace VMAMBA_ISA
}  // namespace vmamba
