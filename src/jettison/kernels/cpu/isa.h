// The instruction set in use, and what every public function says.

#pragma once
#include <cstdint>

#include "tiles.h"

#define PUBLIC extern "C" __attribute__((visibility("default")))

namespace jettison {

enum Status : int { kDone, kBadSize, kMisaligned, kOverlap, kNoMemory, kBadToken, kFull };

constexpr int64_t kMostColumns = 1 << 24, kMostRows = 1 << 28, kMostCount = 1 << 28;

const Isa& current_isa();

// Whether the sizes of a weight are such that the rest may rely on them: everything then fits into 64 bits.
bool fits(const Weight& weight, int64_t tiles_bytes, int64_t zero_bytes);

}  // namespace jettison
