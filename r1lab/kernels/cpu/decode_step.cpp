// The whole decode step of a DeepSeek-V3 policy in one call: embed, absorbed MLA over latent caches, dense or routed
// SwiGLU, head, sampling; many steps per call. The truth is reference/decode_step.py; same names, same arithmetic.
//
// Every output is accumulated over k in order, whatever rows share the block, and a row's attention reads its own cache
// only: results do not depend, bitwise, on the batch, the blocking or the number of threads. The training pass (ops.py)
// runs its sums in the same orders, and gets the same bits (tests/grpo/test_rollout_equals_training.py).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "common.h"
#include "e4m3.h"
#include "latent_attention.h"
#include "running_softmax.h"

namespace {

using namespace r1lab;

// Rows that go through the layers together: activations stay in L2 (1 MB or more beside AVX-512), weights pass by once.
constexpr int BLOCK_ROWS = LANES == 16 ? 128 : 64;

// -- matrix product: out[m][n] = bias[n] + sum_k in[m][k] * weight[n][k], weights packed [n / 16][k][16] --------------

constexpr int OUTPUTS = 16;                // of a panel of weights
constexpr int VECTORS = OUTPUTS / LANES;   // of a row of a panel
constexpr int STRIP = TILE_ROWS;           // most rows of one micro-kernel

struct Product {
  const float* in;
  int in_stride;
  const float* panels;
  int k_size, n_size;
  const float* bias;  // null: 0
  float* out;
  int out_stride;

  Product from_row(int row) const {
    Product rest = *this;
    rest.in += static_cast<size_t>(row) * in_stride;
    rest.out += static_cast<size_t>(row) * out_stride;
    return rest;
  }
  Product from_column(int column) const {
    Product rest = *this;
    rest.panels += static_cast<size_t>(column / OUTPUTS) * k_size * OUTPUTS;
    rest.n_size -= column;
    rest.bias = bias ? bias + column : nullptr;
    rest.out += column;
    return rest;
  }
};

// The first MR rows times W vectors of outputs, which begin FIRST vectors into the first panel; all sums in registers
// over the whole of k. Meanwhile the panel `ahead` is fetched: weights come from beyond L2, and no hardware looks that
// far.
template <int MR, int W, int FIRST>
R1LAB_INLINE void micro_kernel(const Product& p, const float* ahead) {
  vec acc[MR][W];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 12
    for (int j = 0; j < W; ++j) acc[m][j] = vec{};
  const int64_t panel_size = static_cast<int64_t>(p.k_size) * OUTPUTS, in_stride = p.in_stride;
  const float *in = p.in, *weights = p.panels;
  for (int k = 0; k < p.k_size; ++k, ++in, weights += OUTPUTS, ahead += OUTPUTS) {
    __builtin_prefetch(ahead);
    const auto weight_at = [&](int j) {
      return load(weights + (FIRST + j) / VECTORS * panel_size + (FIRST + j) % VECTORS * LANES);
    };
    if constexpr (MR < W) {
      vec x[MR];
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) x[m] = splat(in[m * in_stride]);
#pragma GCC unroll 12
      for (int j = 0; j < W; ++j) {
        const vec weight = in_register(weight_at(j));
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) acc[m][j] = multiply_add(x[m], weight, acc[m][j]);
      }
    } else {
      vec weight[W];
#pragma GCC unroll 12
      for (int j = 0; j < W; ++j) weight[j] = in_register(weight_at(j));
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        const vec x = splat(in[m * in_stride]);
#pragma GCC unroll 12
        for (int j = 0; j < W; ++j) acc[m][j] = multiply_add(x, weight[j], acc[m][j]);
      }
    }
  }
  if (p.bias) {  // last, as in the training pass
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 12
      for (int j = 0; j < W; ++j) acc[m][j] += load(p.bias + j * LANES);
  }
  float* out = p.out;
  const int out_stride = p.out_stride;
  if (p.n_size >= W * LANES) {
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 12
      for (int j = 0; j < W; ++j) store(out + static_cast<size_t>(m) * out_stride + j * LANES, acc[m][j]);
    return;
  }
  float tile[MR][W * LANES];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 12
    for (int j = 0; j < W; ++j) store(tile[m] + j * LANES, acc[m][j]);
  for (int m = 0; m < MR; ++m)
    std::memcpy(out + static_cast<size_t>(m) * out_stride, tile[m], p.n_size * sizeof(float));
}

// Vectors at a time for MR rows: about twelve sums in flight, for the latency of an addition.
constexpr int vectors_for(int MR) { return MR == 1 ? 8 : std::max(2, 12 / MR); }

