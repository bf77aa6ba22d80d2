#include "pack.h"

#include <algorithm>
#include <cstring>

namespace jettison {
namespace {

// Put a code into its lane. `column` counts from the start of the group.
void put(uint8_t* group, int bits, int half, int lane, int64_t column, uint32_t code) {
  const int64_t step = column / step_columns(bits);
  const int at = static_cast<int>(column % step_columns(bits)), quad = at / 4, byte = 4 * lane + at % 4;
  uint8_t* block = group + (step * kHalves + half) * half_bytes(bits);
  if (bits == 3) {
    block[64 * (quad / 4) + byte] |= (code & 3) << (2 * (quad % 4));
    block[128 + byte] |= (code >> 2) << quad;
  } else {
    block[byte] |= code << (bits * quad);
  }
}

}  // namespace

void pack(const uint32_t* words, int64_t words_per_row, int stored_bits, const uint8_t* scale, const Weight& w,
          uint8_t* tiles, int64_t first, int64_t last) {
  const int64_t groups = w.groups(), group_bytes = w.code_bytes() + w.scale_bytes();
  const int64_t scale_size = w.scale_bytes() / kTileRows;
  const uint32_t mask = (1u << stored_bits) - 1;
  for (int64_t tile = first; tile < last; tile++) {
    uint8_t* to = tiles + tile * w.tile_bytes();
    std::memset(to, 0, w.tile_bytes());
    for (int64_t row = tile * kTileRows; row < std::min(w.rows, (tile + 1) * kTileRows); row++) {
      const int half = static_cast<int>(row % kTileRows) / kLanes, lane = static_cast<int>(row % kLanes);
      const uint32_t* from = words + row * words_per_row;
      for (int64_t g = 0; g < groups; g++) {
        uint8_t* group = to + g * group_bytes;
        const int64_t start = g * w.span, count = std::min(w.span, w.columns - start);
        for (int64_t c = 0; c < count; c++) {
          const int64_t bit = (start + c) * stored_bits, word = bit / 32, shift = bit % 32;
          uint64_t pair = from[word];
          if (shift + stored_bits > 32) pair |= static_cast<uint64_t>(from[word + 1]) << 32;
          put(group, w.bits, half, lane, c, static_cast<uint32_t>(pair >> shift) & mask);
        }
        std::memcpy(group + w.code_bytes() + (half * kLanes + lane) * scale_size,
                    scale + (row * groups + g) * scale_size, scale_size);
      }
    }
  }
}

}  // namespace jettison
