// Several vectors that go through every operation side by side.
//
// A polynomial is a chain in which each step waits for the one before it; a core looks ahead too few instructions to
// find the next vector's chain by itself. Written over packs, the next independent instruction is always the next one.
#pragma once

#include "lanes/lanes.h"

namespace vmamba {
namespace VMAMBA_ISA {

template <int N>
struct Pack {
  Lanes part[N];
};

// A function over packs: the expression for each part i.
#define VMAMBA_OVER_PARTS(expression)                        \
  {                                                          \
    Pack<N> result;                                          \
    for (int i = 0; i < N; ++i) result.part[i] = expression; \
    return result;                                           \
  }
#define VMAMBA_PACK template <int N> VMAMBA_INLINE Pack<N>

VMAMBA_PACK load_pack(const Lanes* from) VMAMBA_OVER_PARTS(from[i])

template <int N>
VMAMBA_INLINE void store_pack(Lanes* to, const Pack<N>& x) {
  for (int i = 0; i < N; ++i) to[i] = x.part[i];
}

VMAMBA_PACK operator+(const Pack<N>& a, const Pack<N>& b) VMAMBA_OVER_PARTS(a.part[i] + b.part[i])
VMAMBA_PACK operator+(const Pack<N>& a, Lanes b) VMAMBA_OVER_PARTS(a.part[i] + b)
VMAMBA_PACK operator+(const Pack<N>& a, float b) VMAMBA_OVER_PARTS(a.part[i] + b)
VMAMBA_PACK operator+(float a, const Pack<N>& b) VMAMBA_OVER_PARTS(a + b.part[i])
VMAMBA_PACK operator-(const Pack<N>& a, const Pack<N>& b) VMAMBA_OVER_PARTS(a.part[i] - b.part[i])
VMAMBA_PACK operator-(const Pack<N>& a, float b) VMAMBA_OVER_PARTS(a.part[i] - b)
VMAMBA_PACK operator-(float a, const Pack<N>& b) VMAMBA_OVER_PARTS(a - b.part[i])
VMAMBA_PACK operator*(const Pack<N>& a, const Pack<N>& b) VMAMBA_OVER_PARTS(a.part[i] * b.part[i])
VMAMBA_PACK operator*(const Pack<N>& a, Lanes b) VMAMBA_OVER_PARTS(a.part[i] * b)
VMAMBA_PACK operator*(const Pack<N>& a, float b) VMAMBA_OVER_PARTS(a.part[i] * b)
VMAMBA_PACK operator*(float a, const Pack<N>& b) VMAMBA_OVER_PARTS(a * b.part[i])
VMAMBA_PACK operator/(const Pack<N>& a, const Pack<N>& b) VMAMBA_OVER_PARTS(a.part[i] / b.part[i])
VMAMBA_PACK operator/(float a, const Pack<N>& b) VMAMBA_OVER_PARTS(a / b.part[i])
VMAMBA_PACK operator-(const Pack<N>& x) VMAMBA_OVER_PARTS(-x.part[i])

VMAMBA_PACK fma(const Pack<N>& a, const Pack<N>& b, const Pack<N>& c)
VMAMBA_OVER_PARTS(fma(a.part[i], b.part[i], c.part[i]))
VMAMBA_PACK fma(const Pack<N>& a, const Pack<N>& b, float c)
VMAMBA_OVER_PARTS(fma(a.part[i], b.part[i], c))
VMAMBA_PACK fma(const Pack<N>& a, float b, const Pack<N>& c)
VMAMBA_OVER_PARTS(fma(a.part[i], b, c.part[i]))
VMAMBA_PACK fma(const Pack<N>& a, float b, float c)
VMAMBA_OVER_PARTS(fma(a.part[i], b, c))

VMAMBA_PACK absolute(const Pack<N>& x) VMAMBA_OVER_PARTS(absolute(x.part[i]))
VMAMBA_PACK at_least(const Pack<N>& x, float low) VMAMBA_OVER_PARTS(at_least(x.part[i], low))
VMAMBA_PACK at_most(const Pack<N>& x, float high) VMAMBA_OVER_PARTS(at_most(x.part[i], high))
VMAMBA_PACK round_small(const Pack<N>& x) VMAMBA_OVER_PARTS(round_small(x.part[i]))
VMAMBA_PACK scale(const Pack<N>& p, const Pack<N>& r) VMAMBA_OVER_PARTS(scale(p.part[i], r.part[i]))
VMAMBA_PACK where_negative(const Pack<N>& x, const Pack<N>& a, const Pack<N>& b)
VMAMBA_OVER_PARTS(x.part[i] < 0.0f ? a.part[i] : b.part[i])
VMAMBA_PACK where_negative(const Pack<N>& x, const Pack<N>& a, float b)
VMAMBA_OVER_PARTS(where_negative(x.part[i], a.part[i], b))

#undef VMAMBA_PACK
#undef VMAMBA_OVER_PARTS

}  // namespace VMAMBA_ISA
}  // namespace vmamba
