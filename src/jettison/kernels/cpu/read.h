#pragma once
#include <atomic>
#include <cstdint>

namespace jettison {

// Sum of the 64-bit words of `data`: a part for each thread, in 1 to 8 streams at once, prefetched `ahead` bytes (or not).
uint64_t read_all(const uint8_t* data, int64_t bytes, int streams, int64_t ahead, int threads);

}  // namespace jettison
