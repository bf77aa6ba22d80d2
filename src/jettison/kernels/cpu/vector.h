// What a decoder does between its products, for one instruction set. Included where kernel.h is, after it.
//
// Written with the vectors of GCC and clang: 16 lanes, which each instruction set splits as it can.

typedef float F16 __attribute__((vector_size(64)));
typedef float F8 __attribute__((vector_size(32)));
typedef float F4 __attribute__((vector_size(16)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));
typedef uint16_t H16 __attribute__((vector_size(32)));
typedef int8_t B16 __attribute__((vector_size(16)));

constexpr int kHeadsAtOnce = 4;  // query heads that share a pass over keys or values
constexpr int kStretch = 64;     // positions

inline F16 load16(const float* from) {
  F16 x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline F16 load16(const uint16_t* from) {  // bfloat16
  H16 half;
  std::memcpy(&half, from, sizeof half);
  return reinterpret_cast<F16>(__builtin_convertvector(half, U16) << 16);
}

inline F16 load16(const int8_t* from) {
  B16 bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, F16);
}

inline void store16(float* to, F16 x) { std::memcpy(to, &x, sizeof x); }

inline float one(const float* from) { return *from; }
inline float one(const uint16_t* from) { return from_bfloat16(*from); }
inline float one(const int8_t* from) { return *from; }

