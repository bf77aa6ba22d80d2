// The decoder: takes rows of tokens, returns logits.
//
// A row is one token of one sequence. Rows of the same sequence are neighbours: a prompt has many rows of one sequence,
// a batch one row of every sequence, a draft to be verified a few rows of a sequence. All rows go through a block
// together.

#include "engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "isa.h"
#include "linear.h"
#include "lookup.h"
#include "numbers.h"
#include "pool.h"

using namespace jettison;

namespace jettison {

constexpr int64_t kMostAtOnce = 512;  // rows that go through the blocks together; AT_ONCE in runtime/native_decoder.py
constexpr int64_t kRowsTogether = 8;  // rows of a sequence that share a pass over its keys and values

struct Engine {
  ModelSpec model;
  std::vector<LayerSpec> layers;
};

// Keys and values of one sequence: (layer, key-value head, capacity, head_dim), with int8 also scales (layer, head,
// capacity).
struct Session {
  int64_t capacity, length;
  Type type;
  std::vector<uint8_t> key, value;
  std::vector<float> key_scale, value_scale;

  int64_t size() const { return type == kFloat32 ? 4 : type == kBFloat16 ? 2 : 1; }

  // Store `dim` numbers at row `at` of `to`.
  void store(const float* from, int64_t dim, int64_t at, std::vector<uint8_t>& to, std::vector<float>& scale) {
    uint8_t* place = to.data() + at * dim * size();
    if (type == kFloat32) {
      std::memcpy(place, from, dim * 4);
    } else if (type == kBFloat16) {
      for (int64_t i = 0; i < dim; i++) {
        const uint16_t number = to_bfloat16(from[i]);
        std::memcpy(place + 2 * i, &number, 2);
      }
    } else {
      float top = 1e-30f;
      for (int64_t i = 0; i < dim; i++) top = std::max(top, std::fabs(from[i]));
      scale[at] = top / 127.0f;
      for (int64_t i = 0; i < dim; i++)
        place[i] = static_cast<uint8_t>(static_cast<int8_t>(std::nearbyintf(from[i] * (127.0f / top))));
    }
  }

  Cache head(const std::vector<uint8_t>& of, const std::vector<float>& scale, int64_t index, int64_t dim) const {
    const int64_t at = index * capacity;
    return {of.data() + at * dim * size(), type == kInt8 ? scale.data() + at : nullptr, type};
  }

