// Which instruction sets this build has and this CPU can run, and whose threads the kernels use.
#include "entry/dispatch.h"

#include "lanes/run_team.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

namespace vmamba {
namespace {

#if defined(__x86_64__) || defined(__i386__)
bool has_f16c() {  // __builtin_cpu_supports knows the word only from GCC 11 on
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

bool cpu_has(Isa isa) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
  // Both builtins also check that the operating system saves the wide registers.
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (isa == Isa::avx2) return has_avx2;
  if (isa == Isa::avx512)
    return has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return isa == Isa::portable || isa == Isa::neon;  // aarch64 always has NEON, and only it compiles `neon`
}

struct Table {
  bool usable[isa_count] = {};
  Table() {
    usable[int(Isa::portable)] = true;
    VMAMBA_IF_NEON(usable[int(Isa::neon)] = cpu_has(Isa::neon);)
    VMAMBA_IF_AVX2(usable[int(Isa::avx2)] = cpu_has(Isa::avx2);)
    VMAMBA_IF_AVX512(usable[int(Isa::avx512)] = cpu_has(Isa::avx512);)
  }
};

const Table table;  // filled while the library loads

}  // namespace

RunTeam run_team = nullptr;

bool isa_usable(int isa) {
  return isa >= 0 && isa < isa_count && table.usable[isa];
}

}  // namespace vmamba

VMAMBA_EXPORT int vmamba_isa_count() { return vmamba::isa_count; }

VMAMBA_EXPORT const char* vmamba_isa_name(int isa) {
  static const char* const names[] = {"portable", "neon", "avx2", "avx512"};
  return isa >= 0 && isa < vmamba::isa_count ? names[isa] : nullptr;
}

VMAMBA_EXPORT int vmamba_isa_usable(int isa) { return vmamba::isa_usable(isa); }

VMAMBA_EXPORT void vmamba_use_threads(vmamba::RunTeam run_team) { vmamba::run_team = run_team; }

VMAMBA_EXPORT int vmamba_has_bfloat16_products(int isa) {
#if defined(VMAMBA_WITH_avx512) && defined(VMAMBA_BFLOAT16_PRODUCTS)
  return isa == int(vmamba::Isa::avx512) && vmamba::isa_usable(isa) && __builtin_cpu_supports("avx512bf16");
#else
  (void)isa;
  return 0;
#endif
}
