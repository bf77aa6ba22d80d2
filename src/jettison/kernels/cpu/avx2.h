// AVX2: 16 lanes are two registers. With JETTISON_VNNI a dot product takes one instruction, else three.

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
  struct Ints {
    __m256i low, high;
  };
  struct Floats {
    __m256 low, high;
  };
  using Bytes = Ints;
  static constexpr int kMaxRows = 2;
  static constexpr bool kManyRegisters = false;

  static Ints broadcast(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
  static Ints add(Ints a, Ints b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
  static Ints shift_right(Ints a, int count) {
    return {_mm256_srai_epi32(a.low, count), _mm256_srai_epi32(a.high, count)};
  }
  static void prefetch(const uint8_t* at) { _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T0); }

  static __m256i load(const uint8_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
  static __m256i bits(__m256i block, int shift, int mask) {  // a negative shift goes left
    block = shift < 0 ? _mm256_slli_epi32(block, -shift) : _mm256_srli_epi32(block, shift);
    return _mm256_and_si256(block, _mm256_set1_epi8(static_cast<char>(mask)));
  }

  template <int kBits>
  struct Half {
    Ints block[kBits == 3 ? 3 : 1];
    void load(const uint8_t* at) {
      for (int i = 0; i < (kBits == 3 ? 3 : 1); i++) block[i] = {Lanes::load(at + 64 * i), Lanes::load(at + 64 * i + 32)};
      // Keeps the block in a register; else compilers may load it again at every use. Three blocks would fill the
      // registers.
      if constexpr (kBits != 3) asm("" : "+x"(block[0].low), "+x"(block[0].high));
    }
    Bytes quad(int q) const {
      if constexpr (kBits == 8) return block[0];
      if constexpr (kBits == 4) return {bits(block[0].low, 4 * q, 15), bits(block[0].high, 4 * q, 15)};
      if constexpr (kBits == 2) return {bits(block[0].low, 2 * q, 3), bits(block[0].high, 2 * q, 3)};
      if constexpr (kBits == 3) {
        const Ints& two = block[q / 4];
        return {_mm256_or_si256(bits(two.low, 2 * (q % 4), 3), bits(block[2].low, q - 2, 4)),
                _mm256_or_si256(bits(two.high, 2 * (q % 4), 3), bits(block[2].high, q - 2, 4))};
      }
    }
  };

  template <int kBits>
  static __m256i dot(__m256i sum, __m256i quad, __m256i x) {
#ifdef JETTISON_VNNI
    // Like the intrinsic, with which some compilers copy and spill the sum in long loops.
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(quad), "x"(x));
    return sum;
#else
    // Pairs of products are added in 16 bits with saturation, which is exact for codes of up to 7 bits. So the eighth
    // bit is multiplied separately: halved to 0x40, and then doubled by the last factor of 2.
    const __m256i ones = _mm256_set1_epi16(1);
    if constexpr (kBits < 8) return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(quad, x), ones));
    const __m256i rest = bits(quad, 0, 0x7f), half = bits(quad, 1, 0x40);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(rest, x), ones));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(half, x), _mm256_set1_epi16(2)));
#endif
  }
  template <int kBits>
  static Ints dot(Ints sum, Bytes quad, const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    const __m256i by = _mm256_set1_epi32(four);
    return {dot<kBits>(sum.low, quad.low, by), dot<kBits>(sum.high, quad.high, by)};
  }

  // For 2:4 weights; see avx512.cpp.
  static Bytes positive(const int8_t* x) {
    const __m128i some = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)), _mm_set1_epi8(-128));
    return {_mm256_broadcastsi128_si256(some), _mm256_broadcastsi128_si256(some)};
  }
  static Bytes bytes(const uint8_t* at) { return {load(at), load(at + 32)}; }
  static Bytes index(const uint8_t* at, int p) {
    const __m256i first = _mm256_set1_epi32(p % 2 ? 0x0c0c0808 : 0x04040000);
    return {_mm256_or_si256(bits(load(at), 2 * p, 3), first), _mm256_or_si256(bits(load(at + 32), 2 * p, 3), first)};
  }
  static Bytes upper(const uint8_t* at, int second) {
    const int shift = second ? 0 : -4;
    return {bits(load(at), shift, 0xf0), bits(load(at + 32), shift, 0xf0)};
  }
  static Bytes pick(Bytes x, Bytes index) {
    return {_mm256_shuffle_epi8(x.low, index.low), _mm256_shuffle_epi8(x.high, index.high)};
  }
  static __m256i dot_signed(__m256i sum, __m256i x, __m256i value) {
#ifdef JETTISON_VNNI
    return dot<8>(sum, x, value);
#else
    // Sums of pairs would saturate in 16 bits, so even and odd bytes are widened to 16 bits and multiplied separately.
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(x, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(value, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), _mm256_srai_epi16(value, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
#endif
  }
  static Ints dot_signed(Ints sum, Bytes x, Bytes value) {
    return {dot_signed(sum.low, x.low, value.low), dot_signed(sum.high, x.high, value.high)};
  }
  static Ints load_shorts(const uint8_t* at) {
    const auto some = reinterpret_cast<const __m128i*>(at);
    return {_mm256_cvtepi16_epi32(_mm_loadu_si128(some)), _mm256_cvtepi16_epi32(_mm_loadu_si128(some + 1))};
  }

  static Ints load_bytes(const uint8_t* at) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
  }
  static __m256 load_half_scale(const uint8_t* at, Type type) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    if (type == kFloat16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static Floats load_scale(const uint8_t* at, int first, Type type) {
    if (type != kFloat32) return {load_half_scale(at + 2 * first, type), load_half_scale(at + 2 * first + 16, type)};
    return {_mm256_castsi256_ps(load(at + 4 * first)), _mm256_castsi256_ps(load(at + 4 * first + 32))};
  }
  static Ints subtract_product(Ints total, Ints a, int32_t b) {
    const __m256i by = _mm256_set1_epi32(b);
    return {_mm256_sub_epi32(total.low, _mm256_mullo_epi32(a.low, by)),
            _mm256_sub_epi32(total.high, _mm256_mullo_epi32(a.high, by))};
  }
  static void add_scaled(float* sum, __m256i total, __m256 by, __m256 scale) {
    const __m256 product = _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(total), by), scale);
    _mm256_store_ps(sum, _mm256_add_ps(_mm256_load_ps(sum), product));
  }
  static void add_scaled(float* sum, Ints total, float by, Floats scale) {
    add_scaled(sum, total.low, _mm256_set1_ps(by), scale.low);
    add_scaled(sum + 8, total.high, _mm256_set1_ps(by), scale.high);
  }
};

#include "kernel.h"
#include "vector.h"

}  // namespace
