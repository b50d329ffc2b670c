// exp, softplus and sigmoid over lanes or packs of them (V): within 2 units in the last place of the exact value for
// every float, with subnormals, infinities and NaN as they should be (tests/test_native.py). Minimax polynomials,
// relative errors in comments.
#pragma once

#include "lanes/pack.h"

namespace vmamba {
namespace VMAMBA_ISA {

// 2^x for any float x.
template <class V>
VMAMBA_INLINE V exp2(V x) {
#if !defined(__AVX512F__)  // where `scale` saturates by itself, and turns (NaN, ±inf) into what we want
  x = at_most(at_least(x, -160.0f), 160.0f);
#endif
  const V r = round_small(x);
  const V f = x - r;  // exact, in [-0.5, 0.5]
  V q = fma(f, 0.000153264933f, 0.00133908121f);  // (2^f - 1) / f, 3e-9
  q = fma(q, f, 0.00961850584f);
  q = fma(q, f, 0.0555035993f);
  q = fma(q, f, 0.240226477f);
  q = fma(q, f, 0.693147182f);
  return scale(fma(q, f, 1.0f), r);
}

// e^x for x in [-126, 126].
template <class V>
VMAMBA_INLINE V exp_bounded(V x) {
  const V r = round_small(x * 1.44269504f);
  V f = fma(r, -0.693359375f, x);  // ln 2 in two parts; r times the short one is exact
  f = fma(r, 2.12194440e-4f, f);
  V q = fma(f, 0.00138206896f, 0.0083686756f);  // (e^f - 1 - f) / f^2, 3e-9
  q = fma(q, f, 0.0416682661f);
  q = fma(q, f, 0.166665211f);
  q = fma(q, f, 0.49999994f);
  const V sum = 1.0f + f;
  const V lost = f - (sum - 1.0f);  // what the addition rounded away, exactly
  return scale(sum + fma(f * f, q, lost), r);
}

// e^x for any float x.
template <class V>
VMAMBA_INLINE V exp(V x) {
  return exp_bounded(at_most(at_least(x, -110.0f), 100.0f));
}

// log(1 + z) - z for z in [0, 1].
template <class V>
VMAMBA_INLINE V log1p_unit_less_z(V z) {
  V q = fma(z, -0.00329046859f, 0.0200862419f);  // (log1p(z) - z) / z^2, 5e-9
  q = fma(q, z, -0.057457231f);
  q = fma(q, z, 0.106611282f);
  q = fma(q, z, -0.153448805f);
  q = fma(q, z, 0.196921021f);
  q = fma(q, z, -0.24958019f);
  q = fma(q, z, 0.333304644f);
  q = fma(q, z, -0.499999315f);
  return z * z * q;
}

// log(1 + z) for z in [0, 1], the range that softplus needs.
template <class V>
VMAMBA_INLINE V log1p_unit(V z) {
  return z + log1p_unit_less_z(z);
}

// e^-|x|, what softplus and sigmoid share.
template <class V>
VMAMBA_INLINE V exp_minus_abs(V x) {
  return exp_bounded(at_least(-absolute(x), -110.0f));
}

// max(x, 0) + log(1 + e^-|x|), given z = e^-|x|. From x = 17 on it is x itself in float32, so that torch's rule
// "linear above 20" holds without a comparison.
template <class V>
VMAMBA_INLINE V softplus_given(V x, V z) {
  const V line = at_least(x, 0.0f);
#if defined(__FMA__) || defined(__aarch64__)
  return line + log1p_unit(z);
#else  // the roundings that fused operations save, saved otherwise
  const V rest = log1p_unit_less_z(z), curve = z + rest;
  return (line + (rest - (curve - z))) + curve;
#endif
}
template <class V>
VMAMBA_INLINE V softplus(V x) {
  return softplus_given(x, exp_minus_abs(x));
}

// 1 / (1 + e^-x), given z = e^-|x|: the derivative of softplus.
template <class V>
VMAMBA_INLINE V sigmoid_given(V x, V z) {
  const V sum = 1.0f + z;
  const V lost = z - (sum - 1.0f);
  const V quotient = where_negative(x, z, 1.0f) / sum;
  return fma(quotient * lost, fma(z, 0.48f, -0.97f), quotient);  // times 1 - lost / (1 + z)
}
template <class V>
VMAMBA_INLINE V sigmoid(V x) {
  return sigmoid_given(x, exp_minus_abs(x));
}

}  // namespace VMAMBA_ISA
}  // namespace vmamba
