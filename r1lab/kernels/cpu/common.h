// What the CPU kernels share: 8-float vectors, exp, and a register-tiled matrix product.
//
// Written with the compilers' vector extension rather than intrinsics: one source for AVX2, AVX-512 and NEON. Every sum
// runs in an order that depends on the sizes alone: results are bit-identical for any number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#define R1LAB_API extern "C" __attribute__((visibility("default")))
#define R1LAB_INLINE static inline __attribute__((always_inline))

namespace r1lab {

typedef float v8 __attribute__((vector_size(32)));
typedef float v8_unaligned __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t v8i __attribute__((vector_size(32)));

R1LAB_INLINE v8 load8(const float* p) { return *reinterpret_cast<const v8_unaligned*>(p); }
R1LAB_INLINE void store8(float* p, v8 v) { *reinterpret_cast<v8_unaligned*>(p) = v; }
R1LAB_INLINE v8 splat(float x) { return v8{x, x, x, x, x, x, x, x}; }

// The first `n` floats only; lanes beyond the end read as `fill`.
R1LAB_INLINE v8 load_upto(const float* p, int64_t n, float fill = 0.0f) {
    if (n >= 8) return load8(p);
    v8 v = splat(fill);
    for (int64_t i = 0; i < n; ++i) v[i] = p[i];
    return v;
}

R1LAB_INLINE void store_upto(float* p, v8 v, int64_t n) {
    if (n >= 8) return store8(p, v);
    for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}

// Calls body(i, n) for i = 0, 8, 16, ...; n is the constant 8 (so that the *_upto above cost nothing) but in the tail.
template <class Body>
R1LAB_INLINE void for_each_8(int64_t size, const Body& body) {
    int64_t i = 0;
    for (; i + 8 <= size; i += 8) body(i, std::integral_constant<int64_t, 8>());
    if (i < size) body(i, size - i);
}

R1LAB_INLINE float sum8(v8 v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

R1LAB_INLINE float max8(v8 v) {
    float best = v[0];
    for (int i = 1; i < 8; ++i) best = v[i] > best ? v[i] : best;
    return best;
}

// exp within 2 ulp (Cephes' expf polynomial); 0 below -87.3, finite above 88.3, NaN stays NaN.
R1LAB_INLINE v8 exp8(v8 x) {
    const float round_magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
    v8 clipped = x > 88.3f ? splat(88.3f) : x;
    v8 shifted = clipped * 1.44269504088896341f + round_magic;
    v8 n = shifted - round_magic;
    v8 r = clipped - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    v8 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    v8i exponent = (reinterpret_cast<v8i>(shifted) + (127 - 0x4B400000)) << 23;
    v8 result = p * reinterpret_cast<v8>(exponent);
    return x < -87.3f ? splat(0.0f) : result;
}

R1LAB_INLINE v8 sigmoid8(v8 x) { return 1.0f / (1.0f + exp8(-x)); }

R1LAB_INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
R1LAB_INLINE int64_t ceil_div(int64_t n, int64_t divisor) { return (n + divisor - 1) / divisor; }

// Row stride of a scratch matrix: whole 16-wide panels, plus one so that the rows of a column panel do not all fall
// into the same few L1 sets (power-of-two strides would).
R1LAB_INLINE int64_t row_stride(int64_t columns) { return round_up(columns, 16) + 16; }

// Zeroed, 64-byte aligned floats.
class Scratch {
  public:
    explicit Scratch(int64_t size) {
        size_t bytes = static_cast<size_t>(round_up(std::max<int64_t>(size, 1), 16)) * sizeof(float);
        data_ = static_cast<float*>(std::aligned_alloc(64, bytes));
        if (data_ == nullptr) std::abort();
        std::memset(data_, 0, bytes);
    }
    ~Scratch() { std::free(data_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    float* get() const { return data_; }

  private:
    float* data_;
};

// ---- Matrix product -------------------------------------------------------------------------------------------------
// C[m, n] = sum_k A[m, k] B[k, n], six rows by sixteen columns of C at a time: 12 accumulators, 2 registers of B and a
// broadcast of A fill the 16 vector registers of AVX2. Tiles at the bottom edge compute all six rows and drop what lies
// beyond, so A must be readable (any content) up to a multiple of six rows: scratch matrices are cut that way.

constexpr int TILE_ROWS = 6;
constexpr int PANEL = 16;

// out[i] = row i of the tile. A's element (i, k) is a[i * lda + k], or a[k * lda + i] when TRANSPOSED. Never inlined:
// the loop needs every register, and callers differ only in what they do with the result.
template <bool TRANSPOSED>
__attribute__((noinline)) void multiply_tile(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth,
                                             v8 (*out)[2]) {
    v8 lo[TILE_ROWS], hi[TILE_ROWS];
#pragma GCC unroll 6
    for (int i = 0; i < TILE_ROWS; ++i) lo[i] = hi[i] = splat(0.0f);
    for (int64_t k = 0; k < depth; ++k) {
        const v8 b_lo = load8(b), b_hi = load8(b + 8);
#pragma GCC unroll 6
        for (int i = 0; i < TILE_ROWS; ++i) {
            const v8 a_ik = splat(TRANSPOSED ? a[i] : a[i * lda]);
            lo[i] += a_ik * b_lo;
            hi[i] += a_ik * b_hi;
        }
        a += TRANSPOSED ? lda : 1;
        b += ldb;
    }
#pragma GCC unroll 6
    for (int i = 0; i < TILE_ROWS; ++i) {
        out[i][0] = lo[i];
        out[i][1] = hi[i];
    }
}

// Multiplies one tile and calls epilogue(i, lo, hi) for its first `rows` rows.
template <bool TRANSPOSED, class Epilogue>
R1LAB_INLINE void tile(int64_t rows, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth,
                       const Epilogue& epilogue) {
    v8 out[TILE_ROWS][2];
    multiply_tile<TRANSPOSED>(a, lda, b, ldb, depth, out);
    for (int64_t i = 0; i < std::min<int64_t>(rows, TILE_ROWS); ++i) epilogue(i, out[i][0], out[i][1]);
}

// A [rows, depth] times packed panels of B [depth, 16 each]; epilogue(row, panel, lo, hi) takes each row of 16.
template <class Epilogue>
R1LAB_INLINE void multiply_panels(const float* a, int64_t lda, int64_t rows, const float* panels, int64_t num_panels,
                                  int64_t depth, const Epilogue& epilogue) {
    for (int64_t panel = 0; panel < num_panels; ++panel)
        for (int64_t row = 0; row < rows; row += TILE_ROWS)
            tile<false>(rows - row, a + row * lda, lda, panels + panel * depth * PANEL, PANEL, depth,
                        [&](int64_t i, v8 lo, v8 hi) { epilogue(row + i, panel, lo, hi); });
}

// c[0..n) += the first n of (lo, hi).
R1LAB_INLINE void add_upto(float* c, v8 lo, v8 hi, int64_t n) {
    if (n >= PANEL) {
        store8(c, load8(c) + lo);
        store8(c + 8, load8(c + 8) + hi);
    } else {
        for (int64_t i = 0; i < n; ++i) c[i] += i < 8 ? lo[i] : hi[i - 8];
    }
}

// C [m, n] += transpose(A [rows, m]) B [rows, n]. A's and B's row strides must leave room for whole tiles (row_stride).
static inline void add_transposed_product(const float* a, int64_t lda, int64_t m, const float* b, int64_t ldb,
                                          int64_t n, int64_t rows, float* c, int64_t ldc) {
    for (int64_t column = 0; column < n; column += PANEL)
        for (int64_t row = 0; row < m; row += TILE_ROWS)
            tile<true>(m - row, a + row, lda, b + column, ldb, rows, [&](int64_t i, v8 lo, v8 hi) {
                add_upto(c + (row + i) * ldc + column, lo, hi, n - column);
            });
}

// Panels of B [depth, columns] (row-major, stride ldb): panel p holds columns 16p..16p+15 row by row, zero-padded.
static inline void pack_panels(const float* b, int64_t ldb, int64_t depth, int64_t columns, float* panels) {
    for (int64_t column = 0; column < columns; column += PANEL) {
        const int64_t width = std::min<int64_t>(PANEL, columns - column);
        for (int64_t k = 0; k < depth; ++k, panels += PANEL)
            for (int64_t j = 0; j < PANEL; ++j) panels[j] = j < width ? b[k * ldb + column + j] : 0.0f;
    }
}

// Panels of transpose(B), B [columns, depth] row-major with stride ldb.
static inline void pack_transposed_panels(const float* b, int64_t ldb, int64_t columns, int64_t depth, float* panels) {
    for (int64_t column = 0; column < columns; column += PANEL, panels += depth * PANEL)
        for (int64_t j = 0; j < PANEL; ++j)
            for (int64_t k = 0; k < depth; ++k)
                panels[k * PANEL + j] = column + j < columns ? b[(column + j) * ldb + k] : 0.0f;
}

// ---- Sums in a fixed order -----------------------------------------------------------------------------------------

// total += each slice's accumulator, in order.
static inline void add_slices(float* total, const float* slices, int64_t num_slices, int64_t size,
                              int64_t num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t i = 0; i < size; i += 1024)
        for (int64_t slice = 0; slice < num_slices; ++slice)
            for (int64_t j = i; j < std::min(size, i + 1024); ++j) total[j] += slices[slice * size + j];
}

}  // namespace r1lab
