// The kernel, written once for all instruction sets. A translation unit defines `Lanes` (16 lanes of int32 and float32
// with the operations used below) and includes this file inside an unnamed namespace.

// Loops over parts, halves, quads and rows must be unrolled, or their arrays would be in memory and not in registers.
#define UNROLL _Pragma("GCC unroll 16")

// Add the bias to the sums of a tile and write them to y. `row` counts rows of values, of which fine activations have
// two per row of y; `out` has one entry per row of y.
template <int kRows>
void write_rows(const Call& call, int64_t tile, int64_t row, float (&out)[kRows][kTileRows]) {
  const Weight& w = call.weight;
  const int64_t first = tile * kTileRows, count = std::min<int64_t>(kTileRows, w.rows - first);
  for (int m = 0; m < kRows >> call.fine; m++) {
    float* values = out[m];
    if (w.bias)
      for (int64_t r = 0; r < count; r++) values[r] += w.bias[first + r];
    const int64_t to = ((row >> call.fine) + m) * w.rows + first;
    if (call.type == kFloat32)
      std::memcpy(static_cast<float*>(call.y) + to, values, count * sizeof(float));
    else
      for (int64_t r = 0; r < count; r++) static_cast<uint16_t*>(call.y)[to + r] = to_bfloat16(values[r]);
  }
}

// Multiply one tile with kRows rows of values. Two rows of values add up to one row of y if activations are fine.
template <int kBits, int kRows>
void multiply_block(const Call& call, int64_t tile, int64_t row) {
  using Ints = typename Lanes::Ints;
  using Floats = typename Lanes::Floats;
  constexpr int kQuads = step_columns(kBits) / 4;
  // A dot product must wait for the previous one on the same sum, and unpacking costs shifts. With few rows there are
  // enough registers for one sum per quad of a step. Then quads need no shift: sum q is 2^(bits·q) times too large,
  // which is corrected once at the end of a group.
  constexpr bool kUnshifted = Lanes::kManyRegisters && (kBits == 2 || kBits == 4) && kHalves * kRows * kQuads <= 16;
  constexpr int kParts = kUnshifted ? kQuads : Lanes::kManyRegisters && kRows <= 2 && kQuads > 1 ? 2 : 1;
  const Weight& w = call.weight;
  const int64_t groups = w.groups(), width = w.width(), steps = width / step_columns(kBits), stride = groups * width;

  const uint8_t* at = w.tiles + tile * w.tile_bytes();
  const int64_t zero_bytes = w.zero_bytes();
  const uint8_t* zeros = w.zero ? w.zero + tile * groups * zero_bytes : nullptr;
  alignas(64) float out[kRows][kTileRows] = {};

  for (int64_t g = 0; g < groups; g++) {
    const int8_t* x = call.act.value + row * stride + g * width;
    Ints sum[kParts][kHalves][kRows];
    UNROLL for (int p = 0; p < kParts; p++)
      UNROLL for (int h = 0; h < kHalves; h++)
        UNROLL for (int m = 0; m < kRows; m++) sum[p][h][m] = Lanes::broadcast(0);
    for (int64_t s = 0; s < steps; s++, x += step_columns(kBits)) {
      typename Lanes::template Half<kBits> half[kHalves];
      UNROLL for (int h = 0; h < kHalves; h++, at += half_bytes(kBits)) {
        UNROLL for (int i = 0; i < half_bytes(kBits); i += 64) Lanes::prefetch(at + i + kPrefetch);
        half[h].load(at);
      }
      UNROLL for (int q = 0; q < kQuads; q++) {
        typename Lanes::Bytes quad[kHalves];
        UNROLL for (int h = 0; h < kHalves; h++)
          if constexpr (kUnshifted) quad[h] = half[h].field(q);
          else quad[h] = half[h].quad(q);
        UNROLL for (int m = 0; m < kRows; m++)
          UNROLL for (int h = 0; h < kHalves; h++)
            sum[q % kParts][h][m] = Lanes::template dot<kBits>(sum[q % kParts][h][m], quad[h], x + m * stride + 4 * q);
      }
    }
    UNROLL for (int h = 0; h < kHalves; h++) {
      const Floats scale = Lanes::load_scale(at, h * kLanes, w.scale_type);
      const Ints zero = w.minimum() ? Lanes::broadcast(0)
                        : zeros     ? Lanes::load_bytes(zeros + h * kLanes)
                                    : Lanes::broadcast(w.middle);
      UNROLL for (int m = 0; m < kRows; m++) {
        const int64_t of = (row + m) * groups + g;
        Ints total = sum[0][h][m];
        UNROLL for (int p = 1; p < kParts; p++)
          total = Lanes::add(total, kUnshifted ? Lanes::shift_right(sum[p][h][m], kBits * p) : sum[p][h][m]);
        total = Lanes::subtract_product(total, zero, call.act.sum[of]);
        Lanes::add_scaled(out[m >> call.fine] + h * kLanes, total, call.act.scale[of], scale);
        if (w.minimum())
          Lanes::add_scaled(out[m >> call.fine] + h * kLanes, Lanes::broadcast(call.act.sum[of]), call.act.scale[of],
                            Lanes::load_scale(zeros, h * kLanes, w.scale_type));
      }
    }
    at += w.scale_bytes();
    if (zeros) zeros += zero_bytes;
  }
  write_rows<kRows>(call, tile, row, out);
}

