// Causal attention over the expanded heads of MLA, forward and backward (reference/mla_attention.py says what it
// computes).
//
// One task is one head of one sequence (backward: of a sequence and of all that have it as prefix, in order): nothing
// in it depends on the other sequences or on the number of threads. Keys and values, a prefix's before a sequence's own,
// are packed into panels once; blocks of queries then pass over the keys they may see, so the scores of a block never
// leave the cache. The backward computes the probabilities again from the saved log-sum-exp. A key is [nope; rope]: the
// two parts lie in different tensors and are put side by side here, never in memory outside.
#include <vector>

#include "common.h"

namespace r1lab {
namespace {

constexpr int64_t BLOCK = 4 * TILE_ROWS;  // queries that pass over the keys together

// [T, heads, size] with contiguous last dimension; one head's rows read as a matrix.
struct Rows {
    const float* data;
    int64_t row_stride, head_stride;
    const float* at(int64_t token, int64_t head) const { return data + token * row_stride + head * head_stride; }
};

struct Sizes {
    int64_t H, N, R, W;
    int64_t D() const { return N + R; }  // a query's or key's size
};

// A sequence: `length` tokens from `first` on, and those it sees before them.
struct Sequence {
    int64_t prefix_first, prefix_length, first, length;
    int64_t num_keys() const { return prefix_length + length; }
};

// Rows [first, first + rows) of (nope | rope), side by side in out [rows, stride].
void gather(const Rows& nope, int64_t nope_size, const Rows& rope, int64_t rope_size, int64_t first, int64_t rows,
            int64_t head, float* out, int64_t stride) {
    for (int64_t t = 0; t < rows; ++t) {
        copy(nope.at(first + t, head), nope_size, out + t * stride);
        if (rope_size) copy(rope.at(first + t, head), rope_size, out + t * stride + nope_size);
    }
}

// The same for a sequence's keys (or values): its prefix's rows, then its own.
void gather_keys(const Rows& nope, int64_t nope_size, const Rows& rope, int64_t rope_size, const Sequence& s,
                 int64_t head, float* out, int64_t stride) {
    gather(nope, nope_size, rope, rope_size, s.prefix_first, s.prefix_length, head, out, stride);
    gather(nope, nope_size, rope, rope_size, s.first, s.length, head, out + s.prefix_length * stride, stride);
}

// The reverse of gather, into contiguous [T, H, size] tensors, one for each part of a row.
void scatter(const float* rows_of, int64_t stride, int64_t first, int64_t rows, int64_t H, int64_t head, float* nope,
             int64_t nope_size, float* rope, int64_t rope_size) {
    for (int64_t t = 0; t < rows; ++t) {
        const int64_t token = (first + t) * H + head;
        copy(rows_of + t * stride, nope_size, nope + token * nope_size);
        if (rope_size) copy(rows_of + t * stride + nope_size, rope_size, rope + token * rope_size);
    }
}

// The reverse of gather_keys: sets a sequence's own rows and adds to its prefix's.
void scatter_keys(const float* rows_of, int64_t stride, const Sequence& s, int64_t H, int64_t head, float* nope,
                  int64_t nope_size, float* rope, int64_t rope_size) {
    for (int64_t t = 0; t < s.prefix_length; ++t) {
        const int64_t token = (s.prefix_first + t) * H + head;
        const float* row = rows_of + t * stride;
        for (int64_t i = 0; i < nope_size; ++i) nope[token * nope_size + i] += row[i];
        for (int64_t i = 0; i < rope_size; ++i) rope[token * rope_size + i] += row[nope_size + i];
    }
    scatter(rows_of + s.prefix_length * stride, stride, s.first, s.length, H, head, nope, nope_size, rope, rope_size);
}

// Panels hold `packed_depth` rows, of which the first `depth` take part.
template <class Epilogue>
R1LAB_INLINE void multiply_first_rows(const float* a, int64_t lda, int64_t rows, const float* panels,
                                      int64_t num_panels, int64_t packed_depth, int64_t depth,
                                      const Epilogue& epilogue) {
    for (int64_t panel = 0; panel < num_panels; ++panel)
        for (int64_t row = 0; row < rows; row += TILE_ROWS)
            tile<false>(rows - row, a + row * lda, lda, panels + panel * packed_depth * PANEL, PANEL, depth,
                        [&](int64_t i, vec lo, vec hi) { epilogue(row + i, panel * PANEL, lo, hi); });
}

// Calls body(j) for the vectors that hold the first `visible` scores; those behind them become -inf in the last vector
// and, afterwards, 0 up to `width`, so that no vector is cut.
template <class Body>
R1LAB_INLINE void for_each_visible(float* scores, int64_t visible, int64_t width, const Body& body) {
    const int64_t end = round_up(visible, LANES);
    std::fill(scores + visible, scores + end, -INFINITY);
    for (int64_t j = 0; j < end; j += LANES) body(j);
    std::fill(scores + end, scores + width, 0.0f);
}

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

// The probabilities again, from the scores and their log-sum-exp.
void probabilities_row(float* scores, int64_t visible, int64_t width, float scale, float lse) {
    for_each_visible(scores, visible, width,
                     [&](int64_t j) { store(scores + j, exp_lanes(load(scores + j) * scale - lse)); });
}

R1LAB_INLINE void store_columns(float* row, vec lo, vec hi, int64_t n) {
    store_upto(row, lo, n);
    if (n > LANES) store_upto(row + LANES, hi, n - LANES);
}

float dot(const float* a, const float* b, int64_t size) {
    vec sum = splat(0.0f);
    for_each_vector(size, [&](int64_t i, auto left) { sum += load_upto(a + i, left) * load_upto(b + i, left); });
    return sum_lanes(sum);
}

// A sequence's keys and values of one head, and room for one block of queries. One for each thread, for sequences of up
// to `longest` keys: allocating for each task would take longer than some tasks.
struct HeadScratch {
    HeadScratch(const Sizes& sizes, int64_t longest)
        : query_stride(row_stride(sizes.D())),
          score_stride(row_stride(longest)),
          keys(longest * query_stride),
          keys_transposed(round_up(longest, PANEL) * sizes.D()),
          value_rows(longest * sizes.W),
          value_panels(longest * round_up(sizes.W, PANEL)),
          queries(BLOCK * query_stride),
          scores(BLOCK * score_stride) {}