  // Move position `from` of every head to position `to`.
  void move(int64_t from, int64_t to, int64_t heads, int64_t dim) {
    for (auto* numbers : {&key, &value})
      for (int64_t h = 0; h < heads; h++)
        std::memcpy(numbers->data() + (h * capacity + to) * dim * size(),
                    numbers->data() + (h * capacity + from) * dim * size(), dim * size());
    for (auto* scales : {&key_scale, &value_scale})
      for (int64_t h = 0; h < heads && !scales->empty(); h++) (*scales)[h * capacity + to] = (*scales)[h * capacity + from];
  }
};

namespace {

Weight weight_of(const LinearSpec& s) {
  return {s.tiles, s.zero, s.bias, s.rows, s.columns, s.span, s.bits, s.middle, static_cast<Type>(s.scale_type)};
}

bool is_dense(const LinearSpec& s) { return s.bits == 16 || s.bits == 32; }

bool sound(const LinearSpec& s, int64_t rows, int64_t columns) {
  if (s.rows != rows || s.columns != columns || (s.rank && !(s.lora_a && s.lora_b))) return false;
  if (is_dense(s)) return s.tiles && s.tiles_bytes == rows * columns * s.bits / 8;
  return fits(weight_of(s), s.tiles_bytes, s.zero_bytes);
}

// Whether the rows of a packed matrix can be looked up.
bool sound_table(const LinearSpec& s, int64_t rows, int64_t columns) {
  return !is_dense(s) && !is_sparse(s.bits) && sound(s, rows, columns);
}

bool sound_mixture(const LayerSpec& layer, int64_t hidden) {
  if (layer.expert_count < 1 || !layer.experts || layer.chosen < 1 || layer.chosen > layer.expert_count ||
      !sound(layer.router, layer.expert_count, hidden) ||
      (layer.shared_gate.rows && !sound(layer.shared_gate, 1, hidden)))
    return false;
  for (int64_t e = 0; e < layer.expert_count + layer.shared_gate.rows; e++) {
    const ExpertSpec& expert = layer.experts[e];
    const int64_t width = expert.down.columns;
    if (width < 1 || !sound(expert.gate, width, hidden) || !sound(expert.up, width, hidden) ||
        !sound(expert.down, hidden, width))
      return false;
  }
  return true;
}

bool sound(const ModelSpec& m) {
  const int64_t q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
  if (m.hidden < 1 || m.heads < 1 || m.kv_heads < 1 || m.head_dim < 1 || m.layers < 1 || m.vocabulary < 1 ||
      m.intermediate < 1 || m.heads % m.kv_heads || m.rotary < 0 || m.rotary > m.head_dim || m.rotary % 2 ||
      !(m.embedding || sound_table(m.table, m.vocabulary, m.hidden)) || !m.final_norm || !sound(m.head, m.vocabulary, m.hidden))
    return false;
  for (int64_t l = 0; l < m.layers; l++) {
    const LayerSpec& layer = m.layer[l];
    if (!layer.attention_norm || !layer.mlp_norm || layer.rope < 0 || layer.rope > 1 || !m.frequency[layer.rope] ||
        layer.window < 0)
      return false;
    const bool attention = layer.k.rows == 0 ? layer.v.rows == 0 && sound(layer.q, q + 2 * kv, m.hidden)
                                             : sound(layer.q, q, m.hidden) && sound(layer.k, kv, m.hidden) &&
                                                   sound(layer.v, kv, m.hidden);
    const bool mlp = layer.expert_count   ? sound_mixture(layer, m.hidden)
                     : layer.up.rows == 0 ? sound(layer.gate, 2 * m.intermediate, m.hidden)
                                        : sound(layer.gate, m.intermediate, m.hidden) &&
                                              sound(layer.up, m.intermediate, m.hidden);
    if (!attention || !mlp || !sound(layer.o, m.hidden, q) ||
        !(layer.expert_count || sound(layer.down, m.hidden, m.intermediate)))
      return false;
  }
  return true;
}

// Place of a row in its session, and the tokens that it follows.
struct Place {
  int64_t slot, position;      // index in the cache, and position in the text; they differ where drafts branch
  int64_t before;              // tokens in the session before this call
  // Slots of the rows of this call that it follows, its own slot last. Empty if nothing branches: all slots from
  // `before` on.
  std::vector<int64_t> path;
};

// Buffers and steps of one pass of up to kMostAtOnce rows through the model. x holds the hidden states.
struct Work {
  const Engine& engine;
  const Isa& isa;
  int64_t count;
  bool fine;
  int threads;
  const uint8_t* halves;
  Session* const* session;
  const Place* place;
  std::vector<float> x, normed, q, k, v, mixed, gate, up, low[3], cosine[2], sine[2];
  std::vector<std::pair<int64_t, int64_t>> together;  // first row and number of rows that share a pass over the cache
  std::vector<float> shares, picked;                   // of a mixture: router outputs, rows of one expert
  std::vector<int64_t> order;
  std::vector<std::vector<std::pair<int64_t, float>>> chosen;  // for every expert: (row, its weight) pairs

  void resize() {
    const ModelSpec& m = engine.model;
    const int64_t all = (m.heads + 2 * m.kv_heads) * m.head_dim;
    x.resize(count * m.hidden);
    normed.resize(count * std::max(m.hidden, m.intermediate));
    q.resize(count * all);
    k.resize(count * m.kv_heads * m.head_dim);
    v.resize(count * m.kv_heads * m.head_dim);
    mixed.resize(count * std::max(m.heads * m.head_dim, m.hidden));
    gate.resize(count * 2 * m.intermediate);
    up.resize(count * m.intermediate);
  }

  template <class Do>
  void each_row(Do work) {
    parallel(count, 4, threads, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; row++) work(row);
    });
  }

  void norm(const float* from, const float* weight, int64_t width, float* to) {
    each_row([&](int64_t row) {
      isa.rms_norm(from + row * width, weight, engine.model.epsilon, width, to + row * width);
    });
  }

