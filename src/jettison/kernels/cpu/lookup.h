// Rows of a packed matrix: the embeddings of tokens.

#pragma once
#include <cstdint>

#include "tiles.h"

namespace jettison {

// Write row `row` of a weight that is not 2:4, dequantized: (columns).
void look_up(const Weight& w, int64_t row, float* to);

}  // namespace jettison
