// Moves tiles of LANES channels × some steps between tensors and memory where the lanes are channels.
#pragma once

#include "lanes/lanes.h"

namespace vmamba {
namespace VMAMBA_ISA {

// A tile's place in a tensor: strides in elements, `channels` ≤ LANES of them real. Lanes beyond are 0 when loaded.
struct Place {
  int64_t offset, channel_stride, step_stride;
  int channels;
};

// Fetches a tile that will be needed soon into the second-level cache, a piece at each step of the tile at hand: its
// rows are too short for the hardware to foresee them, and asked for all at once they would block the miss queue.
struct Prefetch {
  const char* at;
  int64_t channel_stride, next_column;  // in bytes; a column is LANES steps

  Prefetch(const void* data, int64_t dtype, const Place& place) {
    const int64_t size = size_of(dtype);
    at = static_cast<const char*>(data) + place.offset * size;
    channel_stride = place.channel_stride * size;
    next_column = LANES * (place.step_stride * size - channel_stride);
  }
};

// f(t) for every STEPS-th step, prefetching along the way. STEPS divides LANES.
template <int STEPS, int TILES, class F>
VMAMBA_INLINE void for_steps(int steps, Prefetch (&next)[TILES], F&& f) {
  for (int column = 0; column < steps; column += LANES) {
    const int end = static_cast<int>(smaller(column + LANES, steps));
    for (int t = column; t < end; t += STEPS) {
      for (Prefetch& tile : next)
        for (int i = 0; i < STEPS; ++i, tile.at += tile.channel_stride) __builtin_prefetch(tile.at, 0, 2);
      f(t);
    }
    for (Prefetch& tile : next) tile.at += tile.next_column;
  }
}

// Fill tile[0 .. steps), and up to the next multiple of LANES with zeros.
template <Dtype type>
static void load_tile_as(const void* base, const Place& place, int steps, Lanes* tile) {
  const bool full = place.channels == LANES;
  if (place.step_stride != 1) {  // channels-last memory if channel_stride is 1, otherwise a gather
    const bool direct = full && place.channel_stride == 1;
    for (int t = 0; t < steps; ++t) {
      const int64_t index = place.offset + t * place.step_stride;
      tile[t] = direct ? load_as<type>(base, index)
                       : load_some<type>(base, index, place.channel_stride, place.channels);
    }
    for (int t = steps; t % LANES; ++t) tile[t] = Lanes{};
    return;
  }
  for (int t = 0; t < steps; t += LANES) {
    Lanes rows[LANES];
    if (full && steps - t >= LANES) {
      for (int c = 0; c < LANES; ++c) rows[c] = load_as<type>(base, place.offset + c * place.channel_stride + t);
    } else {
      const int some = static_cast<int>(smaller(steps - t, LANES));
      for (int c = 0; c < LANES; ++c) {
        const int64_t index = place.offset + c * place.channel_stride + t;
        rows[c] = c < place.channels ? load_some<type>(base, index, 1, some) : Lanes{};
      }
    }
    transpose(rows);
    for (int i = 0; i < LANES; ++i) tile[t + i] = rows[i];
  }
}

// Write tile[0 .. steps) where step_stride is 1. The tile's rows up to the next multiple of LANES must be readable.
template <Dtype type>
static void store_tile_as(void* base, const Place& place, int steps, const Lanes* tile) {
  for (int t = 0; t < steps; t += LANES) {
    Lanes rows[LANES];
    for (int i = 0; i < LANES; ++i) rows[i] = tile[t + i];
    transpose(rows);
    if (place.channels == LANES && steps - t >= LANES) {
      for (int c = 0; c < LANES; ++c) store_as<type>(base, place.offset + c * place.channel_stride + t, rows[c]);
    } else {
      const int some = static_cast<int>(smaller(steps - t, LANES));
      for (int c = 0; c < place.channels; ++c)
        store_some<type>(base, place.offset + c * place.channel_stride + t, 1, some, rows[c]);
    }
  }
}

static void load_tile(const void* base, int64_t dtype, const Place& place, int steps, Lanes* tile) {
  with_dtype(dtype, [&](auto type) { load_tile_as<decltype(type)::value>(base, place, steps, tile); });
}

static void store_tile(void* base, int64_t dtype, const Place& place, int steps, const Lanes* tile) {
  with_dtype(dtype, [&](auto type) { store_tile_as<decltype(type)::value>(base, place, steps, tile); });
}

// `steps` elements of one row, any stride, as floats. Fetches what lies `ahead` steps further, where the next call is.
static void load_row(const void* base, int64_t dtype, int64_t offset, int64_t stride, int steps, int ahead,
                     float* row) {
  with_dtype(dtype, [&](auto type) {
    constexpr Dtype T = decltype(type)::value;
    for (int t = 0; t < steps; t += LANES) {
      const int some = static_cast<int>(smaller(steps - t, LANES));
      const int64_t index = offset + t * stride;
      __builtin_prefetch(static_cast<const char*>(base) + (index + ahead * stride) * size_of(dtype));
      store(row + t, some == LANES && stride == 1 ? load_as<T>(base, index) : load_some<T>(base, index, stride, some));
    }
  });
}

}  // namespace VMAMBA_ISA
}  // namespace vmamba
