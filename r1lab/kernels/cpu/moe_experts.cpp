// Routed experts, forward and backward (reference/moe_experts.py says what they compute).
//
// One task is a block of tokens. A thread takes the block, sorts its (token, choice) pairs by expert, and for each
// expert gathers rows, multiplies, applies SwiGLU in registers, multiplies again and adds into the block's own tokens:
// no intermediate ever leaves the cache, no two threads write the same row, no atomics. The backward does the same,
// computing gate and up again rather than read them from memory, with the weight gradients added into one accumulator
// per slice of tokens; slices are cut by the sizes alone and summed in order, so the result does not depend on the
// number of threads.
//
// T tokens, D hidden, E experts, F expert intermediate, K choices a token. A pair is t * K + k.
#include <vector>

#include "common.h"

namespace r1lab {
namespace {

constexpr int64_t MAX_ROWS = 22 * TILE_ROWS;   // rows of one expert multiplied at once: scratch stays within L2
constexpr int64_t MAX_BLOCK = 528;             // tokens a task
constexpr int64_t MAX_SLICES = 8;              // accumulators of weight gradients
constexpr int64_t SLICE_TOKENS = 256;          // fewest tokens worth an accumulator of their own
constexpr int64_t MAX_SLICE_FLOATS = 1 << 26;  // all accumulators together: 256 MB

struct Shape {
    int64_t T, D, E, F, K;
    int64_t d_panels() const { return ceil_div(D, PANEL); }
    int64_t f_panels() const { return ceil_div(F, PANEL); }
    int64_t gate_up_panels() const { return ceil_div(F, LANES); }
    int64_t forward_floats() const { return gate_up_panels() * PANEL * D; }
    int64_t block() const { return std::clamp<int64_t>(ceil_div(T, 8), 32, MAX_BLOCK); }
};

// The pairs of a block of tokens, ordered by expert, then by pair.
class SortedPairs {
  public:
    SortedPairs(const Shape& s, const int64_t* topk_idx, int64_t first_token, int64_t last_token)
        : ends_(s.E + 1, 0), pairs_((last_token - first_token) * s.K) {
        const int64_t first = first_token * s.K, last = last_token * s.K;
        for (int64_t pair = first; pair < last; ++pair) ++ends_[topk_idx[pair] + 1];
        for (int64_t e = 0; e < s.E; ++e) ends_[e + 1] += ends_[e];
        std::vector<int64_t> next(ends_.begin(), ends_.end() - 1);
        for (int64_t pair = first; pair < last; ++pair) pairs_[next[topk_idx[pair]]++] = pair;
    }

    // Calls visit(expert, pairs, rows) for at most MAX_ROWS pairs of one expert at a time.
    template <class Visit>
    void for_each_group(const Visit& visit) const {
        for (int64_t e = 0; e + 1 < static_cast<int64_t>(ends_.size()); ++e)
            for (int64_t row = ends_[e]; row < ends_[e + 1]; row += MAX_ROWS)
                visit(e, pairs_.data() + row, std::min(MAX_ROWS, ends_[e + 1] - row));
    }

