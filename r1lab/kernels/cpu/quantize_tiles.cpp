// Tile-wise quantisation to E4M3 and back (reference/quantize_tiles.py says what they compute), byte for byte the same.
//
// M rows, K columns, G = ceil(K / 128) tiles along the columns. One task is a column of tiles within a band of 128 rows.
// Gradients and activations come a second time as transposed matrices (for the products along the tokens): those are
// read as they lie, and their bytes transposed in L1.
#include "e4m3.h"

namespace r1lab {
namespace {

constexpr int64_t BAND = 128;

typedef uint8_t bytes16 __attribute__((vector_size(16)));

// out [rows, out_stride] = transpose(codes [columns, BAND]). Sixteen rows of sixteen bytes, each interleaved with the one
// eight further, four times over, are transposed.
void transpose_codes(const uint8_t* codes, int64_t rows, int64_t columns, uint8_t* out, int64_t out_stride) {
    for (int64_t i = 0; i < rows; i += 16)
        for (int64_t j = 0; j < columns; j += 16) {
            bytes16 block[16], next[16];
            for (int64_t line = 0; line < 16; ++line) std::memcpy(block + line, codes + (j + line) * BAND + i, 16);
            for (int round = 0; round < 4; ++round) {
#pragma GCC unroll 8
                for (int line = 0; line < 8; ++line) {
                    const bytes16 a = block[line], b = block[line + 8];
                    next[2 * line] = R1LAB_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
                    next[2 * line + 1] =
                        R1LAB_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
                }
                std::memcpy(block, next, sizeof block);
            }
            for (int64_t line = 0; line < std::min<int64_t>(16, rows - i); ++line)
                std::memcpy(out + (i + line) * out_stride + j, block + line, std::min<int64_t>(16, columns - j));
        }
}

struct Quantizer {
    const float* x;
    int64_t M, K;
    bool is_power_of_two;
    uint8_t* q;
    float* scale;
    int64_t G() const { return ceil_div(K, E4M3_TILE); }

    // A band's tiles of tile_rows x 128 at column k; row m of x starts at x + m * stride.
    void rows(int64_t first, int64_t k, int64_t stride, int64_t tile_rows) const {
        const int64_t last = std::min(M, first + BAND), columns = std::min(E4M3_TILE, K - k);
        for (int64_t m = first; m < last; m += tile_rows) {
            const int64_t end = std::min(last, m + tile_rows);
            ivec largest{};
            for (int64_t row = m; row < end; ++row) largest = larger(largest, largest_bits(x + row * stride + k, columns));
            const float factor = scale[m / tile_rows * G() + k / E4M3_TILE] = scale_of(largest, is_power_of_two);
            for (int64_t row = m; row < end; ++row)
                encode(columns,
                       [&](int64_t i, auto left) { return saturate(load_upto(x + row * stride + k + i, left) / factor); },
                       q + row * K + k);
        }
    }

    // The same for tiles of 1 x 128, where column k of x starts at x + k * stride.
    void columns(int64_t first, int64_t k, int64_t stride) const {
        const int64_t num_rows = std::min(BAND, M - first), num_columns = std::min(E4M3_TILE, K - k);
        const float* from = x + k * stride + first;
        alignas(64) int32_t largest[BAND] = {};
        for (int64_t j = 0; j < num_columns; ++j)
            for_each_vector(num_rows, [&](int64_t i, auto left) {
                ivec& so_far = *reinterpret_cast<ivec*>(largest + i);
                so_far = larger(so_far, magnitude_bits(load_upto(from + j * stride + i, left)));
            });
        alignas(64) float factor[BAND];
        for (int64_t i = 0; i < BAND; ++i) factor[i] = scale_of(largest[i], is_power_of_two);
        for (int64_t i = 0; i < num_rows; ++i) scale[(first + i) * G() + k / E4M3_TILE] = factor[i];
        uint8_t codes[E4M3_TILE * BAND] = {};
        for (int64_t j = 0; j < num_columns; ++j)
            encode(num_rows,
                   [&](int64_t i, auto left) { return saturate(load_upto(from + j * stride + i, left) / load(factor + i)); },
                   codes + j * BAND);
        transpose_codes(codes, num_rows, num_columns, q + first * K + k, K);
    }
};

}  // namespace
}  // namespace r1lab

using namespace r1lab;

// q [M, K]; scale [ceil(M / tile_rows), G]. is_transposed: x is [K, M], tile_rows 1. stride: from a row of x to the next.
R1LAB_API void r1lab_quantize_tiles(const float* x, int64_t stride, int64_t is_transposed, int64_t tile_rows,
                                    int64_t is_power_of_two, uint8_t* q, float* scale, int64_t M, int64_t K,
                                    int64_t num_threads) {
    const Quantizer quantizer{x, M, K, is_power_of_two != 0, q, scale};
#pragma omp parallel for collapse(2) num_threads(num_threads) schedule(static)
    for (int64_t first = 0; first < M; first += BAND)
        for (int64_t k = 0; k < K; k += E4M3_TILE)
            if (is_transposed)
                quantizer.columns(first, k, stride);
            else
                quantizer.rows(first, k, stride, tile_rows);
}

// x [M, K] = q * scale.
R1LAB_API void r1lab_dequantize_tiles(const uint8_t* q, const float* scale, int64_t tile_rows, float* x, int64_t M,
                                      int64_t K, int64_t num_threads) {
    const int64_t G = ceil_div(K, E4M3_TILE);
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t m = 0; m < M; ++m)
        for (int64_t group = 0; group < G; ++group) {
            const int64_t k = group * E4M3_TILE;
            decode(q + m * K + k, std::min(E4M3_TILE, K - k), scale[m / tile_rows * G + group], x + m * K + k);
        }
}
