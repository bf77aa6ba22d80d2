#include "linear.h"

#include <algorithm>
#include <vector>

#include "pool.h"

namespace jettison {
namespace {

constexpr int64_t kAlone = 96 << 10;  // bytes of weights times rows of x; less is not worth a second thread

// Buffers of activations, kept between calls per calling thread. A weight with the same groups as the one before it
// uses the same activations.
struct Scratch {
  std::vector<int8_t> value;
  std::vector<float> scale;
  std::vector<int32_t> sum;

  Activations room(int64_t count, const Weight& w) {
    const size_t groups = count * w.groups(), values = groups * w.width();
    // scale is resized last: its size is tested, and both may throw
    if (scale.size() < groups) sum.resize(groups), scale.resize(groups);
    if (value.size() < values) value.resize(values);
    return {value.data(), scale.data(), sum.data()};
  }
};
constexpr size_t kMostProducts = 3;
thread_local Scratch scratch[kMostProducts];

int64_t size_of(Type type) { return type == kFloat32 ? 4 : 2; }

void add_side_path(const Isa& isa, const Product& product, const Call& call, int64_t row, int64_t first, int64_t last) {
  const int64_t rows = product.weight.rows;
  float* y = static_cast<float*>(call.y);
  for (int64_t m = 0; m < call.count; m++)
    for (int64_t k = 0; k < product.rank; k++) {
      const float by = product.scaling * product.low[(row + m) * product.rank + k];
      isa.add_scaled_row(y + m * rows + first, product.up + k * rows + first, by, last - first);
    }
}

}  // namespace

void multiply_all(const Isa& isa, std::span<const Product> products, const void* x, int64_t count, Type type, bool fine,
                  int threads) {
  if (threads <= 0) threads = physical_cores();
  for (int64_t row = 0; row < count; row += kRowsAtOnce) {
    const int64_t now = std::min(kRowsAtOnce, count - row);
    Call calls[kMostProducts];
    int64_t ends[kMostProducts], tiles = 0, bytes = 0;
    for (size_t i = 0; i < products.size(); i++) {
      const Weight& w = products[i].weight;
      const bool same = i > 0 && w.span == products[i - 1].weight.span && w.width() == products[i - 1].weight.width();
      calls[i] = {w, same ? calls[i - 1].act : scratch[i].room(now << fine, w),
                  static_cast<const uint8_t*>(x) + row * w.columns * size_of(type),
                  static_cast<uint8_t*>(products[i].y) + row * w.rows * size_of(type), now, type, fine};
      if (!same) parallel(now, 16, threads, [&](int64_t from, int64_t to) { isa.quantize(calls[i], from, to); });
      ends[i] = tiles += w.tile_count();
      bytes += w.tile_count() * w.tile_bytes();
    }
    const int64_t chunk = std::max<int64_t>(1, std::min<int64_t>(4, tiles / (32 * threads)));
    parallel(tiles, chunk, bytes * now < kAlone ? 1 : threads, [&](int64_t from, int64_t to) {
      for (size_t i = 0; i < products.size() && from < to; i++) {
        if (from >= ends[i]) continue;
        const int64_t before = i ? ends[i - 1] : 0, last = std::min(to, ends[i]);
        isa.multiply(calls[i], from - before, last - before);
        if (products[i].rank)
          add_side_path(isa, products[i], calls[i], row, (from - before) * kTileRows,
                        std::min((last - before) * kTileRows, products[i].weight.rows));
        from = last;
      }
    });
  }
}

}  // namespace jettison