inline float sum_lanes(F16 x) {
  const F8 eight = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                   __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  const F4 four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

template <class Stored>
float dot_product(const float* a, const Stored* b, int64_t count) {
  F16 sums[4] = {};
  int64_t i = 0;
  for (; i + 64 <= count; i += 64)
    UNROLL for (int s = 0; s < 4; s++) sums[s] += load16(a + i + 16 * s) * load16(b + i + 16 * s);
  for (; i + 16 <= count; i += 16) sums[0] += load16(a + i) * load16(b + i);
  float rest = 0.0f;
  for (; i < count; i++) rest += a[i] * one(b + i);
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

// e^x for x ≤ 0, to 2 units in the last place; e^-87 below -87. (Cephes' polynomial.)
inline F16 exp_below(F16 x) {
  const F16 least = F16{} - 87.0f;
  x = x < least ? least : x;
  const F16 shifter = F16{} + 12582912.0f;  // adding it rounds to a whole number
  const F16 n = (x * 1.44269504f + shifter) - shifter;
  const F16 r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  F16 p = F16{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const I16 power = (__builtin_convertvector(n, I16) + 127) << 23;
  return p * reinterpret_cast<F16>(power);
}

// Call work(i, size) for pieces of 16, then for the rest.
template <class Do>
void by_sixteen(int64_t count, Do work) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) work(i, 16);
  if (i < count) work(i, static_cast<int>(count - i));
}

inline F16 load_some(const float* from, int size) {
  if (size == 16) return load16(from);
  F16 x = {};
  std::memcpy(&x, from, size * sizeof(float));
  return x;
}

inline void store_some(float* to, F16 x, int size) { std::memcpy(to, &x, size * sizeof(float)); }

void rms_norm(const float* x, const float* weight, float epsilon, int64_t count, float* y) {
  const float scale = 1.0f / std::sqrt(dot_product(x, x, count) / static_cast<float>(count) + epsilon);
  by_sixteen(count, [&](int64_t i, int size) {
    store_some(y + i, load_some(x + i, size) * scale * load_some(weight + i, size), size);
  });
}

void gated(const float* gate, const float* up, int gelu, int64_t count, float* y) {
  by_sixteen(count, [&](int64_t i, int size) {
    const F16 x = load_some(gate + i, size);
    // gelu: x · sigmoid(2 u), which is 0.5 x (1 + tanh u)
    const F16 u = gelu ? 1.5957691216f * (x + 0.044715f * x * x * x) : x;
    const I16 negative = u < 0.0f;
    const F16 e = exp_below(negative ? u : -u), ones = F16{} + 1.0f;
    store_some(y + i, x * ((negative ? e : ones) / (1.0f + e)) * load_some(up + i, size), size);
  });
}

// Rows of a dense matrix, bfloat16 or float32, times `count` rows of x: y[m][r], rows first..last.
void dense_rows(const void* weight, Type type, const float* x, int64_t count, int64_t rows, int64_t columns,
                int64_t first, int64_t last, float* y) {
  for (int64_t r = first; r < last; r++)
    for (int64_t m = 0; m < count; m++) {
      const float* from = x + m * columns;
      y[m * rows + r] = type == kFloat32
                            ? dot_product(from, static_cast<const float*>(weight) + r * columns, columns)
                            : dot_product(from, static_cast<const uint16_t*>(weight) + r * columns, columns);
    }
}

// low = A x, A: (rank, columns).
void side(const float* x, const float* a, int64_t rank, int64_t columns, float* low) {
  for (int64_t k = 0; k < rank; k++) low[k] = dot_product(x, a + k * columns, columns);
}

// y += by · x.
void add_scaled_row(float* y, const float* x, float by, int64_t count) {
  by_sixteen(count, [&](int64_t i, int size) {
    store_some(y + i, load_some(y + i, size) + by * load_some(x + i, size), size);
  });
}

// Scores of kHeads query heads: q (kHeads, dim), key (length, dim).
template <int kHeads, class Stored>
void score(const float* q, const Stored* key, const float* key_scale, int64_t length, int64_t dim, float scale,
           float* scores) {
  for (int64_t p = 0; p < length; p++, key += dim) {
    F16 sums[kHeads] = {};
    int64_t i = 0;
    for (; i + 16 <= dim; i += 16) {
      __builtin_prefetch(key + i + kStretch / 4 * dim);
      const F16 k = load16(key + i);
      UNROLL for (int h = 0; h < kHeads; h++) sums[h] += k * load16(q + h * dim + i);
    }
    const float by = key_scale ? scale * key_scale[p] : scale;
    for (int h = 0; h < kHeads; h++) {
      float rest = 0.0f;
      for (int64_t j = i; j < dim; j++) rest += q[h * dim + j] * one(key + j);
      scores[h * length + p] = by * (sum_lanes(sums[h]) + rest);
    }
  }
}

// out (kHeads, dim) = shares (kHeads, length) · value (length, dim). A stretch of positions at a time, which the nearest
// cache holds while pieces of its rows are taken; the next stretch is on its way meanwhile.
template <int kHeads, class Stored>
void mix(const float* shares, const Stored* value, int64_t length, int64_t dim, float* out) {
  for (int64_t i = 0; i < kHeads * dim; i++) out[i] = 0.0f;
  for (int64_t first = 0; first < length; first += kStretch) {
    const int64_t last = std::min(length, first + kStretch);
    int64_t i = 0;
    for (; i + 32 <= dim; i += 32) {
      F16 sums[kHeads][2];
      UNROLL for (int h = 0; h < kHeads; h++)
        sums[h][0] = load16(out + h * dim + i), sums[h][1] = load16(out + h * dim + i + 16);
      const Stored* v = value + first * dim + i;
      for (int64_t p = first; p < last; p++, v += dim) {
        __builtin_prefetch(v + kStretch * dim);
        const F16 low = load16(v), high = load16(v + 16);
        UNROLL for (int h = 0; h < kHeads; h++) {
          const float by = shares[h * length + p];
          sums[h][0] += by * low;
          sums[h][1] += by * high;
        }
      }
      UNROLL for (int h = 0; h < kHeads; h++)
        store16(out + h * dim + i, sums[h][0]), store16(out + h * dim + i + 16, sums[h][1]);
    }
    for (; i < dim; i++)
      for (int h = 0; h < kHeads; h++)
        for (int64_t p = first; p < last; p++) out[h * dim + i] += shares[h * length + p] * one(value + p * dim + i);
  }
}

void to_shares(float* scores, const float* value_scale, int64_t length) {
  float top = scores[0];
  for (int64_t p = 1; p < length; p++) top = std::max(top, scores[p]);
  F16 sums = {};
  by_sixteen(length, [&](int64_t p, int size) {
    F16 e = exp_below(load_some(scores + p, size) - top);
    store_some(scores + p, e, size);
    for (int i = size; i < 16; i++) e[i] = 0.0f;
    sums += e;
  });
  const float inverse = 1.0f / sum_lanes(sums);
  for (int64_t p = 0; p < length; p++) scores[p] *= value_scale ? inverse * value_scale[p] : inverse;
}

template <int kHeads, class Stored>
void attend_heads(const float* q, const Cache& key, const Cache& value, int64_t dim, int64_t first, int64_t length,
                  float scale, float* scores, float* out) {
  score<kHeads>(q, static_cast<const Stored*>(key.at) + first * dim, key.scale ? key.scale + first : nullptr, length, dim,
                scale, scores);
  for (int h = 0; h < kHeads; h++) to_shares(scores + h * length, value.scale ? value.scale + first : nullptr, length);
  mix<kHeads>(scores, static_cast<const Stored*>(value.at) + first * dim, length, dim, out);
}

template <class Stored>
void attend_as(const float* q, const Cache& key, const Cache& value, int64_t group, int64_t dim, int64_t first,
               int64_t length, float scale, float* scores, float* out) {
  int64_t h = 0;
  for (; h + kHeadsAtOnce <= group; h += kHeadsAtOnce)
    attend_heads<kHeadsAtOnce, Stored>(q + h * dim, key, value, dim, first, length, scale, scores, out + h * dim);
  for (; h + 2 <= group; h += 2)
    attend_heads<2, Stored>(q + h * dim, key, value, dim, first, length, scale, scores, out + h * dim);
  for (; h < group; h++)
    attend_heads<1, Stored>(q + h * dim, key, value, dim, first, length, scale, scores, out + h * dim);
}

// One key-value head and the `group` query heads that share it: q, out (group, dim), of positions first..last.
// scores: room for (kHeadsAtOnce, last - first).
void attend(const float* q, const Cache& key, const Cache& value, int64_t group, int64_t dim, int64_t first,
            int64_t last, float scale, float* scores, float* out) {
  const auto of = key.type == kFloat32 ? attend_as<float> : key.type == kBFloat16 ? attend_as<uint16_t> : attend_as<int8_t>;
  of(q, key, value, group, dim, first, last - first, scale, scores, out);
}
