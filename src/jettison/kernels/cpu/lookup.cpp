#include "lookup.h"

#include <algorithm>
#include <cstring>

#include "numbers.h"

namespace jettison {
namespace {

float number(const uint8_t* from, int64_t index, Type type) {
  if (type == kFloat32) {
    float value;
    std::memcpy(&value, from + 4 * index, 4);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, from + 2 * index, 2);
  return type == kBFloat16 ? from_bfloat16(half) : from_float16(half);
}

// Return the code at `at` of a step; `block` is the half of the step that has the row. It is the inverse of `put` in
// pack.cpp.
uint32_t code(const uint8_t* block, int bits, int lane, int at) {
  const int quad = at / 4, byte = 4 * lane + at % 4;
  if (bits == 3) {
    const uint32_t low = block[64 * (quad / 4) + byte] >> (2 * (quad % 4)) & 3;
    return low | (block[128 + byte] >> quad & 1u) << 2;
  }
  return block[byte] >> (bits * quad) & ((1u << bits) - 1);
}

}  // namespace

void look_up(const Weight& w, int64_t row, float* to) {
  const int64_t groups = w.groups(), group_bytes = w.code_bytes() + w.scale_bytes();
  const int64_t tile = row / kTileRows, place = row % kTileRows;
  const int half = static_cast<int>(place) / kLanes, lane = static_cast<int>(place) % kLanes, wide = step_columns(w.bits);
  for (int64_t g = 0; g < groups; g++) {
    const uint8_t* group = w.tiles + tile * w.tile_bytes() + g * group_bytes;
    const float scale = number(group + w.code_bytes(), place, w.scale_type);
    float zero = static_cast<float>(w.middle);
    if (w.zero) {
      const uint8_t* of_group = w.zero + (tile * groups + g) * w.zero_bytes();
      zero = w.minimum() ? number(of_group, place, w.scale_type) : static_cast<float>(of_group[place]);
    }
    const int64_t start = g * w.span, count = std::min(w.span, w.columns - start);
    for (int64_t c = 0; c < count; c++) {
      const uint8_t* block = group + (c / wide * kHalves + half) * half_bytes(w.bits);
      const float value = static_cast<float>(code(block, w.bits, lane, static_cast<int>(c % wide)));
      to[start + c] = w.minimum() ? value * scale + zero : (value - zero) * scale;
    }
  }
}

}  // namespace jettison
