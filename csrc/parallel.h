// Tasks over threads. Which thread runs a task changes nothing: every task writes places of its own.
#pragma once

#include "lanes.h"

namespace vmamba {
namespace VMAMBA_ISA {

// body(task) for every task in [0, tasks), on at most `threads` threads of the OpenMP runtime that torch uses.
template <class F>
VMAMBA_INLINE void parallel_for(int64_t tasks, int64_t threads, F&& body) {
  const int team = static_cast<int>(smaller(threads, tasks));
  if (team <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
  for (int64_t task = 0; task < tasks; ++task) body(task);
}

}  // namespace VMAMBA_ISA
}  // namespace vmamba
