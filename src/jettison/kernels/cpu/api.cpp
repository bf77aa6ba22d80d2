// What Python sees: C functions that check every size before they touch memory.

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "pack.h"
#include "pool.h"
#include "read.h"
#include "tiles.h"

using namespace jettison;

namespace {

enum Status : int { kDone = 0, kBadSize = 1, kMisaligned = 2, kOverlap = 3, kNoMemory = 4 };

constexpr int64_t kRowsAtOnce = 512;       // of x: their int8 values stay in the cache while the weights stream
constexpr int64_t kAlone = 96 << 10;       // bytes of weights times rows of x that are not worth a second thread
constexpr int64_t kMostColumns = 1 << 24, kMostRows = 1 << 28, kMostCount = 1 << 28;

const Isa* const kIsas[] = {
#ifdef JETTISON_X86
    &avx512_isa, &avxvnni_isa, &avx2_isa,
#endif
    &portable_isa,
};

bool supported(const Isa* isa) {
#ifdef JETTISON_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  if (isa == &avx512_isa)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
  if (isa == &avxvnni_isa) return avx2 && __builtin_cpu_supports("avxvnni");
  if (isa == &avx2_isa) return avx2;
#endif
  return isa == &portable_isa;
}

const Isa* best() {
  for (const Isa* isa : kIsas)
    if (supported(isa)) return isa;
  return &portable_isa;
}

std::atomic<const Isa*> chosen{best()};

bool overlap(const void* a, int64_t a_bytes, const void* b, int64_t b_bytes) {
  const auto from_a = reinterpret_cast<uintptr_t>(a), from_b = reinterpret_cast<uintptr_t>(b);
  return a && b && from_a < from_b + b_bytes && from_b < from_a + a_bytes;
}

bool aligned(const void* pointer, int64_t to) { return reinterpret_cast<uintptr_t>(pointer) % to == 0; }

int64_t size_of(int type) { return type == kFloat32 ? 4 : 2; }

// Sizes that the rest may rely on: everything below fits into 64 bits.
bool sound(const Weight& w, int64_t tiles_bytes, int64_t zero_bytes) {
  return (w.bits == 2 || w.bits == 3 || w.bits == 4 || w.bits == 8) && w.rows > 0 && w.rows <= kMostRows &&
         w.columns > 0 && w.columns <= kMostColumns && w.span > 0 && w.span <= 256 && w.scale_type >= kFloat32 &&
         w.scale_type <= kFloat16 && tiles_bytes == w.tile_count() * w.tile_bytes() &&
         (!w.zero || zero_bytes == w.tile_count() * w.groups() * kTileRows);
}

// Kept between calls, for each calling thread.
struct Scratch {
  std::vector<int8_t> value;
  std::vector<float> scale;
  std::vector<int32_t> sum;
};
thread_local Scratch scratch;

}  // namespace

#if defined(_WIN32)
#define PUBLIC extern "C" __declspec(dllexport)
#else
#define PUBLIC extern "C" __attribute__((visibility("default")))
#endif

PUBLIC int jettison_cores() { return physical_cores(); }

// The instruction set in use. With a name: use that one from now on; null if this processor does not have it.
PUBLIC const char* jettison_isa(const char* name) {
  if (name) {
    for (const Isa* isa : kIsas)
      if (!std::strcmp(isa->name, name) && supported(isa)) {
        chosen.store(isa);
        return isa->name;
      }
    return nullptr;
  }
  return chosen.load()->name;
}