  private:
    std::vector<int64_t> ends_, pairs_;
};

// Panels of transpose(gate_up): a vector of gate beside the same columns of up, so that a tile ends with both in
// registers.
void pack_gate_up(const float* gate_up, const Shape& s, float* panels) {
    for (int64_t f = 0; f < s.F; f += LANES, panels += s.D * PANEL) {
        const int64_t width = std::min<int64_t>(LANES, s.F - f);
        if (width < LANES) std::fill_n(panels, s.D * PANEL, 0.0f);
        transpose_columns(gate_up + f * s.D, s.D, width, s.D, panels);
        transpose_columns(gate_up + (s.F + f) * s.D, s.D, width, s.D, panels + LANES);
    }
}

void gather(const float* source, const Shape& s, const int64_t* pairs, int64_t rows, float* out, int64_t ld) {
    for (int64_t row = 0; row < rows; ++row)
        std::memcpy(out + row * ld, source + pairs[row] / s.K * s.D, s.D * sizeof(float));
}

// out[token of row] += scale * (a @ panels), over D columns.
template <class Scale>
void scatter_product(const float* a, int64_t lda, int64_t rows, const float* panels, int64_t depth, const Shape& s,
                     const int64_t* pairs, const Scale& scale, float* out_TD) {
    multiply_panels(a, lda, rows, panels, s.d_panels(), depth, [&](int64_t row, int64_t panel, vec lo, vec hi) {
        float* out = out_TD + pairs[row] / s.K * s.D + panel * PANEL;
        const vec factor = splat(static_cast<float>(scale(pairs[row])));
        add_scaled_upto(out, factor, lo, hi, s.D - panel * PANEL);
    });
}

// One row of SwiGLU's backward. In: gate and up, grad_hidden before the routing weight. Out, in place of gate and up:
// their gradients; and the weighted hidden (for the gradient of down). Returns the gradient of the routing weight.
float swiglu_backward_row(const float* grad_hidden, float weight, int64_t F, float* gate_up, float* weighted_hidden) {
    vec dot = splat(0.0f);
    for_each_vector(F, [&](int64_t f, auto left) {
        const vec gate = load_upto(gate_up + f, left), up = load_upto(gate_up + F + f, left);
        const vec grad = load_upto(grad_hidden + f, left);
        const vec sigmoid = sigmoid_lanes(gate), silu = gate * sigmoid, hidden = silu * up;
        dot += grad * hidden;
        store_upto(weighted_hidden + f, weight * hidden, left);
        store_upto(gate_up + f, weight * grad * up * (sigmoid + silu * (1.0f - sigmoid)), left);
        store_upto(gate_up + F + f, weight * grad * silu, left);
    });
    return sum_lanes(dot);
}

int64_t find_bad_index(const int64_t* topk_idx, int64_t size, int64_t num_experts) {
    for (int64_t i = 0; i < size; ++i)
        if (topk_idx[i] < 0 || topk_idx[i] >= num_experts) return i;
    return -1;
}

struct Backward {
    Shape s;
    const float *grad_y, *x, *topk_weights;
    const int64_t* topk_idx;
    const float *down_panels, *gate_up_panels, *forward_panels;  // forward: of the transpose of gate_up
    float *grad_x, *grad_weights;  // grad_x may be null

    int64_t down_floats() const { return s.f_panels() * PANEL * s.D; }
    int64_t gate_up_floats() const { return s.d_panels() * PANEL * 2 * s.F; }

