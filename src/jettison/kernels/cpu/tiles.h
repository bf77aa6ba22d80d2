// What the kernels work on: weights in tiles of 32 rows, and the sums that one call makes from them.
//
// A tile holds 32 rows of W, as one stream of bytes that is read from front to back. Its columns stand in groups that
// share a scale: the codes of the group, filled up with zeros to whole steps, then its 32 scales. A step is some columns
// of the upper 16 rows, then the same of the lower 16. In a block of 64 bytes, lane r (32 bits) belongs to row r; byte j
// of a lane, bits [q·b, q·b + b), is column 4·q + j of the block. So shifting a block right by q·b and masking gives
// 16 rows × 4 columns as bytes, ready for a dot product with 4 activations (a "quad").
//
//   2 bits: half a step is one block, 16 columns.    4 bits: one block, 8 columns.    8 bits: one block, 4 columns.
//   3 bits: half a step is 32 columns: two blocks of the low two bits, then one of the high bits, one bit a quad.
//
// Weights that have two of each four columns (2:4) take 32 columns in half a step: a block of indices, then the values. Byte
// j of a lane, in field p, is about the kept columns of 8·p + 4·(j / 2) and on: which, in the index's 2 bits, and its
// signed value. 4 bits: two blocks, a byte of each has pair 2·b of fields in its lower half. 8 bits: four blocks, one for each p.
// After the scales stand 32 sums of the group's values, int16: activations are then shifted to be positive.
//
// scale: bfloat16, float16 or float32. zero: [tile][group][32] bytes apart from the stream, or none: then one number for all.

#pragma once
#include <cstdint>

namespace jettison {

constexpr int kLanes = 16;
constexpr int kHalves = 2;
constexpr int kTileRows = kHalves * kLanes;
constexpr int kPrefetch = 4096;  // bytes ahead in the stream: what hides the memory behind the work on 8 rows

enum Type : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kInt8 = 3 };

// How numbers are packed: dense ones by their bits, and two of four.
constexpr int kSparse4 = 24, kSparse8 = 28;
constexpr bool is_sparse(int bits) { return bits == kSparse4 || bits == kSparse8; }

constexpr int step_columns(int bits) {
  return bits == 2 ? 16 : bits == 3 || is_sparse(bits) ? 32 : bits == 4 ? 8 : 4;
}
constexpr int half_bytes(int bits) {  // of half a step
  return bits == 3 || bits == kSparse4 ? 192 : bits == kSparse8 ? 320 : 64;
}

struct Weight {
  const uint8_t* tiles;
  const uint8_t* zero;  // null: `middle` everywhere
  const float* bias;    // null: none
  int64_t rows, columns;
  int64_t span;         // columns of a group; the last one of a row may have fewer
  int bits, middle;
  Type scale_type;

  int64_t groups() const { return (columns + span - 1) / span; }
  int64_t width() const { return (span + step_columns(bits) - 1) / step_columns(bits) * step_columns(bits); }
  int64_t tile_count() const { return (rows + kTileRows - 1) / kTileRows; }
  int64_t code_bytes() const { return width() / step_columns(bits) * kHalves * half_bytes(bits); }  // of a group
  int64_t scale_bytes() const { return kTileRows * (scale_type == kFloat32 ? 4 : 2); }
  int64_t sum_bytes() const { return is_sparse(bits) ? kTileRows * 2 : 0; }
  int64_t tile_bytes() const { return groups() * (code_bytes() + scale_bytes() + sum_bytes()); }
};

// Activations as int8: x ≈ scale · value, by the weight's groups. Groups are `width` apart and filled up with zeros.
// Fine activations are two rows of values each: x as above, and what that leaves of it, with scales of its own.
struct Activations {
  int8_t* value;   // (count, groups, width)
  float* scale;    // (count, groups); NaN where an activation is not finite
  int32_t* sum;    // (count, groups), of the values
};

struct Call {
  Weight weight;
  Activations act;
  const void* x;   // (count, columns), contiguous
  void* y;         // (count, rows), contiguous
  int64_t count;
  Type type;       // of x and y: float32 or bfloat16
  int fine;        // 1: activations are fine, two rows of values for each of x; else 0
};

// Keys or values of one head: (length, head_dim), float32, bfloat16, or int8 with a scale for each position.
struct Cache {
  const void* at;
  const float* scale;
  Type type;
};

// One query head of one row: (dim), the positions that it looks at, first to last and after these, in this order, those
// of `tail`, and where what it finds goes, (dim). scores: room for all of them.
struct Query {
  const float* q;
  float *out, *scores;
  int64_t first, last;
  const int64_t* tail;
  int64_t tail_count;
};

// What one instruction set offers. All give the same bits: integer sums are exact, and floats are multiplied and added
// one by one in the same order, never fused.
struct Isa {
  const char* name;
  void (*quantize)(const Call&, int64_t first_row, int64_t last_row);
  void (*multiply)(const Call&, int64_t first_tile, int64_t last_tile);
  // What stands between the products of a decoder: see vector.h.
  void (*rms_norm)(const float* x, const float* weight, float epsilon, int64_t count, float* y);
  void (*gated)(const float* gate, const float* up, int gelu, int64_t count, float* y);
  void (*dense_rows)(const void* weight, Type type, const float* x, int64_t count, int64_t rows, int64_t columns,
                     int64_t first, int64_t last, float* y);
  void (*side)(const float* x, const float* a, int64_t rank, int64_t columns, float* low);
  void (*add_scaled_row)(float* y, const float* x, float by, int64_t count);
  void (*attend)(const Query* queries, int64_t count, const Cache& key, const Cache& value, int64_t dim, float scale);
};

extern const Isa portable_isa;
#ifdef JETTISON_X86
extern const Isa avx2_isa, avxvnni_isa, avx512_isa;  // avxvnni only where the compiler knows it
#endif

}  // namespace jettison