// y = x Wᵀ + bias for `count` rows of x. threads 0: all physical cores.
PUBLIC int jettison_linear(const void* x, void* y, int64_t count, int type, const uint8_t* tiles, int64_t tiles_bytes,
                           const uint8_t* zero, int64_t zero_bytes, const float* bias, int64_t rows, int64_t columns,
                           int64_t span, int bits, int middle, int scale_type, int threads) {
  const Weight w{tiles, zero, bias, rows, columns, span, bits, middle, static_cast<Type>(scale_type)};
  if (!sound(w, tiles_bytes, zero_bytes) || count < 0 || count > kMostCount || (type != kFloat32 && type != kBFloat16))
    return kBadSize;
  const int64_t x_bytes = count * columns * size_of(type), y_bytes = count * rows * size_of(type);
  if (!aligned(x, size_of(type)) || !aligned(y, size_of(type)) || !aligned(bias, 4)) return kMisaligned;
  if (overlap(y, y_bytes, x, x_bytes) || overlap(y, y_bytes, tiles, tiles_bytes) ||
      overlap(y, y_bytes, zero, zero_bytes) || overlap(y, y_bytes, bias, rows * 4))
    return kOverlap;
  if (count == 0) return kDone;

  const Isa& isa = *chosen.load(std::memory_order_relaxed);
  const int64_t at_once = std::min(count, kRowsAtOnce), groups = w.groups();
  try {
    if (static_cast<int64_t>(scratch.sum.size()) < at_once * groups) {
      scratch.sum.resize(at_once * groups);
      scratch.scale.resize(at_once * groups);
    }
    if (static_cast<int64_t>(scratch.value.size()) < at_once * groups * w.width())
      scratch.value.resize(at_once * groups * w.width());
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  }
  const int64_t most = threads > 0 ? threads : physical_cores();
  const int64_t chunk = std::max<int64_t>(1, std::min<int64_t>(4, w.tile_count() / (32 * most)));
  for (int64_t first = 0; first < count; first += at_once) {
    const int64_t now = std::min(at_once, count - first);
    const Call call{w,
                    {scratch.value.data(), scratch.scale.data(), scratch.sum.data()},
                    static_cast<const uint8_t*>(x) + first * columns * size_of(type),
                    static_cast<uint8_t*>(y) + first * rows * size_of(type),
                    now,
                    static_cast<Type>(type)};
    parallel(now, 16, threads, [&](int64_t from, int64_t to) { isa.quantize(call, from, to); });
    const int useful = tiles_bytes * now < kAlone ? 1 : threads;
    parallel(w.tile_count(), chunk, useful, [&](int64_t from, int64_t to) { isa.multiply(call, from, to); });
  }
  return kDone;
}

PUBLIC int jettison_pack(const uint32_t* words, int64_t words_bytes, int stored_bits, const uint8_t* scale,
                         int64_t scale_bytes, uint8_t* tiles, int64_t tiles_bytes, int64_t rows, int64_t columns,
                         int64_t span, int bits, int scale_type, int threads) {
  const Weight w{tiles, nullptr, nullptr, rows, columns, span, bits, 0, static_cast<Type>(scale_type)};
  if (!sound(w, tiles_bytes, 0) || stored_bits < 2 || stored_bits > bits) return kBadSize;
  const int64_t words_per_row = (columns * stored_bits + 31) / 32;
  if (words_bytes != rows * words_per_row * 4 || scale_bytes != rows * w.groups() * size_of(scale_type)) return kBadSize;
  if (!aligned(words, 4)) return kMisaligned;
  if (overlap(tiles, tiles_bytes, words, words_bytes) || overlap(tiles, tiles_bytes, scale, scale_bytes)) return kOverlap;
  parallel(w.tile_count(), 1, threads, [&](int64_t from, int64_t to) {
    pack(words, words_per_row, stored_bits, scale, w, tiles, from, to);
  });
  return kDone;
}

// Reads `bytes` once, with nothing else to do; the sum keeps compilers from leaving it out.
PUBLIC uint64_t jettison_read(const uint8_t* data, int64_t bytes, int streams, int64_t ahead, int threads) {
  if (bytes <= 0 || streams < 1 || streams > 8) return 0;
  return read_all(data, bytes, streams, ahead, threads);
}
