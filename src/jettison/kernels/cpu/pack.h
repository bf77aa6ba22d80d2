// Pack weights in the layout of checkpoints into tiles; see tiles.h.

#pragma once
#include <cstdint>

#include "tiles.h"

namespace jettison {

// Write the tiles first..last (without last) to `tiles`. Codes in tiles may be wider than the stored ones.
// words: (rows, words), in every row a dense little-endian stream of codes of `stored_bits`.
// scale: (rows, groups), of the weight's scale type.
void pack(const uint32_t* words, int64_t words_per_row, int stored_bits, const uint8_t* scale, const Weight& weight,
          uint8_t* tiles, int64_t first, int64_t last);

}  // namespace jettison
