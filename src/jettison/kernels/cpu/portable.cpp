// Plain C++ for every processor. The loops over lanes are written so that compilers vectorize them.

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "numbers.h"
#include "tiles.h"

namespace jettison {
namespace {

struct Lanes {
  struct Ints {
    int32_t of[kLanes];
  };
  struct Floats {
    float of[kLanes];
  };
  struct Bytes {
    uint8_t of[4 * kLanes];
  };
  static constexpr int kMaxRows = 2;
  static constexpr bool kManyRegisters = false;

  static Ints broadcast(int32_t value) {
    Ints result;
    for (int32_t& each : result.of) each = value;
    return result;
  }
  static Ints add(Ints a, const Ints& b) {
    for (int r = 0; r < kLanes; r++) a.of[r] += b.of[r];
    return a;
  }
  static Ints shift_right(Ints a, int count) {
    for (int32_t& each : a.of) each >>= count;
    return a;
  }
  static void prefetch(const uint8_t* at) { __builtin_prefetch(at); }

  template <int kBits>
  struct Half {
    const uint8_t* at;
    void load(const uint8_t* from) { at = from; }
    Bytes quad(int q) const {
      Bytes result;
      for (int i = 0; i < 4 * kLanes; i++)
        result.of[i] = kBits == 3
                           ? (at[64 * (q / 4) + i] >> (2 * (q % 4)) & 3) | (at[128 + i] >> q & 1) << 2
                           : at[i] >> (kBits * q) & ((1 << kBits) - 1);
      return result;
    }
  };

  template <int kBits>
  static Ints dot(Ints sum, const Bytes& quad, const int8_t* x) {
    for (int r = 0; r < kLanes; r++)
      for (int j = 0; j < 4; j++) sum.of[r] += quad.of[4 * r + j] * x[j];
    return sum;
  }

  // For 2:4 weights; see avx512.cpp.
  static Bytes positive(const int8_t* x) {
    Bytes result;
    for (int i = 0; i < 4 * kLanes; i++) result.of[i] = static_cast<uint8_t>(x[i % 16]) ^ 128;
    return result;
  }
  static Bytes bytes(const uint8_t* at) {
    Bytes result;
    std::memcpy(result.of, at, sizeof result.of);
    return result;
  }
  static Bytes index(const uint8_t* at, int p) {
    Bytes result;
    for (int i = 0; i < 4 * kLanes; i++)
      result.of[i] = static_cast<uint8_t>((at[i] >> (2 * p) & 3) | (i % 4 / 2 * 4) | (p % 2 * 8));
    return result;
  }
  static Bytes upper(const uint8_t* at, int second) {
    Bytes result;
    for (int i = 0; i < 4 * kLanes; i++) result.of[i] = static_cast<uint8_t>((second ? at[i] : at[i] << 4) & 0xf0);
    return result;
  }
  static Bytes pick(const Bytes& x, const Bytes& index) {
    Bytes result;
    for (int i = 0; i < 4 * kLanes; i++) result.of[i] = x.of[i / 16 * 16 + index.of[i]];
    return result;
  }
  static Ints dot_signed(Ints sum, const Bytes& x, const Bytes& value) {
    for (int r = 0; r < kLanes; r++)
      for (int j = 0; j < 4; j++) sum.of[r] += x.of[4 * r + j] * static_cast<int8_t>(value.of[4 * r + j]);
    return sum;
  }
  static Ints load_shorts(const uint8_t* at) {
    Ints result;
    int16_t some[kLanes];
    std::memcpy(some, at, sizeof some);
    for (int r = 0; r < kLanes; r++) result.of[r] = some[r];
    return result;
  }

  static Ints load_bytes(const uint8_t* at) {
    Ints result;
    for (int r = 0; r < kLanes; r++) result.of[r] = at[r];
    return result;
  }
  static Floats load_scale(const uint8_t* at, int first, Type type) {
    Floats result;
    if (type == kFloat32) {
      std::memcpy(result.of, at + 4 * first, sizeof result.of);
      return result;
    }
    uint16_t half[kLanes];
    std::memcpy(half, at + 2 * first, sizeof half);
    for (int r = 0; r < kLanes; r++) result.of[r] = type == kFloat16 ? from_float16(half[r]) : from_bfloat16(half[r]);
    return result;
  }
  static Ints subtract_product(Ints total, const Ints& a, int32_t b) {
    for (int r = 0; r < kLanes; r++) total.of[r] -= a.of[r] * b;
    return total;
  }
  static void add_scaled(float* sum, const Ints& total, float by, const Floats& scale) {
    for (int r = 0; r < kLanes; r++) sum[r] += static_cast<float>(total.of[r]) * by * scale.of[r];
  }
};

#include "kernel.h"
#include "vector.h"

}  // namespace

const Isa portable_isa = {"portable", quantize, multiply, rms_norm, gated, dense_rows, side, add_scaled_row, attend};

}  // namespace jettison
