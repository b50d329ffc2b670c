// The selective scan, backward: recomputes a chunk's states from the saved ones, then walks it in reverse.
//
// With a_t = exp(δ_t A) and g_t = dL/dh_t = C_t dy_t + a_{t+1} g_{t+1}:
//   dC_t = Σ_c dy_t h_t     dB_t = Σ_c g_t δ_t u_t     dA = Σ_t g_t a_t h_{t-1} δ_t
//   du_t = δ_t Σ_n g_t B_t + D dy_t                    dδ_t = u_t Σ_n g_t B_t + Σ_n g_t a_t h_{t-1} A
#include "lanes/activations.h"
#include "lanes/memory.h"
#include "lanes/parallel.h"
#include "scan/scan_body.h"

namespace vmamba {
namespace VMAMBA_ISA {
namespace {

struct Tiles {
  Lanes delta[CHUNK];     // the step δ
  Lanes slope[CHUNK];     // dδ / ddelta
  Lanes u[CHUNK];
  Lanes dy[CHUNK];
  Lanes sum_gB[CHUNK];    // Σ_n g_t B_t
  Lanes sum_qA[CHUNK];    // Σ_n g_t a_t h_{t-1} A
};

// What a block keeps for each state from one chunk to the one before it.
struct States {
  Lanes *A, *g, *dA;
};

// Sums over channels or over time that outlive a chunk.
struct BlockSums {
  Lanes dD, ddelta_bias;
};

// Through y silu(z): tiles.dy becomes the gradient of y before the gate, and that of z is written. Uses the sums' tiles.
void ungate(const ScanBackwardArgs& args, const Block& block, int64_t t, int steps, Tiles& tiles) {
  const Tensor& z = args.z;
  const Place place = contiguous_place(args.shape, block, t), soon = contiguous_place(args.shape, block, t - CHUNK);
  load_tile(z.data, z.dtype, place_at(z, block, t), steps, tiles.sum_gB);
  load_tile(args.ungated, int64_t(Dtype::float32), place, steps, tiles.sum_qA);
  Prefetch next[] = {{z.data, z.dtype, place_at(z, block, t - CHUNK)},
                     {args.ungated, int64_t(Dtype::float32), soon},
                     {args.dz, z.dtype, soon}};
  for_steps<1>(steps, next, [&](int i) {
    const Lanes x = tiles.sum_gB[i], dy = tiles.dy[i];
    tiles.sum_gB[i] = dy * tiles.sum_qA[i] * silu_slope(x);
    tiles.dy[i] = dy * silu(x);
  });
  store_tile(args.dz, z.dtype, place, steps, tiles.sum_gB);
}

void prepare(const ScanBackwardArgs& args, const Block& block, int64_t t, int steps, Tiles& tiles) {
  const ScanInputs& in = args.in;
  load_tile(in.u.data, in.u.dtype, place_at(in.u, block, t), steps, tiles.u);
  load_tile(in.delta.data, in.delta.dtype, place_at(in.delta, block, t), steps, tiles.delta);
  load_tile(args.dy.data, args.dy.dtype, place_at(args.dy, block, t), steps, tiles.dy);
  if (args.z.data) ungate(args, block, t, steps, tiles);
  const Lanes bias = per_channel(in.delta_bias, block);
  const int64_t soon = t - CHUNK;
  Prefetch next[] = {{in.u.data, in.u.dtype, place_at(in.u, block, soon)},
                     {in.delta.data, in.delta.dtype, place_at(in.delta, block, soon)},
                     {args.dy.data, args.dy.dtype, place_at(args.dy, block, soon)},
                     {args.du, in.u.dtype, contiguous_place(args.shape, block, soon)},
                     {args.ddelta, in.delta.dtype, contiguous_place(args.shape, block, soon)}};
  for_steps<PACK>(steps, next, [&](int i) {
    auto delta = load_pack<PACK>(tiles.delta + i) + bias, slope = Pack<PACK>{} + 1.0f;
    if (args.shape.softplus) {
      const auto z = exp_minus_abs(delta);
      slope = sigmoid_given(delta, z);
      delta = softplus_given(delta, z);
    }
    store_pack(tiles.delta + i, delta);
    store_pack(tiles.slope + i, slope);
    store_pack(tiles.sum_gB + i, Pack<PACK>{});
    store_pack(tiles.sum_qA + i, Pack<PACK>{});
  });
}

// What each channel adds to dB and dC at one step. Before that, its decays and states: they share the memory so that a
// chunk fits the first-level cache, and all of a step lies together, since a load waits for a store 4 KiB away.
template <int SOME>
struct Terms {
  Lanes of_B[SOME], of_C[SOME];
  Lanes* decay() { return of_B; }
  Lanes* h() { return of_C; }
};

// One chunk for SOME states. terms[0].h() holds the states before the chunk; step t is at terms[t + 1].
template <int SOME>
VMAMBA_INLINE void reverse(Tiles& tiles, const float (*B)[CHUNK], const float (*C)[CHUNK], int steps, const Lanes* A,
                           Lanes* g_carry, Lanes* dA, Terms<SOME>* terms) {
  Lanes rate[SOME], state[SOME];
  for (int s = 0; s < SOME; ++s) rate[s] = LOG2_E * A[s], state[s] = terms[0].h()[s];
  for (int t = 0; t < steps; ++t) {
    const Lanes delta = tiles.delta[t], input = delta * tiles.u[t];
    for (int s = 0; s < SOME; ++s) {
      const Lanes decay = exp2(delta * rate[s]);
      state[s] = fma(decay, state[s], input * B[s][t]);
      terms[t + 1].decay()[s] = decay;
      terms[t + 1].h()[s] = state[s];
    }
  }
  Lanes g[SOME], sum[SOME];
  for (int s = 0; s < SOME; ++s) g[s] = g_carry[s], sum[s] = dA[s];
  for (int t = steps - 1; t >= 0; --t) {
    const Lanes delta = tiles.delta[t], input = delta * tiles.u[t], dy = tiles.dy[t];
    Lanes gB = tiles.sum_gB[t], qA = tiles.sum_qA[t];
    for (int s = 0; s < SOME; ++s) {
      g[s] = fma(dy, C[s][t], g[s]);
      gB = fma(g[s], B[s][t], gB);
      const Lanes ga = g[s] * terms[t + 1].decay()[s];
      const Lanes q = ga * terms[t].h()[s];
      qA = fma(q, A[s], qA);
      sum[s] = fma(q, delta, sum[s]);
      terms[t + 1].of_C[s] = dy * terms[t + 1].h()[s];
      terms[t + 1].of_B[s] = g[s] * input;
      g[s] = ga;
    }
    tiles.sum_gB[t] = gB;
    tiles.sum_qA[t] = qA;
  }
  for (int s = 0; s < SOME; ++s) g_carry[s] = g[s], dA[s] = sum[s];
}

// row[0 .. steps) = or += the sums over channels of terms that lie STRIDE apart.
template <int STRIDE>
VMAMBA_INLINE void add_channel_sums(const Lanes* terms, int steps, bool first, float* row) {
  for (int t = 0; t < steps; t += LANES) {
    const Lanes sums = sum_rows<STRIDE>(terms + t * STRIDE);
    const int some = static_cast<int>(smaller(steps - t, LANES));
    if (some == LANES) {
      store(row + t, first ? sums : load(row + t) + sums);
    } else {
      const Lanes before = first ? Lanes{} : load_some<Dtype::float32>(row, t, 1, some);
      store_some<Dtype::float32>(row, t, 1, some, before + sums);
    }
  }
}

// The step's and input's gradients of a chunk, from the sums over states; overwrites tiles.
void finish(const ScanBackwardArgs& args, const Block& block, int64_t t, int steps, Tiles& tiles, BlockSums& sums) {
  const Lanes D = per_channel(args.in.D, block);
  for (int i = 0; i < steps; ++i) {
    const Lanes u = tiles.u[i], dy = tiles.dy[i], gB = tiles.sum_gB[i];
    const Lanes ddelta = fma(u, gB, tiles.sum_qA[i]) * tiles.slope[i];
    sums.dD = fma(dy, u, sums.dD);
    sums.ddelta_bias += ddelta;
    tiles.u[i] = fma(tiles.delta[i], gB, D * dy);
    tiles.delta[i] = ddelta;
  }
  const Place place = contiguous_place(args.shape, block, t);
  store_tile(args.du, args.in.u.dtype, place, steps, tiles.u);
  store_tile(args.ddelta, args.in.delta.dtype, place, steps, tiles.delta);
}

// sums_B, sums_C: this slice's rows (states, length). first: nothing has been added to them yet.
void scan_block(const ScanBackwardArgs& args, const Block& block, Lanes* workspace, bool first, float* sums_B,
                float* sums_C) {
  const ScanShape& shape = args.shape;
  const int64_t states = shape.states, channels = all_channels(shape), chunks = chunk_count(shape);
  Lanes *A = workspace, *g = A + states, *dA = g + states;
  for (int64_t n = 0; n < states; ++n) {
    A[n] = per_channel(args.in.A, block, states, n);
    g[n] = load_state(args.dlast, shape, block, n);
    dA[n] = Lanes{};
  }
  Tiles tiles;
  BlockSums sums{};
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    const int64_t t = chunk * CHUNK;
    const int steps = static_cast<int>(smaller(CHUNK, shape.length - t));
    prepare(args, block, t, steps, tiles);
    for_states(states, [&](int64_t n, auto some) {
      constexpr int SOME = decltype(some)::value;
      float B[SOME][CHUNK], C[SOME][CHUNK];
      load_rows(args.in.B, block, n, SOME, t, steps, -CHUNK, B);
      load_rows(args.in.C, block, n, SOME, t, steps, -CHUNK, C);
      Terms<SOME> terms[CHUNK + 1];
      const int64_t row = (block.batch * (chunks - 1) + chunk - 1) * states + n;
      for (int s = 0; s < SOME; ++s)
        terms[0].h()[s] = chunk ? per_channel(args.saved + (row + s) * channels, block)
                                : load_state(args.initial, shape, block, n + s);
      reverse<SOME>(tiles, B, C, steps, A + n, g + n, dA + n, terms);
      for (int s = 0; s < SOME; ++s) {
        add_channel_sums<2 * SOME>(terms[1].of_B + s, steps, first, sums_B + (n + s) * shape.length + t);
        add_channel_sums<2 * SOME>(terms[1].of_C + s, steps, first, sums_C + (n + s) * shape.length + t);
      }
    });
    finish(args, block, t, steps, tiles, sums);
  }
  if (args.dinitial)
    for (int64_t n = 0; n < states; ++n) store_state(args.dinitial, shape, block, n, g[n]);
  const auto keep = [&](int64_t which, Lanes value) {
    const int64_t index = (which * shape.batch + block.batch) * channels + block.channel;
    store_some<Dtype::float32>(args.image_sums, index, 1, block.channels, value);
  };
  for (int64_t n = 0; n < states; ++n) keep(n, dA[n]);
  keep(states, sums.dD);
  keep(states + 1, sums.ddelta_bias);
}

// out[0 .. count) = Σ_i parts[i * stride ..], in index order, rounded once.
void add_slices(const float* parts, int64_t slices, int64_t stride, int64_t count, int64_t dtype, void* out,
                int64_t offset) {
  with_dtype(dtype, [&](auto type) {
    constexpr Dtype T = decltype(type)::value;
    for (int64_t t = 0; t < count; t += LANES) {
      const int some = static_cast<int>(smaller(count - t, LANES));
      Lanes sum{};
      for (int64_t i = 0; i < slices; ++i)
        sum += some == LANES ? load(parts + i * stride + t) : load_some<Dtype::float32>(parts, i * stride + t, 1, some);
      if (some == LANES) store_as<T>(out, offset + t, sum);
      else store_some<T>(out, offset + t, 1, some, sum);
    }
  });
}

// dA, dD and ddelta_bias of a block: sums over the images.
void add_images(const ScanBackwardArgs& args, const Block& block) {
  const ScanShape& shape = args.shape;
  const int64_t channels = all_channels(shape), states = shape.states;
  const auto sum = [&](int64_t which) {
    Lanes total{};
    for (int64_t b = 0; b < shape.batch; ++b)
      total += per_channel(args.image_sums + (which * shape.batch + b) * channels, block);
    return total;
  };
  for (int64_t n = 0; n < states; ++n)
    store_some<Dtype::float32>(args.dA, block.channel * states + n, states, block.channels, sum(n));
  if (args.dD) store_some<Dtype::float32>(args.dD, block.channel, 1, block.channels, sum(states));
  if (args.ddelta_bias) store_some<Dtype::float32>(args.ddelta_bias, block.channel, 1, block.channels, sum(states + 1));
}

}  // namespace

void selective_scan_backward(const ScanBackwardArgs& args) {
  const ScanShape& shape = args.shape;
  const int64_t blocks = blocks_per_group(shape), blocks_per_slice = args.slice_channels / LANES;
  const int64_t slices = (shape.channels + args.slice_channels - 1) / args.slice_channels;
  const int64_t directions = shape.batch * shape.groups, rows = directions * shape.states;

  const int64_t elements = shape.batch * all_channels(shape) * shape.length;
  expect_fill(args.du, elements * size_of(args.in.u.dtype));
  expect_fill(args.ddelta, elements * size_of(args.in.delta.dtype));
  if (args.z.data) expect_fill(args.dz, elements * size_of(args.z.dtype));
  expect_fill(args.slice_sums, 2 * slices * rows * shape.length * 4);

  parallel_for(directions * slices, shape.threads, [&](int64_t task) {
    const int64_t direction = task / slices, slice = task % slices;
    float* sums_B = args.slice_sums + (slice * rows + direction * shape.states) * shape.length;
    float* sums_C = sums_B + slices * rows * shape.length;
    const int64_t first = slice * blocks_per_slice, last = smaller(first + blocks_per_slice, blocks);
    for (int64_t i = first; i < last; ++i) {
      const Block block = block_at(shape, direction / shape.groups, direction % shape.groups, i);
      Lanes* workspace = reinterpret_cast<Lanes*>(args.workspace) + (direction * blocks + i) * 3 * shape.states;
      scan_block(args, block, workspace, i == first, sums_B, sums_C);
    }
  });

  parallel_for(2 * rows, shape.threads, [&](int64_t task) {
    const float* parts = args.slice_sums + (task / rows * slices * rows + task % rows) * shape.length;
    void* out = task < rows ? args.dB : args.dC;
    const int64_t dtype = task < rows ? args.in.B.dtype : args.in.C.dtype;
    add_slices(parts, slices, rows * shape.length, shape.length, dtype, out, task % rows * shape.length);
  });
  parallel_for(shape.groups * blocks, shape.threads,
               [&](int64_t task) { add_images(args, block_at(shape, 0, task / blocks, task % blocks)); });
}

}  // namespace VMAMBA_ISA
}  // namespace vmamba
