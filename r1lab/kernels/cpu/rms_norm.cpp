// RMSNorm, forward and backward (reference/rms_norm.py says what it computes).
//
// N rows of D. x may have any row stride (a slice of a wider matrix is read in place).
#include "common.h"

namespace r1lab {
namespace {

constexpr int64_t ROWS_PER_PARTIAL = 256;  // rows summed into one partial gradient of the weight

// grad_x of one row; adds grad_y * x / rms to grad_weight.
void backward_row(const float* grad_y, const float* x, const float* weight, float inverse_rms, int64_t D, float* grad_x,
                  float* grad_weight) {
    vec dots = splat(0.0f);
    for_each_vector(D, [&](int64_t d, auto left) {
        dots += load_upto(grad_y + d, left) * load_upto(weight + d, left) * load_upto(x + d, left);
    });
    const float x_scale = sum_lanes(dots) * inverse_rms * inverse_rms * inverse_rms / static_cast<float>(D);
    for_each_vector(D, [&](int64_t d, auto left) {
        const vec grad = load_upto(grad_y + d, left), value = load_upto(x + d, left);
        store_upto(grad_x + d, inverse_rms * grad * load_upto(weight + d, left) - x_scale * value, left);
        store_upto(grad_weight + d, load_upto(grad_weight + d, left) + grad * value * inverse_rms, left);
    });
}

}  // namespace
}  // namespace r1lab

using namespace r1lab;

// y [N, D], inverse_rms [N] = 1 / sqrt(mean(x^2) + eps).
R1LAB_API void r1lab_rms_norm(const float* x, int64_t x_stride, const float* weight, double eps, float* y,
                              float* inverse_rms, int64_t N, int64_t D, int64_t num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t row = 0; row < N; ++row)
        inverse_rms[row] = rms_norm_row(x + row * x_stride, weight, static_cast<float>(eps), D, y + row * D);
}

// grad_x [N, D], grad_weight [D].
R1LAB_API void r1lab_rms_norm_backward(const float* grad_y, const float* x, int64_t x_stride, const float* weight,
                                       const float* inverse_rms, float* grad_x, float* grad_weight, int64_t N,
                                       int64_t D, int64_t num_threads) {
    const int64_t num_partials = ceil_div(N, ROWS_PER_PARTIAL);
    Scratch partials(num_partials * D);
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t partial = 0; partial < num_partials; ++partial)
        for (int64_t row = partial * ROWS_PER_PARTIAL; row < std::min(N, (partial + 1) * ROWS_PER_PARTIAL); ++row)
            backward_row(grad_y + row * D, x + row * x_stride, weight, inverse_rms[row], D, grad_x + row * D,
                         partials.get() + partial * D);
    std::fill_n(grad_weight, D, 0.0f);
    for (int64_t partial = 0; partial < num_partials; ++partial)
        for (int64_t d = 0; d < D; ++d) grad_weight[d] += partials.get()[partial * D + d];
}
