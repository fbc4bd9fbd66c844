// Causal attention over the expanded heads of MLA, forward and backward (reference/mla_attention.py says what it
// computes; causal_attention.h, how).
#include "causal_attention.h"

namespace r1lab {
namespace {

// Softmax of the first `visible` scores in place, zeros behind them up to `width`; returns log sum exp.
float softmax_row(float* scores, int64_t visible, int64_t width, float scale, float* inverse_sum) {
    vec most = splat(-INFINITY);
    for_each_visible(scores, visible, width, [&](int64_t j) {
        const vec score = load(scores + j);
        most = score > most ? score : most;
    });
    const float best = max_lane(most) * scale;
    vec sum = splat(0.0f);
    for_each_visible(scores, visible, width, [&](int64_t j) {
        const vec weight = exp_lanes(load(scores + j) * scale - best);
        store(scores + j, weight);
        sum += weight;
    });
    const float total = sum_lanes(sum);
    *inverse_sum = 1.0f / total;
    return best + std::log(total);
}

void forward_head(HeadScratch& scratch, const Sizes& sizes, const Rows& q_nope, const Rows& q_pe, const Rows& k_nope,
                  const Rows& k_pe, const Rows& v, const Sequence& s, int64_t head, float scale, float* out,
                  float* lse) {
    const int64_t length = s.num_keys(), first = s.first;
    scratch.load_keys(sizes, k_nope, k_pe, v, s, head);
    pack_panels(scratch.value_rows.get(), sizes.W, length, sizes.W, scratch.value_panels.get());
    float inverse_sum[BLOCK];
    for (int64_t start = 0; start < s.length; start += BLOCK) {
        const int64_t rows = std::min(BLOCK, s.length - start), seen = s.prefix_length + start, num_keys = seen + rows;
        gather(q_nope, sizes.N, q_pe, sizes.R, first + start, rows, head, scratch.queries.get(), scratch.query_stride);
        scratch.multiply_keys(rows, num_keys, sizes.D());
        for (int64_t i = 0; i < rows; ++i)
            lse[(first + start + i) * sizes.H + head] =
                softmax_row(scratch.scores.get() + i * scratch.score_stride, seen + i + 1,
                            round_up(num_keys, PANEL), scale, inverse_sum + i);
        multiply_first_rows(scratch.scores.get(), scratch.score_stride, rows, scratch.value_panels.get(),
                            ceil_div(sizes.W, PANEL), length, num_keys,
                            [&](int64_t i, int64_t column, vec lo, vec hi) {
                                float* row = out + ((first + start + i) * sizes.H + head) * sizes.W + column;
                                store_columns(row, lo * inverse_sum[i], hi * inverse_sum[i], sizes.W - column);
                            });
    }
}

}  // namespace
}  // namespace r1lab

using namespace r1lab;

// Strides (row, head) of q_nope, q_pe, k_nope, k_pe (no heads: head stride 0), v, in floats.
#define R1LAB_ATTENTION_INPUTS                                                                                       \
    const Sizes sizes{H, N, R, W};                                                                                   \
    const Rows q_nope{inputs[0], strides[0], strides[1]}, q_pe{inputs[1], strides[2], strides[3]},                   \
        k_nope{inputs[2], strides[4], strides[5]}, k_pe{inputs[3], strides[6], strides[7]},                          \
        v{inputs[4], strides[8], strides[9]};

// prefix [B]: the earlier sequence whose tokens come before those of sequence b, -1 for none; ops.py checks it.
// out [T, H, W], lse [T, H]: log sum exp of each query's scaled scores.
R1LAB_API void r1lab_mla_attention(const float* const* inputs, const int64_t* strides, const int32_t* cu_seqlens,
                                   const int32_t* prefix, int64_t B, int64_t H, int64_t N, int64_t R, int64_t W,
                                   double scale, float* out, float* lse, int64_t num_threads) {
    R1LAB_ATTENTION_INPUTS
    const std::vector<Sequence> sequences = find_sequences(cu_seqlens, prefix, B);
    const int64_t longest = most_keys(sequences);
#pragma omp parallel num_threads(num_threads)
    {
        HeadScratch scratch(sizes, longest);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < B * H; ++task)
            forward_head(scratch, sizes, q_nope, q_pe, k_nope, k_pe, v, sequences[task / H], task % H,
                         static_cast<float>(scale), out, lse);
    }
}

// gradients: of q_nope [T, H, N], q_pe [T, H, R], k_nope [T, H, N], k_pe [T, R], v [T, H, W].
R1LAB_API void r1lab_mla_attention_backward(const float* grad_out, const float* const* inputs, const int64_t* strides,
                                            const int32_t* cu_seqlens, const int32_t* prefix, int64_t T, int64_t B,
                                            int64_t H, int64_t N, int64_t R, int64_t W, double scale, const float* out,
                                            const float* lse, float* const* gradients, int64_t num_threads) {
    R1LAB_ATTENTION_INPUTS
    Scratch grad_k_pe(T * H * R);
    const Gradients grads{gradients[0], gradients[1], gradients[2], grad_k_pe.get(), gradients[4]};
    attention_backward(sizes, find_sequences(cu_seqlens, prefix, B), {grad_out, H * W, W}, q_nope, q_pe, k_nope, k_pe, v,
                       out, lse, static_cast<float>(scale), grads, num_threads);
    for (int64_t t = 0; t < T; ++t) {
        float* total = gradients[3] + t * R;
        std::copy_n(grads.k_pe + t * H * R, R, total);
        for (int64_t head = 1; head < H; ++head)
            for (int64_t r = 0; r < R; ++r) total[r] += grads.k_pe[(t * H + head) * R + r];
    }
}