// `rows` rows, a multiple of MR, times the outputs from `column` on. Weights outside: they stay in L1, the rows stream
// from L2.
template <int MR, int W = vectors_for(MR)>
void multiply_strips(const Product& product, int rows, int column = 0) {
  constexpr int WIDTH = W * LANES, NUM_AHEAD = (WIDTH + OUTPUTS - 1) / OUTPUTS;
  const int num_columns = static_cast<int>(round_up(product.n_size, LANES));
  for (; column + WIDTH <= num_columns; column += WIDTH)
    for (int row = 0; row < rows; row += MR) {  // strips fetch the panels of the next columns in turns
      const int next = static_cast<int>(round_up(column + WIDTH, OUTPUTS)) + row / MR % NUM_AHEAD * OUTPUTS;
      const float* ahead = product.from_column(std::min(next, num_columns - 1)).panels;
      const Product part = product.from_column(column).from_row(row);
      if constexpr (VECTORS > 1 && W % 2 == 1)
        if (column % OUTPUTS) {
          micro_kernel<MR, W, 1>(part, ahead);
          continue;
        }
      micro_kernel<MR, W, 0>(part, ahead);
    }
  if constexpr (W > 1)
    if (column < num_columns) multiply_strips<MR, W / 2>(product, rows, column);
}

template <int MR = STRIP>
void multiply_strips_of(int strip, const Product& product, int rows) {
  if (strip == MR) return multiply_strips<MR>(product, rows);
  if constexpr (MR > 1) multiply_strips_of<MR - 1>(strip, product, rows);
}

// Strips as even as can be: 13 rows are 5 + 4 + 4, since the last one of 6 + 6 + 1 would wait for its weights.
void gemm(const float* in, int in_stride, const float* panels, int k_size, int n_size, const float* bias, float* out,
          int out_stride, int rows) {
  if (!rows) return;
  const Product product{in, in_stride, panels, k_size, n_size, bias, out, out_stride};
  const int num_strips = static_cast<int>(ceil_div(rows, STRIP)), strip = rows / num_strips;
  const int larger = rows % num_strips * (strip + 1);
  if (larger) multiply_strips_of(strip + 1, product, larger);
  multiply_strips_of(strip, product.from_row(larger), rows - larger);
}

// The part of packed weights [num_total / 16][num_in][16] that holds outputs first .. first + num_out: the transpose.
void pack(const float* weight, int64_t out_stride, int64_t in_stride, int num_out, int num_in, int first,
          float* panels) {
  for (int n = 0, width; n < num_out; n += width) {
    const int lane = (first + n) % OUTPUTS;
    width = std::min(OUTPUTS - lane, num_out - n);
    const float* from = weight + n * out_stride;
    float* to = panels + static_cast<size_t>((first + n) / OUTPUTS) * num_in * OUTPUTS + lane;
    const auto copy = [&](auto width) {
      for (int k = 0; k < num_in; ++k, from += in_stride, to += OUTPUTS)
        for (int i = 0; i < width; ++i) to[i] = from[i * out_stride];
    };
    if (width == OUTPUTS)
      copy(std::integral_constant<int, OUTPUTS>());
    else
      copy(width);
  }
}

}  // namespace

// -- what Python passes: mirrored field by field in cpu/decode_step.py ------------------------------------------------

extern "C" {

struct R1Layer {
  const float *input_norm, *qkv_a, *qkv_a_bias, *q_norm, *q_b, *kv_norm, *key_up, *value_up, *o, *o_bias, *mlp_norm;
  const float *mlp_gate_up, *mlp_down, *router, *router_bias, *experts_gate_up, *experts_down;
  int32_t mlp_size, moe_size;
  int32_t moe_number;  // layers with experts before this one
  int32_t fp8;         // whether products take their inputs as rounded to E4M3
};

struct R1Mtp {  // the multi-token-prediction module; its block is layers[num_layers], with a cache of its own
  const float *enorm, *hnorm, *eh_proj, *norm;
  float* hidden;    // [slots][capacity][hidden]: final states of the tokens fed so far
  int32_t* tokens;  // [slots][capacity]: those tokens
  int32_t* length;  // [slots]: for how many positions the module's cache is filled
};

struct R1Model {
  int32_t num_layers, vocab, hidden, heads, q_rank, kv_rank, rope, nope, v_dim;
  int32_t experts, top_k, n_group, topk_group, norm_topk_prob, rope_interleave;
  int32_t num_slots, capacity;  // capacity: positions per slot, a multiple of 8
  int32_t num_moe_layers;       // of the num_layers
  float eps, q_eps, kv_eps, attention_scaling, routed_scaling;
  const float *embed, *norm, *head, *cos, *sin;
  const R1Layer* layers;
  float* cache;      // [layers][slots][capacity / 8][kv_rank + rope][8]
  const R1Mtp* mtp;  // null: none
  int16_t* routing;  // [slots][capacity][num_moe_layers][top_k]: the experts chosen; null: not recorded
};

struct R1Sampling {
  double top_p;
  float temperature;
  int32_t top_k;
  const uint8_t *banned, *stop;  // banned: null when nothing is
};

struct R1Requests {
  const int32_t* slot;
  int32_t *token, *position;
  const uint64_t* stream;
  const int32_t* limit;
  int32_t *count, *status, *token_ids;
  float* logps;
  int32_t *drafted, *accepted;
  int64_t row_stride;  // of token_ids and logps
};

}  // extern "C"

