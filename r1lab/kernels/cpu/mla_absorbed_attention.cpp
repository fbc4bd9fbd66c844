// Causal attention over the latents themselves, forward and backward (reference/mla_absorbed_attention.py says what it
// computes). The forward takes one query after the other as a decode step does (latent_attention.h), so that both have
// the same bits; its cache, the sequence's own, stays in L2. The backward has all heads' queries pass over the latents
// in blocks (causal_attention.h).
#include "causal_attention.h"
#include "latent_attention.h"

namespace r1lab {
namespace {

// Each of `heads` vectors of a token, turned by the token's angles, or back.
void rotate_all(const float* x, int64_t token_stride, int64_t head_stride, const float* cos, const float* sin, int64_t T,
                int64_t H, int64_t R, bool interleave, float* out, int64_t num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t t = 0; t < T; ++t)
        for (int64_t h = 0; h < H; ++h)
            rotate(x + t * token_stride + h * head_stride, cos + t * R / 2, sin + t * R / 2, R, interleave,
                   out + (t * H + h) * R, 1);
}

// The gradient of what was rotated, in place: [T, H, R] contiguous.
void rotate_back(float* grad, const float* cos, const float* sin, int64_t T, int64_t H, int64_t R, bool interleave,
                 int64_t num_threads) {
#pragma omp parallel num_threads(num_threads)
    {
        const int64_t half = R / 2;
        std::vector<float> turned(R);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < T * H; ++row) {
            float* x = grad + row * R;
            const float *c = cos + row / H * half, *s = sin + row / H * half;
            for (int64_t i = 0; i < half; ++i) {
                turned[interleave ? 2 * i : i] = x[i] * c[i] + x[half + i] * s[i];
                turned[interleave ? 2 * i + 1 : half + i] = x[half + i] * c[i] - x[i] * s[i];
            }
            std::copy_n(turned.data(), R, x);
        }
    }
}

// A token's latent and rotary key to its place in the cache.
R1LAB_INLINE void put(const float* kv, const float* pe, const LatentShape& shape, int64_t position, float* cache) {
    float* entry = cache + position / POSITIONS * shape.latent() * POSITIONS + position % POSITIONS;
    for (int c = 0; c < shape.kv_rank; ++c) entry[c * POSITIONS] = kv[c];
    for (int r = 0; r < shape.rope; ++r) entry[(shape.kv_rank + r) * POSITIONS] = pe[r];
}

struct Inputs {
    LatentShape shape;
    const float* q_latent;  // [T, H, C] contiguous
    Rows kv;                // [T, C]
    const float *q_pe, *k_pe;  // rotated, contiguous
};

void attend_sequence(const Inputs& in, const Sequence& s, float* cache, float* query, LatentScratch& scratch, float* out,
                     float* lse) {
    const LatentShape& shape = in.shape;
    const int64_t H = shape.heads, C = shape.kv_rank, R = shape.rope, size = round_up(s.num_keys(), POSITIONS);
    std::fill_n(cache, size * shape.latent(), 0.0f);
    for (int64_t i = 0; i < s.prefix_length; ++i)
        put(in.kv.at(s.prefix_first + i, 0), in.k_pe + (s.prefix_first + i) * R, shape, i, cache);
    for (int64_t token = s.first; token < s.first + s.length; ++token) {
        const int64_t position = s.prefix_length + token - s.first;
        put(in.kv.at(token, 0), in.k_pe + token * R, shape, position, cache);
        for (int64_t h = 0; h < H; ++h) {
            copy(in.q_latent + (token * H + h) * C, C, query + h * shape.latent());
            copy(in.q_pe + (token * H + h) * R, R, query + h * shape.latent() + C);
        }
        attend_row(shape, query, cache, position + 1, nullptr, 0, scratch, out + token * H * C);
        for (int64_t h = 0; h < H; ++h)
            lse[token * H + h] = scratch.running[h].top + std::log(scratch.running[h].sum);
    }
}

}  // namespace
}  // namespace r1lab