    // Tokens first..last, adding weight gradients to grad_gate_up [E, 2F, D] and grad_down [E, D, F] unless null.
    void run_tokens(int64_t first, int64_t last, float* grad_gate_up, float* grad_down) const {
        const int64_t ld_d = row_stride(s.D), ld_f = row_stride(s.F), ld_2f = row_stride(2 * s.F);
        Scratch x_rows(MAX_ROWS * ld_d), grad_y_rows(MAX_ROWS * ld_d), grad_hidden(MAX_ROWS * ld_f);
        Scratch weighted_hidden(MAX_ROWS * ld_f), acts(MAX_ROWS * ld_2f);
        const int64_t num_blocks = ceil_div(last - first, s.block());
        for (int64_t block = 0; block < num_blocks; ++block) {
            const int64_t token = first + (last - first) * block / num_blocks;
            const int64_t end = first + (last - first) * (block + 1) / num_blocks;
            if (grad_x != nullptr) std::memset(grad_x + token * s.D, 0, (end - token) * s.D * sizeof(float));
            SortedPairs(s, topk_idx, token, end).for_each_group([&](int64_t e, const int64_t* pairs, int64_t rows) {
                gather(x, s, pairs, rows, x_rows.get(), ld_d);
                gather(grad_y, s, pairs, rows, grad_y_rows.get(), ld_d);
                multiply_panels(x_rows.get(), ld_d, rows, forward_panels + e * s.forward_floats(), s.gate_up_panels(),
                                s.D, [&](int64_t row, int64_t panel, vec gate, vec up) {
                                    float* out = acts.get() + row * ld_2f + panel * LANES;
                                    store_upto(out, gate, s.F - panel * LANES);
                                    store_upto(out + s.F, up, s.F - panel * LANES);
                                });
                multiply_panels(grad_y_rows.get(), ld_d, rows, down_panels + e * down_floats(), s.f_panels(), s.D,
                                [&](int64_t row, int64_t panel, vec lo, vec hi) {
                                    float* out = grad_hidden.get() + row * ld_f + panel * PANEL;
                                    store(out, lo);
                                    store(out + LANES, hi);
                                });
                for (int64_t row = 0; row < rows; ++row)
                    grad_weights[pairs[row]] =
                        swiglu_backward_row(grad_hidden.get() + row * ld_f, topk_weights[pairs[row]], s.F,
                                            acts.get() + row * ld_2f, weighted_hidden.get() + row * ld_f);
                if (grad_x != nullptr)
                    scatter_product(acts.get(), ld_2f, rows, gate_up_panels + e * gate_up_floats(), 2 * s.F, s,
                                    pairs, [](int64_t) { return 1.0f; }, grad_x);
                if (grad_down != nullptr)
                    add_transposed_product(grad_y_rows.get(), ld_d, s.D, weighted_hidden.get(), ld_f, s.F, rows,
                                           grad_down + e * s.D * s.F, s.F);
                if (grad_gate_up == nullptr) return;
                add_transposed_product(acts.get(), ld_2f, 2 * s.F, x_rows.get(), ld_d, s.D, rows,
                                       grad_gate_up + e * 2 * s.F * s.D, s.D);
            });
        }
    }
};

int64_t count_slices(const Shape& s, bool has_weight_grads) {
    const int64_t by_tokens = ceil_div(s.T, s.block());
    if (!has_weight_grads) return std::max<int64_t>(1, by_tokens);
    const int64_t by_memory = MAX_SLICE_FLOATS / std::max<int64_t>(1, 3 * s.E * s.F * s.D);
    int64_t slices = 1;  // a power of two shares out evenly
    while (2 * slices <= std::min(std::min(s.T / SLICE_TOKENS, by_memory), MAX_SLICES)) slices *= 2;
    return slices;
}

}  // namespace
}  // namespace r1lab

using namespace r1lab;

// y [T, D]. Returns -1, or the position in topk_idx of an expert that does not exist.
R1LAB_API int64_t r1lab_moe_experts(const float* x, const int64_t* topk_idx, const float* topk_weights,
                                    const float* gate_up, const float* down, float* y, int64_t T, int64_t D,
                                    int64_t E, int64_t F, int64_t K, int64_t num_threads) {
    const Shape s{T, D, E, F, K};
    const int64_t bad = find_bad_index(topk_idx, T * K, E);
    if (bad >= 0) return bad;
    const int64_t gate_up_floats = s.forward_floats(), down_floats = s.d_panels() * PANEL * F;
    Scratch gate_up_panels(E * gate_up_floats, false), down_panels(E * down_floats, false);
#pragma omp parallel num_threads(num_threads)
    {
#pragma omp for schedule(static)
        for (int64_t e = 0; e < E; ++e) {
            pack_gate_up(gate_up + e * 2 * F * D, s, gate_up_panels.get() + e * gate_up_floats);
            pack_transposed_panels(down + e * D * F, F, D, F, down_panels.get() + e * down_floats);
        }
        const int64_t ld_d = row_stride(D), ld_f = row_stride(F);
        Scratch x_rows(MAX_ROWS * ld_d), hidden(MAX_ROWS * ld_f);
#pragma omp for schedule(dynamic)
        for (int64_t token = 0; token < T; token += s.block()) {
            const int64_t end = std::min(T, token + s.block());
            std::memset(y + token * D, 0, (end - token) * D * sizeof(float));
            SortedPairs(s, topk_idx, token, end).for_each_group([&](int64_t e, const int64_t* pairs, int64_t rows) {
                gather(x, s, pairs, rows, x_rows.get(), ld_d);
                multiply_panels(x_rows.get(), ld_d, rows, gate_up_panels.get() + e * gate_up_floats,
                                s.gate_up_panels(), D, [&](int64_t row, int64_t panel, vec gate, vec up) {
                                    store(hidden.get() + row * ld_f + panel * LANES, swiglu_lanes(gate, up));
                                });
                scatter_product(hidden.get(), ld_f, rows, down_panels.get() + e * down_floats, F, s, pairs,
                                [&](int64_t pair) { return topk_weights[pair]; }, y);
            });
        }
    }
    return -1;
}

