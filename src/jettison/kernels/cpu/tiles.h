// The data that the kernels work on: weights in tiles of 32 rows, activations, key-value caches.
//
// A tile holds 32 rows of W (b bits per code) as one stream of bytes, which is read from front to back. Columns are
// divided into groups that share a scale. The stream has for every group its codes, padded with zeros to whole steps,
// then its 32 scales. A step holds some columns of the first 16 rows, then the same columns of the last 16: two halves.
// A half consists of blocks of 64 bytes. Lane r (32 bits) of a block belongs to row r. Bits [q·b, q·b + b) of byte j of
// a lane are column 4·q + j of the block. So shifting a block right by q·b and masking gives 16 rows × 4 columns as
// bytes (a "quad"), ready for a dot product with 4 activations.
//
//   2 bits: half a step is one block, 16 columns.    4 bits: one block, 8 columns.    8 bits: one block, 4 columns.
//   3 bits: half a step is 32 columns: two blocks of the low two bits, then one of the high bits, one bit per quad.
//
// 2:4 weights store two of every four columns. Half a step is 32 columns: a block of indices, then blocks of values.
// Byte j of a lane and field p (0 to 3, 2 bits in the index block) stand for one stored column of the four that start
// at 8·p + 4·(j / 2): the index tells which of the four, the value is signed. 4 bits: two blocks of values; the bytes
// of block b hold field 2·b in their low halves and field 2·b + 1 in their high halves. 8 bits: four blocks, one per
// field. After the scales of a group follow the 32 sums of its values, int16. They are needed because the kernels add
// 128 to activations, to make them positive.
//
// scale: bfloat16, float16 or float32. zero: [tile][group][32] bytes in a tensor of their own, or null for one zero
// point for all.

#pragma once
#include <cstdint>

namespace jettison {

constexpr int kLanes = 16;
constexpr int kHalves = 2;
constexpr int kTileRows = kHalves * kLanes;
constexpr int kPrefetch = 4096;  // bytes ahead in the stream: enough to hide memory latency behind the work on 8 rows

enum Type : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kInt8 = 3 };

// Packing of 2:4 weights, in place of the bits of dense codes.
constexpr int kSparse4 = 24, kSparse8 = 28;
constexpr bool is_sparse(int bits) { return bits == kSparse4 || bits == kSparse8; }

constexpr int step_columns(int bits) {
  return bits == 2 ? 16 : bits == 3 || is_sparse(bits) ? 32 : bits == 4 ? 8 : 4;
}
constexpr int half_bytes(int bits) {  // bytes of half a step
  return bits == 3 || bits == kSparse4 ? 192 : bits == kSparse8 ? 320 : 64;
}

struct Weight {
  const uint8_t* tiles;
  const uint8_t* zero;  // zero points, or minima of the type of the scales; null: `middle` everywhere
  const float* bias;    // null: none
  int64_t rows, columns;
  int64_t span;         // columns of a group; the last group of a row may have fewer
  int bits, middle;
  Type scale_type;

  int64_t groups() const { return (columns + span - 1) / span; }
  int64_t width() const { return (span + step_columns(bits) - 1) / step_columns(bits) * step_columns(bits); }
  int64_t tile_count() const { return (rows + kTileRows - 1) / kTileRows; }
  int64_t code_bytes() const { return width() / step_columns(bits) * kHalves * half_bytes(bits); }  // of a group
  int64_t scale_bytes() const { return kTileRows * (scale_type == kFloat32 ? 4 : 2); }
  bool minimum() const { return middle < 0; }  // a group has a minimum: its values are code · scale + minimum
  int64_t zero_bytes() const { return minimum() ? scale_bytes() : kTileRows; }  // of a group of a tile
  int64_t sum_bytes() const { return is_sparse(bits) ? kTileRows * 2 : 0; }
  int64_t tile_bytes() const { return groups() * (code_bytes() + scale_bytes() + sum_bytes()); }
};

// Activations as int8: x ≈ scale · value, in the weight's groups. Groups are `width` bytes apart, padded with zeros.
// Fine activations (15 bits) take two rows for every row of x: x as above, and then its rounding error in the same way,
// with scales of its own.
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
  int fine;        // 1: fine activations, two rows of values for every row of x; else 0
};

// Keys or values of one head: (length, head_dim), float32, bfloat16, or int8 with one scale per position.
struct Cache {
  const void* at;
  const float* scale;
  Type type;
};

// One query head of one row, q: (dim). It attends to the positions first..last (without last) and then to those of
// `tail`, in this order. The result goes to out: (dim). scores: room for one number per position.
struct Query {
  const float* q;
  float *out, *scores;
  int64_t first, last;
  const int64_t* tail;
  int64_t tail_count;
};

// The functions of one instruction set. All sets give bit-identical results: integer sums are exact, and floats are
// multiplied and added in the same order, never fused.
struct Isa {
  const char* name;
  void (*quantize)(const Call&, int64_t first_row, int64_t last_row);
  void (*multiply)(const Call&, int64_t first_tile, int64_t last_tile);
  // Operations of a decoder other than packed products; see vector.h.
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
