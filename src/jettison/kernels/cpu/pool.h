// A pool of threads, one per physical core that the process may use.
//
// - Work is divided into chunks. Every thread has a contiguous range of chunks, so that it reads memory in long runs.
//   When its own chunks are done, it takes those of other threads.
// - The caller works too. It never waits for a thread that has not begun, so a thread that sleeps or is scheduled late
//   costs no time.
// - Between calls threads spin for a while, yielding the core to others, and then sleep.
// - A second caller at the same time works alone. A child process after fork starts its own threads.

#pragma once
#include <cstdint>
#include <functional>

namespace jettison {

int physical_cores();

// Run work(first, last) over all parts of [0, count), in chunks of `chunk`, on at most `threads` threads (0: all
// physical cores), and never more than there are physical cores. If a part throws on any thread, parts that have not
// begun are skipped, and the first exception is thrown here once all threads have stopped.
void parallel(int64_t count, int64_t chunk, int threads, const std::function<void(int64_t, int64_t)>& work);

}  // namespace jettison
