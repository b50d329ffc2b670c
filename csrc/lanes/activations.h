// Activations and their derivatives, over lanes or packs of them (V).
#pragma once

#include "lanes/vecmath.h"

namespace vmamba {
namespace VMAMBA_ISA {

// GELU is x Φ(x) with the normal distribution Φ (arXiv 1606.08415). With a = |x| and the left tail u = a Φ(-a), it is
// max(x, 0) - u. The tail is e^(-a²/2) times a rational function of a, Mills' ratio; the exponential serves the derivative
// as well. No digits are lost to 1 + erf(x / √2) where it is small: errors are below 2.5e-7 of |x|, and for x < 0 below
// 5e-7 (1 + x²) of GELU itself.
template <class V>
struct Tail {
  V a, bell, ratio;  // |x|, at most 15, where the tail is 0 in float32; e^(-a²/2); Φ(-a) / e^(-a²/2)
};

template <class V>
VMAMBA_INLINE Tail<V> tail(V x) {
  const V a = at_most(absolute(x), 15.0f);
  const V t = 1.0f / fma(a, 0.23f, 1.0f);
  V q = fma(t, -0.0750350878f, 0.273428589f);  // relative error 3e-8 (1 + a²/3)
  q = fma(q, t, -0.242382199f);
  q = fma(q, t, 0.259813339f);
  q = fma(q, t, -0.00360394549f);
  q = fma(q, t, 0.106802769f);
  q = fma(q, t, 0.0890672058f);
  q = fma(q, t, 0.0919093266f);
  return {a, exp2(a * a * -0.721347520f), q * t};
}

template <class V>
VMAMBA_INLINE V gelu(V x, const Tail<V>& tail) {
  return at_least(x, 0.0f) - tail.bell * (tail.a * tail.ratio);
}

template <class V>
VMAMBA_INLINE V gelu_slope(V x, const Tail<V>& tail) {
  const V u_slope = tail.bell * fma(tail.a, -0.398942280f, tail.ratio);  // of u over a, 1 / √(2π)
  return where_negative(x, u_slope, 1.0f - u_slope);
}

// x / (1 + e^-x) (arXiv 1702.03118).
template <class V>
VMAMBA_INLINE V silu(V x) { return x / (1.0f + exp2(x * -1.44269504f)); }

template <class V>
VMAMBA_INLINE V silu_slope(V x) {
  const V s = 1.0f / (1.0f + exp2(x * -1.44269504f));
  return fma(x * s, 1.0f - s, s);
}

}  // namespace VMAMBA_ISA
}  // namespace vmamba
