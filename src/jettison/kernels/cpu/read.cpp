// Read memory as fast as possible: the limit that the speed of the kernels is compared with.

#include <cstdint>
#include <cstring>

#include "pool.h"
#include "read.h"

namespace jettison {
namespace {

struct Line {
  uint64_t of[8];
};

uint64_t read_part(const uint8_t* from, int64_t bytes, int streams, int64_t ahead) {
  const int64_t each = bytes / streams / 64 * 64;
  Line sum[4] = {};
  for (int64_t at = 0; at + 256 <= each; at += 256)
    for (int s = 0; s < streams; s++) {
      const uint8_t* stream = from + s * each + at;
      for (int line = 0; line < 4; line++) {
        if (ahead) __builtin_prefetch(stream + 64 * line + ahead);
        Line now;
        std::memcpy(&now, stream + 64 * line, 64);
        for (int i = 0; i < 8; i++) sum[line].of[i] += now.of[i];
      }
    }
  uint64_t total = 0;
  for (const Line& line : sum)
    for (uint64_t value : line.of) total += value;
  return total;
}

}  // namespace

uint64_t read_all(const uint8_t* data, int64_t bytes, int streams, int64_t ahead, int threads) {
  if (threads <= 0) threads = physical_cores();
  std::atomic<uint64_t> total{0};
  const int64_t part = bytes / threads;
  parallel(threads, 1, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) total += read_part(data + i * part, part, streams, ahead);
  });
  return total;
}

}  // namespace jettison
