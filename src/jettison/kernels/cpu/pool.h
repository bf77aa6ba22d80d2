// Threads of our own, one for each physical core that the process may use.
//
// Work is a number of chunks. Each thread has a range of its own, for the sake of long reads, and takes from the others
// once it is done. The caller works too and never waits for a thread that has not begun: one that sleeps, or that the
// system runs late, costs nothing. Between calls threads spin for a while, yielding to whoever else wants the core, and
// then sleep. A second caller at the same time, or a child after fork, works alone or starts threads of its own.

#pragma once
#include <cstdint>
#include <functional>

namespace jettison {

int physical_cores();

// Run work(first, last) over the parts of [0, count), in chunks of `chunk`, on up to `threads` threads, never more than cores (0: all).
// If a part throws, on whichever thread, the rest is given up, and this throws the first such exception once no thread works any more.
void parallel(int64_t count, int64_t chunk, int threads, const std::function<void(int64_t, int64_t)>& work);

}  // namespace jettison
