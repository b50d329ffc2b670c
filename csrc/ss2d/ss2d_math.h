// Softplus and decay of the fused scan, in powers of two: the projected step P and the step size are kept times log2(e),
// which the weights, the bias and B carry, so that
//
//     step size  max(P, 0) + log2(1 + 2^-|P|)      decay  2^(step size · A)
//
// need no multiplication by log2(e), and their arguments split into integer and fraction without error.
//
// With AVX-512 a permutation looks up one of 16 floats (of two registers, 32) in each lane. That moves work from the
// multipliers, which the projection and the recurrence need too, to units that would idle. Powers stay within 2 units in the
// last place, and so do step sizes above 5e-5; smaller ones, whose effect on a state is lost in its rounding, within 1.1e-5
// of themselves. Elsewhere the functions are vecmath.h's.
#pragma once

#include "lanes/vecmath.h"

#if defined(__AVX512F__)
#include "ss2d/ss2d_tables.h"
#endif

namespace vmamba {
namespace VMAMBA_ISA {
namespace {

// Several vectors go through each operation side by side, so that none waits for the one before it.
#define VMAMBA_EACH(N) _Pragma("GCC unroll 8") for (int i = 0; i < N; ++i)

constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

// f on two vectors at a time: with the vectors that wait and the tables, more would not fit the registers.
template <int N, class F>
VMAMBA_INLINE void each_two(Lanes (&x)[N], F&& f) {
#pragma GCC unroll 4
  for (int first = 0; first < N; first += 2) {
    Lanes two[2];
    VMAMBA_EACH(2) two[i] = x[first + i];
    f(two);
    VMAMBA_EACH(2) x[first + i] = two[i];
  }
}
template <int N, class F>
VMAMBA_INLINE void each_two(Lanes (&x)[N], Lanes (&y)[N], F&& f) {
#pragma GCC unroll 4
  for (int first = 0; first < N; first += 2) {
    Lanes two[2], other[2];
    VMAMBA_EACH(2) two[i] = x[first + i];
    f(two, other);
    VMAMBA_EACH(2) x[first + i] = two[i];
    VMAMBA_EACH(2) y[first + i] = other[i];
  }
}

// A product that is not to be fused with the addition that follows: the other one there is.
VMAMBA_INLINE Lanes unfused(Lanes product) {
#if defined(__AVX512F__)
  asm("" : "+v"(product));
#elif defined(__AVX2__)
  asm("" : "+x"(product));
#endif
  return product;
}

#if defined(__AVX512F__)

VMAMBA_INLINE Lanes look_up(const float* table, Lanes index) {
  return (Lanes)_mm512_permutexvar_ps((__m512i)index, (__m512)load(table));
}

VMAMBA_INLINE Lanes look_up_32(const float* table, Lanes index) {
  return (Lanes)_mm512_permutex2var_ps((__m512)load(table), (__m512i)index, (__m512)load(table + 16));
}

// -|p|, but not below -200, where 2^-|p| is 0 in any case; NaN becomes -200.
VMAMBA_INLINE Lanes minus_magnitude(Lanes p) {
  constexpr int smaller_magnitude = 2, negative = 3 << 2;
  return (Lanes)_mm512_range_ps((__m512)p, _mm512_set1_ps(200.0f), smaller_magnitude | negative);
}

// Adding this rounds to integers and leaves r + 15 in the low four bits, the tables' index; what is below r = -15 is
// held there.
constexpr float ROUND_TO_ENTRY = 0x1.8p23f + 15.0f;

VMAMBA_INLINE Lanes held_entry(Lanes rounded) {
  const Ints first = (Ints)splat(0x1.8p23f), entry = (Ints)rounded;
  return (Lanes)(entry > first ? entry : first);
}

template <int N>
VMAMBA_INLINE void step_sizes(Lanes (&p)[N]) {
  Lanes r[N], f[N], entry[N], w[N];
  VMAMBA_EACH(N) f[i] = minus_magnitude(p[i]);
  VMAMBA_EACH(N) entry[i] = f[i] + ROUND_TO_ENTRY;
  VMAMBA_EACH(N) r[i] = entry[i] - ROUND_TO_ENTRY;
  VMAMBA_EACH(N) entry[i] = held_entry(entry[i]);
  VMAMBA_EACH(N) f[i] = f[i] - r[i];
  VMAMBA_EACH(N) w[i] = look_up(softplus_terms[5], entry[i]);
#pragma GCC unroll 8
  for (int term = 4; term >= 0; --term) {
    VMAMBA_EACH(N) w[i] = fma(w[i], f[i], look_up(softplus_terms[term], entry[i]));
  }
  VMAMBA_EACH(N) w[i] = scale(w[i], r[i]);
  VMAMBA_EACH(N) p[i] = w[i] + at_least(p[i], Lanes{});
}

// The step sizes and their derivatives.
template <int N>
VMAMBA_INLINE void step_sizes(Lanes (&p)[N], Lanes (&slope)[N]) {
  Lanes r[N], f[N], entry[N], w[N];
  VMAMBA_EACH(N) f[i] = minus_magnitude(p[i]);
  VMAMBA_EACH(N) entry[i] = f[i] + ROUND_TO_ENTRY;
  VMAMBA_EACH(N) r[i] = entry[i] - ROUND_TO_ENTRY;
  VMAMBA_EACH(N) entry[i] = held_entry(entry[i]);
  VMAMBA_EACH(N) f[i] = f[i] - r[i];
  VMAMBA_EACH(N) slope[i] = look_up(softplus_fine_terms[6], entry[i]);
  VMAMBA_EACH(N) w[i] = fma(slope[i], f[i], look_up(softplus_fine_terms[5], entry[i]));
#pragma GCC unroll 8
  for (int term = 4; term >= 0; --term) {
    VMAMBA_EACH(N) slope[i] = fma(slope[i], f[i], w[i]);
    VMAMBA_EACH(N) w[i] = fma(w[i], f[i], look_up(softplus_fine_terms[term], entry[i]));
  }
  VMAMBA_EACH(N) slope[i] = scale(slope[i], r[i]);  // the derivative by -|p|
  VMAMBA_EACH(N) w[i] = scale(w[i], r[i]);
  VMAMBA_EACH(N) slope[i] = p[i] > 0.0f ? 1.0f - slope[i] : slope[i];
  VMAMBA_EACH(N) p[i] = w[i] + at_least(p[i], Lanes{});
}

// 2^x
template <int N>
VMAMBA_INLINE void powers_of_two(Lanes (&x)[N]) {
  constexpr float round_to_entry = 0x1.8p18f;  // adding it rounds to multiples of 1/32
  Lanes r[N], fraction[N], less_one[N];
  // Folding the product that x is into both uses of it would give the multipliers more work.
  VMAMBA_EACH(N) x[i] = unfused(x[i]);
  VMAMBA_EACH(N) fraction[i] = x[i] + round_to_entry;
  VMAMBA_EACH(N) r[i] = fraction[i] - round_to_entry;
  VMAMBA_EACH(N) fraction[i] = look_up_32(exp2_fraction, fraction[i]);
  VMAMBA_EACH(N) x[i] = x[i] - r[i];
  VMAMBA_EACH(N) less_one[i] = fma(splat(exp2_terms[1]), x[i], splat(exp2_terms[0]));
  VMAMBA_EACH(N) less_one[i] = less_one[i] * x[i];
  VMAMBA_EACH(N) less_one[i] = fma(fraction[i], less_one[i], fraction[i]);
  VMAMBA_EACH(N) x[i] = scale(less_one[i], r[i]);  // takes the integer below r
}

#else

template <int N>
VMAMBA_INLINE void step_sizes(Lanes (&p)[N]) {
  VMAMBA_EACH(N) p[i] = fma(log1p_unit(exp2(-absolute(p[i]))), splat(LOG2_E), at_least(p[i], Lanes{}));
}

template <int N>
VMAMBA_INLINE void step_sizes(Lanes (&p)[N], Lanes (&slope)[N]) {
  VMAMBA_EACH(N) {
    const Lanes z = exp2(-absolute(p[i]));
    slope[i] = sigmoid_given(p[i], z);
    p[i] = fma(log1p_unit(z), splat(LOG2_E), at_least(p[i], Lanes{}));
  }
}

template <int N>
VMAMBA_INLINE void powers_of_two(Lanes (&x)[N]) {
  VMAMBA_EACH(N) x[i] = exp2(x[i]);
}

#endif

}  // namespace
}  // namespace VMAMBA_ISA
}  // namespace vmamba
