// Depthwise 3×3 convolution of channels-last maps, stride 1 and zeros around, with SiLU behind it if wanted.
//
// Lanes are channels. Backward computes the convolution again instead of keeping it: in one walk down a map it makes each
// row's gradient before the activation, adds up the weight's gradient, and convolves the last three such rows.
#include "lanes/activations.h"
#include "layers/depthwise_args.h"
#include "lanes/memory.h"
#include "lanes/parallel.h"

namespace vmamba {
namespace VMAMBA_ISA {
namespace {

// A row of a map at one block of channels: pixels are `step` apart. Outside the map it is zero everywhere.
template <class T>
struct Row {
  const T* at;
  int64_t step;
};

const float zeros[LANES] = {};

template <class T>
VMAMBA_INLINE Row<T> row_of(const T* map, int64_t row, int64_t height, int64_t row_step, int64_t step) {
  return row < 0 || row >= height ? Row<T>{reinterpret_cast<const T*>(zeros), 0} : Row<T>{map + row * row_step, step};
}

template <bool FULL, Dtype type = Dtype::float32>
VMAMBA_INLINE Lanes load_block(const void* from, int count) {
  return FULL ? load_as<type>(from, 0) : load_some<type>(from, 0, 1, count);
}

template <bool FULL, Dtype type = Dtype::float32>
VMAMBA_INLINE void store_block(void* to, int count, Lanes x) {
  FULL ? store_as<type>(to, 0, x) : store_some<type>(to, 0, 1, count, x);
}

// The rows above, at and below a row of the result.
template <class T>
struct Rows {
  Row<T> row[3];
};

struct Weights {
  Lanes tap[TAPS], bias;
};

template <bool FULL>
VMAMBA_INLINE Weights load_weights(const DepthwiseInputs& in, int64_t channel, int count) {
  Weights weights;
  for (int t = 0; t < TAPS; ++t) weights.tap[t] = load_block<FULL>(in.weight + t * in.channels + channel, count);
  weights.bias = in.bias ? load_block<FULL>(in.bias + channel, count) : Lanes{};
  return weights;
}

// f(j, value) for each pixel of a row of the convolution. Reads each pixel once and adds it to its three neighbours.
template <bool FULL, Dtype type, class T, class F>
VMAMBA_INLINE void convolve_row(const Rows<T>& rows, int64_t width, int count, const Weights& weights, F&& f) {
  Lanes before = weights.bias, here = weights.bias;
  for (int64_t j = 0; j < width; ++j) {
    Lanes after = weights.bias;
    for (int r = 0; r < 3; ++r) {
      const Lanes x = load_block<FULL, type>(rows.row[r].at + j * rows.row[r].step, count);
      before = fma(weights.tap[3 * r + 2], x, before);
      here = fma(weights.tap[3 * r + 1], x, here);
      after = fma(weights.tap[3 * r], x, after);
    }
    if (j > 0) f(j - 1, before);
    before = here;
    here = after;
  }
  f(width - 1, before);
}

// f(first channel, how many, full) for every block of lanes in [begin, end).
template <class F>
VMAMBA_INLINE void over_blocks(int64_t begin, int64_t end, F&& f) {
  for (int64_t c = begin; c < end; c += LANES) f(c, static_cast<int>(smaller(end - c, LANES)));
}

template <Dtype type>
struct Element {
  typedef uint16_t Type;
};
template <>
struct Element<Dtype::float32> {
  typedef float Type;
};

template <bool FULL, Dtype type>
static void forward_row(const DepthwiseForwardArgs& args, int64_t image, int64_t i, int64_t channel, int count) {
  using T = typename Element<type>::Type;
  const DepthwiseInputs& in = args.in;
  const T* map = static_cast<const T*>(in.x.data) + image * in.x.stride[0] + channel;
  Rows<T> rows;
  for (int r = 0; r < 3; ++r) rows.row[r] = row_of(map, i + r - 1, in.height, in.x.stride[1], in.x.stride[2]);
  T* y = static_cast<T*>(args.y) + (image * in.height + i) * in.width * in.channels + channel;
  const Weights weights = load_weights<FULL>(in, channel, count);
  auto each = [&](auto&& activation) __attribute__((always_inline)) {
    convolve_row<FULL, type>(rows, in.width, count, weights, [&](int64_t j, Lanes value) __attribute__((always_inline)) {
      store_block<FULL, type>(y + j * in.channels, count, activation(value));
    });
  };
  switch (static_cast<Activation>(in.activation)) {
    case Activation::none: return each([](Lanes x) __attribute__((always_inline)) { return x; });
    case Activation::gelu: return each([](Lanes x) __attribute__((always_inline)) { return gelu(x, tail(x)); });
    case Activation::silu: return each([](Lanes x) __attribute__((always_inline)) { return silu(x); });
  }
}

// The gradient before the activation of row i into `d_row`; adds its part of the sums.
template <bool FULL, bool SILU>
static void gradient_row(const DepthwiseBackwardArgs& args, int64_t image, int64_t i, int64_t channel, int count,
                         const Weights& weights, float* d_row, Lanes (&sums)[TAPS + 1]) {
  const DepthwiseInputs& in = args.in;
  const float* map = static_cast<const float*>(in.x.data) + image * in.x.stride[0] + channel;
  const float* dy = static_cast<const float*>(args.dy.data) + image * args.dy.stride[0] + i * args.dy.stride[1] + channel;
  Row<float> rows[3];
  for (int r = 0; r < 3; ++r) rows[r] = row_of(map, i + r - 1, in.height, in.x.stride[1], in.x.stride[2]);
  Lanes left[3] = {}, here[3], row_sums[TAPS + 1] = {};
  for (int r = 0; r < 3; ++r) here[r] = load_block<FULL>(rows[r].at, count);
  for (int64_t j = 0; j < in.width; ++j) {
    Lanes right[3] = {};
    if (j + 1 < in.width)
      for (int r = 0; r < 3; ++r) right[r] = load_block<FULL>(rows[r].at + (j + 1) * rows[r].step, count);
    Lanes d = load_block<FULL>(dy + j * args.dy.stride[2], count);
    if constexpr (SILU) {
      Lanes part[3] = {weights.bias};
      for (int r = 0; r < 3; ++r) {
        part[0] = fma(weights.tap[3 * r], left[r], part[0]);
        part[1] = fma(weights.tap[3 * r + 1], here[r], part[1]);
        part[2] = fma(weights.tap[3 * r + 2], right[r], part[2]);
      }
      d = d * silu_slope(part[0] + part[1] + part[2]);
    }
    store(d_row + j * args.task_channels, d);
    for (int r = 0; r < 3; ++r) {
      row_sums[3 * r] = fma(d, left[r], row_sums[3 * r]);
      row_sums[3 * r + 1] = fma(d, here[r], row_sums[3 * r + 1]);
      row_sums[3 * r + 2] = fma(d, right[r], row_sums[3 * r + 2]);
      left[r] = here[r];
      here[r] = right[r];
    }
    row_sums[TAPS] += d;
  }
  for (int t = 0; t <= TAPS; ++t) sums[t] += row_sums[t];
}

// One block of channels of one image.
template <bool FULL, bool SILU>
static void backward_block(const DepthwiseBackwardArgs& args, int64_t image, int64_t channel, int count, float* ring) {
  const DepthwiseInputs& in = args.in;
  const Weights weights = load_weights<FULL>(in, channel, count);
  Weights flipped;
  for (int t = 0; t < TAPS; ++t) flipped.tap[t] = weights.tap[TAPS - 1 - t];
  flipped.bias = Lanes{};
  Lanes sums[TAPS + 1] = {};
  const int64_t ring_row = in.width * args.task_channels;
  for (int64_t i = 0; i <= in.height; ++i) {
    if (i < in.height)
      gradient_row<FULL, SILU>(args, image, i, channel, count, weights, ring + i % 3 * ring_row, sums);
    if (i == 0) continue;
    Rows<float> rows;
    for (int r = 0; r < 3; ++r) {
      const int64_t from = i + r - 2;
      const bool outside = from < 0 || from >= in.height;
      rows.row[r] = outside ? Row<float>{zeros, 0} : Row<float>{ring + from % 3 * ring_row, args.task_channels};
    }
    float* dx = args.dx + (image * in.height + i - 1) * in.width * in.channels + channel;
    convolve_row<true, Dtype::float32>(rows, in.width, LANES, flipped, [&](int64_t j, Lanes value) __attribute__((always_inline)) {
      store_block<FULL>(dx + j * in.channels, count, value);
    });
  }
  float* to = args.image_sums + image * (TAPS + 1) * in.channels + channel;
  for (int t = 0; t <= TAPS; ++t) store_block<FULL>(to + t * in.channels, count, sums[t]);
}

}  // namespace

void depthwise_forward(const DepthwiseForwardArgs& args) {
  const DepthwiseInputs& in = args.in;
  expect_fill(args.y, in.batch * in.height * in.width * in.channels * size_of(in.x.dtype));
  with_dtype(in.x.dtype, [&](auto type) {
    constexpr Dtype T = decltype(type)::value;
    parallel_for(in.batch * in.height, in.threads, [&](int64_t task) {
      const int64_t image = task / in.height, i = task % in.height;
      over_blocks(0, in.channels, [&](int64_t channel, int count) {
        count == LANES ? forward_row<true, T>(args, image, i, channel, count)
                       : forward_row<false, T>(args, image, i, channel, count);
      });
    });
  });
}

void depthwise_backward(const DepthwiseBackwardArgs& args) {
  const DepthwiseInputs& in = args.in;
  expect_fill(args.dx, in.batch * in.height * in.width * in.channels * 4);
  const int64_t slices = (in.channels + args.task_channels - 1) / args.task_channels;
  const int64_t tasks = in.batch * slices, workers = smaller(in.threads, tasks);
  parallel_for(workers, workers, [&](int64_t worker) {
    float* ring = args.workspace + worker * 3 * in.width * args.task_channels;
    for (int64_t task = worker; task < tasks; task += workers) {
      const int64_t image = task / slices, first = task % slices * args.task_channels;
      over_blocks(first, smaller(first + args.task_channels, in.channels), [&](int64_t channel, int count) {
        if (static_cast<Activation>(in.activation) == Activation::silu)
          count == LANES ? backward_block<true, true>(args, image, channel, count, ring)
                         : backward_block<false, true>(args, image, channel, count, ring);
        else
          count == LANES ? backward_block<true, false>(args, image, channel, count, ring)
                         : backward_block<false, false>(args, image, channel, count, ring);
      });
    }
  });
  const int64_t size = (TAPS + 1) * in.channels;
  over_blocks(0, size, [&](int64_t at, int count) {
    Lanes sum = {};
    for (int64_t image = 0; image < in.batch; ++image)
      sum += load_some<Dtype::float32>(args.image_sums, image * size + at, 1, count);
    store_some<Dtype::float32>(args.sums, at, 1, count, sum);
  });
}

}  // namespace VMAMBA_ISA
}  // namespace vmamba
