// A vector of LANES floats and what the compilers need help with: memory, 16-bit formats, rounding, transposes.
//
// Compiled once per instruction set with VMAMBA_ISA (a namespace) and VMAMBA_LANES set on the command line. Every
// function is forced inline inside that namespace, so that no code compiled for a wide instruction set has a name
// under which the linker could hand it to a narrower CPU. For the same reason the kernels use nothing of std::.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "lanes/tensor.h"

#define VMAMBA_INLINE static inline __attribute__((always_inline))

namespace vmamba {
namespace VMAMBA_ISA {

constexpr int LANES = VMAMBA_LANES;

typedef float Lanes __attribute__((vector_size(4 * VMAMBA_LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * VMAMBA_LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * VMAMBA_LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * VMAMBA_LANES)));

VMAMBA_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

VMAMBA_INLINE Lanes splat(float value) { return value - Lanes{}; }  // x - 0 keeps the sign of -0, 0 + x does not
VMAMBA_INLINE Ints splat_int(int32_t value) { return value - Ints{}; }
VMAMBA_INLINE Bits as_bits(Lanes x) { return (Bits)x; }
VMAMBA_INLINE Lanes as_lanes(Bits x) { return (Lanes)x; }

VMAMBA_INLINE Lanes load(const float* from) {
  Lanes x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
VMAMBA_INLINE void store(float* to, Lanes x) { std::memcpy(to, &x, sizeof x); }

// a * b + c; one rounding where the instruction set has it (the build asks for contraction).
VMAMBA_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) { return a * b + c; }
VMAMBA_INLINE Lanes fma(Lanes a, Lanes b, float c) { return a * b + c; }
VMAMBA_INLINE Lanes fma(Lanes a, float b, Lanes c) { return a * b + c; }
VMAMBA_INLINE Lanes fma(Lanes a, float b, float c) { return a * b + c; }

VMAMBA_INLINE Lanes absolute(Lanes x) { return as_lanes(as_bits(x) & 0x7fffffffu); }
VMAMBA_INLINE Lanes where_negative(Lanes x, Lanes a, float b) { return x < 0.0f ? a : splat(b); }

// Where x is NaN both give x.
#if defined(__AVX512F__)
VMAMBA_INLINE Lanes at_least(Lanes x, Lanes low) { return (Lanes)_mm512_max_ps((__m512)low, (__m512)x); }
VMAMBA_INLINE Lanes at_most(Lanes x, Lanes high) { return (Lanes)_mm512_min_ps((__m512)high, (__m512)x); }
#elif defined(__AVX2__)
VMAMBA_INLINE Lanes at_least(Lanes x, Lanes low) { return (Lanes)_mm256_max_ps((__m256)low, (__m256)x); }
VMAMBA_INLINE Lanes at_most(Lanes x, Lanes high) { return (Lanes)_mm256_min_ps((__m256)high, (__m256)x); }
#else
VMAMBA_INLINE Lanes at_least(Lanes x, Lanes low) { return x < low ? low : x; }
VMAMBA_INLINE Lanes at_most(Lanes x, Lanes high) { return x > high ? high : x; }
#endif
VMAMBA_INLINE Lanes at_least(Lanes x, float low) { return at_least(x, splat(low)); }
VMAMBA_INLINE Lanes at_most(Lanes x, float high) { return at_most(x, splat(high)); }

// Round to the nearest integer, |x| < 2^22.
VMAMBA_INLINE Lanes round_small(Lanes x) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (Lanes)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const Lanes magic = splat(0x1.8p23f);  // its last place is worth 1
  return (x + magic) - magic;
#endif
}

// p * 2^r for integral r in [-252, 254] and p in [0.5, 2], rounded once, also into the subnormals.
VMAMBA_INLINE Lanes scale(Lanes p, Lanes r) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_scalef_ps((__m512)p, (__m512)r);
#else
  // Two powers of two, since one alone cannot span the range; the first product is exact.
  const Ints exponent = __builtin_convertvector(r, Ints);
  const Ints half = exponent >> 1;
  const Lanes first = (Lanes)((half + 127) << 23), second = (Lanes)((exponent - half + 127) << 23);
  return p * first * second;
#endif
}

