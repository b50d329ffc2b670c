#pragma once

namespace vmamba {

// GOMP_parallel, which GNU's and LLVM's OpenMP runtimes both export: run f(data) on each thread of a team. Null where
// no runtime was found: then the kernels run on the calling thread alone.
using RunTeam = void (*)(void (*f)(void*), void* data, unsigned threads, unsigned flags);
extern RunTeam run_team;

}  // namespace vmamba
