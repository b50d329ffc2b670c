// What the selective scan's two directions share: how the work is cut, and a chunk's step sizes and inputs.
//
// A block is LANES channels of one direction of one image; a kernel walks it chunk by chunk. The state stays in
// registers within a chunk, for SOME states at a time, so that any n runs through the same code.
//
// Lanes over channels cost a transpose of each tile (four shuffles a vector) and leave one multiplication to the
// recurrence. Lanes over time would need no transpose, but a prefix scan: eight shuffles and nine multiplications a
// vector and state. Measured for b, k, d, n, l = 1, 4, 96, 1, 3136 on one Zen 4 core: 1.28 against 1.73 ms; more states
// widen the gap.
//
// The floor on that core, counting only what its multipliers do (a 512-bit operation a cycle, vscalef two): 37 cycles a
// vector with one state, of which softplus has 21 and the decay 9; 12 for every further state. That is 0.76 ms for the
// size above and 9.0 ms for d = 192, n = 16, where 1.15 and 10.4 ms are reached.
#pragma once

#include "scan/scan_args.h"
#include "lanes/tile.h"
#include "lanes/vecmath.h"

namespace vmamba {
namespace VMAMBA_ISA {

constexpr float LOG2_E = 1.44269504f;

// Steps that go through softplus side by side, as many as the registers hold.
constexpr int PACK = LANES == 16 ? 4 : 2;

static_assert(CHUNK % LANES == 0, "tiles are padded to whole transposes");

struct Block {
  int64_t batch, group, channel;  // channel: the first, counted over all groups
  int channels;                   // real ones among the LANES
};

VMAMBA_INLINE int64_t blocks_per_group(const ScanShape& shape) { return (shape.channels + LANES - 1) / LANES; }
VMAMBA_INLINE int64_t all_channels(const ScanShape& shape) { return shape.groups * shape.channels; }
VMAMBA_INLINE int64_t chunk_count(const ScanShape& shape) { return (shape.length + CHUNK - 1) / CHUNK; }

VMAMBA_INLINE Block block_at(const ScanShape& shape, int64_t batch, int64_t group, int64_t index) {
  const int64_t inside = index * LANES;
  return {batch, group, group * shape.channels + inside, static_cast<int>(smaller(shape.channels - inside, LANES))};
}

VMAMBA_INLINE Place place_at(const Tensor& x, const Block& block, int64_t t) {
  return {block.batch * x.stride[0] + block.channel * x.stride[1] + t * x.stride[2], x.stride[1], x.stride[2],
          block.channels};
}

// Where a contiguous (batch, channels of all groups, length) tensor has the block.
VMAMBA_INLINE Place contiguous_place(const ScanShape& shape, const Block& block, int64_t t) {
  return {(block.batch * all_channels(shape) + block.channel) * shape.length + t, shape.length, 1, block.channels};
}

// One value for each channel of the block; 0 for an absent vector.
VMAMBA_INLINE Lanes per_channel(const float* vector, const Block& block, int64_t stride = 1, int64_t offset = 0) {
  return vector ? load_some<Dtype::float32>(vector, block.channel * stride + offset, stride, block.channels) : Lanes{};
}

// Where a contiguous (batch, channels of all groups, states) tensor has one of the block's states.
VMAMBA_INLINE int64_t state_place(const ScanShape& shape, const Block& block, int64_t state) {
  return (block.batch * all_channels(shape) + block.channel) * shape.states + state;
}

// One state of the block's channels; 0 where the tensor is absent.
VMAMBA_INLINE Lanes load_state(const float* states, const ScanShape& shape, const Block& block, int64_t state) {
  return states ? load_some<Dtype::float32>(states, state_place(shape, block, state), shape.states, block.channels)
                : Lanes{};
}

VMAMBA_INLINE void store_state(float* states, const ScanShape& shape, const Block& block, int64_t state, Lanes value) {
  store_some<Dtype::float32>(states, state_place(shape, block, state), shape.states, block.channels, value);
}

// `some` rows of B or C over a chunk, as floats. `ahead`: where the next chunk is.
VMAMBA_INLINE void load_rows(const Tensor& x, const Block& block, int64_t state, int some, int64_t t, int steps,
                             int ahead, float (*rows)[CHUNK]) {
  const int64_t first = block.batch * x.stride[0] + block.group * x.stride[1] + t * x.stride[3];
  for (int s = 0; s < some; ++s)
    load_row(x.data, x.dtype, first + (state + s) * x.stride[2], x.stride[3], steps, ahead, rows[s]);
}

template <int N>
struct Count {
  static constexpr int value = N;
};

// Call f(first state, Count) for groups of four states and then one at a time.
template <class F>
VMAMBA_INLINE void for_states(int64_t states, F&& f) {
  int64_t state = 0;
  for (; state + 4 <= states; state += 4) f(state, Count<4>{});
  for (; state < states; ++state) f(state, Count<1>{});
}

}  // namespace VMAMBA_ISA
}  // namespace vmamba