// ---- 16-bit floats -------------------------------------------------------------------------------------------

VMAMBA_INLINE Lanes from_bfloat16(Halves x) { return as_lanes(__builtin_convertvector(x, Bits) << 16); }

VMAMBA_INLINE Halves to_bfloat16(Lanes x) {
  const Bits bits = as_bits(x);
  const Bits nearest_even = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits quiet_nan = (bits >> 16) | 0x40u;
  return __builtin_convertvector((Bits)(x == x ? nearest_even : quiet_nan), Halves);
}

#if defined(__AVX512F__)
VMAMBA_INLINE Lanes from_float16(Halves x) { return (Lanes)_mm512_cvtph_ps((__m256i)x); }
VMAMBA_INLINE Halves to_float16(Lanes x) { return (Halves)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__AVX2__)
VMAMBA_INLINE Lanes from_float16(Halves x) { return (Lanes)_mm256_cvtph_ps((__m128i)x); }
VMAMBA_INLINE Halves to_float16(Lanes x) { return (Halves)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__aarch64__)
VMAMBA_INLINE Lanes from_float16(Halves x) { return (Lanes)vcvt_f32_f16((float16x4_t)x); }
VMAMBA_INLINE Halves to_float16(Lanes x) { return (Halves)vcvt_f16_f32((float32x4_t)x); }
#else
VMAMBA_INLINE Lanes from_float16(Halves x) {
  const Bits wide = __builtin_convertvector(x, Bits);
  const Bits magnitude = (wide & 0x7fffu) << 13;
  // The multiplication moves the exponent's bias from 15 to 127 and makes subnormal halves normal floats.
  const Bits finite = as_bits(as_lanes(magnitude) * 0x1p112f);
  const Bits special = magnitude | 0x7f800000u;  // infinity and NaN
  return as_lanes((magnitude >= 0x0f800000u ? special : finite) | ((wide & 0x8000u) << 16));
}
VMAMBA_INLINE Halves to_float16(Lanes x) {
  const Bits sign = (as_bits(x) >> 16) & 0x8000u;
  const Bits magnitude = as_bits(absolute(x));
  const Bits normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding one half lines a subnormal half's last place up with the float's, so that the addition rounds it.
  const Bits subnormal = as_bits(absolute(x) + 0.5f) - 0x3f000000u;
  Bits half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? Bits{} + 0x7c00u : half;  // rounds beyond 65504
  half = magnitude > 0x7f800000u ? (magnitude >> 13 & 0x3ffu) | 0x7e00u : half;
  return __builtin_convertvector((Bits)(half | sign), Halves);
}
#endif

// Memory access for one of the three types, chosen at compile time.
template <Dtype type>
VMAMBA_INLINE Lanes load_as(const void* base, int64_t index) {
  if constexpr (type == Dtype::float32) {
    return load(static_cast<const float*>(base) + index);
  } else {
    Halves x;
    std::memcpy(&x, static_cast<const uint16_t*>(base) + index, sizeof x);
    return type == Dtype::bfloat16 ? from_bfloat16(x) : from_float16(x);
  }
}

template <Dtype type>
VMAMBA_INLINE void store_as(void* base, int64_t index, Lanes x) {
  if constexpr (type == Dtype::float32) {
    store(static_cast<float*>(base) + index, x);
  } else {
    const Halves half = type == Dtype::bfloat16 ? to_bfloat16(x) : to_float16(x);
    std::memcpy(static_cast<uint16_t*>(base) + index, &half, sizeof half);
  }
}

// `count` elements, `step` apart; the other lanes are 0. For edges and odd strides: never out of bounds, and slow unless
// AVX-512 can mask neighbours.
template <Dtype type>
VMAMBA_INLINE Lanes load_some(const void* base, int64_t index, int64_t step, int count) {
  if constexpr (type == Dtype::float32) {
    const float* from = static_cast<const float*>(base) + index;
#if defined(__AVX512F__)
    if (step == 1) return (Lanes)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
#endif
    float x[LANES] = {};
    for (int i = 0; i < count; ++i) x[i] = from[i * step];
    return load(x);
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(base) + index;
#if defined(__AVX512F__)
    if (step == 1) {
      const Halves x = (Halves)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), from);
      return type == Dtype::bfloat16 ? from_bfloat16(x) : from_float16(x);
    }
