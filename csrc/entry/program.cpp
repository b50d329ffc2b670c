// Several kernel calls, recorded beforehand, made by one call from Python.
#include "entry/dispatch.h"

namespace vmamba {

struct Step {
  int (*kernel)(const void* args, int64_t size, int isa);
  const void* args;
  int64_t size, isa;
};

}  // namespace vmamba

// Make the calls in order until one fails; returns its status.
VMAMBA_EXPORT int vmamba_run_program(const vmamba::Step* steps, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const vmamba::Step& step = steps[i];
    if (const int status = step.kernel(step.args, step.size, static_cast<int>(step.isa))) return status;
  }
  return vmamba::done;
}
