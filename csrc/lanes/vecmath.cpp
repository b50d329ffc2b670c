// The vector functions over an array, for their accuracy test.
#include "lanes/vecmath.h"

#include "lanes/vecmath_args.h"

namespace vmamba {
namespace VMAMBA_ISA {

template <class F>
VMAMBA_INLINE void map(const VecmathArgs& args, F&& f) {
  for (int64_t i = 0; i < args.count; i += LANES) {
    const int some = static_cast<int>(smaller(args.count - i, LANES));
    store_some<Dtype::float32>(args.y, i, 1, some, f(load_some<Dtype::float32>(args.x, i, 1, some)));
  }
}

void vecmath(const VecmathArgs& args) {
  switch (args.function) {
    case 0: return map(args, [](Lanes x) { return exp(x); });
    case 1: return map(args, [](Lanes x) { return exp2(x); });
    case 2: return map(args, [](Lanes x) { return log1p_unit(x); });
    case 3: return map(args, [](Lanes x) { return softplus(x); });
    case 4: return map(args, [](Lanes x) { return sigmoid(x); });
    case 5: return map(args, [](Lanes x) { return from_bfloat16(to_bfloat16(x)); });
    case 6: return map(args, [](Lanes x) { return from_float16(to_float16(x)); });
  }
}

}  // namespace VMAMBA_ISA
}  // namespace vmamba