#endif
    uint16_t x[LANES] = {};
    for (int i = 0; i < count; ++i) x[i] = from[i * step];
    return load_as<type>(x, 0);
  }
}

template <Dtype type>
VMAMBA_INLINE void store_some(void* base, int64_t index, int64_t step, int count, Lanes value) {
  if constexpr (type == Dtype::float32) {
    float* to = static_cast<float*>(base) + index;
#if defined(__AVX512F__)
    if (step == 1) return _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), (__m512)value);
#endif
    float x[LANES];
    store(x, value);
    for (int i = 0; i < count; ++i) to[i * step] = x[i];
  } else {
    uint16_t* to = static_cast<uint16_t*>(base) + index;
    uint16_t x[LANES];
    store_as<type>(x, 0, value);
    for (int i = 0; i < count; ++i) to[i * step] = x[i];
  }
}

// Call `f` with the dtype as a compile-time constant: f(DtypeConstant<Dtype::...>{}).
template <Dtype type>
struct DtypeConstant {
  static constexpr Dtype value = type;
};
template <class F>
VMAMBA_INLINE void with_dtype(int64_t dtype, F&& f) {
  switch (static_cast<Dtype>(dtype)) {
    case Dtype::float32: return f(DtypeConstant<Dtype::float32>{});
    case Dtype::bfloat16: return f(DtypeConstant<Dtype::bfloat16>{});
    case Dtype::float16: return f(DtypeConstant<Dtype::float16>{});
  }
}

// ---- shuffles ------------------------------------------------------------------------------------------------

#if defined(__clang__) || __GNUC__ >= 12
#define VMAMBA_SHUFFLE4(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define VMAMBA_SHUFFLE4(a, b, ...) __builtin_shuffle(a, b, Ints{__VA_ARGS__})
#endif