namespace {

enum Status { RUNNING = 0, STOP = 1, LENGTH = 2, NOT_FINITE = 3 };

// Scratch memory of one thread, for one block of rows.
struct Workspace {
  std::vector<float> x, normed, qkv, q_low, q, q_latent, context, attended, gate_up, act, expert_in, expert_out,
      experts_sum, router, topk_weight, logits, probs;
  std::vector<int32_t> topk_idx, expert_rows, order;
  std::vector<float> expert_weights;
  std::vector<double> block_sums;
  LatentScratch latent;
  int logits_stride;

  Workspace(const R1Model& model, int rows) : latent(model.heads) {
    const int latent_size = model.kv_rank + model.rope, head_dim = model.nope + model.rope;
    const int q_size = model.q_rank ? model.q_rank : model.heads * head_dim;
    int inner = 0;
    for (int i = 0; i < model.num_layers + (model.mtp != nullptr); ++i)
      inner = std::max({inner, model.layers[i].mlp_size, model.layers[i].moe_size});
    const size_t m = rows;
    x.resize(m * model.hidden);
    normed.resize(m * model.hidden);
    qkv.resize(m * (q_size + latent_size));
    q_low.resize(m * model.q_rank);
    q.resize(m * model.heads * head_dim);
    q_latent.resize(m * model.heads * latent_size);
    context.resize(m * model.heads * model.kv_rank);
    attended.resize(m * model.heads * model.v_dim);
    gate_up.resize(m * 2 * inner);
    act.resize(m * inner);
    expert_in.resize(m * model.hidden);
    expert_out.resize(m * model.hidden);
    experts_sum.resize(m * model.hidden);
    router.resize(m * model.experts + 2 * model.experts);
    topk_idx.resize(m * model.top_k);
    topk_weight.resize(m * model.top_k);
    expert_rows.resize(m);
    expert_weights.resize(m);
    logits_stride = round_up(model.vocab, LANES);
  }

