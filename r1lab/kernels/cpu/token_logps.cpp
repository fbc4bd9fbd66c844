// Log-probabilities of targets and entropy (reference/token_logps.py says what they are), a few rows by VOCAB_CHUNK
// logits at a time: [T, V] never exists. The forward keeps log-sum-exp; the backward computes each chunk of logits
// again, turns it into its gradient in place and multiplies it both ways while it is in cache. Rows whose incoming
// gradient is 0 (prompt tokens, zero-advantage groups) are skipped.
//
// T tokens, D hidden, V vocabulary.
#include <vector>

#include "running_softmax.h"

namespace r1lab {
namespace {

constexpr int64_t MAX_ROWS = 48;  // whole tiles
static_assert(MAX_ROWS % TILE_ROWS == 0);
constexpr int64_t MAX_SLICES = 8;              // accumulators of grad_head
constexpr int64_t SLICE_ROWS = 512;            // fewest rows worth an accumulator of their own
constexpr int64_t MAX_SLICE_FLOATS = 1 << 26;  // all accumulators together: 256 MB

// out [rows, ld] = scale * (hidden @ panels), for `columns` columns.
void logits_product(const float* hidden, int64_t ldh, int64_t rows, const float* panels, int64_t columns, int64_t D,
                    float scale, float* out, int64_t ld) {
    const int64_t num_panels = ceil_div(columns, PANEL);
    multiply_panels(hidden, ldh, rows, panels, num_panels, D, [&](int64_t row, int64_t panel, vec lo, vec hi) {
        store(out + row * ld + panel * PANEL, lo * scale);
        store(out + row * ld + panel * PANEL + LANES, hi * scale);
    });
}

struct Problem {
    const float *hidden, *head;
    const int64_t* targets;
    int64_t T, D, V;
    float inverse_temperature;

    int64_t num_chunks() const { return ceil_div(V, VOCAB_CHUNK); }
    int64_t chunk_width(int64_t chunk) const { return std::min(VOCAB_CHUNK, V - chunk * VOCAB_CHUNK); }
};

void forward_rows(const Problem& p, int64_t first, int64_t rows, const float* panels, float* hidden_rows, int64_t ld_d,
                  float* logits, int64_t ld_v, float* logps, float* entropy, float* lse) {
    RunningSoftmax softmax[MAX_ROWS];
    float target_logits[MAX_ROWS];
    for (int64_t row = 0; row < rows; ++row)
        std::memcpy(hidden_rows + row * ld_d, p.hidden + (first + row) * p.D, p.D * sizeof(float));
    for (int64_t chunk = 0; chunk < p.num_chunks(); ++chunk) {
        const int64_t start = chunk * VOCAB_CHUNK, width = p.chunk_width(chunk);
        logits_product(hidden_rows, ld_d, rows, panels + start * p.D, width, p.D, p.inverse_temperature, logits, ld_v);
        for (int64_t row = 0; row < rows; ++row) {
            softmax[row].add(logits + row * ld_v, width);
            const int64_t target = p.targets[first + row] - start;
            if (target >= 0 && target < width) target_logits[row] = logits[row * ld_v + target];
        }
    }
    for (int64_t row = 0; row < rows; ++row) {
        lse[first + row] = softmax[row].log_sum_exp();
        logps[first + row] = softmax[row].logp(target_logits[row]);
        entropy[first + row] = softmax[row].entropy();
    }
}

struct Backward {
    Problem p;
    const float *grad_logps, *lse, *logit_panels, *head_panels;
    float* grad_hidden;

    int64_t head_chunk_floats() const { return VOCAB_CHUNK * round_up(p.D, PANEL); }

    // logits -> their gradient, in place: grad_logp * (onehot - softmax) / temperature.
    void differentiate_row(int64_t token, int64_t start, int64_t width, float* logits) const {
        const float factor = grad_logps[token] * p.inverse_temperature, row_lse = lse[token];
        for_each_vector(width, [&](int64_t v, auto left) {
            store_upto(logits + v, -factor * exp_lanes(load_upto(logits + v, left) - row_lse), left);
        });
        const int64_t target = p.targets[token] - start;
        if (target >= 0 && target < width) logits[target] += factor;
    }

