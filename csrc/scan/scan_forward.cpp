// The selective scan, forward.
#include "lanes/activations.h"
#include "lanes/memory.h"
#include "lanes/parallel.h"
#include "scan/scan_body.h"

namespace vmamba {
namespace VMAMBA_ISA {
namespace {

struct Tiles {
  Lanes delta[CHUNK];  // the step δ
  Lanes input[CHUNK];  // δ u
  Lanes y[CHUNK];
  Lanes z[CHUNK];  // the gate, where there is one
};

void prepare(const ScanForwardArgs& args, const Block& block, int64_t t, int steps, Tiles& tiles) {
  const ScanInputs& in = args.in;
  load_tile(in.u.data, in.u.dtype, place_at(in.u, block, t), steps, tiles.input);
  load_tile(in.delta.data, in.delta.dtype, place_at(in.delta, block, t), steps, tiles.delta);
  const Lanes D = per_channel(in.D, block), bias = per_channel(in.delta_bias, block);
  const int64_t soon = t + CHUNK;
  Prefetch next[] = {{in.u.data, in.u.dtype, place_at(in.u, block, soon)},
                     {in.delta.data, in.delta.dtype, place_at(in.delta, block, soon)},
                     {args.y, int64_t(Dtype::float32), contiguous_place(args.shape, block, soon)}};
  for_steps<PACK>(steps, next, [&](int i) {
    const auto u = load_pack<PACK>(tiles.input + i), raw = load_pack<PACK>(tiles.delta + i) + bias;
    const auto delta = args.shape.softplus ? softplus(raw) : raw;
    store_pack(tiles.delta + i, delta);
    store_pack(tiles.input + i, delta * u);
    store_pack(tiles.y + i, u * D);
  });
}

// y += C h over a chunk for SOME states at once: the tiles are read and written once for all of them.
template <int SOME>
VMAMBA_INLINE void advance(Tiles& tiles, const float (*B)[CHUNK], const float (*C)[CHUNK], int steps,
                           const Lanes* decay, Lanes* carry) {
  Lanes h[SOME];
  for (int s = 0; s < SOME; ++s) h[s] = carry[s];
  for (int t = 0; t < steps; ++t) {
    const Lanes delta = tiles.delta[t], input = tiles.input[t];
    Lanes y = tiles.y[t];
    for (int s = 0; s < SOME; ++s) {
      h[s] = fma(exp2(delta * decay[s]), h[s], input * B[s][t]);
      y = fma(h[s], splat(C[s][t]), y);
    }
    tiles.y[t] = y;
  }
  for (int s = 0; s < SOME; ++s) carry[s] = h[s];
}

// y silu(z) over a chunk.
void gate(const ScanForwardArgs& args, const Block& block, int64_t t, int steps, Tiles& tiles) {
  const Tensor& z = args.z;
  load_tile(z.data, z.dtype, place_at(z, block, t), steps, tiles.z);
  Prefetch next[] = {{z.data, z.dtype, place_at(z, block, t + CHUNK)}};
  for_steps<PACK>(steps, next, [&](int i) {
    store_pack(tiles.y + i, load_pack<PACK>(tiles.y + i) * silu(load_pack<PACK>(tiles.z + i)));
  });
}

void scan_block(const ScanForwardArgs& args, const Block& block, Lanes* workspace) {
  const ScanShape& shape = args.shape;
  const int64_t states = shape.states, channels = all_channels(shape), chunks = chunk_count(shape);
  Lanes *decay = workspace, *carry = workspace + states;
  for (int64_t n = 0; n < states; ++n) {
    decay[n] = LOG2_E * per_channel(args.in.A, block, states, n);
    carry[n] = load_state(args.initial, shape, block, n);
  }
  Tiles tiles;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t t = chunk * CHUNK;
    const int steps = static_cast<int>(smaller(CHUNK, shape.length - t));
    prepare(args, block, t, steps, tiles);
    if (args.saved && chunk) {
      const int64_t row = (block.batch * (chunks - 1) + chunk - 1) * states;
      for (int64_t n = 0; n < states; ++n)
        store_some<Dtype::float32>(args.saved, (row + n) * channels + block.channel, 1, block.channels, carry[n]);
    }
    for_states(states, [&](int64_t n, auto some) {
      constexpr int SOME = decltype(some)::value;
      float B[SOME][CHUNK], C[SOME][CHUNK];
      load_rows(args.in.B, block, n, SOME, t, steps, CHUNK, B);
      load_rows(args.in.C, block, n, SOME, t, steps, CHUNK, C);
      advance<SOME>(tiles, B, C, steps, decay + n, carry + n);
    });
    const Place place = contiguous_place(shape, block, t);
    if (args.ungated) store_tile(args.ungated, int64_t(Dtype::float32), place, steps, tiles.y);
    if (args.z.data) gate(args, block, t, steps, tiles);
    store_tile(args.y, int64_t(Dtype::float32), place, steps, tiles.y);
  }
  if (args.last)
    for (int64_t n = 0; n < states; ++n) store_state(args.last, shape, block, n, carry[n]);
}

}  // namespace

void selective_scan_forward(const ScanForwardArgs& args) {
  const ScanShape& shape = args.shape;
  const int64_t blocks = blocks_per_group(shape);
  const int64_t bytes = shape.batch * all_channels(shape) * shape.length * 4;
  expect_fill(args.y, bytes);
  if (args.ungated) expect_fill(args.ungated, bytes);
  parallel_for(shape.batch * shape.groups * blocks, shape.threads, [&](int64_t task) {
    const int64_t direction = task / blocks;
    const Block block = block_at(shape, direction / shape.groups, direction % shape.groups, task % blocks);
    scan_block(args, block, reinterpret_cast<Lanes*>(args.workspace) + task * 2 * shape.states);
  });
}

}  // namespace VMAMBA_ISA
}  // namespace vmamba
