// The block-scaled product of E4M3 matrices (reference/scaled_gemm.py says what it computes), emulated: operands become
// fp32, where every product of two of them is exact, 128 columns at a time; the partial sums are scaled and added.
//
// M, N rows of the operands, K = inner dimension, G = ceil(K / 128) groups along it. The threads go through the groups
// together: each decodes panels of b, then blocks of a's rows to multiply with all of them. Every output is summed group
// by group, whoever does it.
#include "e4m3.h"

namespace r1lab {
namespace {

constexpr int64_t MAX_ROWS = 22 * TILE_ROWS;  // rows of a decoded at once: 76 KB with AVX2

}  // namespace
}  // namespace r1lab

using namespace r1lab;

// a [M, K] with a_scale [M, G]; b [N, K] with b_scale [ceil(N / b_tile_rows), G]; out [M, N].
R1LAB_API void r1lab_scaled_gemm(const uint8_t* a, const float* a_scale, const uint8_t* b, const float* b_scale,
                                 int64_t b_tile_rows, float* out, int64_t M, int64_t N, int64_t K,
                                 int64_t num_threads) {
    const int64_t G = ceil_div(K, E4M3_TILE), num_panels = ceil_div(N, PANEL), panel_size = E4M3_TILE * PANEL;
    const int64_t ld = E4M3_TILE + 16;  // rows that are a power of two apart would share few L1 sets
    // A block for each thread at least; small blocks leave more of them to go round.
    const int64_t num_blocks = std::max<int64_t>(8, num_threads);
    const int64_t block = std::clamp(round_up(ceil_div(M, num_blocks), TILE_ROWS), int64_t{TILE_ROWS}, MAX_ROWS);
    Scratch panels(num_panels * panel_size, false), scales(num_panels * PANEL, false);
    std::fill_n(out, M * N, 0.0f);
#pragma omp parallel num_threads(num_threads)
    {
        Scratch rows(MAX_ROWS * ld, false), columns(PANEL * ld, false);
        for (int64_t group = 0; group < G; ++group) {
            const int64_t k = group * E4M3_TILE, depth = std::min(E4M3_TILE, K - k);
#pragma omp for schedule(static)
            for (int64_t n = 0; n < N; n += PANEL) {
                const int64_t width = std::min<int64_t>(PANEL, N - n);
                for (int64_t j = 0; j < width; ++j) {
                    decode(b + (n + j) * K + k, depth, 1.0f, columns.get() + j * ld);
                    scales.get()[n + j] = b_scale[(n + j) / b_tile_rows * G + group];
                }
                pack_transposed_panels(columns.get(), ld, width, depth, panels.get() + n / PANEL * panel_size);
            }
#pragma omp for schedule(static)
            for (int64_t m = 0; m < M; m += block) {
                const int64_t num_rows = std::min(block, M - m);
                for (int64_t row = 0; row < num_rows; ++row)
                    decode(a + (m + row) * K + k, depth, 1.0f, rows.get() + row * ld);
                for (int64_t n = 0; n < N; n += PANEL)
                    multiply_panels(rows.get(), ld, num_rows, panels.get() + n / PANEL * panel_size, 1, depth,
                                    [&](int64_t row, int64_t, vec lo, vec hi) {
                                        const float factor = a_scale[(m + row) * G + group];
                                        const float* b_factor = scales.get() + n;
                                        add_upto(out + (m + row) * N + n, lo * factor * load(b_factor),
                                                 hi * factor * load(b_factor + LANES), N - n);
                                    });
            }
        }
    }
}
