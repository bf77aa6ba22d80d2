// Products of one set of activations with one or several weights.

#pragma once
#include <cstdint>
#include <span>

#include "tiles.h"

namespace jettison {

constexpr int64_t kRowsAtOnce = 512;  // rows of x whose int8 values stay in the cache while the weights are streamed

struct Product {
  Weight weight;
  void* y;                                 // (count, rows)
  const float *low = nullptr, *up = nullptr;  // LoRA: y += scaling · low · up, low (count, rank), up (rank, rows)
  int64_t rank = 0;
  float scaling = 0;
};

// Compute y = x Wᵀ + bias for every product, all with the same x: (count, columns). fine: activations have 15 bits, not
// 8. At most 3 products. Throws std::bad_alloc.
void multiply_all(const Isa& isa, std::span<const Product> products, const void* x, int64_t count, Type type, bool fine,
                  int threads);

}  // namespace jettison