  // Multiply the same activations (count, columns) with several linears; packed ones together.
  void multiply(std::initializer_list<std::pair<const LinearSpec*, float*>> products, const float* from) {
    std::vector<Product> packed;
    for (const auto& [spec, to] : products) {
      if (spec->rows == 0) continue;
      std::vector<float>& side = low[packed.size() % 3];
      if (spec->rank) {
        side.resize(count * spec->rank);
        each_row([&, s = spec](int64_t row) {
          isa.side(from + row * s->columns, s->lora_a, s->rank, s->columns, side.data() + row * s->rank);
        });
      }
      if (is_dense(*spec)) {
        dense(*spec, from, to);
        if (spec->rank) add_side(*spec, side.data(), to);
      } else {
        packed.push_back({weight_of(*spec), to, spec->rank ? side.data() : nullptr, spec->lora_b, spec->rank, spec->scaling});
      }
    }
    if (!packed.empty()) multiply_all(isa, packed, from, count, kFloat32, fine, threads);
  }

  void dense(const LinearSpec& s, const float* from, float* to) {
    parallel(s.rows, 32, threads, [&](int64_t first, int64_t last) {
      const Type type = s.bits == 16 ? kBFloat16 : kFloat32;
      isa.dense_rows(s.tiles, type, from, count, s.rows, s.columns, first, last, to);
      if (s.bias)
        for (int64_t m = 0; m < count; m++)
          for (int64_t r = first; r < last; r++) to[m * s.rows + r] += s.bias[r];
    });
  }

  void add_side(const LinearSpec& s, const float* side, float* to) {
    each_row([&](int64_t row) {
      for (int64_t k = 0; k < s.rank; k++)
        isa.add_scaled_row(to + row * s.rows, s.lora_b + k * s.rows, s.scaling * side[row * s.rank + k], s.rows);
    });
  }

  // Compute the rotary cosines and sines of all rows, (count, rotary / 2), for both tables.
  void angles() {
    const ModelSpec& m = engine.model;
    const int64_t half = m.rotary / 2;
    for (int t = 0; t < 2; t++) {
      if (!m.frequency[t]) continue;
      cosine[t].resize(count * half);
      sine[t].resize(count * half);
      each_row([&](int64_t row) {
        for (int64_t i = 0; i < half; i++) {
          const float angle = static_cast<float>(place[row].position) * m.frequency[t][i];
          cosine[t][row * half + i] = std::cos(angle) * m.rope_scale[t];
          sine[t][row * half + i] = std::sin(angle) * m.rope_scale[t];
        }
      });
    }
  }

  // Rotate one head in place by the angles of its row; the first half of the numbers pairs with the second.
  void rotate(float* head, int64_t row, int table) const {
    const int64_t half = engine.model.rotary / 2;
    const float *c = cosine[table].data() + row * half, *s = sine[table].data() + row * half;
    for (int64_t i = 0; i < half; i++) {
      const float a = head[i], b = head[half + i];
      head[i] = a * c[i] - b * s[i];
      head[half + i] = b * c[i] + a * s[i];
    }
  }

