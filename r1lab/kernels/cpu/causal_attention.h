// Causal attention of blocks of queries over a sequence's keys, for mla_attention.cpp and mla_absorbed_attention.cpp.
//
// One task is one head of one sequence: nothing in it depends on the other sequences or on the number of threads. Keys
// and values, a prefix's before a sequence's own, are packed into panels once; blocks of queries then pass over the keys
// they may see, so the scores of a block never leave the cache. The backward computes the probabilities again from the
// saved log-sum-exp. A key is [nope; rope]: the two parts lie in different tensors and are put side by side here, never
// in memory outside. Where all heads attend to the same keys, they are so many queries of one position.
#pragma once

#include <vector>

#include "common.h"

namespace r1lab {
namespace {

constexpr int64_t BLOCK = 4 * TILE_ROWS;  // queries that pass over the keys together

struct Sizes {
    int64_t H, N, R, W;
    int64_t G = 1;                       // queries of a position and head
    int64_t D() const { return N + R; }  // a query's or key's size
};

// A sequence: `length` tokens from `first` on, and those it sees before them.
struct Sequence {
    int64_t prefix_first, prefix_length, first, length;
    int64_t prefix_number;  // how many tokens the prefixes of the sequences before it have together
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

struct Gradients {
    float *q_nope, *q_pe, *k_nope, *k_pe, *v;  // contiguous; k_pe is [T, H, R] here, summed over the heads afterwards
    // Of the prefixes' keys and values, sequence by sequence, summed afterwards in that order.
    float *prefix_k_nope, *prefix_k_pe, *prefix_v;
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
    const int64_t length = s.num_keys(), D = sizes.D(), H = sizes.H, G = sizes.G;
    const int64_t value_stride = scratch.value_stride;
    scratch.load_keys(sizes, k_nope, k_pe, v, s, head);
    pack_panels(scratch.keys.get(), scratch.query_stride, length, D, scratch.key_panels.get());
    pack_transposed_panels(scratch.value_rows.get(), sizes.W, length, sizes.W, scratch.values_transposed.get());
    std::fill_n(scratch.grad_keys.get(), length * scratch.query_stride, 0.0f);
    std::fill_n(scratch.grad_values.get(), length * value_stride, 0.0f);
    float delta[BLOCK];
    for (int64_t start = 0; start < s.length * G; start += BLOCK) {
        const int64_t rows = std::min(BLOCK, s.length * G - start), first = s.first * G + start;
        const int64_t num_keys = s.prefix_length + (start + rows - 1) / G + 1;
        float *probs = scratch.scores.get(), *grad = scratch.grad_scores.get();
        gather(q_nope, sizes.N, q_pe, sizes.R, first, rows, head, scratch.queries.get(), scratch.query_stride);
        gather(grad_out, sizes.W, grad_out, 0, first, rows, head, scratch.grad_outs.get(), value_stride);
        scratch.multiply_keys(rows, num_keys, D);
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t token = (first + i) * H + head;
            probabilities_row(probs + i * scratch.score_stride, s.prefix_length + (start + i) / G + 1,
                              round_up(num_keys, PANEL), scale, lse[token]);
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
        scatter(scratch.grad_queries.get(), scratch.query_stride, first, rows, H, head, gradients.q_nope,
                sizes.N, gradients.q_pe, sizes.R);
        add_transposed_product(grad, scratch.score_stride, num_keys, scratch.queries.get(), scratch.query_stride, D,
                               rows, scratch.grad_keys.get(), scratch.query_stride);
        add_transposed_product(probs, scratch.score_stride, num_keys, scratch.grad_outs.get(), value_stride, sizes.W,
                               rows, scratch.grad_values.get(), value_stride);
    }
    const float *grad_keys = scratch.grad_keys.get(), *grad_values = scratch.grad_values.get();
    scatter(grad_keys, scratch.query_stride, s.prefix_number, s.prefix_length, H, head, gradients.prefix_k_nope,
            sizes.N, gradients.prefix_k_pe, sizes.R);
    scatter(grad_values, value_stride, s.prefix_number, s.prefix_length, H, head, gradients.prefix_v, sizes.W, nullptr,
            0);
    scatter(grad_keys + s.prefix_length * scratch.query_stride, scratch.query_stride, s.first, s.length, H, head,
            gradients.k_nope, sizes.N, gradients.k_pe, sizes.R);
    scatter(grad_values + s.prefix_length * value_stride, value_stride, s.first, s.length, H, head, gradients.v,
            sizes.W, nullptr, 0);
}

// prefix [B]: the earlier sequence whose tokens come before those of sequence b, -1 for none.
std::vector<Sequence> find_sequences(const int32_t* cu_seqlens, const int32_t* prefix, int64_t B) {
    std::vector<Sequence> found;
    for (int64_t b = 0, number = 0; b < B; ++b) {
        const int64_t p = prefix[b], prefix_first = p < 0 ? 0 : cu_seqlens[p];
        const int64_t prefix_length = p < 0 ? 0 : cu_seqlens[p + 1] - prefix_first;
        found.push_back({prefix_first, prefix_length, cu_seqlens[b], cu_seqlens[b + 1] - cu_seqlens[b], number});
        number += prefix_length;
    }
    return found;
}

int64_t most_keys(const std::vector<Sequence>& sequences) {
    int64_t most = 0;
    for (const Sequence& s : sequences) most = std::max(most, s.num_keys());
    return most;
}

// total += what each sequence's queries have to say about the `size` numbers of its prefix's tokens, in order.
void add_prefix_parts(const std::vector<Sequence>& sequences, const float* parts, int64_t size, float* total) {
    for (const Sequence& s : sequences)
        for (int64_t i = 0; i < s.prefix_length * size; ++i)
            total[s.prefix_first * size + i] += parts[s.prefix_number * size + i];
}

// Fills gradients' first five; k_pe is [T, H, R].
void attention_backward(const Sizes& sizes, const std::vector<Sequence>& sequences, const Rows& grad_out,
                        const Rows& q_nope, const Rows& q_pe, const Rows& k_nope, const Rows& k_pe, const Rows& v,
                        const float* out, const float* lse, float scale, Gradients gradients, int64_t num_threads) {
    const int64_t num_sequences = sequences.size(), H = sizes.H, longest = most_keys(sequences);
    const int64_t num_prefix = num_sequences ? sequences.back().prefix_number + sequences.back().prefix_length : 0;
    Scratch prefix_k_nope(num_prefix * H * sizes.N, false), prefix_k_pe(num_prefix * H * sizes.R, false),
        prefix_v(num_prefix * H * sizes.W, false);
    gradients.prefix_k_nope = prefix_k_nope.get();
    gradients.prefix_k_pe = prefix_k_pe.get();
    gradients.prefix_v = prefix_v.get();
#pragma omp parallel num_threads(num_threads)
    {
        BackwardScratch scratch(sizes, longest);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < num_sequences * H; ++task)
            backward_head(scratch, sizes, grad_out, q_nope, q_pe, k_nope, k_pe, v, out, lse, sequences[task / H],
                          task % H, scale, gradients);
    }
    add_prefix_parts(sequences, gradients.prefix_k_nope, H * sizes.N, gradients.k_nope);
    add_prefix_parts(sequences, gradients.prefix_k_pe, H * sizes.R, gradients.k_pe);
    add_prefix_parts(sequences, gradients.prefix_v, H * sizes.W, gradients.v);
}

}  // namespace
}  // namespace r1lab
