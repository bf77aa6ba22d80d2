// From the layout of checkpoints to tiles: see tiles.h for both ends of it.

#pragma once
#include <cstdint>

#include "tiles.h"

namespace jettison {

// words: (rows, words), a dense little-endian stream of codes of `stored_bits` along each row. scale: (rows, groups) in
// the weight's own type. Writes the tiles first..last of weight.tiles, whose codes may be wider than the stored ones.
void pack(const uint32_t* words, int64_t words_per_row, int stored_bits, const uint8_t* scale, const Weight& weight,
          uint8_t* tiles, int64_t first, int64_t last);

}  // namespace jettison
