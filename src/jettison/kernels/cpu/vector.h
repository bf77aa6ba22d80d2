// What a decoder does between its linears, for one instruction set. Included where kernel.h is, after it.
//
// Sums run in 16 lanes, so that compilers make vectors of them without being allowed to reorder anything.

inline float sum_lanes(const float* lanes) {
  float half[8], quarter[4];
  for (int i = 0; i < 8; i++) half[i] = lanes[i] + lanes[i + 8];
  for (int i = 0; i < 4; i++) quarter[i] = half[i] + half[i + 4];
  return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

template <class Load>
float dot_lanes(const float* a, Load b, int64_t count) {
  float lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    for (int l = 0; l < 16; l++) lanes[l] += a[i + l] * b(i + l);
  for (int l = 0; i < count; i++, l++) lanes[l] += a[i] * b(i);
  return sum_lanes(lanes);
}

// e^x for x ≤ 0, to 2 units in the last place; 0 below -87.
inline float exp_below(float x) {
  x = x < -87.0f ? -87.0f : x;
  const float n = std::nearbyintf(x * 1.44269504f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * float_of(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
}

void rms_norm(const float* x, const float* weight, float epsilon, int64_t count, float* y) {
  const float mean = dot_lanes(x, [x](int64_t i) { return x[i]; }, count) / static_cast<float>(count);
  const float scale = 1.0f / std::sqrt(mean + epsilon);
  for (int64_t i = 0; i < count; i++) y[i] = x[i] * scale * weight[i];
}

void gated(const float* gate, const float* up, int gelu, int64_t count, float* y) {
  for (int64_t i = 0; i < count; i++) {
    const float x = gate[i];
    // gelu: x · sigmoid(2 u), which is 0.5 x (1 + tanh u)
    const float u = gelu ? 1.5957691216f * (x + 0.044715f * x * x * x) : x;
    const float e = exp_below(u < 0 ? u : -u);
    const float sigmoid = (u < 0 ? e : 1.0f) / (1.0f + e);
    y[i] = x * sigmoid * up[i];
  }
}

// Rows of a dense matrix, bfloat16 or float32, times `count` rows of x: y[m][r], rows first..last.
void dense_rows(const void* weight, Type type, const float* x, int64_t count, int64_t rows, int64_t columns,
                int64_t first, int64_t last, float* y) {
  for (int64_t r = first; r < last; r++)
    for (int64_t m = 0; m < count; m++) {
      const float* from = x + m * columns;
      if (type == kFloat32) {
        const float* row = static_cast<const float*>(weight) + r * columns;
        y[m * rows + r] = dot_lanes(from, [row](int64_t i) { return row[i]; }, columns);
      } else {
        const uint16_t* row = static_cast<const uint16_t*>(weight) + r * columns;
        y[m * rows + r] = dot_lanes(from, [row](int64_t i) { return from_bfloat16(row[i]); }, columns);
      }
    }
}

// low = A x, A: (rank, columns).
void side(const float* x, const float* a, int64_t rank, int64_t columns, float* low) {
  for (int64_t k = 0; k < rank; k++) {
    const float* row = a + k * columns;
    low[k] = dot_lanes(x, [row](int64_t i) { return row[i]; }, columns);
  }
}

template <class Stored, class Number>
void attend_as(const float* q, const Cache& key, const Cache& value, int64_t group, int64_t dim, int64_t first,
               int64_t last, float scale, float* scores, float* out, Number number) {
  const int64_t length = last - first;
  for (int64_t p = 0; p < length; p++) {
    const Stored* k = static_cast<const Stored*>(key.at) + (first + p) * dim;
    const float by = key.scale ? scale * key.scale[first + p] : scale;
    for (int64_t h = 0; h < group; h++)
      scores[h * length + p] = by * dot_lanes(q + h * dim, [&](int64_t i) { return number(k[i]); }, dim);
  }
  for (int64_t h = 0; h < group; h++) {
    float* s = scores + h * length;
    float top = s[0], lanes[16] = {};
    for (int64_t p = 1; p < length; p++) top = std::max(top, s[p]);
    for (int64_t p = 0; p < length; p++) s[p] = exp_below(s[p] - top);
    for (int64_t p = 0; p < length; p++) lanes[p % 16] += s[p];
    const float inverse = 1.0f / sum_lanes(lanes);
    for (int64_t p = 0; p < length; p++) s[p] *= value.scale ? inverse * value.scale[first + p] : inverse;
    for (int64_t i = 0; i < dim; i++) out[h * dim + i] = 0.0f;
  }
  for (int64_t p = 0; p < length; p++) {
    const Stored* v = static_cast<const Stored*>(value.at) + (first + p) * dim;
    for (int64_t h = 0; h < group; h++) {
      const float by = scores[h * length + p];
      float* to = out + h * dim;
      for (int64_t i = 0; i < dim; i++) to[i] += by * number(v[i]);
    }
  }
}

// One key-value head and the `group` query heads that share it: q, out (group, dim), of positions first..last.
// scores: room for (group, last - first).
void attend(const float* q, const Cache& key, const Cache& value, int64_t group, int64_t dim, int64_t first,
            int64_t last, float scale, float* scores, float* out) {
  if (key.type == kFloat32)
    attend_as<float>(q, key, value, group, dim, first, last, scale, scores, out, [](float x) { return x; });
  else if (key.type == kBFloat16)
    attend_as<uint16_t>(q, key, value, group, dim, first, last, scale, scores, out, from_bfloat16);
  else
    attend_as<int8_t>(q, key, value, group, dim, first, last, scale, scores, out,
                      [](int8_t x) { return static_cast<float>(x); });
}