  void reserve_logits(int rows, int vocab) {
    logits.resize(static_cast<size_t>(rows) * logits_stride);
    probs.resize(logits_stride);
    order.resize(vocab);
    block_sums.resize(vocab / 64 + 1);
  }
};

void rms_norm(const float* in, int in_stride, const float* weight, float eps, int size, float* out, int out_stride,
              int rows) {
  for (int m = 0; m < rows; ++m, in += in_stride, out += out_stride) rms_norm_row(in, weight, eps, size, out);
}

// What an FP8 layer's products see of their inputs.
inline void round_rows(const R1Layer& layer, float* x, int stride, int size, int rows) {
  if (!layer.fp8) return;
  for (int m = 0; m < rows; ++m) round_row(x + static_cast<size_t>(m) * stride, size);
}

inline void add_to(float* x, const float* y, size_t size) {
  for (size_t i = 0; i < size; ++i) x[i] += y[i];
}

// -- attention --------------------------------------------------------------------------------------------------------

inline float* cache_of(const R1Model& model, int layer, int slot) {
  const size_t slot_size = static_cast<size_t>(model.capacity) * (model.kv_rank + model.rope);
  return model.cache + (static_cast<size_t>(layer) * model.num_slots + slot) * slot_size;
}

// Norm and rotate the rows' new latents and keys into their caches; kv: in ws.qkv, normed in place.
void append_cache(const R1Model& model, int index, float* kv, int stride, const int32_t* slot, const int32_t* position,
                  int rows) {
  const R1Layer& layer = model.layers[index];
  const int latent = model.kv_rank + model.rope, half = model.rope / 2;
  rms_norm(kv, stride, layer.kv_norm, model.kv_eps, model.kv_rank, kv, stride, rows);
  round_rows(layer, kv, stride, model.kv_rank, rows);
  for (int m = 0; m < rows; ++m, kv += stride) {
    const size_t block = static_cast<size_t>(position[m] / POSITIONS) * latent * POSITIONS;
    float* entry = cache_of(model, index, slot[m]) + block + position[m] % POSITIONS;
    // Positions behind the last are multiplied by 0, which does not take away a NaN that somebody left there.
    if (position[m] % POSITIONS == 0) std::fill_n(entry, static_cast<size_t>(latent) * POSITIONS, 0.0f);
    for (int c = 0; c < model.kv_rank; ++c) entry[c * POSITIONS] = kv[c];
    const size_t angle = static_cast<size_t>(position[m]) * half;
    rotate(kv + model.kv_rank, model.cos + angle, model.sin + angle, model.rope, model.rope_interleave,
           entry + model.kv_rank * POSITIONS, POSITIONS);
  }
}

// What leads from ws.x to ws.qkv: [q or its low-rank form; latent; rotary key] of each row. Returns its stride.
int project_qkv(const R1Model& model, const R1Layer& layer, int rows, Workspace& ws) {
  const int q_size = model.q_rank ? model.q_rank : model.heads * (model.nope + model.rope);
  const int stride = q_size + model.kv_rank + model.rope;
  rms_norm(ws.x.data(), model.hidden, layer.input_norm, model.eps, model.hidden, ws.normed.data(), model.hidden, rows);
  round_rows(layer, ws.normed.data(), model.hidden, model.hidden, rows);
  gemm(ws.normed.data(), model.hidden, layer.qkv_a, model.hidden, stride, layer.qkv_a_bias, ws.qkv.data(), stride,
       rows);
  return stride;
}

// Adds the attention's output to ws.x.
void attention(const R1Model& model, int index, const int32_t* slot, const int32_t* position, int rows, Workspace& ws) {
  const R1Layer& layer = model.layers[index];
  const int latent = model.kv_rank + model.rope, head_dim = model.nope + model.rope, half = model.rope / 2;
  const int q_size = model.heads * head_dim, first = model.q_rank ? model.q_rank : q_size;
  const int stride = project_qkv(model, layer, rows, ws);
  const float* q = ws.qkv.data();
  int q_stride = stride;
  if (model.q_rank) {
    rms_norm(q, stride, layer.q_norm, model.q_eps, model.q_rank, ws.q_low.data(), model.q_rank, rows);
    round_rows(layer, ws.q_low.data(), model.q_rank, model.q_rank, rows);
    gemm(ws.q_low.data(), model.q_rank, layer.q_b, model.q_rank, q_size, nullptr, ws.q.data(), q_size, rows);
    q = ws.q.data();
    q_stride = q_size;
  }
  const size_t key_panels = static_cast<size_t>(round_up(model.kv_rank, OUTPUTS)) * model.nope;
  const size_t value_panels = static_cast<size_t>(round_up(model.v_dim, OUTPUTS)) * model.kv_rank;
  for (int h = 0; h < model.heads; ++h)
    gemm(q + h * head_dim, q_stride, layer.key_up + h * key_panels, model.nope, model.kv_rank, nullptr,
         ws.q_latent.data() + h * latent, model.heads * latent, rows);
  append_cache(model, index, ws.qkv.data() + first, stride, slot, position, rows);
  for (int m = 0; m < rows; ++m) {
    const size_t angle = static_cast<size_t>(position[m]) * half;
    for (int h = 0; h < model.heads; ++h)
      rotate(q + static_cast<size_t>(m) * q_stride + h * head_dim + model.nope, model.cos + angle, model.sin + angle,
             model.rope, model.rope_interleave,
             ws.q_latent.data() + (static_cast<size_t>(m) * model.heads + h) * latent + model.kv_rank, 1);
  }
  const LatentShape shape{model.heads, model.kv_rank, model.rope, model.attention_scaling};
  for (int m = 0; m < rows; ++m) {
    const int next = std::min(m + 1, rows - 1);
    attend_row(shape, ws.q_latent.data() + static_cast<size_t>(m) * model.heads * latent,
               cache_of(model, index, slot[m]), position[m] + 1, cache_of(model, index, slot[next]), position[next] + 1,
               ws.latent, ws.context.data() + static_cast<size_t>(m) * model.heads * model.kv_rank);
  }
  const int o_size = model.heads * model.v_dim;
  for (int h = 0; h < model.heads; ++h)
    gemm(ws.context.data() + h * model.kv_rank, model.heads * model.kv_rank, layer.value_up + h * value_panels,
         model.kv_rank, model.v_dim, nullptr, ws.attended.data() + h * model.v_dim, o_size, rows);
  round_rows(layer, ws.attended.data(), o_size, o_size, rows);
  gemm(ws.attended.data(), o_size, layer.o, o_size, model.hidden, layer.o_bias, ws.normed.data(), model.hidden, rows);
  add_to(ws.x.data(), ws.normed.data(), static_cast<size_t>(rows) * model.hidden);
}

// -- feed-forward -----------------------------------------------------------------------------------------------------

// out = down(silu(gate in) * up in); gate_up: the gate's `inner` outputs, then the up's. `in` comes rounded.
void swiglu(const R1Layer& layer, const float* in, int hidden, const float* gate_up, const float* down, int inner,
            float* out, int rows, Workspace& ws) {
  gemm(in, hidden, gate_up, hidden, 2 * inner, nullptr, ws.gate_up.data(), 2 * inner, rows);
  for (int m = 0; m < rows; ++m) {
    const float *gate = ws.gate_up.data() + static_cast<size_t>(m) * 2 * inner, *up = gate + inner;
    float* act = ws.act.data() + static_cast<size_t>(m) * inner;
    for_each_vector(inner, [&](int64_t f, auto left) {
      store_upto(act + f, swiglu_lanes(load_upto(gate + f, left), load_upto(up + f, left)), left);
    });
  }
  round_rows(layer, ws.act.data(), inner, inner, rows);
  gemm(ws.act.data(), inner, down, inner, hidden, nullptr, out, hidden, rows);
}

// Index of the largest value among `size` (lowest index on ties), skipping what is at -infinity; -1 if nothing is left.
int best_index(const float* values, int size) {
  int best = -1;
  for (int i = 0; i < size; ++i)
    if (values[i] > -std::numeric_limits<float>::infinity() && (best < 0 || values[i] > values[best])) best = i;
  return best;
}

// Restrict the choice to the topk_group groups with the largest sum of their two best scores.
void keep_best_groups(const R1Model& model, float* choice) {
  const float minus_inf = -std::numeric_limits<float>::infinity();
  const int size = model.experts / model.n_group;
  std::vector<float> group(model.n_group);
  std::vector<char> keep(model.n_group, 0);
  for (int g = 0; g < model.n_group; ++g) {
    float first = minus_inf, second = minus_inf;
    for (int i = g * size; i < (g + 1) * size; ++i) {
      if (choice[i] > first) {
        second = first;
        first = choice[i];
      } else if (choice[i] > second) {
        second = choice[i];
      }
    }
    group[g] = size > 1 ? first + second : first;
  }
  for (int k = 0; k < model.topk_group; ++k) {
    const int g = best_index(group.data(), model.n_group);
    if (g < 0) break;
    keep[g] = 1;
    group[g] = minus_inf;
  }
  for (int i = 0; i < model.experts; ++i)
    if (!keep[i / size]) choice[i] = minus_inf;
}

// DeepSeek-V3 eq. 12-16 for one row: sigmoid scores, the bias only in the choice.
void route(const R1Model& model, const R1Layer& layer, const float* logits, float* scores, float* choice, int32_t* idx,
           float* weight) {
  for_each_vector<v8>(model.experts, [&](int64_t e, auto left) {
    store_upto(scores + e, sigmoid_lanes(load_upto<v8>(logits + e, left)), left);
  });
  for (int e = 0; e < model.experts; ++e) choice[e] = scores[e] + layer.router_bias[e];
  if (model.topk_group < model.n_group) keep_best_groups(model, choice);
  float sum = 1e-20f;
  for (int k = 0; k < model.top_k; ++k) {
    const int best = std::max(best_index(choice, model.experts), 0);  // NaN scores: any expert, the logits are NaN too
    idx[k] = best;
    weight[k] = scores[best];
    choice[best] = -std::numeric_limits<float>::infinity();
    sum += scores[best];
  }
  for (int k = 0; k < model.top_k; ++k)
    weight[k] = (model.norm_topk_prob ? weight[k] / sum : weight[k]) * model.routed_scaling;
}

// The rows' experts, from ws.normed.
void choose_experts(const R1Model& model, const R1Layer& layer, int rows, Workspace& ws) {
  float *scores = ws.router.data() + static_cast<size_t>(rows) * model.experts, *choice = scores + model.experts;
  gemm(ws.normed.data(), model.hidden, layer.router, model.hidden, model.experts, nullptr, ws.router.data(),
       model.experts, rows);
  for (int m = 0; m < rows; ++m)
    route(model, layer, ws.router.data() + static_cast<size_t>(m) * model.experts, scores, choice,
          ws.topk_idx.data() + m * model.top_k, ws.topk_weight.data() + m * model.top_k);
}

// ws.experts_sum = the chosen experts' weighted outputs for ws.normed, expert by expert over the block's rows.
void routed_experts(const R1Model& model, const R1Layer& layer, int rows, Workspace& ws) {
  const int hidden = model.hidden, inner = layer.moe_size;
  const size_t gate_up_size = static_cast<size_t>(round_up(2 * inner, OUTPUTS)) * hidden;
  const size_t down_size = static_cast<size_t>(round_up(hidden, OUTPUTS)) * inner;
  std::fill_n(ws.experts_sum.data(), static_cast<size_t>(rows) * hidden, 0.0f);
  for (int e = 0; e < model.experts; ++e) {
    int count = 0;
    for (int i = 0; i < rows * model.top_k; ++i) {
      if (ws.topk_idx[i] != e) continue;
      ws.expert_rows[count] = i / model.top_k;
      ws.expert_weights[count] = ws.topk_weight[i];
      std::memcpy(ws.expert_in.data() + static_cast<size_t>(count) * hidden,
                  ws.normed.data() + static_cast<size_t>(i / model.top_k) * hidden, hidden * sizeof(float));
      ++count;
    }
    if (!count) continue;
    swiglu(layer, ws.expert_in.data(), hidden, layer.experts_gate_up + e * gate_up_size,
           layer.experts_down + e * down_size, inner, ws.expert_out.data(), count, ws);
    for (int i = 0; i < count; ++i)
      add_scaled(ws.expert_out.data() + static_cast<size_t>(i) * hidden, ws.expert_weights[i], hidden,
                 ws.experts_sum.data() + static_cast<size_t>(ws.expert_rows[i]) * hidden);
  }
}

// Notes the experts that the rows have just been given, where the caches keep their tokens.
void record_routing(const R1Model& model, const R1Layer& layer, const int32_t* slot, const int32_t* position, int rows,
                    const Workspace& ws) {
  for (int m = 0; m < rows; ++m) {
    const size_t token = static_cast<size_t>(slot[m]) * model.capacity + position[m];
    const int32_t* chosen = ws.topk_idx.data() + static_cast<size_t>(m) * model.top_k;
    std::copy(chosen, chosen + model.top_k,
              model.routing + (token * model.num_moe_layers + layer.moe_number) * model.top_k);
  }
}

// -- the network over one block of rows: leaves the final normed hidden states in ws.normed ---------------------------

void run_layer(const R1Model& model, int index, const int32_t* slot, const int32_t* position, int rows, Workspace& ws) {
  const R1Layer& layer = model.layers[index];
  const int hidden = model.hidden;
  attention(model, index, slot, position, rows, ws);
  rms_norm(ws.x.data(), hidden, layer.mlp_norm, model.eps, hidden, ws.normed.data(), hidden, rows);
  if (layer.router) choose_experts(model, layer, rows, ws);
  round_rows(layer, ws.normed.data(), hidden, hidden, rows);  // the gate has seen all their digits
  if (layer.router) routed_experts(model, layer, rows, ws);
  if (layer.router && model.routing && index < model.num_layers)  // not of the block that only drafts
    record_routing(model, layer, slot, position, rows, ws);
  float *out = ws.expert_out.data(), *experts_sum = ws.experts_sum.data();
  const size_t size = static_cast<size_t>(rows) * hidden;
  if (layer.mlp_size)
    swiglu(layer, ws.normed.data(), hidden, layer.mlp_gate_up, layer.mlp_down, layer.mlp_size, out, rows, ws);
  if (layer.router && layer.mlp_size) add_to(experts_sum, out, size);  // in the order of the training pass
  add_to(ws.x.data(), layer.router ? experts_sum : out, size);
}

// What the multi-token-prediction module reads later; position 0 starts a slot anew.
void remember(const R1Model& model, const int32_t* slot, const int32_t* token, const int32_t* position, int rows,
              const float* states) {
  for (int m = 0; m < rows; ++m) {
    const size_t at = static_cast<size_t>(slot[m]) * model.capacity + position[m];
    std::memcpy(model.mtp->hidden + at * model.hidden, states + static_cast<size_t>(m) * model.hidden,
                model.hidden * sizeof(float));
    model.mtp->tokens[at] = token[m];
    if (position[m] == 0) model.mtp->length[slot[m]] = 0;
  }
}

void forward_block(const R1Model& model, const int32_t* slot, const int32_t* token, const int32_t* position, int rows,
                   Workspace& ws) {
  const int hidden = model.hidden;
  for (int m = 0; m < rows; ++m)
    std::memcpy(ws.x.data() + static_cast<size_t>(m) * hidden, model.embed + static_cast<size_t>(token[m]) * hidden,
                hidden * sizeof(float));
  for (int index = 0; index < model.num_layers; ++index) run_layer(model, index, slot, position, rows, ws);
  rms_norm(ws.x.data(), hidden, model.norm, model.eps, hidden, ws.normed.data(), hidden, rows);
  if (model.mtp) remember(model, slot, token, position, rows, ws.normed.data());
}

// -- sampling ---------------------------------------------------------------------------------------------------------

inline uint64_t splitmix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

inline double random_uniform(uint64_t stream, uint64_t index) {
  return static_cast<double>(splitmix64(splitmix64(stream) ^ index) >> 11) * 0x1.0p-53;
}

// Zero the probabilities that top-k, then top-p, leave out; `order` is scratch. Ties go to the lower token.
void truncate(float* probs, int vocab, int top_k, double top_p, std::vector<int32_t>& order) {
  int size = 0;
  for (int i = 0; i < vocab; ++i)
    if (probs[i] > 0.0f) order[size++] = i;
  const auto later = [probs](int32_t a, int32_t b) { return probs[a] != probs[b] ? probs[a] < probs[b] : a > b; };
  std::make_heap(order.begin(), order.begin() + size, later);
  const int most = top_k > 0 ? std::min(top_k, size) : size;
  double total = 0.0;
  int first = size;  // order[first..size) is what has been taken from the heap, likeliest last
  const auto take = [&] { std::pop_heap(order.begin(), order.begin() + first--, later); };
  if (top_k > 0) {
    while (size - first < most) take(), total += probs[order[first]];
  } else {
    for (int i = 0; i < vocab; ++i) total += probs[i];
  }
  int kept = most;
  if (top_p < 1.0) {
    double before = 0.0;
    for (kept = 0; kept < most && before < top_p * total; ++kept) {
      if (size - 1 - kept < first) take();
      before += probs[order[size - 1 - kept]];
    }
  }
  for (int i = 0; i < size - kept; ++i) probs[order[i]] = 0.0f;
}

// The first token whose cumulative probability exceeds uniform * total.
int inverse_cdf(const float* probs, int vocab, double uniform, std::vector<double>& sums) {
  constexpr int SIZE = 64;
  const int num_blocks = (vocab + SIZE - 1) / SIZE;
  double total = 0.0;
  for (int b = 0; b < num_blocks; ++b) {
    const int end = std::min(vocab, (b + 1) * SIZE);
    vec acc{};
    int i = b * SIZE;
    for (; i + LANES <= end; i += LANES) acc += load(probs + i);
    double sum = sum_lanes(acc);
    for (; i < end; ++i) sum += probs[i];
    total += sums[b] = sum;
  }
  const double target = uniform * total;
  double before = 0.0;
  int last = 0;
  for (int b = 0; b < num_blocks; before += sums[b], ++b) {
    if (before + sums[b] <= target && b + 1 < num_blocks) continue;
    double cumulative = before;
    for (int i = b * SIZE; i < std::min(vocab, (b + 1) * SIZE); ++i) {
      if (!(probs[i] > 0.0f)) continue;
      last = i;
      cumulative += probs[i];
      if (cumulative > target) return i;
    }
  }
  while (!(probs[last] > 0.0f) && last + 1 < vocab) ++last;
  for (int i = vocab - 1; i > last; --i)
    if (probs[i] > 0.0f) return i;
  return last;
}

// Scales the logits in place; fills probs, relative to the likeliest token.
RunningSoftmax scale_and_exp(float* logits, float* probs, int vocab, int padded, float temperature) {
  const float inverse = inverse_of(temperature);
  for (int i = vocab; i < padded; ++i) logits[i] = logits[0];
  for (int i = 0; i < padded; i += LANES) store(logits + i, load(logits + i) * inverse);
  RunningSoftmax softmax;
  for (int i = 0; i < vocab; i += VOCAB_CHUNK)
    softmax.add(logits + i, std::min<int64_t>(VOCAB_CHUNK, vocab - i), probs + i);
  if (vocab > VOCAB_CHUNK)  // a later chunk may have had a larger logit
    for (int i = 0; i < padded; i += LANES) store(probs + i, exp_lanes(load(logits + i) - softmax.max));
  for (int i = vocab; i < padded; ++i) probs[i] = 0.0f;
  return softmax;
}

// Probabilities without the banned tokens, relative to the likeliest allowed one (it may be far below the banned).
void ban(const float* logits, float* probs, int vocab, int padded, const uint8_t* banned) {
  float top = -std::numeric_limits<float>::infinity();
  for (int i = 0; i < vocab; ++i)
    if (!banned[i] && logits[i] > top) top = logits[i];
  for (int i = 0; i < padded; i += LANES) {
    const vec below = load(logits + i) - top;
    store(probs + i, exp_lanes(below > 0.0f ? vec{} : below));
  }
  for (int i = 0; i < padded; ++i)
    if (i >= vocab || banned[i]) probs[i] = 0.0f;
}

int greedy_token(const float* logits, int vocab, const uint8_t* banned) {
  int best = -1;
  for (int i = 0; i < vocab; ++i)
    if (!(banned && banned[i]) && (best < 0 || logits[i] > logits[best])) best = i;
  return best;
}

// The token that request r draws from logits (which are scaled in place) with its random number `index`; -1 if any logit
// is not finite.
int choose_token(const R1Model& model, const R1Sampling& how, const R1Requests& requests, int r, int index,
                 float* logits, Workspace& ws, RunningSoftmax& softmax) {
  const bool is_greedy = how.temperature == 0.0f;
  const int padded = ws.logits_stride;
  float* probs = ws.probs.data();
  softmax = scale_and_exp(logits, probs, model.vocab, padded, is_greedy ? 1.0f : how.temperature);
  if (!std::isfinite(softmax.log_sum_exp())) return -1;
  if (is_greedy) return greedy_token(logits, model.vocab, how.banned);
  if (how.banned) ban(logits, probs, model.vocab, padded, how.banned);
  if (how.top_k > 0 || how.top_p < 1.0) truncate(probs, model.vocab, how.top_k, how.top_p, ws.order);
  return inverse_cdf(probs, model.vocab, random_uniform(requests.stream[r], index), ws.block_sums);
}

void sample_row(const R1Model& model, const R1Sampling& how, const R1Requests& requests, int r, float* logits,
                Workspace& ws) {
  RunningSoftmax softmax;
  const int token = choose_token(model, how, requests, r, requests.count[r], logits, ws, softmax);
  if (token < 0) {
    requests.status[r] = NOT_FINITE;
    return;
  }
  const int count = requests.count[r]++;
  requests.token_ids[r * requests.row_stride + count] = token;
  requests.logps[r * requests.row_stride + count] = softmax.logp(logits[token]);
  requests.token[r] = token;
  ++requests.position[r];
  requests.status[r] = how.stop[token] ? STOP : count + 1 >= requests.limit[r] ? LENGTH : RUNNING;
}

// One step of one block of requests.
void step_block(const R1Model& model, const R1Sampling& how, const R1Requests& requests, const int32_t* active,
                int rows, Workspace& ws) {
  int32_t slot[BLOCK_ROWS], token[BLOCK_ROWS], position[BLOCK_ROWS];
  for (int m = 0; m < rows; ++m) {
    slot[m] = requests.slot[active[m]];
    token[m] = requests.token[active[m]];
    position[m] = requests.position[active[m]];
  }
  forward_block(model, slot, token, position, rows, ws);
  gemm(ws.normed.data(), model.hidden, model.head, model.hidden, model.vocab, nullptr, ws.logits.data(),
       ws.logits_stride, rows);
  for (int m = 0; m < rows; ++m)
    sample_row(model, how, requests, active[m], ws.logits.data() + static_cast<size_t>(m) * ws.logits_stride, ws);
}

#include "speculative_step.h"

// All steps of one thread's share of the requests; num_drafts 0: one token a step, without drafts.
void decode_share(const R1Model& model, const R1Sampling& how, const R1Requests& requests, std::vector<int32_t> active,
                  int num_steps, int num_drafts) {
  const int block_size = BLOCK_ROWS / (num_drafts + 1);
  const int most = std::min<int>(block_size, active.size()) * (num_drafts + 1);
  Drafts drafts(model, most, num_drafts);
  Workspace ws(model, most);
  ws.reserve_logits(most, model.vocab);
  for (int step = 0; step < num_steps && !active.empty(); ++step) {
    const int size = active.size();
    const int num_blocks = (size + block_size - 1) / block_size;  // of equal size, so that none is a sliver
    for (int b = 0; b < num_blocks; ++b) {
      const int begin = size * b / num_blocks, end = size * (b + 1) / num_blocks;
      if (num_drafts)
        speculative_block(model, how, requests, active.data() + begin, end - begin, drafts, ws);
      else
        step_block(model, how, requests, active.data() + begin, end - begin, ws);
    }
    active.erase(std::remove_if(active.begin(), active.end(), [&](int r) { return requests.status[r] != RUNNING; }),
                 active.end());
  }
}

}  // namespace