using namespace r1lab;

// q_latent [T, H, C] contiguous, out [T, H, C], lse [T, H]; q_pe [T, H, R], kv [T, C] and k_pe [T, R] with strides; cos
// and sin [T, R / 2]; prefix [B]: as in mla_attention.cpp.
R1LAB_API void r1lab_mla_absorbed_attention(const float* q_latent, const float* q_pe, int64_t q_pe_stride,
                                            int64_t q_pe_head_stride, const float* kv, int64_t kv_stride,
                                            const float* k_pe, int64_t k_pe_stride, const float* cos, const float* sin,
                                            int64_t interleave, const int32_t* cu_seqlens, const int32_t* prefix,
                                            int64_t T, int64_t B, int64_t H, int64_t C, int64_t R, double scale,
                                            float* out, float* lse, int64_t num_threads) {
    Scratch q_turned(T * H * R, false), k_turned(T * R, false);
    rotate_all(q_pe, q_pe_stride, q_pe_head_stride, cos, sin, T, H, R, interleave, q_turned.get(), num_threads);
    rotate_all(k_pe, k_pe_stride, 0, cos, sin, T, 1, R, interleave, k_turned.get(), num_threads);
    const LatentShape shape{static_cast<int>(H), static_cast<int>(C), static_cast<int>(R), static_cast<float>(scale)};
    const Inputs inputs{shape, q_latent, {kv, kv_stride, 0}, q_turned.get(), k_turned.get()};
    const std::vector<Sequence> sequences = find_sequences(cu_seqlens, prefix, B);
    const int64_t longest = round_up(most_keys(sequences), POSITIONS);
#pragma omp parallel num_threads(num_threads)
    {
        Scratch cache(longest * shape.latent(), false), query(H * shape.latent(), false);
        LatentScratch scratch(shape.heads);
#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < B; ++b)
            attend_sequence(inputs, sequences[b], cache.get(), query.get(), scratch, out, lse);
    }
}

// Contiguous grad_q_latent [T, H, C], grad_q_pe [T, H, R], grad_kv [T, C], grad_k_pe [T, R].
R1LAB_API void r1lab_mla_absorbed_attention_backward(
    const float* grad_out, const float* q_latent, const float* q_pe, int64_t q_pe_stride, int64_t q_pe_head_stride,
    const float* kv, int64_t kv_stride, const float* k_pe, int64_t k_pe_stride, const float* cos, const float* sin,
    int64_t interleave, const int32_t* cu_seqlens, const int32_t* prefix, int64_t T, int64_t B, int64_t H, int64_t C,
    int64_t R, double scale, const float* out, const float* lse, float* grad_q_latent, float* grad_q_pe, float* grad_kv,
    float* grad_k_pe, int64_t num_threads) {
    Scratch q_turned(T * H * R, false), k_turned(T * R, false), grad_values(T * C, false);
    rotate_all(q_pe, q_pe_stride, q_pe_head_stride, cos, sin, T, H, R, interleave, q_turned.get(), num_threads);
    rotate_all(k_pe, k_pe_stride, 0, cos, sin, T, 1, R, interleave, k_turned.get(), num_threads);
    const Sizes sizes{1, C, R, C, H};
    const Rows latents{kv, kv_stride, 0};
    const Gradients gradients{grad_q_latent, grad_q_pe, grad_kv, grad_k_pe, grad_values.get()};
    attention_backward(sizes, find_sequences(cu_seqlens, prefix, B), {grad_out, C, 0}, {q_latent, C, 0},
                       {q_turned.get(), R, 0}, latents, {k_turned.get(), R, 0}, latents, out, lse,
                       static_cast<float>(scale), gradients, num_threads);
    for (int64_t i = 0; i < T * C; ++i) grad_kv[i] += grad_values.get()[i];
    rotate_back(grad_q_pe, cos, sin, T, H, R, interleave, num_threads);
    rotate_back(grad_k_pe, cos, sin, T, 1, R, interleave, num_threads);
}
