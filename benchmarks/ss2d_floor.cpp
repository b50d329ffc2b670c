// The operation floor of the fused scan: the arithmetic of its forward on data that stays in the first-level cache, with
// no pixel waiting for the one before. Compiled by ss2d_floor.py with the kernels' own flags.
//
// For each vector of channels, pixel and direction that is: `rank` multiply-adds (projection), the step size (softplus),
// its product with x, and for each state the decay (a power of two), two products, the state's and the output's multiply-add.
// The loads and stores that this needs are the kernel's, less those of x, y and x_dbl from memory.
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wuninitialized"  // in GCC's own intrinsics
#include "ss2d_body.h"

namespace vmamba {
RunTeam run_team = nullptr;

namespace VMAMBA_ISA {
namespace {

struct Data {
  alignas(64) float rows[128 * PIXELS];  // rank + 2 * states of them
  float weights[64 * LANES], A[32 * LANES], before[32 * LANES];
  Tile x, step, input, y;
};

template <int N>
VMAMBA_INLINE void advance(Data& data, const float* B, const float* C, int64_t state) {
  constexpr int SPAN = N >= 4 ? 1 : 4 / N;
  Lanes rate[N], before[N];
  for (int j = 0; j < N; ++j) {
    rate[j] = load(data.A + (state + j) * LANES);
    before[j] = load(data.before + (state + j) * LANES);
  }
  for (int t = 0; t < PIXELS; t += SPAN) {
    Lanes decay[SPAN * N], y[SPAN];
    VMAMBA_EACH(SPAN * N) decay[i] = load(data.step + (t + i / N) * LANES) * rate[i % N];
    powers_of_two(decay);
    VMAMBA_EACH(SPAN) y[i] = load(data.y + (t + i) * LANES);
    for (int s = 0; s < SPAN; ++s) {
      const Lanes input = load(data.input + (t + s) * LANES);
      VMAMBA_EACH(N) {
        const Lanes h = fma(decay[s * N + i], before[i], unfused(input * B[i * PIXELS + t + s]));
        y[s] = fma(h, splat(C[i * PIXELS + t + s]), y[s]);
      }
    }
    VMAMBA_EACH(SPAN) store(data.y + (t + i) * LANES, y[i]);
  }
}

__attribute__((noinline)) void chunk(Data& data, int64_t rank, int64_t states) {
  for (int t = 0; t < PIXELS; t += GROUP) {
    Lanes step[GROUP];
    project(data.rows, data.weights, load(data.before), rank, t, step);
    each_two(step, [](Lanes(&two)[2]) { step_sizes(two); });
    VMAMBA_EACH(GROUP) {
      store(data.step + (t + i) * LANES, step[i]);
      store(data.input + (t + i) * LANES, step[i] * load(data.x + (t + i) * LANES));
    }
  }
  const float* B = data.rows + rank * PIXELS;
  const float* C = B + states * PIXELS;
  in_blocks<4>(states, [&](int64_t j, auto n) { advance<decltype(n)::value>(data, B + j * PIXELS, C + j * PIXELS, j); });
}

}  // namespace
}  // namespace VMAMBA_ISA
}  // namespace vmamba

// Do the work of `chunks` chunks of 64 pixels for one vector of channels; return the channels in a vector. rank + 2 states ≤ 128,
// rank ≤ 64, states ≤ 32.
extern "C" __attribute__((visibility("default"))) int64_t ss2d_floor(int64_t rank, int64_t states, int64_t chunks) {
  using namespace vmamba::VMAMBA_ISA;
  Data data{};
  for (float& v : data.weights) v = 0.1f;
  for (float& v : data.rows) v = 0.1f;
  for (float& v : data.A) v = -1.0f;
  for (float& v : data.x) v = 1.0f;
  for (int64_t i = 0; i < chunks; ++i) {
    chunk(data, rank, states);
    asm volatile("" : : "r"(&data) : "memory");  // the result is used, so it is computed
  }
  return LANES;
}
