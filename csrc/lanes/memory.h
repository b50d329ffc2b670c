#pragma once

#include <cstdint>

namespace vmamba {

// Tell the system that a fresh buffer is about to be written whole. Large ones come from the allocator as untouched
// pages, and faulting them in 4 KiB at a time costs more than computing what goes into them; 2 MiB pages do not.
void expect_fill(void* data, int64_t bytes);

}  // namespace vmamba
