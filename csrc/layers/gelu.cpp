// GELU of arrays, and its derivative.
#include "lanes/activations.h"
#include "layers/gelu_args.h"
#include "lanes/memory.h"
#include "lanes/parallel.h"

namespace vmamba {
namespace VMAMBA_ISA {
namespace {

constexpr int64_t TASK = 1 << 14;  // elements
constexpr int PARTS = 2;  // as many as 16 registers hold, and enough for 32

using Vectors = Pack<PARTS>;
constexpr int64_t WIDTH = PARTS * LANES;

VMAMBA_INLINE Vectors load_vectors(const float* from) {
  Vectors x;
  for (int i = 0; i < PARTS; ++i) x.part[i] = load(from + i * LANES);
  return x;
}

VMAMBA_INLINE void store_vectors(float* to, const Vectors& x) {
  for (int i = 0; i < PARTS; ++i) store(to + i * LANES, x.part[i]);
}

// f(const Vectors (&in)[INPUTS], Vectors (&out)[OUTPUTS]) over arrays of `count` elements.
template <int INPUTS, int OUTPUTS, class F>
VMAMBA_INLINE void over_arrays(int64_t count, int64_t threads, const float* const (&in)[INPUTS],
                               float* const (&out)[OUTPUTS], F&& f) {
  parallel_for((count + TASK - 1) / TASK, threads, [&](int64_t task) {
    const int64_t end = smaller((task + 1) * TASK, count);
    int64_t i = task * TASK;
    Vectors x[INPUTS], y[OUTPUTS];
    for (; i + WIDTH <= end; i += WIDTH) {
      for (int k = 0; k < INPUTS; ++k) x[k] = load_vectors(in[k] + i);
      f(x, y);
      for (int k = 0; k < OUTPUTS; ++k) store_vectors(out[k] + i, y[k]);
    }
    if (i == end) return;
    const size_t bytes = static_cast<size_t>(end - i) * sizeof(float);
    float edge[WIDTH] = {};
    for (int k = 0; k < INPUTS; ++k) {
      std::memcpy(edge, in[k] + i, bytes);
      x[k] = load_vectors(edge);
    }
    f(x, y);
    for (int k = 0; k < OUTPUTS; ++k) {
      store_vectors(edge, y[k]);
      std::memcpy(out[k] + i, edge, bytes);
    }
  });
}

}  // namespace

void gelu_forward(const GeluForwardArgs& args) {
  expect_fill(args.y, args.count * 4);
  over_arrays(args.count, args.threads, {args.x}, {args.y}, [](const Vectors(&in)[1], Vectors(&out)[1]) __attribute__((always_inline)) {
    out[0] = gelu(in[0], tail(in[0]));
  });
}

void gelu_backward(const GeluBackwardArgs& args) {
  expect_fill(args.y, args.count * 4);
  over_arrays(args.count, args.threads, {args.x, args.dy}, {args.dx, args.y},
              [](const Vectors(&in)[2], Vectors(&out)[2]) __attribute__((always_inline)) {
                const Tail<Vectors> t = tail(in[0]);
                out[0] = in[1] * gelu_slope(in[0], t);
                out[1] = gelu(in[0], t);
              });
}

}  // namespace VMAMBA_ISA
}  // namespace vmamba