// Put weights [count][num_out][num_in], of any strides, into panels [count][num_total / 16][num_in][16], as outputs
// first .. first + num_out.
R1LAB_API void r1_pack(const float* weight, int64_t count_stride, int64_t out_stride, int64_t in_stride, int32_t count,
                       int32_t num_out, int32_t num_in, int32_t first, int32_t num_total, float* panels) {
  const size_t size = static_cast<size_t>(round_up(num_total, OUTPUTS)) * num_in;
  for (int c = 0; c < count; ++c)
    pack(weight + c * count_stride, out_stride, in_stride, num_out, num_in, first, panels + c * size);
}

// Sample num_steps times for each active request: a token without drafts, 1 to num_drafts + 1 tokens with. Threads
// share nothing: each takes a run of the requests through all layers and all steps.
R1LAB_API void r1_decode(const R1Model* model, const R1Sampling* sampling, const R1Requests* requests,
                          const int32_t* active, int32_t num_active, int32_t num_steps, int32_t num_drafts,
                          int32_t num_threads) {
  const int parts = std::max(1, std::min(num_threads, num_active));
#pragma omp parallel for schedule(static, 1) num_threads(parts)
  for (int t = 0; t < parts; ++t) {
    const int begin = static_cast<int64_t>(num_active) * t / parts;
    const int end = static_cast<int64_t>(num_active) * (t + 1) / parts;
    decode_share(*model, *sampling, *requests, std::vector<int32_t>(active + begin, active + end), num_steps,
                 num_drafts);
  }
}