  // Attention of block `index`: project, rotate, store keys and values, attend, add to x.
  void attention(int64_t index) {
    const ModelSpec& m = engine.model;
    const LayerSpec& layer = engine.layers[index];
    const int64_t d = m.head_dim, wide_q = m.heads * d, wide_kv = m.kv_heads * d, group = m.heads / m.kv_heads;
    const bool fused = layer.k.rows == 0;
    const int64_t q_stride = fused ? wide_q + 2 * wide_kv : wide_q, kv_stride = fused ? q_stride : wide_kv;
    float* keys = fused ? q.data() + wide_q : k.data();
    float* values = fused ? q.data() + wide_q + wide_kv : v.data();
    multiply({{&layer.q, q.data()}, {&layer.k, k.data()}, {&layer.v, v.data()}}, normed.data());

    const bool apart = !layer.whole_norms;
    each_row([&](int64_t row) {
      float *all_q = q.data() + row * q_stride, *all_k = keys + row * kv_stride;
      if (layer.q_norm && !apart) isa.rms_norm(all_q, layer.q_norm, m.epsilon, wide_q, all_q);
      if (layer.k_norm && !apart) isa.rms_norm(all_k, layer.k_norm, m.epsilon, wide_kv, all_k);
      for (int64_t h = 0; h < m.heads; h++) {
        float* head = all_q + h * d;
        if (layer.q_norm && apart) isa.rms_norm(head, layer.q_norm, m.epsilon, d, head);
        rotate(head, row, layer.rope);
      }
      for (int64_t h = 0; h < m.kv_heads; h++) {
        float *head = all_k + h * d, *value = values + row * kv_stride + h * d;
        if (layer.k_norm && apart) isa.rms_norm(head, layer.k_norm, m.epsilon, d, head);
        rotate(head, row, layer.rope);
        Session& s = *session[row];
        const int64_t at = (index * m.kv_heads + h) * s.capacity + place[row].slot;
        s.store(head, d, at, s.key, s.key_scale);
        s.store(value, d, at, s.value, s.value_scale);
      }
    });
    parallel(together.size() * m.kv_heads, 1, threads, [&](int64_t first, int64_t last) {
      thread_local std::vector<Query> queries;
      thread_local std::vector<float> scores;
      for (int64_t item = first; item < last; item++) {
        const auto [from, rows] = together[item / m.kv_heads];
        const int64_t h = item % m.kv_heads, at = index * m.kv_heads + h;
        int64_t room = 0;
        queries.clear();
        for (int64_t row = from; row < from + rows; row++) {
          const Place& p = place[row];
          const int64_t end = p.position + 1, begin = layer.window ? std::max<int64_t>(0, end - layer.window) : 0;
          const int64_t own = p.path.size(), skipped = std::min(own, std::max<int64_t>(0, begin - p.before));
          const int64_t last = own ? p.before : end, first = std::min(begin, last);
          for (int64_t i = h * group; i < (h + 1) * group; i++, room += end - begin)
            queries.push_back({q.data() + row * q_stride + i * d, mixed.data() + row * wide_q + i * d, nullptr, first, last,
                               p.path.data() + skipped, own - skipped});
        }
        if (static_cast<int64_t>(scores.size()) < room) scores.resize(room);
        float* free = scores.data();
        for (Query& query : queries) query.scores = free, free += query.last - query.first + query.tail_count;
        const Session& s = *session[from];
        isa.attend(queries.data(), queries.size(), s.head(s.key, s.key_scale, at, d),
                   s.head(s.value, s.value_scale, at, d), d, m.attention_scale);
      }
    });
    multiply({{&layer.o, q.data()}}, mixed.data());
    add(q, layer.after_attention_norm);
  }

  void mlp(const LayerSpec& layer) {
    const int64_t width = engine.model.intermediate;
    const bool fused = layer.up.rows == 0;
    multiply({{&layer.gate, gate.data()}, {&layer.up, up.data()}}, normed.data());
    each_row([&](int64_t row) {
      const float* from = gate.data() + row * width * (fused ? 2 : 1);
      isa.gated(from, fused ? from + width : up.data() + row * width, engine.model.gelu, width, normed.data() + row * width);
    });
    multiply({{&layer.down, q.data()}}, normed.data());
    add(q, layer.after_mlp_norm);
  }

  // Mixture of experts. Rows that chose the same expert go through it together.
  void mixture(const LayerSpec& layer) {
    const int64_t hidden = engine.model.hidden, experts = layer.expert_count, rows = count;
    shares.resize(rows * experts);
    multiply({{&layer.router, shares.data()}}, normed.data());
    chosen.assign(experts + layer.shared_gate.rows, {});
    for (int64_t row = 0; row < rows; row++) {
      const float* of = shares.data() + row * experts;
      order.resize(experts);
      for (int64_t e = 0; e < experts; e++) order[e] = e;
      std::partial_sort(order.begin(), order.begin() + layer.chosen, order.end(),
                        [of](int64_t a, int64_t b) { return of[a] > of[b] || (of[a] == of[b] && a < b); });
      float all = 0.0f, best = 0.0f;
      for (int64_t e = 0; e < experts; e++) all += std::exp(of[e] - of[order[0]]);
      for (int i = 0; i < layer.chosen; i++) best += std::exp(of[order[i]] - of[order[0]]);
      for (int i = 0; i < layer.chosen; i++)
        chosen[order[i]].push_back({row, std::exp(of[order[i]] - of[order[0]]) / (layer.normalized ? best : all)});
    }
    if (layer.shared_gate.rows) {
      multiply({{&layer.shared_gate, shares.data()}}, normed.data());  // one number per row
      for (int64_t row = 0; row < rows; row++)
        chosen[experts].push_back({row, 1.0f / (1.0f + std::exp(-shares[row]))});
    }
    for (int64_t e = 0; e < static_cast<int64_t>(chosen.size()); e++) {
      if (chosen[e].empty()) continue;
      const ExpertSpec& expert = layer.experts[e];
      const int64_t width = expert.down.columns;
      count = static_cast<int64_t>(chosen[e].size());
      picked.resize(count * std::max(hidden, width));
      gate.resize(std::max<size_t>(gate.size(), count * std::max(hidden, width)));
      up.resize(std::max<size_t>(up.size(), count * width));
      for (int64_t i = 0; i < count; i++)
        std::memcpy(picked.data() + i * hidden, normed.data() + chosen[e][i].first * hidden, hidden * sizeof(float));
      multiply({{&expert.gate, gate.data()}, {&expert.up, up.data()}}, picked.data());
      each_row([&](int64_t i) {
        isa.gated(gate.data() + i * width, up.data() + i * width, engine.model.gelu, width, picked.data() + i * width);
      });
      multiply({{&expert.down, gate.data()}}, picked.data());
      for (int64_t i = 0; i < count; i++)
        isa.add_scaled_row(x.data() + chosen[e][i].first * hidden, gate.data() + i * hidden, chosen[e][i].second, hidden);
      count = rows;
    }
  }

