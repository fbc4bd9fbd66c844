// y = x w^T + bias, forward and backward, for many rows (reference/linear.py says what it computes), and the same with
// weights of its own for each head.
//
// Every sum over the inputs runs in order: the same bits as in the decoder, which multiplies in another shape.
//
// T rows, H heads (1: plain), K inputs, N outputs.
#include "common.h"

namespace r1lab {
namespace {

constexpr int64_t BLOCK_FLOATS = 1 << 15;  // of a block of rows, which stays in L2 while the weights pass by

int64_t block_rows(int64_t size) {
    const int64_t rows = BLOCK_FLOATS / std::max<int64_t>(1, size);
    return std::clamp<int64_t>(rows, TILE_ROWS, 22 * TILE_ROWS) / TILE_ROWS * TILE_ROWS;
}

void gather(const Rows& rows, int64_t first, int64_t count, int64_t head, int64_t size, float* out, int64_t ld) {
    for (int64_t row = 0; row < count; ++row) copy(rows.at(first + row, head), size, out + row * ld);
}

// out [T, H, columns] = in [T, H, depth] times each head's panels, plus bias [columns] unless null.
void product(const Rows& in, const float* panels, const float* bias, float* out, int64_t T, int64_t H, int64_t depth,
             int64_t columns, int64_t num_threads) {
    const int64_t num_panels = ceil_div(columns, PANEL), turns = ceil_div(std::max<int64_t>(1, T), num_threads * block_rows(depth));
    // As many blocks for each thread; which rows share one does not matter to any of them.
    const int64_t block = std::max<int64_t>(TILE_ROWS, round_up(ceil_div(T, num_threads * turns), TILE_ROWS));
    const int64_t num_blocks = ceil_div(T, block);
#pragma omp parallel num_threads(num_threads)
    {
        Scratch last_rows(TILE_ROWS * depth);
#pragma omp for schedule(static)
        for (int64_t task = 0; task < num_blocks * H; ++task) {
            const int64_t head = task % H, first = task / H * block, rows = std::min(block, T - first);
            const float* head_panels = panels + head * num_panels * PANEL * depth;
            const auto multiply = [&](const float* from, int64_t ld, int64_t start, int64_t count) {
                multiply_panels(from, ld, count, head_panels, num_panels, depth,
                                [&](int64_t row, int64_t panel, vec lo, vec hi) {
                                    const int64_t column = panel * PANEL, left = columns - column;
                                    float* to = out + ((start + row) * H + head) * columns + column;
                                    if (bias) {
                                        lo += load_upto(bias + column, left);
                                        if (left > LANES) hi += load_upto(bias + column + LANES, left - LANES);
                                    }
                                    store_upto(to, lo, left);
                                    if (left > LANES) store_upto(to + LANES, hi, left - LANES);
                                });
            };
            const int64_t whole = rows / TILE_ROWS * TILE_ROWS;  // tiles read all of their rows
            multiply(in.at(first, head), in.row_stride, first, whole);
            if (whole == rows) continue;
            gather(in, first + whole, rows - whole, head, depth, last_rows.get(), depth);
            multiply(last_rows.get(), depth, first + whole, rows - whole);
        }
    }
}

// grad_w [H, N, K] = sum over the rows of grad_y^T x. A thread takes a run of outputs, and the rows in order, in blocks
// that do not depend on the number of threads.
void weight_gradient(const Rows& x, const Rows& grad_y, float* grad_w, int64_t T, int64_t H, int64_t N, int64_t K,
                     int64_t num_threads) {
    const int64_t run = round_up(ceil_div(N, H >= num_threads ? 1 : num_threads), TILE_ROWS);
    const int64_t num_runs = ceil_div(N, run);
    const int64_t block = block_rows(N + K), ld_x = row_stride(K), ld_y = row_stride(run);
#pragma omp parallel num_threads(num_threads)
    {
        Scratch x_rows(block * ld_x), grad_rows(block * ld_y);
#pragma omp for schedule(static)
        for (int64_t task = 0; task < H * num_runs; ++task) {
            const int64_t head = task / num_runs, n = task % num_runs * run, width = std::min(run, N - n);
            const Rows part{grad_y.data + n, grad_y.row_stride, grad_y.head_stride};
            float* total = grad_w + (head * N + n) * K;
            std::fill_n(total, width * K, 0.0f);
            for (int64_t first = 0; first < T; first += block) {
                const int64_t rows = std::min(block, T - first);
                gather(x, first, rows, head, K, x_rows.get(), ld_x);
                gather(part, first, rows, head, width, grad_rows.get(), ld_y);
                add_transposed_product(grad_rows.get(), ld_y, width, x_rows.get(), ld_x, K, rows, total, K);
            }
        }
    }
}

}  // namespace
}  // namespace r1lab

using namespace r1lab;

// x [T, H, K] with strides (row, head); w [H, N, K] contiguous; bias [N] or null, for H = 1; y [T, H, N].
R1LAB_API void r1lab_linear(const float* x, int64_t row_stride, int64_t head_stride, const float* w, const float* bias,
                            float* y, int64_t T, int64_t H, int64_t N, int64_t K, int64_t num_threads) {
    const int64_t size = round_up(N, PANEL) * K;
    Scratch panels(H * size, false);
    for (int64_t head = 0; head < H; ++head)
        pack_transposed_panels(w + head * N * K, K, N, K, panels.get() + head * size);
    product({x, row_stride, head_stride}, panels.get(), bias, y, T, H, K, N, num_threads);
}

// grad_y [T, H, N] contiguous; grad_x [T, H, K], grad_w [H, N, K], each null when not wanted.
R1LAB_API void r1lab_linear_backward(const float* grad_y, const float* x, int64_t row_stride, int64_t head_stride,
                                     const float* w, float* grad_x, float* grad_w, int64_t T, int64_t H, int64_t N,
                                     int64_t K, int64_t num_threads) {
    const Rows grad_rows{grad_y, H * N, N};
    if (grad_x) {
        const int64_t size = round_up(K, PANEL) * N;
        Scratch panels(H * size, false);
        for (int64_t head = 0; head < H; ++head) pack_panels(w + head * N * K, K, N, K, panels.get() + head * size);
        product(grad_rows, panels.get(), nullptr, grad_x, T, H, N, K, num_threads);
    }
    if (grad_w) weight_gradient({x, row_stride, head_stride}, grad_rows, grad_w, T, H, N, K, num_threads);
}
