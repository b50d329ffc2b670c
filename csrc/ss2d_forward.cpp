// The fused operator: step projection, scan and merge of the four directions, over channels-last memory.
#include "ss2d_body.h"

namespace vmamba {
namespace VMAMBA_ISA {
namespace {

// The step sizes of a chunk: softplus of bias + weights · low-rank step. Rounded up to whole groups.
void steps_of(const Ss2dShape& shape, const float* rows, const Lane& lane, int64_t length, float* delta) {
  for (int64_t t = 0; t < length; t += GROUP) {
    Lanes step[GROUP];
    project(rows, lane.weights, load(lane.bias), shape.rank, t, step);
    if (shape.softplus)
      for (int i = 0; i < GROUP; ++i) step[i] = softplus(step[i]);
    for (int i = 0; i < GROUP; ++i) store(delta + (t + i) * LANES, step[i]);
  }
}

// The recurrence of N states over a chunk; adds C · h to `out`.
template <int N>
VMAMBA_INLINE void scan_states(const float* delta, const float* u, const float* B, const float* C, const float* log2_decay,
                               float* state, int64_t length, float* out) {
  constexpr int SPAN = N >= 4 ? 1 : 4 / N;  // pixels whose exponentials are computed side by side
  Lanes h[N], rate[N];
  for (int j = 0; j < N; ++j) {
    h[j] = load(state + j * LANES);
    rate[j] = load(log2_decay + j * LANES);
  }
  auto advance = [&](int64_t t, Lanes step, const Lanes* decay) {
    const Lanes input = step * load(u + t * LANES);
    Lanes y = load(out + t * LANES);
    for (int j = 0; j < N; ++j) {
      h[j] = fma(decay[j], h[j], input * B[j * PIXELS + t]);
      y = fma(h[j], splat(C[j * PIXELS + t]), y);
    }
    store(out + t * LANES, y);
  };
  int64_t t = 0;
  for (; t + SPAN <= length; t += SPAN) {
    Lanes step[SPAN], decay[SPAN][N];
    for (int s = 0; s < SPAN; ++s) step[s] = load(delta + (t + s) * LANES);
    for (int s = 0; s < SPAN; ++s)
      for (int j = 0; j < N; ++j) decay[s][j] = exp2(step[s] * rate[j]);
    for (int s = 0; s < SPAN; ++s) advance(t + s, step[s], decay[s]);
  }
  for (; t < length; ++t) {
    const Lanes step = load(delta + t * LANES);
    Lanes decay[N];
    for (int j = 0; j < N; ++j) decay[j] = exp2(step * rate[j]);
    advance(t, step, decay);
  }
  for (int j = 0; j < N; ++j) store(state + j * LANES, h[j]);
}

void run_task(const Ss2dForwardArgs& args, int64_t image, int64_t channel, float* memory) {
  const Ss2dShape& shape = args.shape;
  const int64_t end = smaller(shape.channels, channel + args.task_channels);
  float* rows = memory;
  float* lanes = rows + column_count(shape) * PIXELS;
  const float* B = rows + shape.rank * PIXELS;
  const float* C = B + shape.states * PIXELS;
  float* y = args.y + image * pixel_count(shape) * shape.channels;
  alignas(64) Tile u, delta, out;
  Chunk chunk;

  for (int k = 0; k < SS2D_DIRECTIONS; ++k) {
    const Walk walk = walk_of(shape, k);
    for (int64_t index = 0; index < chunk_count(shape); ++index) {
      place_chunk(shape, walk, index, chunk);
      load_columns(shape, args.in.x_dbl, image, k, chunk, rows);
      float* memory_of_lane = lanes;
      for (int64_t c = channel; c < end; c += LANES, memory_of_lane += lane_floats(shape)) {
        const Block block = block_at(shape, c);
        const Lane lane = lane_at(shape, memory_of_lane);
        if (index == 0)
          start_lane(shape, args.in, k, block, lane);
        else if (args.saved)
          for (int64_t j = 0; j < shape.states; ++j)
            store_first(args.saved, saved_at(shape, image, k, index, block) + j * shape.channels, block.count,
                        load(lane.state + j * LANES));

        load_tile(args.in.x, image, chunk, block, u);
        steps_of(shape, rows, lane, chunk.length, delta);
        const Lanes skip = k == 0 ? total_skip(shape, args.in.D, block) : Lanes{};
        for (int64_t t = 0; t < chunk.length; ++t) store(out + t * LANES, k == 0 ? skip * load(u + t * LANES) : Lanes{});
        in_blocks<4>(shape.states, [&](int64_t j, auto n) {
          scan_states<decltype(n)::value>(delta, u, B + j * PIXELS, C + j * PIXELS, lane.log2_decay + j * LANES,
                                          lane.state + j * LANES, chunk.length, out);
        });
        merge(k == 0, y, shape.channels, chunk, block, out);
      }
    }
  }
}

}  // namespace

void ss2d_forward(const Ss2dForwardArgs& args) {
  const int64_t slices = ceil_div(args.shape.channels, args.task_channels);
  share_tasks(args.shape.batch * slices, args.shape.threads, args.workspace, args.workspace_floats,
              [&](int64_t task, float* memory) {
                run_task(args, task / slices, task % slices * args.task_channels, memory);
              });
}

}  // namespace VMAMBA_ISA
}  // namespace vmamba