  // x += change. `weight`: of the RMS norm that is applied to the change first, or null.
  void add(std::vector<float>& change, const float* weight) {
    const int64_t hidden = engine.model.hidden;
    each_row([&](int64_t row) {
      float *from = change.data() + row * hidden, *to = x.data() + row * hidden;
      if (weight) isa.rms_norm(from, weight, engine.model.epsilon, hidden, from);
      for (int64_t i = 0; i < hidden; i++) to[i] += from[i];
    });
  }

  // Run the whole model; write the logits of the wanted rows.
  void run(const int32_t* tokens, const uint8_t* wanted, float* logits) {
    const ModelSpec& m = engine.model;
    resize();
    q.resize(std::max<size_t>(q.size(), count * m.hidden));
    each_row([&](int64_t row) {
      const int64_t at = tokens[row] * m.hidden;
      float* to = x.data() + row * m.hidden;
      if (!m.embedding) look_up(weight_of(m.table), tokens[row], to);
      for (int64_t i = 0; i < m.hidden; i++) {
        if (m.embedding)
          to[i] = m.embedding_type == kFloat32 ? static_cast<const float*>(m.embedding)[at + i]
                                               : from_bfloat16(static_cast<const uint16_t*>(m.embedding)[at + i]);
        to[i] *= m.embedding_scale;
      }
    });
    angles();
    for (int64_t row = 0; row < count; row++)
      if (row && session[row] == session[row - 1] && together.back().second < kRowsTogether) together.back().second++;
      else together.push_back({row, 1});
    for (int64_t l = 0; l < m.layers; l++) {
      const LayerSpec& layer = engine.layers[l];
      const uint8_t run = halves ? halves[l] : kAttention | kMlp;
      if (run & kAttention) {
        norm(x.data(), layer.attention_norm, m.hidden, normed.data());
        attention(l);
      }
      if (run & kMlp) {
        norm(x.data(), layer.mlp_norm, m.hidden, normed.data());
        layer.expert_count ? mixture(layer) : mlp(layer);
      }
    }
    int64_t kept = 0;
    for (int64_t row = 0; row < count; row++)
      if (wanted[row]) std::memmove(x.data() + kept++ * m.hidden, x.data() + row * m.hidden, m.hidden * sizeof(float));
    if (!kept) return;
    count = kept;
    norm(x.data(), m.final_norm, m.hidden, normed.data());
    multiply({{&m.head, logits}}, normed.data());
  }
};

}  // namespace
}  // namespace jettison

// Make an engine for a model. It reads the model's tensors in place, so they must outlive it. Returns kBadSize if sizes
// do not fit together.
PUBLIC int jettison_engine_new(const ModelSpec* model, Engine** made) {
  return guarded([&] {
    if (!sound(*model)) return kBadSize;
    auto engine = std::make_unique<Engine>();
    engine->layers.assign(model->layer, model->layer + model->layers);
    engine->model = *model;
    engine->model.layer = engine->layers.data();
    *made = engine.release();
    return kDone;
  });
}

PUBLIC void jettison_engine_free(Engine* engine) { delete engine; }

