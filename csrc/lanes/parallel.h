// Tasks over threads. Which thread runs a task changes nothing: every task writes places of its own.
//
// The library links no OpenMP runtime of its own: a second one beside torch's would fight it for the cores, and torch's
// wheels ship theirs under changing names. Python finds the one that torch has loaded and hands over its entry point.
#pragma once

#include "lanes/lanes.h"
#include "lanes/run_team.h"

namespace vmamba {
namespace VMAMBA_ISA {

template <class F>
struct Job {
  F& body;
  int64_t tasks, team, next;
};

// Take tasks in runs that shorten towards the end: neighbours write to the same fresh pages, and two threads that touch
// one at once both wait for it.
template <class F>
static void work_off(void* data) {
  Job<F>& job = *static_cast<Job<F>*>(data);
  int64_t first = __atomic_load_n(&job.next, __ATOMIC_RELAXED), end;
  for (;;) {
    do {
      if (first >= job.tasks) return;
      const int64_t run = (job.tasks - first) / (8 * job.team);
      end = first + (run > 1 ? run : 1);
    } while (!__atomic_compare_exchange_n(&job.next, &first, end, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    for (int64_t task = first; task < end; ++task) job.body(task);
    first = __atomic_load_n(&job.next, __ATOMIC_RELAXED);
  }
}

// body(task) for every task in [0, tasks), on at most `threads` threads.
template <class F>
VMAMBA_INLINE void parallel_for(int64_t tasks, int64_t threads, F body) {
  const int64_t team = smaller(threads, tasks);
  Job<F> job{body, tasks, team, 0};
  if (team > 1 && run_team) {
    run_team(work_off<F>, &job, static_cast<unsigned>(team), 0);
  } else {
    for (int64_t task = 0; task < tasks; ++task) body(task);
  }
}

// body(task, this worker's memory) for every task, tasks handed out as workers get free.
template <class F>
VMAMBA_INLINE void share_tasks(int64_t tasks, int64_t threads, float* workspace, int64_t workspace_floats, F&& body) {
  const int64_t workers = smaller(threads, tasks);
  int64_t next = 0;
  parallel_for(workers, workers, [&](int64_t worker) {
    for (;;) {
      const int64_t task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (task >= tasks) return;
      body(task, workspace + worker * workspace_floats);
    }
  });
}

}  // namespace VMAMBA_ISA
}  // namespace vmamba