// Run rows through the layers, filling the caches; rows of one slot adjacent, in order of position. hidden_out [rows,
// hidden] and logits_out [rows, vocab] may be null.
R1LAB_API void r1_forward(const R1Model* model, const int32_t* slot, const int32_t* token, const int32_t* position,
                           int32_t rows, float* hidden_out, float* logits_out, int32_t num_threads) {
  const int parts = std::max(1, std::min(num_threads, rows));
  std::vector<int> bounds(parts + 1, rows);
  for (int t = 0; t < parts; ++t) {
    bounds[t] = static_cast<int64_t>(rows) * t / parts;
    while (bounds[t] > 0 && bounds[t] < rows && slot[bounds[t]] == slot[bounds[t] - 1]) ++bounds[t];
  }
#pragma omp parallel for schedule(static, 1) num_threads(parts)
  for (int t = 0; t < parts; ++t) {
    if (bounds[t] >= bounds[t + 1]) continue;
    Workspace ws(*model, std::min(BLOCK_ROWS, bounds[t + 1] - bounds[t]));
    for (int m = bounds[t]; m < bounds[t + 1]; m += BLOCK_ROWS) {
      const int count = std::min(BLOCK_ROWS, bounds[t + 1] - m);
      forward_block(*model, slot + m, token + m, position + m, count, ws);
      if (hidden_out)
        std::memcpy(hidden_out + static_cast<size_t>(m) * model->hidden, ws.normed.data(),
                    static_cast<size_t>(count) * model->hidden * sizeof(float));
      if (logits_out)
        gemm(ws.normed.data(), model->hidden, model->head, model->hidden, model->vocab, nullptr,
             logits_out + static_cast<size_t>(m) * model->vocab, model->vocab, count);
    }
  }
}