// Make an empty session. type: of keys and values, float32, bfloat16 or int8.
PUBLIC int jettison_session_new(const Engine* engine, int64_t capacity, int type, Session** made) {
  const ModelSpec& m = engine->model;
  if (capacity < 1 || capacity > (int64_t{1} << 32) || (type != kFloat32 && type != kBFloat16 && type != kInt8))
    return kBadSize;
  return guarded([&] {
    auto session = std::make_unique<Session>();
    session->capacity = capacity;
    session->length = 0;
    session->type = static_cast<Type>(type);
    int64_t places = 0, bytes = 0;
    if (__builtin_mul_overflow(m.layers * m.kv_heads, capacity, &places) ||
        __builtin_mul_overflow(places, m.head_dim * session->size(), &bytes))
      throw std::bad_alloc();
    session->key.resize(bytes);
    session->value.resize(bytes);
    if (type == kInt8) session->key_scale.resize(places), session->value_scale.resize(places);
    *made = session.release();
    return kDone;
  });
}

PUBLIC void jettison_session_free(Session* session) { delete session; }

PUBLIC int64_t jettison_session_length(const Session* session) { return session->length; }

// Remove all but the first `length` tokens. A longer `length` changes nothing.
PUBLIC void jettison_session_cut(Session* session, int64_t length) {
  session->length = std::clamp<int64_t>(length, 0, session->length);
}

// Keep the first `length` tokens and, directly after them, those at `slots`; remove the others. slots: ascending, at
// least `length`. It turns the accepted branch of a draft into plain text.
PUBLIC int jettison_session_keep(const Engine* engine, Session* session, int64_t length, const int64_t* slots, int64_t count) {
  if (length < 0 || length > session->length || count < 0) return kBadSize;
  for (int64_t i = 0; i < count; i++)
    if (slots[i] < (i ? slots[i - 1] + 1 : length) || slots[i] >= session->length) return kBadSize;
  const ModelSpec& m = engine->model;
  for (int64_t i = 0; i < count; i++)
    if (slots[i] != length + i) session->move(slots[i], length + i, m.layers * m.kv_heads, m.head_dim);
  session->length = length + count;
  return kDone;
}

// Append rows of tokens. Write the logits (wanted rows, vocabulary). If it fails, nothing is appended.
PUBLIC int jettison_forward(const Engine* engine, const RowsSpec* rows, float* logits) {
  const ModelSpec& m = engine->model;
  const int64_t count = rows->count;
  if (count < 1 || count > kMostCount || (rows->parent && count > kMostAtOnce)) return kBadSize;
  for (int64_t row = 0; row < count; row++) {
    if (rows->token[row] < 0 || rows->token[row] >= m.vocabulary) return kBadToken;
    if (!rows->parent) continue;
    const int64_t parent = rows->parent[row];
    if (parent < -1 || parent >= row || (parent >= 0 && rows->session[parent] != rows->session[row])) return kBadSize;
  }
  std::vector<std::pair<Session*, int64_t>> before;
  const int status = guarded([&] {
    std::vector<Place> place(count);
    for (int64_t row = 0; row < count; row++) {
      Session* session = rows->session[row];
      const bool first = row == 0 || session != rows->session[row - 1];
      if (first) before.push_back({session, session->length});
      Place& p = place[row];
      p.before = first ? session->length : place[row - 1].before;
      p.slot = p.position = session->length++;
      if (rows->parent) {
        const int64_t parent = rows->parent[row];
        p.position = parent < 0 ? p.before : place[parent].position + 1;
        if (parent >= 0) p.path = place[parent].path;
        p.path.push_back(p.slot);
      }
    }
    for (const auto& [session, length] : before)
      if (session->length > session->capacity) return kFull;
    for (int64_t first = 0; first < count; first += kMostAtOnce) {
      const int64_t now = std::min(kMostAtOnce, count - first);
      Work work{*engine, current_isa(), now, rows->fine != 0, rows->threads > 0 ? rows->threads : physical_cores(),
                rows->halves, rows->session + first, place.data() + first};
      work.run(rows->token + first, rows->wanted + first, logits);
      for (int64_t row = first; row < first + now; row++) logits += rows->wanted[row] ? m.vocabulary : 0;
    }
    return kDone;
  });
  if (status != kDone)  // nothing was appended
    for (auto it = before.rbegin(); it != before.rend(); ++it) it->first->length = it->second;
  return status;
}
