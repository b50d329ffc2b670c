// The fused operator: step projection, scan and merge of all directions, over channels-last memory.
#include "lanes/memory.h"
#include "ss2d/ss2d_body.h"

namespace vmamba {
namespace VMAMBA_ISA {
namespace {

// A chunk of one lane block, by pixel and lane.
struct Tiles {
  Tile step;   // step sizes
  Tile input;  // step size times x
};

// Everything of a chunk that does not depend on the pixel before, GROUP pixels at a time. In the first direction y is set
// to skip · x, to which all directions add.
template <Dtype type, bool whole>
VMAMBA_NOINLINE void prepare(const void* x, float* y, const float* rows, const Chunk& chunk, const Chunk& next, int count,
                             const Strand& strand, int64_t rank, bool softplus, const Lanes* skip, Tiles& tiles) {
  const Lanes bias = load(strand.bias);
  const float* weights = strand.weights;
  in_groups(chunk.length, [&](int64_t t, auto size) {
    constexpr int N = decltype(size)::value;
    Lanes step[N];
    project(rows, weights, bias, rank, t, step);
    if (softplus) each_two(step, [](Lanes(&two)[2]) { step_sizes(two); });
    VMAMBA_EACH(N) {
      store(tiles.step + (t + i) * LANES, step[i]);
      const Lanes u = whole ? load_as<type>(x, chunk.x[t + i]) : load_first<type>(x, chunk.x[t + i], count);
      store(tiles.input + (t + i) * LANES, step[i] * u);
      __builtin_prefetch(static_cast<const char*>(x) + next.x[t + i] * (type == Dtype::float32 ? 4 : 2), 0, 2);
      __builtin_prefetch(y + next.y[t + i], 1, 2);
    }
    if (skip) {
      VMAMBA_EACH(N) {
        const Lanes u = whole ? load_as<type>(x, chunk.x[t + i]) : load_first<type>(x, chunk.x[t + i], count);
        whole ? store(y + chunk.y[t + i], *skip * u) : store_first(y, chunk.y[t + i], count, *skip * u);
      }
    }
  });
}

// The recurrence of N states over SPAN pixels; adds C · h to y.
template <int N, int SPAN, bool whole>
VMAMBA_INLINE void advance(const Tiles& tiles, const float* B, const float* C, const Lanes (&rate)[N], Lanes (&h)[N],
                           const int64_t* place, int64_t t, int count, float* y) {
  Lanes decay[SPAN * N];
  VMAMBA_EACH(SPAN * N) decay[i] = load(tiles.step + (t + i / N) * LANES) * rate[i % N];
  powers_of_two(decay);
  // All loads of y before all stores: where pixels are a multiple of 4 KiB apart a load waits for the store before it.
  Lanes sum[SPAN];
  VMAMBA_EACH(SPAN) sum[i] = whole ? load(y + place[t + i]) : load_first<Dtype::float32>(y, place[t + i], count);
#pragma GCC unroll 4
  for (int s = 0; s < SPAN; ++s) {
    const Lanes input = load(tiles.input + (t + s) * LANES);
    VMAMBA_EACH(N) {
      h[i] = fma(decay[s * N + i], h[i], unfused(input * B[i * PIXELS + t + s]));
      sum[s] = fma(h[i], splat(C[i * PIXELS + t + s]), sum[s]);
    }
  }
  VMAMBA_EACH(SPAN) whole ? store(y + place[t + i], sum[i]) : store_first(y, place[t + i], count, sum[i]);
}

template <int N, bool whole>
VMAMBA_INLINE void scan_states(const Tiles& tiles, const float* B, const float* C, const float* A, float* state,
                               int64_t length, const int64_t* place, int count, float* y) {
  constexpr int SPAN = N >= 4 ? 1 : 4 / N;  // pixels whose powers are computed side by side
  Lanes h[N], rate[N];
  for (int j = 0; j < N; ++j) {
    h[j] = load(state + j * LANES);
    rate[j] = load(A + j * LANES);
  }
  int64_t t = 0;
  for (; t + SPAN <= length; t += SPAN) advance<N, SPAN, whole>(tiles, B, C, rate, h, place, t, count, y);
  for (; t < length; ++t) advance<N, 1, whole>(tiles, B, C, rate, h, place, t, count, y);
  for (int j = 0; j < N; ++j) store(state + j * LANES, h[j]);
}

template <bool whole>
VMAMBA_NOINLINE void scan(const Ss2dShape& shape, const Tiles& tiles, const float* rows, int64_t length,
                          const Strand& strand, const int64_t* place, int count, float* y) {
  const float* B = rows + shape.rank * PIXELS;
  const float* C = B + shape.states * PIXELS;
  in_blocks<4>(shape.states, [&](int64_t j, auto n) {
    scan_states<decltype(n)::value, whole>(tiles, B + j * PIXELS, C + j * PIXELS, strand.A + j * LANES,
                                           strand.state + j * LANES, length, place, count, y);
  });
}

// The chunk after the one at hand, perhaps the next direction's first.
void place_next(const Ss2dForwardArgs& args, int64_t image, int direction, const Walk& walk, int64_t first, Chunk& next) {
  place_chunk(args.shape, walk, args.in.x.stride[1], first, next);
  prefetch_columns(args.shape, args.in.x_dbl, image, direction, next);
}

// One direction of one image, for some lane blocks. `memory` holds the rows, the blocks' parameters, and tiles for y.
void run_direction(const Ss2dForwardArgs& args, int64_t image, int turn, int64_t channel, int64_t channels, float* memory,
                   Tiles& tiles) {
  const Ss2dShape& shape = args.shape;
  const Tensor& x = args.in.x;
  const int k = direction_at(shape, turn);
  const Walk walk = walk_of(shape, args.in, k);
  const int64_t blocks = ceil_div(channels, LANES), pixels = pixel_count(shape);
  float* rows = memory;
  float* strands = rows + column_count(shape) * PIXELS;
  float* sums = strands + blocks * strand_floats(shape);
  float* y_map = args.y + image * pixels * shape.channels + channel;
  const char* x_map = static_cast<const char*>(x.data) + (image * x.stride[0] + channel) * size_of(x.dtype);
  int64_t in_tile[PIXELS];
  if (walk.colliding) {
    for (int64_t t = 0; t < PIXELS; ++t) in_tile[t] = t * LANES;
  }

  Chunk chunks[2];
  place_chunk(shape, walk, x.stride[1], 0, chunks[0]);
  for (int64_t first = 0, turned = 0; first < pixels; first += PIXELS, turned ^= 1) {
    const Chunk& chunk = chunks[turned];
    Chunk& next = chunks[turned ^ 1];
    if (first + PIXELS < pixels)
      place_next(args, image, k, walk, first + PIXELS, next);
    else if (turn + 1 < shape.directions) {
      const int after = direction_at(shape, turn + 1);
      place_next(args, image, after, walk_of(shape, args.in, after), 0, next);
    } else
      next = chunk;
    load_columns(shape, args.in.x_dbl, image, k, chunk, rows);
    for (int64_t i = 0; i < blocks; ++i) {
      const Block block = block_at(shape, channel + i * LANES);
      const Strand strand = strand_at(shape, strands + i * strand_floats(shape));
      if (first == 0)
        start_strand(shape, args.in, k, block, strand);
      else if (args.saved)
        for (int64_t j = 0; j < shape.states; ++j)
          store_first(args.saved, saved_at(shape, image, k, first, block) + j * shape.channels, block.count,
                      load(strand.state + j * LANES));

      const bool whole = block.count == LANES;
      const Lanes skip = total_skip(shape, args.in.D, block);
      float* y = y_map + i * LANES;
      with_dtype(x.dtype, [&](auto type) {
        constexpr Dtype T = decltype(type)::value;
        auto run = whole ? prepare<T, true> : prepare<T, false>;
        run(x_map + i * LANES * size_of(x.dtype), y, rows, chunk, next, block.count, strand, shape.rank, shape.softplus,
            turn == 0 ? &skip : nullptr, tiles);
      });
      auto run = whole || walk.colliding ? scan<true> : scan<false>;
      if (walk.colliding) {
        for (int64_t t = 0; t < chunk.length; ++t) store(sums + i * TILE + t * LANES, Lanes{});
        run(shape, tiles, rows, chunk.length, strand, in_tile, LANES, sums + i * TILE);
      } else {
        run(shape, tiles, rows, chunk.length, strand, chunk.y, block.count, y);
      }
    }
    if (walk.colliding) merge(false, chunk, channels, sums, y_map);
  }
}

// Channels that one task walks together, which does not change the result. Few tasks walk an image less often, but threads
// should get equally many. At most 96 of them, or on a small map as many as hold 4096 pixels together.
int64_t task_channels(const Ss2dShape& shape) {
  constexpr int64_t unit = 16;
  const int64_t units = ceil_div(shape.channels, unit), work = shape.batch * units;
  const int64_t small = 4096 / pixel_count(shape), most = small > 6 ? small : 6;
  const int64_t rounds = ceil_div(work, shape.threads * most);
  const int64_t together = ceil_div(work, shape.threads * rounds);
  const int64_t slices = ceil_div(units, smaller(together, units));
  return ceil_div(units, slices) * unit;
}

}  // namespace

void ss2d_forward(const Ss2dForwardArgs& args) {
  expect_fill(args.y, args.shape.batch * pixel_count(args.shape) * args.shape.channels * 4);
  const int64_t together = task_channels(args.shape), slices = ceil_div(args.shape.channels, together);
  share_tasks(args.shape.batch * slices, args.shape.threads, args.workspace, args.workspace_floats,
              [&](int64_t task, float* memory) {
                alignas(64) Tiles tiles;
                const int64_t first = task % slices * together, channels = smaller(args.shape.channels - first, together);
                for (int turn = 0; turn < args.shape.directions; ++turn)
                  run_direction(args, task / slices, turn, first, channels, memory, tiles);
              });
}

}  // namespace VMAMBA_ISA
}  // namespace vmamba
