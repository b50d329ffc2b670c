// exp, softplus and sigmoid over lanes: within 2 units in the last place of the exact value for every float, with
// subnormals, infinities and NaN as they should be (tests/test_native.py). Minimax polynomials, relative error in
// comments.
#pragma once

#include "lanes.h"

namespace vmamba {
namespace VMAMBA_ISA {

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

// 2^x for any float x.
VMAMBA_INLINE Lanes exp2(Lanes x) {
#if !defined(__AVX512F__)  // where `scale` saturates by itself, and turns (NaN, ±inf) into what we want
  x = at_most(at_least(x, splat(-160.0f)), splat(160.0f));
#endif
  const Lanes r = round_small(x);
  const Lanes f = x - r;  // exact, in [-0.5, 0.5]
  Lanes q = fma(splat(0.000153264933f), f, splat(0.00133908121f));  // (2^f - 1) / f, 3e-9
  q = fma(q, f, splat(0.00961850584f));
  q = fma(q, f, splat(0.0555035993f));
  q = fma(q, f, splat(0.240226477f));
  q = fma(q, f, splat(0.693147182f));
  return scale(fma(q, f, splat(1.0f)), r);
}

// e^x for x in [-126, 126].
VMAMBA_INLINE Lanes exp_bounded(Lanes x) {
  const Lanes r = round_small(x * 1.44269504f);
  Lanes f = fma(r, splat(-0.693359375f), x);  // ln 2 in two parts; r times the short one is exact
  f = fma(r, splat(2.12194440e-4f), f);
  Lanes q = fma(splat(0.00138206896f), f, splat(0.0083686756f));  // (e^f - 1 - f) / f^2, 3e-9
  q = fma(q, f, splat(0.0416682661f));
  q = fma(q, f, splat(0.166665211f));
  q = fma(q, f, splat(0.49999994f));
  const Lanes sum = 1.0f + f;
  const Lanes lost = f - (sum - 1.0f);  // what the addition rounded away, exactly
  return scale(sum + fma(f * f, q, lost), r);
}

// e^x for any float x.
VMAMBA_INLINE Lanes exp(Lanes x) { return exp_bounded(at_most(at_least(x, splat(-110.0f)), splat(100.0f))); }

// log(1 + z) for z in [0, 1], the range that softplus needs.
VMAMBA_INLINE Lanes log1p_unit(Lanes z) {
  Lanes q = fma(splat(-0.00329046859f), z, splat(0.0200862419f));  // (log1p(z) - z) / z^2, 5e-9
  q = fma(q, z, splat(-0.057457231f));
  q = fma(q, z, splat(0.106611282f));
  q = fma(q, z, splat(-0.153448805f));
  q = fma(q, z, splat(0.196921021f));
  q = fma(q, z, splat(-0.24958019f));
  q = fma(q, z, splat(0.333304644f));
  q = fma(q, z, splat(-0.499999315f));
  return fma(z * z, q, z);
}

// e^-|x|, what softplus and sigmoid share.
VMAMBA_INLINE Lanes exp_minus_abs(Lanes x) { return exp_bounded(at_least(-absolute(x), splat(-110.0f))); }

// max(x, 0) + log(1 + e^-|x|), given z = e^-|x|. From x = 17 on it is x itself in float32, so that torch's rule
// "linear above 20" holds without a comparison.
VMAMBA_INLINE Lanes softplus_given(Lanes x, Lanes z) { return at_least(x, Lanes{}) + log1p_unit(z); }
VMAMBA_INLINE Lanes softplus(Lanes x) { return softplus_given(x, exp_minus_abs(x)); }

// 1 / (1 + e^-x), given z = e^-|x|: the derivative of softplus.
VMAMBA_INLINE Lanes sigmoid_given(Lanes x, Lanes z) {
  const Lanes numerator = x < 0.0f ? z : splat(1.0f);
  const Lanes sum = 1.0f + z;
  const Lanes lost = z - (sum - 1.0f);
  const Lanes quotient = numerator / sum;
  return fma(quotient * lost, fma(splat(0.48f), z, splat(-0.97f)), quotient);  // times 1 - lost / (1 + z)
}
VMAMBA_INLINE Lanes sigmoid(Lanes x) { return sigmoid_given(x, exp_minus_abs(x)); }

}  // namespace VMAMBA_ISA
}  // namespace vmamba