// The same for 2:4 weights: every lane picks the activations that its indices name.
template <int kBits, int kRows>
void multiply_sparse_block(const Call& call, int64_t tile, int64_t row) {
  using Ints = typename Lanes::Ints;
  constexpr int kParts = Lanes::kManyRegisters && kRows <= 2 ? 2 : 1, kPairs = 4;
  const Weight& w = call.weight;
  const int64_t groups = w.groups(), width = w.width(), steps = width / step_columns(kBits), stride = groups * width;
  const uint8_t* at = w.tiles + tile * w.tile_bytes();
  alignas(64) float out[kRows][kTileRows] = {};

  for (int64_t g = 0; g < groups; g++) {
    const int8_t* x = call.act.value + row * stride + g * width;
    Ints sum[kParts][kHalves][kRows];
    UNROLL for (int p = 0; p < kParts; p++)
      UNROLL for (int h = 0; h < kHalves; h++)
        UNROLL for (int m = 0; m < kRows; m++) sum[p][h][m] = Lanes::broadcast(0);
    for (int64_t s = 0; s < steps; s++, x += step_columns(kBits)) {
      typename Lanes::Bytes positive[kRows][kPairs / 2];
      UNROLL for (int m = 0; m < kRows; m++)
        UNROLL for (int i = 0; i < kPairs / 2; i++) positive[m][i] = Lanes::positive(x + m * stride + 16 * i);
      UNROLL for (int h = 0; h < kHalves; h++, at += half_bytes(kBits)) {
        UNROLL for (int i = 0; i < half_bytes(kBits); i += 64) Lanes::prefetch(at + i + kPrefetch);
        UNROLL for (int p = 0; p < kPairs; p++) {
          const auto index = Lanes::index(at, p);
          const auto value = kBits == kSparse4 ? Lanes::upper(at + 64 * (1 + p / 2), p % 2) : Lanes::bytes(at + 64 * (1 + p));
          UNROLL for (int m = 0; m < kRows; m++)
            sum[p % kParts][h][m] = Lanes::dot_signed(sum[p % kParts][h][m], Lanes::pick(positive[m][p / 2], index), value);
        }
      }
    }
    const uint8_t* sums = at + w.scale_bytes();
    UNROLL for (int h = 0; h < kHalves; h++) {
      const auto scale = Lanes::load_scale(at, h * kLanes, w.scale_type);
      const Ints of_values = Lanes::load_shorts(sums + 2 * h * kLanes);
      UNROLL for (int m = 0; m < kRows; m++) {
        Ints total = sum[0][h][m];
        UNROLL for (int p = 1; p < kParts; p++) total = Lanes::add(total, sum[p][h][m]);
        if constexpr (kBits == kSparse4) total = Lanes::shift_right(total, 4);  // they were in high halves of bytes
        total = Lanes::subtract_product(total, of_values, 128);
        Lanes::add_scaled(out[m >> call.fine] + h * kLanes, total, call.act.scale[(row + m) * groups + g], scale);
      }
    }
    at = sums + w.sum_bytes();
  }
  write_rows<kRows>(call, tile, row, out);
}

