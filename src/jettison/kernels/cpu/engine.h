// A whole decoder in one call: embedding, blocks, head; see engine.cpp. Python fills these structures: kernels/specs.py
// declares them, runtime/native_decoder.py fills them.

#pragma once
#include <cstdint>

#include "tiles.h"

namespace jettison {

// A linear: packed (bits 2, 3, 4, 8, kSparse4 or kSparse8), or dense (bits 16: bfloat16, 32: float32; tiles then holds
// W as (rows, columns)). It may have a LoRA adapter: y = W x + bias + scaling · B (A x), float32; lora_a: A (rank,
// columns), lora_b: B transposed (rank, rows). rows 0: the linear does not exist.
struct LinearSpec {
  const uint8_t* tiles;
  const uint8_t* zero;
  const float* bias;
  const float *lora_a, *lora_b;
  int64_t tiles_bytes, zero_bytes;
  int64_t rows, columns, span;
  int32_t bits, middle, scale_type, rank;
  float scaling;
};

// One expert of a mixture.
struct ExpertSpec {
  LinearSpec gate, up, down;
};

// All norms are RMS norms with float32 weights; null: the norm does not exist.
struct LayerSpec {
  const float *attention_norm, *q_norm, *k_norm, *after_attention_norm, *mlp_norm, *after_mlp_norm;
  LinearSpec q, k, v, o, gate, up, down;  // k, v with 0 rows: q holds all three; up with 0 rows: gate holds both
  int64_t window;                         // how many tokens attention sees; 0: all
  int32_t rope;                           // which of the model's two tables of angles
  // Mixture of experts, if expert_count is not 0; it replaces gate, up and down. The `chosen` experts with the highest
  // softmax of the router's outputs run. Their outputs are weighted by the softmax, whose chosen values are scaled to
  // sum to 1 if `normalized`.
  LinearSpec router;
  const ExpertSpec* experts;
  int64_t expert_count;
  int32_t chosen, normalized;
  // With 1 row, experts[expert_count] is a shared expert: it runs for every token, weighted by the sigmoid of this product.
  LinearSpec shared_gate;
  int64_t whole_norms;  // 1: q_norm and k_norm are over all heads together, not over each one
};

struct ModelSpec {
  int64_t hidden, heads, kv_heads, head_dim, rotary, intermediate, vocabulary, layers;
  const void* embedding;  // (vocabulary, hidden), bfloat16 or float32; null: the rows of `table`
  LinearSpec table;       // a packed embedding
  const float* final_norm;
  const float* frequency[2];  // two tables (rotary / 2): angles are position · frequency
  LinearSpec head;
  float epsilon, attention_scale, embedding_scale, rope_scale[2];
  int32_t gelu;            // 0: silu, 1: gelu by tanh
  int32_t embedding_type;  // a Type
  const LayerSpec* layer;
};

struct Session;

// Rows of tokens: row i is appended to session i. Rows of one session are neighbours, in the order of the text.
struct RowsSpec {
  int64_t count;
  const int32_t* token;
  Session* const* session;
  const uint8_t* wanted;  // for every row: 1 if its logits are written
  // Null: every row follows the one before. Else, for every row, the index of the row that it follows (an earlier one
  // of the same session), or -1 if it follows the tokens that the session already had. So drafts may branch;
  // jettison_session_keep then keeps the accepted branch.
  const int64_t* parent;
  // Null: everything runs. Else, for every block, which halves run: kAttention, kMlp. The others leave x unchanged.
  const uint8_t* halves;
  int32_t fine;  // 1: activations have 15 bits, not 8, in products with packed weights
  int32_t threads;
};
enum Half : uint8_t { kAttention = 1, kMlp = 2 };

}  // namespace jettison
