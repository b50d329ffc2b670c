// What Python calls the activations.
#pragma once

#include <cstdint>

namespace vmamba {

enum class Activation : int64_t { none = 0, gelu = 1, silu = 2 };

}  // namespace vmamba
