// A whole decoder in one call: embedding, blocks, head. See engine.cpp. Python fills these structures (decode/engine.py).

#pragma once
#include <cstdint>

#include "tiles.h"

namespace jettison {

// A linear: packed (bits 2, 3, 4, 8, or two of four) or dense (bits 16: bfloat16, 32: float32, tiles: (rows, columns)), and its LoRA adapter, if any:
// y = W x + bias + scaling · B (A x), A: (rank, columns), B: (rows, rank), float32. rows 0: there is none.
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

// All norms are RMS norms, float32 weights; null: there is none.
struct LayerSpec {
  const float *attention_norm, *q_norm, *k_norm, *after_attention_norm, *mlp_norm, *after_mlp_norm;
  LinearSpec q, k, v, o, gate, up, down;  // k, v without rows: q holds all three; up without: gate holds both
  int64_t window;                         // tokens that attention sees, 0: all
  int32_t rope;                           // which of the model's two tables
  // A mixture in the place of gate, up and down, where there are experts: the `chosen` likeliest by the softmax of what
  // the router gives, weighted by it, normalized to sum to 1 where `normalized`.
  LinearSpec router;
  const ExpertSpec* experts;
  int64_t expert_count;
  int32_t chosen, normalized;
};

struct ModelSpec {
  int64_t hidden, heads, kv_heads, head_dim, rotary, intermediate, vocabulary, layers;
  const void* embedding;  // (vocabulary, hidden), bfloat16 or float32
  const float* final_norm;
  const float* frequency[2];  // (rotary / 2) each: angles are position · frequency
  LinearSpec head;
  float epsilon, attention_scale, embedding_scale, rope_scale[2];
  int32_t gelu;            // 0: silu, 1: gelu by tanh
  int32_t embedding_type;  // a Type
  const LayerSpec* layer;
};

struct Session;

// Rows of tokens: row i is appended to session i. Rows of one session follow each other.
struct RowsSpec {
  int64_t count;
  const int32_t* token;
  Session* const* session;
  const uint8_t* wanted;  // of which rows logits are written
  // Null: each row follows the one before. Else the number of the row that a row follows, of the same session and before
  // it, or -1: what the session held. So drafts may branch; what is right of them is kept with jettison_session_keep.
  const int64_t* parent;
  // Null: all. Else of each block which halves run, kAttention and kMlp; what does not run passes the hidden states on.
  const uint8_t* halves;
  int32_t fine;  // 1: activations keep 15 bits where they meet packed weights, not 8
  int32_t threads;
};
enum Half : uint8_t { kAttention = 1, kMlp = 2 };

}  // namespace jettison