    void load_keys(const Sizes& sizes, const Rows& k_nope, const Rows& k_pe, const Rows& v, const Sequence& s,
                   int64_t head) {
        gather_keys(k_nope, sizes.N, k_pe, sizes.R, s, head, keys.get(), query_stride);
        pack_transposed_panels(keys.get(), query_stride, s.num_keys(), sizes.D(), keys_transposed.get());
        gather_keys(v, sizes.W, v, 0, s, head, value_rows.get(), sizes.W);
    }

    // Scores of the block's queries against the first `num_keys` keys.
    void multiply_keys(int64_t rows, int64_t num_keys, int64_t depth) {
        multiply_first_rows(queries.get(), query_stride, rows, keys_transposed.get(), ceil_div(num_keys, PANEL), depth,
                            depth, [&](int64_t i, int64_t column, vec lo, vec hi) {
                                store(scores.get() + i * score_stride + column, lo);
                                store(scores.get() + i * score_stride + column + LANES, hi);
                            });
    }

    int64_t query_stride, score_stride;
    Scratch keys, keys_transposed, value_rows, value_panels, queries, scores;
};

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

struct Gradients {
    float *q_nope, *q_pe, *k_nope, *k_pe, *v;  // contiguous; k_pe is [T, H, R] here, summed over the heads afterwards
};

struct BackwardScratch : HeadScratch {
    BackwardScratch(const Sizes& sizes, int64_t longest)
        : HeadScratch(sizes, longest),
          value_stride(row_stride(sizes.W)),
          key_panels(longest * round_up(sizes.D(), PANEL)),
          values_transposed(round_up(longest, PANEL) * sizes.W),
          grad_scores(BLOCK * score_stride),
          grad_outs(BLOCK * value_stride),
          grad_queries(BLOCK * query_stride),
          grad_keys(longest * query_stride),
          grad_values(longest * value_stride) {}

