// The C functions that Python calls. They check every size before they access memory.

#include <cstdint>
#include <stdexcept>

#include "engine.h"
#include "isa.h"
#include "linear.h"
#include "lookup.h"
#include "pack.h"
#include "pool.h"
#include "read.h"
#include "tiles.h"

using namespace jettison;

namespace {

bool overlap(const void* a, int64_t a_bytes, const void* b, int64_t b_bytes) {
  const auto from_a = reinterpret_cast<uintptr_t>(a), from_b = reinterpret_cast<uintptr_t>(b);
  return a && b && from_a < from_b + b_bytes && from_b < from_a + a_bytes;
}

bool aligned(const void* pointer, int64_t to) { return reinterpret_cast<uintptr_t>(pointer) % to == 0; }

int64_t size_of(int type) { return type == kFloat32 ? 4 : 2; }

}  // namespace

// Return the version of the interface, and write the sizes of the structures in engine.h, in their order. Python
// compares both with its own.
PUBLIC int jettison_abi(int64_t sizes[5]) {
  sizes[0] = sizeof(LinearSpec), sizes[1] = sizeof(ExpertSpec), sizes[2] = sizeof(LayerSpec);
  sizes[3] = sizeof(ModelSpec), sizes[4] = sizeof(RowsSpec);
  return kAbi;
}

// Throw in one part of parallel work, for tests of error handling. kind 0: nothing, 1: bad_alloc, 2: length_error, 3:
// an int.
PUBLIC int jettison_throw(int kind, int64_t part, int64_t count, int threads) {
  return guarded([&] {
    parallel(count, 1, threads, [&](int64_t first, int64_t last) {
      if (part < first || part >= last) return;
      if (kind == 1) throw std::bad_alloc();
      if (kind == 2) throw std::length_error("a vector of absurd length");
      if (kind == 3) throw kind;
    });
    return kDone;
  });
}

// Return the number of physical cores, 0 if they cannot be counted.
PUBLIC int jettison_cores() {
  int count = 0;
  guarded([&] { return count = physical_cores(), kDone; });
  return count;
}

// Compute y = x Wᵀ + bias for `count` rows of x. fine: activations have 15 bits, not 8. threads 0: all physical cores.
PUBLIC int jettison_linear(const void* x, void* y, int64_t count, int type, const uint8_t* tiles, int64_t tiles_bytes,
                           const uint8_t* zero, int64_t zero_bytes, const float* bias, int64_t rows, int64_t columns,
                           int64_t span, int bits, int middle, int scale_type, int fine, int threads) {
  const Weight w{tiles, zero, bias, rows, columns, span, bits, middle, static_cast<Type>(scale_type)};
  if (!fits(w, tiles_bytes, zero_bytes) || count < 0 || count > kMostCount || (type != kFloat32 && type != kBFloat16))
    return kBadSize;
  const int64_t x_bytes = count * columns * size_of(type), y_bytes = count * rows * size_of(type);
  if (!aligned(x, size_of(type)) || !aligned(y, size_of(type)) || !aligned(bias, 4)) return kMisaligned;
  if (overlap(y, y_bytes, x, x_bytes) || overlap(y, y_bytes, tiles, tiles_bytes) ||
      overlap(y, y_bytes, zero, zero_bytes) || overlap(y, y_bytes, bias, rows * 4))
    return kOverlap;
  if (count == 0) return kDone;

  return guarded([&] {
    const Product product{w, y};
    multiply_all(current_isa(), {&product, 1}, x, count, static_cast<Type>(type), fine != 0, threads);
    return kDone;
  });
}

// Pack a weight into tiles; see pack.h.
PUBLIC int jettison_pack(const uint32_t* words, int64_t words_bytes, int stored_bits, const uint8_t* scale,
                         int64_t scale_bytes, uint8_t* tiles, int64_t tiles_bytes, int64_t rows, int64_t columns,
                         int64_t span, int bits, int scale_type, int threads) {
  const Weight w{tiles, nullptr, nullptr, rows, columns, span, bits, 0, static_cast<Type>(scale_type)};
  if (!fits(w, tiles_bytes, 0) || stored_bits < 2 || stored_bits > bits) return kBadSize;
  const int64_t words_per_row = (columns * stored_bits + 31) / 32;
  if (words_bytes != rows * words_per_row * 4 || scale_bytes != rows * w.groups() * size_of(scale_type)) return kBadSize;
  if (!aligned(words, 4)) return kMisaligned;
  if (overlap(tiles, tiles_bytes, words, words_bytes) || overlap(tiles, tiles_bytes, scale, scale_bytes)) return kOverlap;
  return guarded([&] {
    parallel(w.tile_count(), 1, threads, [&](int64_t from, int64_t to) {
      pack(words, words_per_row, stored_bits, scale, w, tiles, from, to);
    });
    return kDone;
  });
}

// Look up `count` rows of a weight that is not 2:4; y: (count, columns).
PUBLIC int jettison_look_up(const int64_t* row, int64_t count, float* y, int64_t y_bytes, const uint8_t* tiles,
                            int64_t tiles_bytes, const uint8_t* zero, int64_t zero_bytes, int64_t rows, int64_t columns,
                            int64_t span, int bits, int middle, int scale_type, int threads) {
  const Weight w{tiles, zero, nullptr, rows, columns, span, bits, middle, static_cast<Type>(scale_type)};
  if (!fits(w, tiles_bytes, zero_bytes) || is_sparse(bits) || count < 0 || count > kMostCount ||
      y_bytes != count * columns * 4)
    return kBadSize;
  for (int64_t i = 0; i < count; i++)
    if (row[i] < 0 || row[i] >= rows) return kBadToken;
  return guarded([&] {
    parallel(count, 4, threads, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++) look_up(w, row[i], y + i * columns);
    });
    return kDone;
  });
}

// Read `bytes` once, to measure the speed of memory. The sum keeps compilers from removing the reads.
PUBLIC int jettison_read(const uint8_t* data, int64_t bytes, int streams, int64_t ahead, int threads, uint64_t* sum) {
  if (bytes <= 0 || streams < 1 || streams > 8) return kBadSize;
  return guarded([&] {
    *sum = read_all(data, bytes, streams, ahead, threads);
    return kDone;
  });
}
