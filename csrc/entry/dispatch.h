// One entry point per kernel and the table of its compiled versions.
//
// A kernel `name` is a function `void name(const Args&)` in namespace vmamba::VMAMBA_ISA, compiled once per
// instruction set. VMAMBA_ENTRY(name, Args), once, in a file compiled without special flags, makes it callable from
// Python as vmamba_name(&args, sizeof args, isa).
#pragma once

#include <cstdint>

#if defined(VMAMBA_INSIDE)  // part of another library
#define VMAMBA_EXPORT extern "C"
#elif defined(_WIN32)
#define VMAMBA_EXPORT extern "C" __declspec(dllexport)
#else
#define VMAMBA_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace vmamba {

// Python's view of the instruction sets is this order; a higher one that the CPU has is preferred.
enum class Isa : int { portable = 0, neon = 1, avx2 = 2, avx512 = 3 };
constexpr int isa_count = 4;

bool isa_usable(int isa);  // compiled in, and the CPU and the operating system have it

enum Status : int { done = 0, unusable_isa = 1, other_layout = 2 };

}  // namespace vmamba

#if defined(VMAMBA_WITH_neon)
#define VMAMBA_IF_NEON(...) __VA_ARGS__
#else
#define VMAMBA_IF_NEON(...)
#endif
#if defined(VMAMBA_WITH_avx2)
#define VMAMBA_IF_AVX2(...) __VA_ARGS__
#else
#define VMAMBA_IF_AVX2(...)
#endif
#if defined(VMAMBA_WITH_avx512)
#define VMAMBA_IF_AVX512(...) __VA_ARGS__
#else
#define VMAMBA_IF_AVX512(...)
#endif

// A call whose `size` is not this build's means that Python and library come from different sources.
#define VMAMBA_ENTRY(name, Args)                                                       \
  namespace vmamba {                                                                   \
  namespace portable { void name(const Args&); }                                       \
  VMAMBA_IF_NEON(namespace neon { void name(const Args&); })                           \
  VMAMBA_IF_AVX2(namespace avx2 { void name(const Args&); })                           \
  VMAMBA_IF_AVX512(namespace avx512 { void name(const Args&); })                       \
  }                                                                                    \
  VMAMBA_EXPORT int vmamba_##name(const vmamba::Args* args, int64_t size, int isa) {   \
    if (size != static_cast<int64_t>(sizeof(vmamba::Args))) return vmamba::other_layout; \
    if (!vmamba::isa_usable(isa)) return vmamba::unusable_isa;                         \
    switch (vmamba::Isa(isa)) {                                                                 \
      VMAMBA_IF_NEON(case vmamba::Isa::neon: vmamba::neon::name(*args); break;)        \
      VMAMBA_IF_AVX2(case vmamba::Isa::avx2: vmamba::avx2::name(*args); break;)        \
      VMAMBA_IF_AVX512(case vmamba::Isa::avx512: vmamba::avx512::name(*args); break;)  \
      default: vmamba::portable::name(*args);                                          \
    }                                                                                  \
    return vmamba::done;                                                               \
  }
