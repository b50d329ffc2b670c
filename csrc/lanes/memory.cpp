#include "lanes/memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace vmamba {

void expect_fill(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 4096;
  constexpr int64_t worthwhile = int64_t(4) << 20;
  if (bytes < worthwhile) return;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + page - 1) & ~(page - 1);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) & ~(page - 1);
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint: where it fails nothing is lost
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace vmamba