// Rows of values that one pass over a tile serves: as many as the registers hold.
template <int kBits>
constexpr int most_rows() {
  return is_sparse(kBits) ? std::min(4, Lanes::kMaxRows) : Lanes::kMaxRows;
}

template <int kBits, int kRows = most_rows<kBits>()>
void multiply_rows(const Call& call, int64_t tile, int64_t row, int64_t count) {
  if constexpr (kRows > 1)
    if (count < kRows) return multiply_rows<kBits, kRows - 1>(call, tile, row, count);
  if constexpr (is_sparse(kBits)) multiply_sparse_block<kBits, kRows>(call, tile, row);
  else multiply_block<kBits, kRows>(call, tile, row);
}

template <int kBits>
void multiply_tiles(const Call& call, int64_t first, int64_t last) {
  for (int64_t tile = first; tile < last; tile++)
    for (int64_t row = 0, count = call.count << call.fine; row < count; row += most_rows<kBits>())
      multiply_rows<kBits>(call, tile, row, count - row);
}

void multiply(const Call& call, int64_t first, int64_t last) {
  switch (call.weight.bits) {
    case 2: return multiply_tiles<2>(call, first, last);
    case 3: return multiply_tiles<3>(call, first, last);
    case 4: return multiply_tiles<4>(call, first, last);
    case kSparse4: return multiply_tiles<kSparse4>(call, first, last);
    case kSparse8: return multiply_tiles<kSparse8>(call, first, last);
    default: return multiply_tiles<8>(call, first, last);
  }
}

// Round `count` values of a group to int8, and set the rest of the group to zero. No result depends on
// the order of additions, as sums are of integers.
template <class Load>
void quantize_group(Load load, int64_t count, int64_t width, int8_t* value, float* scale, int32_t* sum) {
  uint32_t largest = 0;  // of the bits of |x|: they have the order of the numbers, infinity and NaN being the largest
  for (int64_t c = 0; c < count; c++) largest = std::max(largest, bits_of(load(c)) & 0x7fffffffu);
  const float top = float_of(largest);
  const bool finite = largest < 0x7f800000u;
  if (!finite || top < 1e-30f) {
    std::memset(value, 0, width);
    *scale = finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    *sum = 0;
    return;
  }
  const float inverse = 127.0f / top;
  int32_t total = 0;
  for (int64_t c = 0; c < count; c++) {
    const int32_t code = static_cast<int32_t>(std::nearbyintf(load(c) * inverse));
    value[c] = static_cast<int8_t>(code);
    total += code;
  }
  std::memset(value + count, 0, width - count);
  *scale = top / 127.0f;
  *sum = total;
}

void quantize(const Call& call, int64_t first, int64_t last) {
  const Weight& w = call.weight;
  const Activations& act = call.act;
  const int64_t groups = w.groups(), width = w.width();
  for (int64_t row = first; row < last; row++)
    for (int64_t g = 0; g < groups; g++) {
      const int64_t start = g * w.span, count = std::min(w.span, w.columns - start);
      const int64_t of = (row << call.fine) * groups + g, rest = of + groups;
      const auto both = [&](auto load) {
        int8_t* value = act.value + of * width;
        quantize_group(load, count, width, value, act.scale + of, act.sum + of);
        if (!call.fine) return;
        const auto left = [&, by = act.scale[of]](int64_t c) { return load(c) - by * static_cast<float>(value[c]); };
        quantize_group(left, count, width, act.value + rest * width, act.scale + rest, act.sum + rest);
      };
      if (call.type == kFloat32)
        both([x = static_cast<const float*>(call.x) + row * w.columns + start](int64_t c) { return x[c]; });
      else
        both([x = static_cast<const uint16_t*>(call.x) + row * w.columns + start](int64_t c) { return from_bfloat16(x[c]); });
    }
}
