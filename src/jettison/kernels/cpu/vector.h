// The operations of a decoder other than packed products, for one instruction set. Included after kernel.h.
//
// Written with the vector types of GCC and clang, 16 lanes each, which the compiler splits into registers.

typedef float F16 __attribute__((vector_size(64)));
typedef float F8 __attribute__((vector_size(32)));
typedef float F4 __attribute__((vector_size(16)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));
typedef uint16_t H16 __attribute__((vector_size(32)));
typedef int8_t B16 __attribute__((vector_size(16)));

constexpr int kQueriesAtOnce = 4;  // queries that share a pass over keys or values
constexpr int kStretch = 64;     // positions that are processed for all queries before the next ones

inline F16 load16(const float* from) {
  F16 x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

#ifdef __AVX512F__  // compilers make slow code from the generic conversions below
inline F16 load16(const uint16_t* from) {  // bfloat16
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return reinterpret_cast<F16>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline F16 load16(const int8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}
#else
inline F16 load16(const uint16_t* from) {
  H16 half;
  std::memcpy(&half, from, sizeof half);
  return reinterpret_cast<F16>(__builtin_convertvector(half, U16) << 16);
}

inline F16 load16(const int8_t* from) {
  B16 bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, F16);
}
#endif

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

// Return e^x for x ≤ 0, with an error of at most 2 units in the last place; e^-87 for x < -87. The polynomial is that
// of Cephes.
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

// Call work(i, size) for every 16 elements, then for the remaining ones.
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

// Multiply the rows first..last (without last) of a dense matrix, bfloat16 or float32, with `count` rows of x: y[m][r].
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

// First product of a LoRA adapter: low = A x, A: (rank, columns).
void side(const float* x, const float* a, int64_t rank, int64_t columns, float* low) {
  for (int64_t k = 0; k < rank; k++) low[k] = dot_product(x, a + k * columns, columns);
}

// y += by · x.
void add_scaled_row(float* y, const float* x, float by, int64_t count) {
  by_sixteen(count, [&](int64_t i, int size) {
    store_some(y + i, load_some(y + i, size) + by * load_some(x + i, size), size);
  });
}

// Return sum_lanes of four vectors at once, with the same order of additions.
inline F4 sum_lanes(F16 a, F16 b, F16 c, F16 d) {
  const auto halves = [](F16 x, F16 y) {
    return __builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  };
  const F16 ab = halves(a, b), cd = halves(c, d);
  const F16 fours = __builtin_shufflevector(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                    __builtin_shufflevector(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  const F16 pairs =
      fours + __builtin_shufflevector(fours, fours, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  const F16 ones = pairs + __builtin_shufflevector(pairs, pairs, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  return __builtin_shufflevector(ones, ones, 0, 4, 8, 12);
}

// Compute the scores of kQueries queries with the kAt keys from `first` on.
template <int kQueries, int kAt, class Stored>
void score_keys(const Query* queries, const Cache& key, int64_t first, int64_t dim, float scale) {
  const Stored* keys = static_cast<const Stored*>(key.at) + first * dim;
  F16 sums[kQueries][kAt] = {};
  int64_t i = 0;
  for (; i + 16 <= dim; i += 16) {
    F16 k[kAt];
    UNROLL for (int p = 0; p < kAt; p++) {
      __builtin_prefetch(keys + p * dim + i + kStretch / 4 * dim);
      k[p] = load16(keys + p * dim + i);
    }
    UNROLL for (int h = 0; h < kQueries; h++) {
      const F16 each = load16(queries[h].q + i);
      UNROLL for (int p = 0; p < kAt; p++) sums[h][p] += k[p] * each;
    }
  }
  UNROLL for (int h = 0; h < kQueries; h++) {
    float found[kAt];
    if constexpr (kAt == 4) {
      const F4 four = sum_lanes(sums[h][0], sums[h][1], sums[h][2], sums[h][3]);
      std::memcpy(found, &four, sizeof found);
    } else {
      UNROLL for (int p = 0; p < kAt; p++) found[p] = sum_lanes(sums[h][p]);
    }
    float* scores = queries[h].scores + (first - queries[h].first);
    UNROLL for (int p = 0; p < kAt; p++) {
      float rest = 0.0f;
      for (int64_t j = i; j < dim; j++) rest += queries[h].q[j] * one(keys + p * dim + j);
      scores[p] = (key.scale ? scale * key.scale[first + p] : scale) * (found[p] + rest);
    }
  }
}

template <int kQueries, class Stored>
void score(const Query* queries, const Cache& key, int64_t first, int64_t last, int64_t dim, float scale) {
  if constexpr (Lanes::kManyRegisters)
    for (; first + 4 <= last; first += 4) score_keys<kQueries, 4, Stored>(queries, key, first, dim, scale);
  for (; first < last; first++) score_keys<kQueries, 1, Stored>(queries, key, first, dim, scale);
}

// Add the values first..last (without last), weighted by a query's softmax, to the result of every query.
template <int kQueries, class Stored>
void mix(const Query* queries, const Cache& value, int64_t first, int64_t last, int64_t dim) {
  const Stored* values = static_cast<const Stored*>(value.at);
  const float* shares[kQueries];
  UNROLL for (int h = 0; h < kQueries; h++) shares[h] = queries[h].scores - queries[h].first;
  int64_t i = 0;
  for (; i + 32 <= dim; i += 32) {
    F16 sums[kQueries][2];
    UNROLL for (int h = 0; h < kQueries; h++)
      sums[h][0] = load16(queries[h].out + i), sums[h][1] = load16(queries[h].out + i + 16);
    const Stored* v = values + first * dim + i;
    for (int64_t p = first; p < last; p++, v += dim) {
      __builtin_prefetch(v + kStretch * dim);
      const F16 low = load16(v), high = load16(v + 16);
      UNROLL for (int h = 0; h < kQueries; h++) {
        const float by = shares[h][p];
        sums[h][0] += by * low;
        sums[h][1] += by * high;
      }
    }
    UNROLL for (int h = 0; h < kQueries; h++)
      store16(queries[h].out + i, sums[h][0]), store16(queries[h].out + i + 16, sums[h][1]);
  }
  for (; i < dim; i++)
    for (int h = 0; h < kQueries; h++)
      for (int64_t p = first; p < last; p++) queries[h].out[i] += shares[h][p] * one(values + p * dim + i);
}

// Softmax in place. The result depends on the scores and their order only, not on whether they come from the tail.
void to_shares(float* scores, int64_t length) {
  F16 tops = F16{} + scores[0];
  by_sixteen(length, [&](int64_t p, int size) {
    F16 each = tops;
    std::memcpy(&each, scores + p, size * sizeof(float));
    tops = each > tops ? each : tops;
  });
  float top = tops[0];
  for (int i = 1; i < 16; i++) top = std::max(top, tops[i]);
  F16 sums = {};
  by_sixteen(length, [&](int64_t p, int size) {
    F16 e = exp_below(load_some(scores + p, size) - top);
    store_some(scores + p, e, size);
    for (int i = size; i < 16; i++) e[i] = 0.0f;
    sums += e;
  });
  const float inverse = 1.0f / sum_lanes(sums);
  for (int64_t p = 0; p < length; p++) scores[p] *= inverse;
}

// Return a query for one position of a query's tail alone.
inline Query at_tail(const Query& query, int64_t place) {
  const int64_t at = query.tail[place];
  return {query.q, query.out, query.scores + (query.last - query.first) + place, at, at + 1, nullptr, 0};
}

// Call work(queries, number of queries as a constant, first, last) so that every query gets all its positions. One
// stretch of positions is done at a time for all queries, so that it stays in the L1 cache. Neighbouring queries that
// see the same positions of it are done together.
template <class Do>
void by_stretches(const Query* queries, int64_t count, Do work) {
  int64_t begin = queries[0].first, end = queries[0].last;
  for (int64_t i = 1; i < count; i++) begin = std::min(begin, queries[i].first), end = std::max(end, queries[i].last);
  for (int64_t at = begin; at < end; at += kStretch) {
    const auto first = [&](int64_t i) { return std::max(at, queries[i].first); };
    const auto last = [&](int64_t i) { return std::min(at + kStretch, queries[i].last); };
    for (int64_t i = 0, n; i < count; i += n) {
      n = 1;
      while (n < kQueriesAtOnce && i + n < count && first(i + n) == first(i) && last(i + n) == last(i)) n++;
      if (n == 3) n = 2;
      if (first(i) >= last(i)) continue;
      if (n == 4) work(queries + i, std::integral_constant<int, 4>(), first(i), last(i));
      else if (n == 2) work(queries + i, std::integral_constant<int, 2>(), first(i), last(i));
      else work(queries + i, std::integral_constant<int, 1>(), first(i), last(i));
    }
  }
}

template <class Stored>
void attend_as(const Query* queries, int64_t count, const Cache& key, const Cache& value, int64_t dim, float scale) {
  by_stretches(queries, count, [&](const Query* some, auto size, int64_t first, int64_t last) {
    score<size.value, Stored>(some, key, first, last, dim, scale);
  });
  for (int64_t i = 0; i < count; i++) {
    const Query& query = queries[i];
    const int64_t before = query.last - query.first;
    for (int64_t t = 0; t < query.tail_count; t++) {
      const Query alone = at_tail(query, t);
      score_keys<1, 1, Stored>(&alone, key, alone.first, dim, scale);
    }
    to_shares(query.scores, before + query.tail_count);
    if (value.scale) {
      for (int64_t p = 0; p < before; p++) query.scores[p] *= value.scale[query.first + p];
      for (int64_t t = 0; t < query.tail_count; t++) query.scores[before + t] *= value.scale[query.tail[t]];
    }
    std::memset(query.out, 0, dim * sizeof(float));
  }
  by_stretches(queries, count, [&](const Query* some, auto size, int64_t first, int64_t last) {
    mix<size.value, Stored>(some, value, first, last, dim);
  });
  for (int64_t i = 0; i < count; i++)
    for (int64_t t = 0; t < queries[i].tail_count; t++) {
      const Query alone = at_tail(queries[i], t);
      mix<1, Stored>(&alone, value, alone.first, alone.last, dim);
    }
}

// Attention of queries of one sequence to the key-value head they share. The result of a query does not depend on the
// other queries.
void attend(const Query* queries, int64_t count, const Cache& key, const Cache& value, int64_t dim, float scale) {
  const auto of = key.type == kFloat32 ? attend_as<float> : key.type == kBFloat16 ? attend_as<uint16_t> : attend_as<int8_t>;
  of(queries, count, key, value, dim, scale);
}