    int64_t value_stride;
    Scratch key_panels, values_transposed, grad_scores, grad_outs, grad_queries, grad_keys, grad_values;
};

void backward_head(BackwardScratch& scratch, const Sizes& sizes, const Rows& grad_out, const Rows& q_nope,
                   const Rows& q_pe, const Rows& k_nope, const Rows& k_pe, const Rows& v, const float* out,
                   const float* lse, const Sequence& s, int64_t head, float scale, const Gradients& gradients) {
    const int64_t length = s.num_keys(), first = s.first, D = sizes.D(), H = sizes.H;
    const int64_t value_stride = scratch.value_stride;
    scratch.load_keys(sizes, k_nope, k_pe, v, s, head);
    pack_panels(scratch.keys.get(), scratch.query_stride, length, D, scratch.key_panels.get());
    pack_transposed_panels(scratch.value_rows.get(), sizes.W, length, sizes.W, scratch.values_transposed.get());
    std::fill_n(scratch.grad_keys.get(), length * scratch.query_stride, 0.0f);
    std::fill_n(scratch.grad_values.get(), length * value_stride, 0.0f);
    float delta[BLOCK];
    for (int64_t start = 0; start < s.length; start += BLOCK) {
        const int64_t rows = std::min(BLOCK, s.length - start), seen = s.prefix_length + start, num_keys = seen + rows;
        float *probs = scratch.scores.get(), *grad = scratch.grad_scores.get();
        gather(q_nope, sizes.N, q_pe, sizes.R, first + start, rows, head, scratch.queries.get(), scratch.query_stride);
        gather(grad_out, sizes.W, grad_out, 0, first + start, rows, head, scratch.grad_outs.get(), value_stride);
        scratch.multiply_keys(rows, num_keys, D);
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t token = (first + start + i) * H + head;
            probabilities_row(probs + i * scratch.score_stride, seen + i + 1, round_up(num_keys, PANEL), scale,
                              lse[token]);
            delta[i] = dot(scratch.grad_outs.get() + i * value_stride, out + token * sizes.W, sizes.W);
        }
        // grad of a score = p (grad_out . v - delta), delta = grad_out . out (FlashAttention, algorithm 4).
        multiply_first_rows(scratch.grad_outs.get(), value_stride, rows, scratch.values_transposed.get(),
                            ceil_div(num_keys, PANEL), sizes.W, sizes.W,
                            [&](int64_t i, int64_t column, vec lo, vec hi) {
                                const int64_t at = i * scratch.score_stride + column;
                                store(grad + at, load(probs + at) * (lo - delta[i]) * scale);
                                store(grad + at + LANES, load(probs + at + LANES) * (hi - delta[i]) * scale);
                            });
        multiply_first_rows(grad, scratch.score_stride, rows, scratch.key_panels.get(), ceil_div(D, PANEL), length,
                            num_keys, [&](int64_t i, int64_t column, vec lo, vec hi) {
                                store(scratch.grad_queries.get() + i * scratch.query_stride + column, lo);
                                store(scratch.grad_queries.get() + i * scratch.query_stride + column + LANES, hi);
                            });
        scatter(scratch.grad_queries.get(), scratch.query_stride, first + start, rows, H, head, gradients.q_nope,
                sizes.N, gradients.q_pe, sizes.R);
        add_transposed_product(grad, scratch.score_stride, num_keys, scratch.queries.get(), scratch.query_stride, D,
                               rows, scratch.grad_keys.get(), scratch.query_stride);
        add_transposed_product(probs, scratch.score_stride, num_keys, scratch.grad_outs.get(), value_stride, sizes.W,
                               rows, scratch.grad_values.get(), value_stride);
    }
    scatter_keys(scratch.grad_keys.get(), scratch.query_stride, s, H, head, gradients.k_nope, sizes.N, gradients.k_pe,
                 sizes.R);
    scatter_keys(scratch.grad_values.get(), value_stride, s, H, head, gradients.v, sizes.W, nullptr, 0);
}

Sequence sequence(const int32_t* cu_seqlens, const int32_t* prefix, int64_t b) {
    const int64_t p = prefix[b], prefix_first = p < 0 ? 0 : cu_seqlens[p];
    const int64_t prefix_length = p < 0 ? 0 : cu_seqlens[p + 1] - prefix_first;
    return {prefix_first, prefix_length, cu_seqlens[b], cu_seqlens[b + 1] - cu_seqlens[b]};
}

int64_t most_keys(const int32_t* cu_seqlens, const int32_t* prefix, int64_t B) {
    int64_t most = 0;
    for (int64_t b = 0; b < B; ++b) most = std::max(most, sequence(cu_seqlens, prefix, b).num_keys());
    return most;
}

// Each sequence without a prefix, followed by those that have it as theirs.
std::vector<std::vector<int64_t>> families(const int32_t* prefix, int64_t B) {
    std::vector<std::vector<int64_t>> found;
    std::vector<int64_t> family_of(B);
    for (int64_t b = 0; b < B; ++b) {
        family_of[b] = prefix[b] < 0 ? static_cast<int64_t>(found.size()) : family_of[prefix[b]];
        if (prefix[b] < 0) found.emplace_back();
        found[family_of[b]].push_back(b);
    }
    return found;
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
    const int64_t longest = most_keys(cu_seqlens, prefix, B);
#pragma omp parallel num_threads(num_threads)
    {
        HeadScratch scratch(sizes, longest);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < B * H; ++task) {
            const Sequence s = sequence(cu_seqlens, prefix, task / H);
            forward_head(scratch, sizes, q_nope, q_pe, k_nope, k_pe, v, s, task % H, static_cast<float>(scale), out,
                         lse);
        }
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
    const Rows grad_rows{grad_out, H * W, W};
    const std::vector<std::vector<int64_t>> tasks = families(prefix, B);
    const int64_t longest = most_keys(cu_seqlens, prefix, B);
#pragma omp parallel num_threads(num_threads)
    {
        BackwardScratch scratch(sizes, longest);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < static_cast<int64_t>(tasks.size()) * H; ++task)
            for (const int64_t b : tasks[task / H])
                backward_head(scratch, sizes, grad_rows, q_nope, q_pe, k_nope, k_pe, v, out, lse,
                              sequence(cu_seqlens, prefix, b), task % H, static_cast<float>(scale), grads);
    }
    for (int64_t t = 0; t < T; ++t) {
        float* total = gradients[3] + t * R;
        std::copy_n(grads.k_pe + t * H * R, R, total);
        for (int64_t head = 1; head < H; ++head)
            for (int64_t r = 0; r < R; ++r) total[r] += grads.k_pe[(t * H + head) * R + r];
    }
}