    // Rows tokens[0..rows): sets their grad_hidden, adds to grad_head [V, D] unless null.
    void run_rows(const int64_t* tokens, int64_t rows, float* hidden_rows, int64_t ld_d, float* logits, int64_t ld_v,
                  float* grad_head) const {
        for (int64_t row = 0; row < rows; ++row) {
            std::memcpy(hidden_rows + row * ld_d, p.hidden + tokens[row] * p.D, p.D * sizeof(float));
            if (grad_hidden) std::fill_n(grad_hidden + tokens[row] * p.D, p.D, 0.0f);
        }
        for (int64_t chunk = 0; chunk < p.num_chunks(); ++chunk) {
            const int64_t start = chunk * VOCAB_CHUNK, width = p.chunk_width(chunk);
            logits_product(hidden_rows, ld_d, rows, logit_panels + start * p.D, width, p.D, p.inverse_temperature,
                           logits, ld_v);
            for (int64_t row = 0; row < rows; ++row) differentiate_row(tokens[row], start, width, logits + row * ld_v);
            if (grad_hidden)
                multiply_panels(logits, ld_v, rows, head_panels + chunk * head_chunk_floats(), ceil_div(p.D, PANEL),
                                width, [&](int64_t row, int64_t panel, vec lo, vec hi) {
                                    const int64_t column = panel * PANEL;
                                    add_upto(grad_hidden + tokens[row] * p.D + column, lo, hi, p.D - column);
                                });
            if (grad_head)
                add_transposed_product(logits, ld_v, width, hidden_rows, ld_d, p.D, rows, grad_head + start * p.D, p.D);
        }
    }
};

// Tokens with a gradient to pass on; the others get a grad_hidden of 0.
std::vector<int64_t> tokens_with_gradient(const float* grad_logps, int64_t T, int64_t D, float* grad_hidden) {
    std::vector<int64_t> tokens;
    for (int64_t t = 0; t < T; ++t) {
        if (grad_logps[t] != 0.0f)
            tokens.push_back(t);
        else if (grad_hidden)
            std::fill_n(grad_hidden + t * D, D, 0.0f);
    }
    return tokens;
}

void pack_logit_panels(const Problem& p, float* panels, int64_t num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t column = 0; column < p.V; column += PANEL)
        pack_transposed_panels(p.head + column * p.D, p.D, std::min<int64_t>(PANEL, p.V - column), p.D,
                               panels + column * p.D);
}

}  // namespace
}  // namespace r1lab

using namespace r1lab;

// logps, entropy, lse (log-sum-exp of logits / temperature), each [T]. Returns -1, or the position of a target outside
// 0..V-1.
R1LAB_API int64_t r1lab_token_logps(const float* hidden, const float* head, const int64_t* targets, float* logps,
                                    float* entropy, float* lse, int64_t T, int64_t D, int64_t V, double temperature,
                                    int64_t num_threads) {
    for (int64_t t = 0; t < T; ++t)
        if (targets[t] < 0 || targets[t] >= V) return t;
    const Problem p{hidden, head, targets, T, D, V, inverse_of(temperature)};
    Scratch panels(round_up(V, PANEL) * D, false);
    pack_logit_panels(p, panels.get(), num_threads);
#pragma omp parallel num_threads(num_threads)
    {
        const int64_t ld_d = row_stride(D), ld_v = row_stride(std::min(V, VOCAB_CHUNK));
        Scratch hidden_rows(MAX_ROWS * ld_d), logits(MAX_ROWS * ld_v);
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < T; t += MAX_ROWS)
            forward_rows(p, t, std::min(MAX_ROWS, T - t), panels.get(), hidden_rows.get(), ld_d, logits.get(), ld_v,
                         logps, entropy, lse);
    }
    return -1;
}

// grad_hidden [T, D] and grad_head [V, D], each null when not wanted.
R1LAB_API void r1lab_token_logps_backward(const float* grad_logps, const float* hidden, const float* head,
                                          const int64_t* targets, const float* lse, float* grad_hidden,
                                          float* grad_head, int64_t T, int64_t D, int64_t V, double temperature,
                                          int64_t num_threads) {
    Backward backward{{hidden, head, targets, T, D, V, inverse_of(temperature)},
                      grad_logps, lse, nullptr, nullptr, grad_hidden};
    const Problem& p = backward.p;
    Scratch logit_panels(round_up(V, PANEL) * D, false);
    Scratch head_panels(p.num_chunks() * backward.head_chunk_floats(), false);
    backward.logit_panels = logit_panels.get();
    backward.head_panels = head_panels.get();
    pack_logit_panels(p, logit_panels.get(), num_threads);
    for (int64_t chunk = 0; chunk < p.num_chunks(); ++chunk)
        pack_panels(head + chunk * VOCAB_CHUNK * D, D, p.chunk_width(chunk), D,
                    head_panels.get() + chunk * backward.head_chunk_floats());

    const std::vector<int64_t> tokens = tokens_with_gradient(grad_logps, T, D, grad_hidden);
    const int64_t num_rows = tokens.size(), size = V * D;
    // Cut by the sizes alone, so that the sum of the slices is the same for any number of threads; slice 0 adds
    // straight into the output.
    const int64_t most = std::min(MAX_SLICES, MAX_SLICE_FLOATS / std::max<int64_t>(1, size));
    int64_t num_slices = 1;  // a power of two shares out evenly
    while (2 * num_slices <= std::min(num_rows / SLICE_ROWS, most)) num_slices *= 2;
    Scratch slices(grad_head ? (num_slices - 1) * size : 0, false);
#pragma omp parallel num_threads(num_threads)
    {
        const int64_t ld_d = row_stride(D), ld_v = row_stride(std::min(V, VOCAB_CHUNK));
        Scratch hidden_rows(MAX_ROWS * ld_d), logits(MAX_ROWS * ld_v);
#pragma omp for schedule(dynamic)
        for (int64_t slice = 0; slice < num_slices; ++slice) {
            float* total = slice == 0 || !grad_head ? grad_head : slices.get() + (slice - 1) * size;
            if (grad_head) std::fill_n(total, size, 0.0f);
            const int64_t end = num_rows * (slice + 1) / num_slices;
            for (int64_t row = num_rows * slice / num_slices; row < end; row += MAX_ROWS)
                backward.run_rows(tokens.data() + row, std::min(MAX_ROWS, end - row), hidden_rows.get(), ld_d,
                                  logits.get(), ld_v, total);
        }
    }
    if (grad_head) add_slices(grad_head, slices.get(), num_slices - 1, size, num_threads);
}
