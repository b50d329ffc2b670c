// Several vectors that go through every operation side by side.
//
// A polynomial is a chain in which each step waits for the one before it; a core looks ahead too few instructions to
// find the next vector's chain by itself. Written over packs, the next independent instruction is always the next one.
#pragma once

#include "lanes.h"

namespace vmamba {
namespace VMAMBA_ISA {

template <int N>
struct Pack {
  Lanes part[N];
};

#define VMAMBA_EACH_PART(expression)                  \
  Pack<N> result;                                    \
  for (int i = 0; i < N; ++i) result.part[i] = expression; \
  return result

template <int N>
VMAMBA_INLINE Pack<N> load_pack(const Lanes* from) { VMAMBA_EACH_PART(from[i]); }

template <int N>
VMAMBA_INLINE void store_pack(Lanes* to, const Pack<N>& x) {
  for (int i = 0; i < N; ++i) to[i] = x.part[i];
}

#define VMAMBA_PACK_OPERATOR(op)                                                                                      \
  template <int N>                                                                                                    \
  VMAMBA_INLINE Pack<N> operator op(const Pack<N>& a, const Pack<N>& b) { VMAMBA_EACH_PART(a.part[i] op b.part[i]); } \
  template <int N>                                                                                                    \
  VMAMBA_INLINE Pack<N> operator op(const Pack<N>& a, Lanes b) { VMAMBA_EACH_PART(a.part[i] op b); }                  \
  template <int N>                                                                                                    \
  VMAMBA_INLINE Pack<N> operator op(const Pack<N>& a, float b) { VMAMBA_EACH_PART(a.part[i] op b); }                  \
  template <int N>                                                                                                    \
  VMAMBA_INLINE Pack<N> operator op(float a, const Pack<N>& b) { VMAMBA_EACH_PART(a op b.part[i]); }
VMAMBA_PACK_OPERATOR(+)
VMAMBA_PACK_OPERATOR(-)
VMAMBA_PACK_OPERATOR(*)
VMAMBA_PACK_OPERATOR(/)
#undef VMAMBA_PACK_OPERATOR

template <int N>
VMAMBA_INLINE Pack<N> operator-(const Pack<N>& x) { VMAMBA_EACH_PART(-x.part[i]); }
template <int N>
VMAMBA_INLINE Pack<N> absolute(const Pack<N>& x) { VMAMBA_EACH_PART(absolute(x.part[i])); }
template <int N>
VMAMBA_INLINE Pack<N> at_least(const Pack<N>& x, float low) { VMAMBA_EACH_PART(at_least(x.part[i], low)); }
template <int N>
VMAMBA_INLINE Pack<N> at_most(const Pack<N>& x, float high) { VMAMBA_EACH_PART(at_most(x.part[i], high)); }
template <int N>
VMAMBA_INLINE Pack<N> fma(const Pack<N>& a, const Pack<N>& b, const Pack<N>& c) { VMAMBA_EACH_PART(a.part[i] * b.part[i] + c.part[i]); }
template <int N>
VMAMBA_INLINE Pack<N> fma(const Pack<N>& a, const Pack<N>& b, float c) { VMAMBA_EACH_PART(a.part[i] * b.part[i] + c); }
template <int N>
VMAMBA_INLINE Pack<N> fma(const Pack<N>& a, float b, const Pack<N>& c) { VMAMBA_EACH_PART(a.part[i] * b + c.part[i]); }
template <int N>
VMAMBA_INLINE Pack<N> fma(const Pack<N>& a, float b, float c) { VMAMBA_EACH_PART(a.part[i] * b + c); }
template <int N>
VMAMBA_INLINE Pack<N> round_small(const Pack<N>& x) { VMAMBA_EACH_PART(round_small(x.part[i])); }
template <int N>
VMAMBA_INLINE Pack<N> scale(const Pack<N>& p, const Pack<N>& r) { VMAMBA_EACH_PART(scale(p.part[i], r.part[i])); }
template <int N>
VMAMBA_INLINE Pack<N> where_negative(const Pack<N>& x, const Pack<N>& a, float b) { VMAMBA_EACH_PART(where_negative(x.part[i], a.part[i], b)); }

#undef VMAMBA_EACH_PART

}  // namespace VMAMBA_ISA
}  // namespace vmamba
