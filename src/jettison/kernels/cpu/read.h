#pragma once
#include <atomic>
#include <cstdint>

namespace jettison {

// Read `data` once, one part per thread, in 1 to 8 streams at a time, with prefetching `ahead` bytes ahead (0: none).
// Returns the sum of its 64-bit words, without what is left over by the division into parts and streams.
uint64_t read_all(const uint8_t* data, int64_t bytes, int streams, int64_t ahead, int threads);

}  // namespace jettison
