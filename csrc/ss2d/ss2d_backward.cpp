// Every gradient of the fused operator. Each direction is walked backwards, chunk by chunk: the states inside a chunk are
// computed again from those that forward saved at its start.
#include "lanes/memory.h"
#include "ss2d/ss2d_body.h"

namespace vmamba {
namespace VMAMBA_ISA {
namespace {

// A chunk of one lane block. What it holds, by pixel and lane:
struct Work {
  Tile u, step;        // step: the step size, times log2(e), as B is times ln 2
  Tile dy_dx;          // dy, and in the end this direction's part of dx
  Tile slope_dstep;    // the step size's derivative by the projected step, and in the end the gradient of that
  Tile decay[4], decayed[4];  // of the states at work: the decay, and that times the state before
  Tile through_B;      // sum over states of adjoint · B
  Tile through_decay;  // sum over states of adjoint · decayed state · A
};

// Everything of a chunk that does not depend on other pixels, GROUP pixels at a time; prefetches for the next chunk.
template <Dtype type, bool whole>
VMAMBA_NOINLINE void prepare(const void* x, const float* dy, const float* dx, const float* rows, const Chunk& chunk,
                             const Chunk& next, int count, const Strand& strand, int64_t rank, bool softplus,
                             Work& work) {
  const Lanes bias = load(strand.bias);
  const float* weights = strand.weights;
  in_groups(chunk.length, [&](int64_t t, auto size) {
    constexpr int N = decltype(size)::value;
    Lanes step[N], slope[N];
    project(rows, weights, bias, rank, t, step);
    VMAMBA_EACH(N) slope[i] = splat(1.0f);
    if (softplus) each_two(step, slope, [](Lanes(&two)[2], Lanes(&slopes)[2]) { step_sizes(two, slopes); });
    VMAMBA_EACH(N) {
      store(work.step + (t + i) * LANES, step[i]);
      store(work.slope_dstep + (t + i) * LANES, slope[i]);
      const int64_t from_x = chunk.x[t + i], from_dy = chunk.y[t + i];
      store(work.u + (t + i) * LANES, whole ? load_as<type>(x, from_x) : load_first<type>(x, from_x, count));
      store(work.dy_dx + (t + i) * LANES, whole ? load(dy + from_dy) : load_first<Dtype::float32>(dy, from_dy, count));
      __builtin_prefetch(static_cast<const char*>(x) + next.x[t + i] * (type == Dtype::float32 ? 4 : 2), 0, 2);
      __builtin_prefetch(dy + next.y[t + i], 0, 2);
      __builtin_prefetch(dx + next.y[t + i], 1, 2);
    }
  });
}

// Forward through SPAN pixels once more, keeping what `reverse_states` needs.
template <int N, int SPAN>
VMAMBA_INLINE void replay(Work& work, const float* B, const Lanes (&rate)[N], Lanes (&h)[N], int64_t t) {
  Lanes decay[SPAN * N];
  VMAMBA_EACH(SPAN * N) decay[i] = load(work.step + (t + i / N) * LANES) * rate[i % N];
  powers_of_two(decay);
#pragma GCC unroll 4
  for (int s = 0; s < SPAN; ++s) {
    const int64_t at = (t + s) * LANES;
    const Lanes input = load(work.step + at) * load(work.u + at);
    VMAMBA_EACH(N) {
      const Lanes decayed = decay[s * N + i] * h[i];
      h[i] = fma(input, splat(B[i * PIXELS + t + s]), decayed);
      store(work.decay[i] + at, decay[s * N + i]);
      store(work.decayed[i] + at, decayed);
    }
  }
}

template <int N>
VMAMBA_NOINLINE void replay_states(Work& work, const float* B, const float* A, Lanes (&h)[N], int64_t length) {
  constexpr int SPAN = N >= 4 ? 1 : 4 / N;
  Lanes rate[N], state[N];
  for (int j = 0; j < N; ++j) {
    rate[j] = load(A + j * LANES);
    state[j] = h[j];
  }
  int64_t t = 0;
  for (; t + SPAN <= length; t += SPAN) replay<N, SPAN>(work, B, rate, state, t);
  for (; t < length; ++t) replay<N, 1>(work, B, rate, state, t);
}

// Lane i of the result is the sum of row i.
VMAMBA_INLINE Lanes row_sums(const Lanes (&row)[LANES]) {
  Lanes part[LANES / 4];  // of four rows each: sums over every quarter (128 bits)
  for (int q = 0; q < LANES / 4; ++q) {
    const Lanes ab = zip_low(row[4 * q], row[4 * q + 1]) + zip_high(row[4 * q], row[4 * q + 1]);
    const Lanes cd = zip_low(row[4 * q + 2], row[4 * q + 3]) + zip_high(row[4 * q + 2], row[4 * q + 3]);
    part[q] = low_pairs(ab, cd) + high_pairs(ab, cd);
  }
#if VMAMBA_LANES == 4
  return part[0];
#else
  Lanes half[LANES / 8];
  for (int q = 0; q < LANES / 8; ++q)
    half[q] = low_quarters(part[2 * q], part[2 * q + 1]) + high_quarters(part[2 * q], part[2 * q + 1]);
#if VMAMBA_LANES == 8
  return half[0];
#else
  return low_quarters(half[0], half[1]) + high_quarters(half[0], half[1]);
#endif
#endif
}

// What turns the sums over states into gradients of the projected step and of x.
struct Finish {
  Lanes skip, of_bias;
};

VMAMBA_INLINE void finish(Work& work, int64_t t, Lanes through_B, Lanes through_decay, Finish& to) {
  const Lanes ddelta = fma(through_B * load(work.u + t * LANES), splat(LOG2_E), through_decay);
  const Lanes dstep = ddelta * load(work.slope_dstep + t * LANES);
  to.of_bias += dstep;
  store(work.slope_dstep + t * LANES, dstep);
  const Lanes direct = to.skip * load(work.dy_dx + t * LANES);
  store(work.dy_dx + t * LANES, fma(through_B, load(work.step + t * LANES), direct));
}

// The adjoint recurrence of N states, backwards through the chunk. `adjoint` enters and leaves as decay · adjoint of the
// pixel after; dA, dB and dC grow. Where these are all the states there are (`alone`), each pixel is finished at once.
template <int N, bool alone>
VMAMBA_NOINLINE void reverse_states(Work& work, const float* B, const float* C, const float* A, int64_t length,
                                    float* adjoint, float* dA, int64_t dA_step, float* dB, float* dC, Finish& to) {
  Lanes carried[N], rate[N], of_A[N];
  for (int j = 0; j < N; ++j) {
    carried[j] = load(adjoint + j * LANES);
    rate[j] = load(A + j * LANES);
    of_A[j] = load(dA + j * dA_step);
  }
  Finish finishing = to;
  Lanes of_B[N][LANES], of_C[N][LANES];
  for (int64_t first = (length - 1) / LANES * LANES; first >= 0; first -= LANES) {
    for (int64_t t = length; t < first + LANES; ++t)
      for (int j = 0; j < N; ++j) of_B[j][t - first] = of_C[j][t - first] = Lanes{};
    for (int64_t t = smaller(first + LANES, length) - 1; t >= first; --t) {
      const int64_t at = t * LANES;
      const Lanes step = load(work.step + at), input = step * load(work.u + at), dy = load(work.dy_dx + at);
      Lanes through_B = alone ? Lanes{} : load(work.through_B + at);
      Lanes through_decay = alone ? Lanes{} : load(work.through_decay + at);
      VMAMBA_EACH(N) {
        const Lanes b = splat(B[i * PIXELS + t]), decayed = load(work.decayed[i] + at);
        const Lanes q = fma(dy, splat(C[i * PIXELS + t]), carried[i]);
        of_C[i][t - first] = dy * fma(input, b, decayed);
        of_B[i][t - first] = q * input;
        through_B = fma(q, b, through_B);
        const Lanes pull = q * decayed;
        through_decay = fma(pull, rate[i], through_decay);
        of_A[i] = fma(pull, step, of_A[i]);
        carried[i] = load(work.decay[i] + at) * q;
      }
      if (alone) {
        finish(work, t, through_B, through_decay, finishing);
      } else {
        store(work.through_B + at, through_B);
        store(work.through_decay + at, through_decay);
      }
    }
    for (int j = 0; j < N; ++j) {
      store(dB + j * PIXELS + first, load(dB + j * PIXELS + first) + row_sums(of_B[j]) * LN_2);
      store(dC + j * PIXELS + first, load(dC + j * PIXELS + first) + row_sums(of_C[j]));
    }
  }
  for (int j = 0; j < N; ++j) {
    store(adjoint + j * LANES, carried[j]);
    store(dA + j * dA_step, of_A[j]);
  }
  to = finishing;
}

// Gradient of the low-rank step: the weights' transpose times dstep, with lanes over pixels.
VMAMBA_NOINLINE void low_rank_gradient(const Work& work, const float* weights, int64_t rank, int channels, int64_t length,
                                       float* sums) {
  for (int64_t t = 0; t < length; t += LANES) {
    Lanes of_channel[LANES];
    for (int i = 0; i < LANES; ++i) of_channel[i] = load(work.slope_dstep + (t + i) * LANES);
    transpose(of_channel);
    in_blocks<8>(rank, [&](int64_t i, auto n) {
      constexpr int N = decltype(n)::value;
      Lanes sum[N];
      for (int s = 0; s < N; ++s) sum[s] = load(sums + (i + s) * PIXELS + t);
      const float* row = weights + i;
      for (int c = 0; c < channels; ++c, row += rank) {
        const Lanes dstep = of_channel[c];
#pragma GCC unroll 8
        for (int s = 0; s < N; ++s) sum[s] = fma(dstep, splat(row[s]), sum[s]);
      }
      for (int s = 0; s < N; ++s) store(sums + (i + s) * PIXELS + t, sum[s]);
    });
  }
}

// Gradient of the weights: dstep times the low-rank step, summed over pixels.
VMAMBA_NOINLINE void weight_gradient(const Work& work, const float* rows, int64_t rank, int64_t length, float* sums,
                                     int64_t sums_step) {
  in_blocks<8>(rank, [&](int64_t i, auto n) {
    constexpr int N = decltype(n)::value;
    Lanes sum[N];
    for (int s = 0; s < N; ++s) sum[s] = load(sums + (i + s) * sums_step);
    for (int64_t t = 0; t < length; ++t) {
      const Lanes dstep = load(work.slope_dstep + t * LANES);
#pragma GCC unroll 8
      for (int s = 0; s < N; ++s) sum[s] = fma(dstep, splat(rows[(i + s) * PIXELS + t]), sum[s]);
    }
    for (int s = 0; s < N; ++s) store(sums + (i + s) * sums_step, sum[s]);
  });
}

// Rows of group_sums: for each direction rank rows for dt_weight, states for A, one for dt_bias; at the end one for D.
VMAMBA_INLINE int64_t sum_rows(const Ss2dShape& shape) { return shape.rank + shape.states + 1; }
VMAMBA_INLINE int64_t padded_channels(const Ss2dShape& shape) { return ceil_div(shape.channels, 16) * 16; }
VMAMBA_INLINE int64_t group_floats(const Ss2dShape& shape) {
  return (shape.directions * sum_rows(shape) + 1) * padded_channels(shape);
}

// The first channel of a slice; slice + 1 gives the end, which may lie beyond the last channel.
VMAMBA_INLINE int64_t slice_begin(const Ss2dBackwardArgs& args, int64_t slice) {
  const int64_t units = padded_channels(args.shape) / 16;
  return (units / args.slices * slice + smaller(slice, units % args.slices)) * 16;
}

// One chunk of one lane block after `prepare`: through its states, then to the gradients of all that made them.
void run_block(const Ss2dBackwardArgs& args, int64_t image, int k, int64_t group, int64_t first, const Chunk& chunk,
               Block block, const Strand& strand, const float* rows, float* sums, Work& work) {
  const Ss2dShape& shape = args.shape;
  const int64_t rank = shape.rank, states = shape.states, padded = padded_channels(shape), length = chunk.length;
  const float *B = rows + rank * PIXELS, *C = B + states * PIXELS;
  float *dB = sums + rank * PIXELS, *dC = dB + states * PIXELS;
  float* d_dt_weight = args.group_sums + group * group_floats(shape) + k * sum_rows(shape) * padded + block.channel;
  float *dA = d_dt_weight + rank * padded, *d_dt_bias = dA + states * padded;
  const float* saved = first > 0 ? args.saved + saved_at(shape, image, k, first, block) : nullptr;
  if (first > PIXELS) {
    const float* next = args.saved + saved_at(shape, image, k, first - PIXELS, block);
    for (int64_t j = 0; j < states; ++j) __builtin_prefetch(next + j * shape.channels, 0, 2);
  }

  if (k == 0 && args.dD) {
    float* dD = args.group_sums + (group + 1) * group_floats(shape) - padded + block.channel;
    Lanes sum = load(dD);
    for (int64_t t = 0; t < length; ++t) sum = fma(load(work.dy_dx + t * LANES), load(work.u + t * LANES), sum);
    store(dD, sum);
  }

  Finish to{k == 0 ? total_skip(shape, args.in.D, block) : Lanes{}, load(d_dt_bias)};
  const bool alone = states <= 4;
  for (int64_t t = 0; !alone && t < length; ++t) {
    store(work.through_B + t * LANES, Lanes{});
    store(work.through_decay + t * LANES, Lanes{});
  }
  in_blocks<4>(states, [&](int64_t j, auto n) {
    constexpr int N = decltype(n)::value;
    Lanes h[N] = {};
    for (int s = 0; saved && s < N; ++s)
      h[s] = load_first<Dtype::float32>(saved, (j + s) * shape.channels, block.count);
    const float* A = strand.A + j * LANES;
    replay_states<N>(work, B + j * PIXELS, A, h, length);
    auto reverse = alone ? reverse_states<N, true> : reverse_states<N, false>;
    reverse(work, B + j * PIXELS, C + j * PIXELS, A, length, strand.state + j * LANES, dA + j * padded, padded,
            dB + j * PIXELS, dC + j * PIXELS, to);
  });
  for (int64_t t = 0; !alone && t < length; ++t)
    finish(work, t, load(work.through_B + t * LANES), load(work.through_decay + t * LANES), to);
  store(d_dt_bias, to.of_bias);

  for (int64_t t = length; t % LANES; ++t) store(work.slope_dstep + t * LANES, Lanes{});
  const float* weights = args.in.dt_weight + (k * shape.channels + block.channel) * rank;
  low_rank_gradient(work, weights, rank, block.count, length, sums);
  weight_gradient(work, rows, rank, length, d_dt_weight, padded);
}

// One direction of one image, for the channels of a slice. `memory` holds the rows, their gradients, the blocks' parameters
// and tiles for dx.
void run_direction(const Ss2dBackwardArgs& args, int64_t image, int k, int64_t slice, int64_t group, float* memory,
                   Work& work) {
  const Ss2dShape& shape = args.shape;
  const Tensor& x = args.in.x;
  const int64_t channel = slice_begin(args, slice), end = smaller(shape.channels, slice_begin(args, slice + 1));
  const int64_t blocks = ceil_div(end - channel, LANES), columns = column_count(shape), pixels = pixel_count(shape);
  float* rows = memory;
  float* sums = rows + columns * PIXELS;
  float* strands = sums + columns * PIXELS;
  float* dx_tiles = strands + blocks * strand_floats(shape);
  const int64_t map = image * pixels * shape.channels + channel, size = size_of(x.dtype);
  const char* x_map = static_cast<const char*>(x.data) + (image * x.stride[0] + channel) * size;
  float* dx_dbl = args.slice_sums ? args.slice_sums + slice * shape.batch * pixels * shape.directions * columns : args.dx_dbl;
  dx_dbl += (image * pixels * shape.directions + k) * columns;

  const Walk walk = walk_of(shape, args.in, k);
  const int64_t last = (chunk_count(shape) - 1) * PIXELS;
  Chunk chunks[2];
  place_chunk(shape, walk, x.stride[1], last, chunks[0]);
  for (int64_t first = last, turned = 0; first >= 0; first -= PIXELS, turned ^= 1) {
    const Chunk& chunk = chunks[turned];
    Chunk& other = chunks[turned ^ 1];
    const Chunk& next = first > 0 ? other : chunk;
    if (first > 0) {
      place_chunk(shape, walk, x.stride[1], first - PIXELS, other);
      prefetch_columns(shape, args.in.x_dbl, image, k, other);
    }
    load_columns(shape, args.in.x_dbl, image, k, chunk, rows);
    for (int64_t i = 0; i < columns * PIXELS; i += LANES) store(sums + i, Lanes{});

    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t at = map + i * LANES;
      const Block block = block_at(shape, channel + i * LANES);
      const Strand strand = strand_at(shape, strands + i * strand_floats(shape));
      if (first == last) start_strand(shape, args.in, k, block, strand);
      with_dtype(x.dtype, [&](auto type) {
        constexpr Dtype T = decltype(type)::value;
        auto run = block.count == LANES ? prepare<T, true> : prepare<T, false>;
        run(x_map + i * LANES * size, args.dy + at, args.dx + at, rows, chunk, next, block.count, strand, shape.rank,
            shape.softplus, work);
      });
      run_block(args, image, k, group, first, chunk, block, strand, rows, sums, work);
      if (walk.colliding)
        for (int64_t t = 0; t < chunk.length; ++t)
          store(dx_tiles + i * TILE + t * LANES, load(work.dy_dx + t * LANES));
      else
        merge(k == 0, chunk, block.count, work.dy_dx, args.dx + at);
    }
    if (walk.colliding) merge(k == 0, chunk, end - channel, dx_tiles, args.dx + map);
    auto row_at = [&](int64_t t) { return chunk.pixel[t] * shape.directions * columns; };
    transpose_out(dx_dbl, row_at, chunk.length, columns, sums, PIXELS);
  }
}

void run_task(const Ss2dBackwardArgs& args, int64_t group, int64_t slice, float* memory) {
  const Ss2dShape& shape = args.shape;
  const int64_t channel = slice_begin(args, slice), end = slice_begin(args, slice + 1);
  for (int64_t row = 0; row <= shape.directions * sum_rows(shape); ++row)
    for (int64_t c = channel; c < end; c += LANES)
      store(args.group_sums + group * group_floats(shape) + row * padded_channels(shape) + c, Lanes{});
  const int64_t images = smaller(shape.batch, (group + 1) * args.group_images);
  alignas(64) Work work;
  for (int64_t image = group * args.group_images; image < images; ++image)
    for (int turn = 0; turn < shape.directions; ++turn)
      run_direction(args, image, direction_at(shape, turn), slice, group, memory, work);
}

// dx_dbl as the sum of the slices' parts, in the slices' order.
void add_slices(const Ss2dBackwardArgs& args) {
  const int64_t count = args.shape.batch * pixel_count(args.shape) * args.shape.directions * column_count(args.shape);
  const int64_t piece = 4096;
  parallel_for(ceil_div(count, piece), args.shape.threads, [&](int64_t task) {
    const int64_t end = smaller(count, (task + 1) * piece);
    for (int64_t i = task * piece; i < end; i += LANES) {
      const int some = static_cast<int>(smaller(end - i, LANES));
      Lanes sum = load_first<Dtype::float32>(args.slice_sums, i, some);
      for (int64_t s = 1; s < args.slices; ++s) sum += load_first<Dtype::float32>(args.slice_sums, s * count + i, some);
      store_first(args.dx_dbl, i, some, sum);
    }
  });
}

// The parameters' gradients as the sums over the groups of images, in the groups' order.
void add_groups(const Ss2dBackwardArgs& args, int64_t groups) {
  const Ss2dShape& shape = args.shape;
  const int64_t blocks = ceil_div(shape.channels, LANES), rank = shape.rank, states = shape.states;
  auto add = [&](int64_t task, float* memory) {
    const int64_t k = task / blocks;
    const Block block = block_at(shape, task % blocks * LANES);
    auto total = [&](int64_t row) {
      const float* part = args.group_sums + row * padded_channels(shape) + block.channel;
      Lanes sum = load(part);
      for (int64_t g = 1; g < groups; ++g) sum += load(part + g * group_floats(shape));
      return sum;
    };
    const int64_t rows = k * sum_rows(shape), first = k * shape.channels + block.channel;
    float* of_A = memory + rank * LANES;
    for (int64_t i = 0; i < rank; ++i) store(memory + i * LANES, total(rows + i));
    for (int64_t j = 0; j < states; ++j) store(of_A + j * LANES, total(rows + rank + j) * LN_2);
    transpose_out(args.d_dt_weight, [&](int64_t c) { return (first + c) * rank; }, block.count, rank, memory, LANES);
    transpose_out(args.dA, [&](int64_t c) { return (first + c) * states; }, block.count, states, of_A, LANES);
    if (args.d_dt_bias) store_first(args.d_dt_bias, first, block.count, total(rows + rank + states));
    if (args.dD) store_first(args.dD, first, block.count, total(shape.directions * sum_rows(shape)));
  };
  share_tasks(shape.directions * blocks, shape.threads, args.workspace, args.workspace_floats, add);
}

}  // namespace

void ss2d_backward(const Ss2dBackwardArgs& args) {
  const int64_t maps = args.shape.batch * pixel_count(args.shape), slices = args.slices;
  expect_fill(args.dx, maps * args.shape.channels * 4);
  expect_fill(args.dx_dbl, maps * args.shape.directions * column_count(args.shape) * 4);
  if (args.slice_sums) expect_fill(args.slice_sums, slices * maps * args.shape.directions * column_count(args.shape) * 4);
  const int64_t groups = ceil_div(args.shape.batch, args.group_images);
  share_tasks(groups * slices, args.shape.threads, args.workspace, args.workspace_floats, [&](int64_t task, float* memory) {
    run_task(args, task / slices, task % slices, memory);
  });
  if (args.slice_sums) add_slices(args);
  add_groups(args, groups);
}

}  // namespace VMAMBA_ISA
}  // namespace vmamba