// Gradients of everything but topk_idx. grad_x [T, D], grad_weights [T, K], grad_gate_up [E, 2F, D], grad_down
// [E, D, F]; all but grad_weights may be null when not wanted. topk_idx was checked by the forward.
R1LAB_API void r1lab_moe_experts_backward(const float* grad_y, const float* x, const int64_t* topk_idx,
                                          const float* topk_weights, const float* gate_up, const float* down,
                                          float* grad_x, float* grad_weights, float* grad_gate_up, float* grad_down,
                                          int64_t T, int64_t D, int64_t E, int64_t F, int64_t K, int64_t num_threads) {
    const Shape s{T, D, E, F, K};
    Backward backward{s, grad_y, x, topk_weights, topk_idx, nullptr, nullptr, nullptr, grad_x, grad_weights};
    Scratch down_panels(E * backward.down_floats(), false), gate_up_panels(E * backward.gate_up_floats(), false);
    Scratch forward_panels(E * s.forward_floats(), false);
    backward.forward_panels = forward_panels.get();
    backward.down_panels = down_panels.get();
    backward.gate_up_panels = gate_up_panels.get();
    const int64_t gate_up_size = grad_gate_up ? E * 2 * F * D : 0, down_size = grad_down ? E * D * F : 0;
    const int64_t num_slices = count_slices(s, gate_up_size + down_size > 0);
    const int64_t num_extra = gate_up_size + down_size > 0 ? num_slices - 1 : 0;
    Scratch gate_up_slices(num_extra * gate_up_size, false), down_slices(num_extra * down_size, false);
#pragma omp parallel num_threads(num_threads)
    {
#pragma omp for schedule(static)
        for (int64_t e = 0; e < E; ++e) {
            pack_panels(down + e * D * F, F, D, F, down_panels.get() + e * backward.down_floats());
            pack_panels(gate_up + e * 2 * F * D, D, 2 * F, D, gate_up_panels.get() + e * backward.gate_up_floats());
            pack_gate_up(gate_up + e * 2 * F * D, s, forward_panels.get() + e * s.forward_floats());
        }
#pragma omp for schedule(dynamic)
        for (int64_t slice = 0; slice < num_slices; ++slice) {
            const auto accumulator = [&](float* output, const Scratch& slices, int64_t size) {
                float* total = slice == 0 || !output ? output : slices.get() + (slice - 1) * size;
                std::fill_n(total, size, 0.0f);
                return total;  // slice 0 adds straight into the output
            };
            backward.run_tokens(T * slice / num_slices, T * (slice + 1) / num_slices,
                                accumulator(grad_gate_up, gate_up_slices, gate_up_size),
                                accumulator(grad_down, down_slices, down_size));
        }
    }
    add_slices(grad_gate_up, gate_up_slices.get(), num_extra, gate_up_size, num_threads);
    add_slices(grad_down, down_slices.get(), num_extra, down_size, num_threads);
}
