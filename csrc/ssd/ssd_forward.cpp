// Mamba-2's scan of a map in several directions, forward.
//
// As the recurrence, not as products of matrices: with VMamba's 64 states a chunk's products (56 positions, 96 channels)
// multiply 1.7 times as often, and gain nothing from a second core where the map is small. SSD_STEPS positions are taken
// at a time, so that the state is read, decayed and written once for all of them:
//
//   y_i = total_i (C_i · h) + sum over j <= i of (C_i · B_j) w_ij,      w_ij = δ_j x_j decay_(j+1) … decay_i
//   h   = total_4 h + sum over j of B_j w_4j,                           total_i = decay_1 … decay_i
//
// A direction's y is added to what the ones before it gave; the first adds to the skip.
//
// All factors are products of decays, none a quotient: nothing over- or underflows that would not in single steps.
// A vector of channels and a state cost 9 multiplications for 4 positions, with as many loads. At b, l, d, n, k =
// 1, 3136, 96, 64, 4 that is 10.8 million cycles of a core with two 256-bit multipliers.
#include "lanes/memory.h"
#include "lanes/parallel.h"
#include "lanes/vecmath.h"
#include "ssd/ssd_args.h"

namespace vmamba {
namespace VMAMBA_ISA {
namespace {

constexpr int STEPS = SSD_STEPS;

VMAMBA_INLINE int64_t blocks_of(const SsdForwardArgs& args) { return (args.places + STEPS - 1) / STEPS; }

// The places that one direction reads in a block of steps.
struct Block {
  int64_t place[STEPS];
  int steps;  // real ones; what follows repeats the last
};

VMAMBA_INLINE Block block_at(const SsdForwardArgs& args, int64_t direction, int64_t index) {
  Block block;
  const int64_t first = index * STEPS;
  block.steps = static_cast<int>(smaller(STEPS, args.places - first));
  for (int i = 0; i < STEPS; ++i) {
    const int64_t t = first + smaller(i, block.steps - 1);
    block.place[i] = args.order ? args.order[direction * args.places + t] : t;
  }
  return block;
}

VMAMBA_INLINE const float* row_of(const Tensor& t, int64_t image, int64_t place, int64_t direction) {
  return static_cast<const float*>(t.data) + image * t.stride[0] + place * t.stride[1] + direction * t.stride[2];
}

// Where x has the channels of an image's place, as an index.
VMAMBA_INLINE int64_t row_of_x(const SsdForwardArgs& args, int64_t image, int64_t place) {
  return image * args.x.stride[0] + place * args.x.stride[1];
}

// C_i · B_j of a block's steps.
void multiply(const SsdForwardArgs& args, int64_t image, int64_t direction, const Block& block, float* products) {
  const float *B[STEPS], *C[STEPS];
  for (int i = 0; i < STEPS; ++i) {
    B[i] = row_of(args.B, image, block.place[i], direction);
    C[i] = row_of(args.C, image, block.place[i], direction);
  }
  Lanes sums[SSD_PRODUCTS] = {};
  int64_t n = 0;
  const auto add = [&](auto read) {
    Lanes b[STEPS];
    for (int i = 0; i < STEPS; ++i) b[i] = read(B[i]);
    for (int i = 0, at = 0; i < STEPS; ++i) {
      const Lanes c = read(C[i]);
      for (int j = 0; j <= i; ++j, ++at) sums[at] = fma(c, b[j], sums[at]);
    }
  };
  for (; n + LANES <= args.states; n += LANES) add([&](const float* row) { return load(row + n); });
  if (n < args.states) {
    const int rest = static_cast<int>(args.states - n);
    add([&](const float* row) { return load_some<Dtype::float32>(row, n, 1, rest); });
  }
  for (int i = 0; i < SSD_PRODUCTS; i += LANES) store(products + i, sum_rows(sums + i));
}

// `part` channels of one image in all directions: the memory that a worker has for them.
struct Part {
  int64_t image, channel;  // the first
  int channels, vectors;
  Lanes* state;        // (vectors, states)
  const float* zeros;  // a row of B for steps that are not there
};

// One value of each head, as one for each of the part's channels. Every store may run over into the next head's place,
// which the next one then takes; `into` has a vector's room behind its end.
VMAMBA_INLINE void spread(const SsdForwardArgs& args, const Part& part, const float* of_heads, float* into) {
  const int64_t first = part.channel / args.width, end = part.channel + part.channels;
  for (int64_t head = first; head * args.width < end; ++head) {
    const Lanes value = splat(of_heads[head - first]);
    const int64_t from = head * args.width > part.channel ? head * args.width : part.channel;
    for (int64_t c = from; c < smaller((head + 1) * args.width, end); c += LANES) store(into + c - part.channel, value);
  }
}

// A block's rows of the part, soon: maps are read along columns too, which the hardware does not foresee.
VMAMBA_INLINE void fetch(const SsdForwardArgs& args, const Part& part, int64_t direction, const Block& block) {
  const auto lines = [](const float* from, int64_t floats) {
    for (int64_t i = 0; i < floats; i += 16) __builtin_prefetch(from + i);
  };
  const int64_t channels = args.heads * args.width;
  for (int i = 0; i < block.steps; ++i) {
    const int64_t place = block.place[i];
    lines(row_of(args.B, part.image, place, direction), args.states);
    lines(row_of(args.C, part.image, place, direction), args.states);
    const int64_t x = (row_of_x(args, part.image, place) + part.channel) * size_of(args.x.dtype);
    lines(reinterpret_cast<const float*>(static_cast<const char*>(args.x.data) + x), part.channels);
    lines(args.y + (part.image * args.places + place) * channels + part.channel, part.channels);
    __builtin_prefetch(row_of(args.dt, part.image, place, direction) + part.channel / args.width);
    if (!args.A) __builtin_prefetch(row_of(args.log_decay, part.image, place, direction) + part.channel / args.width);
  }
}

// δ of a block's steps and what they leave of the state, for each channel.
template <int MOST>
VMAMBA_INLINE void prepare(const SsdForwardArgs& args, const Part& part, int64_t direction, const Block& block,
                           float (*dt)[MOST], float (*decay)[MOST]) {
  const int64_t first = part.channel / args.width;
  const int64_t heads = (part.channel + part.channels - 1) / args.width + 1 - first;
  const auto some_of = [&](const float* row, int64_t head) {
    const int some = static_cast<int>(smaller(heads - head, LANES));
    return some == LANES ? load(row + head) : load_some<Dtype::float32>(row, head, 1, some);
  };
  const int64_t own = direction * args.heads + first;  // of A and dt_bias
  float step[MOST], left[MOST];
  for (int i = 0; i < block.steps; ++i) {
    const float* steps = row_of(args.dt, part.image, block.place[i], direction) + first;
    if (args.A) {
      for (int64_t head = 0; head < heads; head += LANES) {
        const Lanes delta = softplus(some_of(steps, head) + (args.dt_bias ? some_of(args.dt_bias + own, head) : Lanes{}));
        store(step + head, delta);
        store(left + head, exp(delta * some_of(args.A + own, head)));
      }
      steps = step;
    } else {
      const float* logs = row_of(args.log_decay, part.image, block.place[i], direction) + first;
      for (int64_t head = 0; head < heads; head += LANES) store(left + head, exp(some_of(logs, head)));
    }
    spread(args, part, left, decay[i]);
    spread(args, part, steps, dt[i]);
  }
}

// One vector of channels over a block of steps: fills y and moves the state on. What is not there has B of zeros.
VMAMBA_INLINE void advance(const float* const* B, const float* const* C, int64_t states, const float* products,
                           const Lanes* input, const Lanes* decay, Lanes* state, Lanes* y) {
  Lanes total[STEPS], w[STEPS], sum[STEPS];
  for (int i = 0, at = 0; i < STEPS; ++i) {
    total[i] = i ? total[i - 1] * decay[i] : decay[i];
    for (int j = 0; j < i; ++j) w[j] *= decay[i];
    w[i] = input[i];
    y[i] = Lanes{};
    for (int j = 0; j <= i; ++j, ++at) y[i] = fma(w[j], products[at], y[i]);
    sum[i] = Lanes{};
  }
  const Lanes kept = total[STEPS - 1];
  for (int64_t n = 0; n < states; ++n) {
    const Lanes h = state[n];
    Lanes next = h * kept;
    for (int i = 0; i < STEPS; ++i) sum[i] = fma(h, C[i][n], sum[i]);
    for (int i = 0; i < STEPS; ++i) next = fma(w[i], B[i][n], next);
    state[n] = next;
  }
  for (int i = 0; i < STEPS; ++i) y[i] = fma(total[i], sum[i], y[i]);
}

template <int MOST, Dtype X>
void scan_direction(const SsdForwardArgs& args, const Part& part, int64_t direction) {
  const int64_t blocks = blocks_of(args), channels = args.heads * args.width;
  const float* products = args.products + (part.image * args.directions + direction) * blocks * SSD_PRODUCTS;
  alignas(64) float dt[STEPS][MOST + LANES], decay[STEPS][MOST + LANES];
  for (int64_t index = 0; index < blocks; ++index) {
    const Block block = block_at(args, direction, index);
    const float *B[STEPS], *C[STEPS];
    int64_t x[STEPS];
    float* y[STEPS];
    for (int i = 0; i < STEPS; ++i) {
      const int64_t place = block.place[i];
      B[i] = i < block.steps ? row_of(args.B, part.image, place, direction) : part.zeros;
      C[i] = row_of(args.C, part.image, place, direction);
      x[i] = row_of_x(args, part.image, place) + part.channel;
      y[i] = args.y + (part.image * args.places + place) * channels + part.channel;
    }
    if (index + 1 < blocks) fetch(args, part, direction, block_at(args, direction, index + 1));
    prepare<MOST + LANES>(args, part, direction, block, dt, decay);
    for (int v = 0; v < part.vectors; ++v) {
      const int64_t c = v * LANES;
      const int some = static_cast<int>(smaller(part.channels - c, LANES));
      const Lanes D = !direction && args.D ? load_some<Dtype::float32>(args.D, part.channel + c, 1, some) : Lanes{};
      Lanes skip[STEPS], input[STEPS], left[STEPS], out[STEPS];
      for (int i = 0; i < STEPS; ++i) {
        if (i >= block.steps) {
          skip[i] = input[i] = Lanes{};
          left[i] = splat(1.0f);
          continue;
        }
        const Lanes from = some == LANES ? load_as<X>(args.x.data, x[i] + c) : load_some<X>(args.x.data, x[i] + c, 1, some);
        skip[i] = args.D ? from * D : Lanes{};  // what is infinite would not become 0
        input[i] = from * load(dt[i] + c);
        left[i] = load(decay[i] + c);
      }
      advance(B, C, args.states, products + index * SSD_PRODUCTS, input, left, part.state + v * args.states, out);
      for (int i = 0; i < block.steps; ++i) {
        if (some == LANES) {
          store(y[i] + c, out[i] + (direction ? load(y[i] + c) : skip[i]));
        } else {
          const Lanes before = direction ? load_some<Dtype::float32>(y[i], c, 1, some) : skip[i];
          store_some<Dtype::float32>(y[i], c, 1, some, out[i] + before);
        }
      }
    }
  }
}

// The part's states from or to a contiguous (batch, states, channels) tensor.
template <class F>
VMAMBA_INLINE void for_states(const SsdForwardArgs& args, const Part& part, F&& f) {
  for (int v = 0; v < part.vectors; ++v)
    for (int64_t n = 0; n < args.states; ++n) {
      const int64_t at = (part.image * args.states + n) * args.heads * args.width + part.channel + v * LANES;
      f(part.state[v * args.states + n], at, static_cast<int>(smaller(part.channels - v * LANES, LANES)));
    }
}

}  // namespace

void ssd_forward(const SsdForwardArgs& args) {
  const int64_t channels = args.heads * args.width, blocks = blocks_of(args);
  expect_fill(args.y, args.batch * args.places * channels * 4);
  parallel_for(args.batch * args.directions * blocks, args.threads, [&](int64_t task) {
    const int64_t direction = task / blocks % args.directions, image = task / blocks / args.directions;
    const Block block = block_at(args, direction, task % blocks);
    multiply(args, image, direction, block, args.products + task * SSD_PRODUCTS);
  });
  const int64_t parts = (channels + args.part - 1) / args.part;
  share_tasks(args.batch * parts, args.threads, args.workspace, args.workspace_floats, [&](int64_t task, float* memory) {
    const int64_t first = task % parts * args.part;
    Part part;
    part.image = task / parts;
    part.channel = first;
    part.channels = static_cast<int>(smaller(args.part, channels - first));
    part.vectors = (part.channels + LANES - 1) / LANES;
    part.state = reinterpret_cast<Lanes*>(memory);
    float* zeros = memory + args.part * args.states;
    std::memset(zeros, 0, args.states * 4);
    part.zeros = zeros;
    for (int64_t direction = 0; direction < args.directions; ++direction) {
      for_states(args, part, [&](Lanes& state, int64_t at, int some) {
        state = args.start ? load_some<Dtype::float32>(args.start, at, 1, some) : Lanes{};
      });
      with_dtype(args.x.dtype, [&](auto type) {
        scan_direction<SSD_MOST_CHANNELS, decltype(type)::value>(args, part, direction);
      });
    }
    if (args.last)
      for_states(args, part, [&](Lanes& state, int64_t at, int some) {
        store_some<Dtype::float32>(args.last, at, 1, some, state);
      });
  });
}

}  // namespace VMAMBA_ISA
}  // namespace vmamba
