// Tasks over threads. Which thread runs a task changes nothing: every task writes places of its own.
//
// The library links no OpenMP runtime of its own: a second one beside torch's would fight it for the cores, and torch's
// wheels ship theirs under changing names. Python finds the one that torch has loaded and hands over its entry point.
#pragma once

#include "lanes.h"
#include "run_team.h"

namespace vmamba {
namespace VMAMBA_ISA {

template <class F>
struct Job {
  F& body;
  int64_t tasks, next;
};

template <class F>
static void work_off(void* data) {
  Job<F>& job = *static_cast<Job<F>*>(data);
  for (;;) {
    const int64_t task = __atomic_fetch_add(&job.next, 1, __ATOMIC_RELAXED);
    if (task >= job.tasks) return;
    job.body(task);
  }
}

// body(task) for every task in [0, tasks), on at most `threads` threads.
template <class F>
VMAMBA_INLINE void parallel_for(int64_t tasks, int64_t threads, F body) {
  Job<F> job{body, tasks, 0};
  const int64_t team = smaller(threads, tasks);
  if (team > 1 && run_team) {
    run_team(work_off<F>, &job, static_cast<unsigned>(team), 0);
  } else {
    work_off<F>(&job);
  }
}

}  // namespace VMAMBA_ISA
}  // namespace vmamba
