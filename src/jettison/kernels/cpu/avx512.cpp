// AVX-512 with VNNI: 16 lanes are one register.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "numbers.h"
#include "tiles.h"

namespace jettison {
namespace {

struct Lanes {
  using Ints = __m512i;
  using Floats = __m512;
  using Bytes = __m512i;

  static constexpr int kMaxRows = 8;  // rows of values that one pass over a tile serves: as many as the registers hold
  static constexpr bool kManyRegisters = true;

  static Ints broadcast(int32_t value) { return _mm512_set1_epi32(value); }
  static Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static Ints shift_right(Ints a, int count) { return _mm512_srai_epi32(a, count); }

  static void prefetch(const uint8_t* at) { _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T0); }

  template <int kBits>
  struct Half {
    __m512i block[kBits == 3 ? 3 : 1];
    void load(const uint8_t* at) {
      for (int i = 0; i < (kBits == 3 ? 3 : 1); i++) block[i] = _mm512_loadu_si512(at + 64 * i);
      for (__m512i& each : block) asm("" : "+v"(each));  // else compilers may load it again at every use
    }
    Bytes quad(int q) const {
      if constexpr (kBits == 8) return block[0];
      if constexpr (kBits == 4) return _mm512_and_si512(_mm512_srli_epi32(block[0], 4 * q), _mm512_set1_epi8(15));
      if constexpr (kBits == 2) return _mm512_and_si512(_mm512_srli_epi32(block[0], 2 * q), _mm512_set1_epi8(3));
      const __m512i low = _mm512_and_si512(_mm512_srli_epi32(block[q / 4], 2 * (q % 4)), _mm512_set1_epi8(3));
      const __m512i high = q < 2 ? _mm512_slli_epi32(block[2], 2 - q) : _mm512_srli_epi32(block[2], q - 2);
      return _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi8(4), 0xf8);  // low | (high & 4)
    }
    Bytes field(int q) const {  // quad(q) times 2^(bits·q)
      return _mm512_and_si512(block[0], _mm512_set1_epi8(static_cast<char>(((1 << kBits) - 1) << (kBits * q))));
    }
  };

  template <int kBits>
  static Ints dot(Ints sum, Bytes quad, const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    // Like the intrinsic, with which some compilers copy and spill the sum in long loops.
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(quad), "v"(_mm512_set1_epi32(four)));
    return sum;
  }

  // For 2:4 weights. positive: 16 activations as x + 128, repeated in every quarter of the register. bytes: a block of
  // 8-bit values. index: the positions that field p names. upper: 4-bit values, signed, times 16. pick: the activations
  // at the positions.
  static Bytes positive(const int8_t* x) {
    const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    return _mm512_broadcast_i32x4(_mm_xor_si128(some, _mm_set1_epi8(-128)));
  }
  static Bytes bytes(const uint8_t* at) { return _mm512_loadu_si512(at); }
  static Bytes index(const uint8_t* at, int p) {
    const __m512i first = _mm512_set1_epi32(p % 2 ? 0x0c0c0808 : 0x04040000);
    return _mm512_ternarylogic_epi32(_mm512_srli_epi32(bytes(at), 2 * p), _mm512_set1_epi8(3), first, 0xea);  // a & b | c
  }
  static Bytes upper(const uint8_t* at, int second) {
    return _mm512_and_si512(_mm512_slli_epi32(bytes(at), second ? 0 : 4), _mm512_set1_epi8(-16));
  }
  static Bytes pick(Bytes x, Bytes index) { return _mm512_shuffle_epi8(x, index); }
  static Ints dot_signed(Ints sum, Bytes x, Bytes value) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(value));
    return sum;
  }
  static Ints load_shorts(const uint8_t* at) {
    return _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  }

  static Ints load_bytes(const uint8_t* at) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
  static Floats load_scale(const uint8_t* at, int first, Type type) {
    if (type == kFloat32) return _mm512_loadu_ps(at + 4 * first);
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 2 * first));
    if (type == kFloat16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static Ints subtract_product(Ints total, Ints a, int32_t b) {
    return _mm512_sub_epi32(total, _mm512_mullo_epi32(a, _mm512_set1_epi32(b)));
  }
  static void add_scaled(float* sum, Ints total, float by, Floats scale) {
    const Floats product = _mm512_mul_ps(_mm512_cvtepi32_ps(total), _mm512_set1_ps(by));
    _mm512_store_ps(sum, _mm512_add_ps(_mm512_load_ps(sum), _mm512_mul_ps(product, scale)));
  }
};

#include "kernel.h"
#include "vector.h"

}  // namespace

const Isa avx512_isa = {"avx512", quantize, multiply, rms_norm, gated, dense_rows, side, add_scaled_row, attend};

}  // namespace jettison