// Each of these takes two rows and works on 128-bit quarters; the last two move quarters or halves of a row.
#if VMAMBA_LANES == 4
VMAMBA_INLINE Lanes zip_low(Lanes a, Lanes b) { return VMAMBA_SHUFFLE4(a, b, 0, 4, 1, 5); }
VMAMBA_INLINE Lanes zip_high(Lanes a, Lanes b) { return VMAMBA_SHUFFLE4(a, b, 2, 6, 3, 7); }
VMAMBA_INLINE Lanes low_pairs(Lanes a, Lanes b) { return VMAMBA_SHUFFLE4(a, b, 0, 1, 4, 5); }
VMAMBA_INLINE Lanes high_pairs(Lanes a, Lanes b) { return VMAMBA_SHUFFLE4(a, b, 2, 3, 6, 7); }
#elif VMAMBA_LANES == 8
VMAMBA_INLINE Lanes zip_low(Lanes a, Lanes b) { return VMAMBA_SHUFFLE4(a, b, 0, 8, 1, 9, 4, 12, 5, 13); }
VMAMBA_INLINE Lanes zip_high(Lanes a, Lanes b) { return VMAMBA_SHUFFLE4(a, b, 2, 10, 3, 11, 6, 14, 7, 15); }
VMAMBA_INLINE Lanes low_pairs(Lanes a, Lanes b) { return VMAMBA_SHUFFLE4(a, b, 0, 1, 8, 9, 4, 5, 12, 13); }
VMAMBA_INLINE Lanes high_pairs(Lanes a, Lanes b) { return VMAMBA_SHUFFLE4(a, b, 2, 3, 10, 11, 6, 7, 14, 15); }
VMAMBA_INLINE Lanes low_quarters(Lanes a, Lanes b) { return VMAMBA_SHUFFLE4(a, b, 0, 1, 2, 3, 8, 9, 10, 11); }
VMAMBA_INLINE Lanes high_quarters(Lanes a, Lanes b) { return VMAMBA_SHUFFLE4(a, b, 4, 5, 6, 7, 12, 13, 14, 15); }
#elif VMAMBA_LANES == 16
VMAMBA_INLINE Lanes zip_low(Lanes a, Lanes b) {
  return VMAMBA_SHUFFLE4(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
}
VMAMBA_INLINE Lanes zip_high(Lanes a, Lanes b) {
  return VMAMBA_SHUFFLE4(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}
VMAMBA_INLINE Lanes low_pairs(Lanes a, Lanes b) {
  return VMAMBA_SHUFFLE4(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
}
VMAMBA_INLINE Lanes high_pairs(Lanes a, Lanes b) {
  return VMAMBA_SHUFFLE4(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
VMAMBA_INLINE Lanes low_quarters(Lanes a, Lanes b) {  // quarters 0 and 2 of both
  return VMAMBA_SHUFFLE4(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
}
VMAMBA_INLINE Lanes high_quarters(Lanes a, Lanes b) {  // quarters 1 and 3 of both
  return VMAMBA_SHUFFLE4(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
#endif

// Transpose LANES rows in place, 2 + log2(LANES / 4) shuffles a row.
VMAMBA_INLINE void transpose(Lanes (&row)[LANES]) {
  Lanes by4[LANES];  // after the first loop, quarter p of by4[4 q + j] is column 4 p + j of rows 4 q to 4 q + 3
  for (int q = 0; q < LANES; q += 4) {
    const Lanes a = zip_low(row[q], row[q + 1]), b = zip_high(row[q], row[q + 1]);
    const Lanes c = zip_low(row[q + 2], row[q + 3]), d = zip_high(row[q + 2], row[q + 3]);
    by4[q] = low_pairs(a, c);
    by4[q + 1] = high_pairs(a, c);
    by4[q + 2] = low_pairs(b, d);
    by4[q + 3] = high_pairs(b, d);
  }
#if VMAMBA_LANES == 4
  for (int i = 0; i < LANES; ++i) row[i] = by4[i];
#elif VMAMBA_LANES == 8
  for (int i = 0; i < 4; ++i) {
    row[i] = low_quarters(by4[i], by4[i + 4]);
    row[i + 4] = high_quarters(by4[i], by4[i + 4]);
  }
#elif VMAMBA_LANES == 16
  for (int i = 0; i < 4; ++i) {
    const Lanes even_a = low_quarters(by4[i], by4[i + 4]), odd_a = high_quarters(by4[i], by4[i + 4]);
    const Lanes even_b = low_quarters(by4[i + 8], by4[i + 12]), odd_b = high_quarters(by4[i + 8], by4[i + 12]);
    row[i] = low_quarters(even_a, even_b);
    row[i + 8] = high_quarters(even_a, even_b);
    row[i + 4] = low_quarters(odd_a, odd_b);
    row[i + 12] = high_quarters(odd_a, odd_b);
  }
#endif
}

// Lane i of the result is the sum of the lanes of row[i * STRIDE]: a transpose that adds on its way.
template <int STRIDE = 1>
VMAMBA_INLINE Lanes sum_rows(const Lanes* row) {
  Lanes by4[LANES / 4];
  for (int q = 0; q < LANES / 4; ++q) {
    const Lanes* r = row + 4 * q * STRIDE;
    const Lanes a = zip_low(r[0], r[STRIDE]) + zip_high(r[0], r[STRIDE]);
    const Lanes b = zip_low(r[2 * STRIDE], r[3 * STRIDE]) + zip_high(r[2 * STRIDE], r[3 * STRIDE]);
    by4[q] = low_pairs(a, b) + high_pairs(a, b);
  }
#if VMAMBA_LANES == 4
  return by4[0];
#elif VMAMBA_LANES == 8
  return low_quarters(by4[0], by4[1]) + high_quarters(by4[0], by4[1]);
#elif VMAMBA_LANES == 16
  const Lanes a = low_quarters(by4[0], by4[1]) + high_quarters(by4[0], by4[1]);
  const Lanes b = low_quarters(by4[2], by4[3]) + high_quarters(by4[2], by4[3]);
  return low_quarters(a, b) + high_quarters(a, b);
#endif
}

}  // namespace VMAMBA_ISA
}  // namespace vmamba
