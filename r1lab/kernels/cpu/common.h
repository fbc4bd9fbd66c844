// What the CPU kernels share: vectors of the machine's width, exp, and a register-tiled matrix product.
//
// Written with the compilers' vector extension rather than intrinsics (but for `in_register` and `multiply_add`): one
// source for AVX2, AVX-512 and NEON. Every sum runs in an order that depends on the sizes and the machine's width alone:
// results are bit-identical for any number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#ifdef __FMA__
#include <immintrin.h>
#endif

#define R1LAB_API extern "C" __attribute__((visibility("default")))
#define R1LAB_INLINE static inline __attribute__((always_inline))

// Lanes of two vectors by constants: 0.. are a's, then b's. GCC learnt clang's name for it in version 12.
#if defined(__clang__) || __GNUC__ >= 12
#define R1LAB_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define R1LAB_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype(a == b){__VA_ARGS__})
#endif

namespace r1lab {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float v8 __attribute__((vector_size(32)));  // where a layout asks for eight, whatever the machine

template <class V>
constexpr int size_of = sizeof(V) / sizeof(float);

template <class V = vec>
R1LAB_INLINE V load(const float* p) {
    typedef V unaligned __attribute__((aligned(4), may_alias));
    return *reinterpret_cast<const unaligned*>(p);
}

template <class V>
R1LAB_INLINE void store(float* p, V v) {
    typedef V unaligned __attribute__((aligned(4), may_alias));
    *reinterpret_cast<unaligned*>(p) = v;
}

template <class V = vec>
R1LAB_INLINE V splat(float x) {
    return x - V{};  // x + 0 would cost an addition: it turns -0 into 0
}

// The same vector, loaded once: GCC would rather load it anew for each use, and loads are what runs out.
template <class V>
R1LAB_INLINE V in_register(V vector) {
#if defined(__AVX512F__)
    asm("" : "+v"(vector));
#elif defined(__AVX__)
    asm("" : "+x"(vector));
#endif
    return vector;
}

// a * b + c, rounded once. Compilers contract the expression too, but not always: GCC leaves a loop's only sum of
// products apart on some machines, and a row's result must depend neither on the shape of the tile it is in nor on who
// computes it, rollout or training pass.
R1LAB_INLINE float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

R1LAB_INLINE v8 multiply_add(v8 a, v8 b, v8 c) {
#ifdef __FMA__
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

#ifdef __AVX512F__
R1LAB_INLINE vec multiply_add(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
#endif

// The first `n` floats only; lanes beyond the end read as `fill`.
template <class V = vec>
R1LAB_INLINE V load_upto(const float* p, int64_t n, float fill = 0.0f) {
    if (n >= size_of<V>) return load<V>(p);
    V v = splat<V>(fill);
    for (int64_t i = 0; i < n; ++i) v[i] = p[i];
    return v;
}

template <class V>
R1LAB_INLINE void store_upto(float* p, V v, int64_t n) {
    if (n >= size_of<V>) return store(p, v);
    for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}

// Calls body(i, n) for each vector from i on; n is the constant number of lanes (so that the *_upto above cost nothing)
// but in the tail.
template <class V = vec, class Body>
R1LAB_INLINE void for_each_vector(int64_t size, const Body& body) {
    int64_t i = 0;
    for (; i + size_of<V> <= size; i += size_of<V>) body(i, std::integral_constant<int64_t, size_of<V>>());
    if (i < size) body(i, size - i);
}

// Folds the lanes: the upper half onto the lower, until one is left.
template <class V, class Fold>
R1LAB_INLINE float fold_lanes(V v, const Fold& fold) {
    if constexpr (size_of<V> > 4) {
        typedef float Half __attribute__((vector_size(sizeof(V) / 2)));
        const Half* halves = reinterpret_cast<const Half*>(&v);
        return fold_lanes<Half>(fold(halves[0], halves[1]), fold);
    } else {
        return fold(fold(v[0], v[2]), fold(v[1], v[3]));
    }
}

template <class V>
R1LAB_INLINE float sum_lanes(V v) {
    return fold_lanes(v, [](auto a, auto b) { return a + b; });
}

template <class V>
R1LAB_INLINE float max_lane(V v) {
    return fold_lanes(v, [](auto a, auto b) { return b > a ? b : a; });
}

R1LAB_INLINE void copy(const float* from, int64_t size, float* to) {
    for_each_vector(size, [&](int64_t i, auto left) { store_upto(to + i, load_upto(from + i, left), left); });
}

// exp within 2 ulp (Cephes' expf polynomial); 0 below -87.3, finite above 88.3, NaN stays NaN.
template <class V>
R1LAB_INLINE V exp_lanes(V x) {
    typedef decltype(x > x) Integers;
    const float round_magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
    V clipped = x > 88.3f ? splat<V>(88.3f) : x;
    V shifted = clipped * 1.44269504088896341f + round_magic;
    V n = shifted - round_magic;
    V r = clipped - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    Integers exponent = (reinterpret_cast<Integers>(shifted) + (127 - 0x4B400000)) << 23;
    V result = p * reinterpret_cast<V>(exponent);
    return x < -87.3f ? splat<V>(0.0f) : result;
}

template <class V>
R1LAB_INLINE V sigmoid_lanes(V x) {
    return 1.0f / (1.0f + exp_lanes(-x));
}

template <class V>
R1LAB_INLINE V swiglu_lanes(V gate, V up) {
    return gate * up * sigmoid_lanes(gate);
}

R1LAB_INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
R1LAB_INLINE int64_t ceil_div(int64_t n, int64_t divisor) { return (n + divisor - 1) / divisor; }

// 64-byte aligned floats; zeroed unless whoever uses them writes all first (and does so in parallel).
class Scratch {
  public:
    explicit Scratch(int64_t size, bool is_zeroed = true) {
        size_t bytes = static_cast<size_t>(round_up(std::max<int64_t>(size, 1), 16)) * sizeof(float);
        data_ = static_cast<float*>(std::aligned_alloc(64, bytes));
        if (data_ == nullptr) std::abort();
        if (is_zeroed) std::memset(data_, 0, bytes);
    }
    ~Scratch() { std::free(data_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    float* get() const { return data_; }

  private:
    float* data_;
};

// ---- What rollouts and the training pass both compute, row by row ---------------------------------------------------

// y = weight * x / rms(x) (Zhang and Sennrich, 2019, eq. 4). Returns 1 / rms.
R1LAB_INLINE float rms_norm_row(const float* x, const float* weight, float eps, int64_t size, float* y) {
    vec squares = splat(0.0f);
    for_each_vector(size, [&](int64_t i, auto left) {
        const vec value = load_upto(x + i, left);
        squares = multiply_add(value, value, squares);
    });
    const float inverse = 1.0f / std::sqrt(sum_lanes(squares) / static_cast<float>(size) + eps);
    for_each_vector(size, [&](int64_t i, auto left) {
        store_upto(y + i, load_upto(x + i, left) * inverse * load_upto(weight + i, left), left);
    });
    return inverse;
}

// Rotary embedding of one vector (reference/rope.py), out[i * out_stride] its i-th number.
R1LAB_INLINE void rotate(const float* x, const float* cos, const float* sin, int64_t size, bool interleave, float* out,
                         int64_t out_stride) {
    const int64_t half = size / 2;
    for (int64_t i = 0; i < half; ++i) {
        const float a = interleave ? x[2 * i] : x[i], b = interleave ? x[2 * i + 1] : x[half + i];
        out[i * out_stride] = multiply_add(a, cos[i], -(b * sin[i]));
        out[(half + i) * out_stride] = multiply_add(b, cos[i], a * sin[i]);
    }
}

// ---- Matrix product -------------------------------------------------------------------------------------------------
// C[m, n] = sum_k A[m, k] B[k, n], TILE_ROWS rows by PANEL columns of C, two vectors, at a time: 6 x 2 sums, 2 of B and
// a broadcast of A fill the 16 registers of AVX2. AVX-512 has room for more than 8 rows, but 8 keep both of its units
// busy and divide the usual sizes. Tiles at the bottom edge compute all their rows and drop what lies beyond, so A must
// be readable (any content) up to a multiple of TILE_ROWS rows: scratch matrices are cut that way.

constexpr int TILE_ROWS = LANES == 16 ? 8 : 6;
constexpr int PANEL = 2 * LANES;

// Row stride of a scratch matrix: whole panels, plus 16 so that the rows of a column panel do not all fall into the
// same few L1 sets (power-of-two strides would).
R1LAB_INLINE int64_t row_stride(int64_t columns) { return round_up(columns, PANEL) + 16; }

// out[i] = row i of the tile. A's element (i, k) is a[i * lda + k], or a[k * lda + i] when TRANSPOSED. Never inlined:
// the loop needs every register, and callers differ only in what they do with the result.
template <bool TRANSPOSED>
__attribute__((noinline)) void multiply_tile(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth,
                                             vec (*out)[2]) {
    vec lo[TILE_ROWS], hi[TILE_ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < TILE_ROWS; ++i) lo[i] = hi[i] = splat(0.0f);
    for (int64_t k = 0; k < depth; ++k) {
        const vec b_lo = in_register(load(b)), b_hi = in_register(load(b + LANES));
#pragma GCC unroll 8
        for (int i = 0; i < TILE_ROWS; ++i) {
            const vec a_ik = splat(TRANSPOSED ? a[i] : a[i * lda]);
            lo[i] = multiply_add(a_ik, b_lo, lo[i]);
            hi[i] = multiply_add(a_ik, b_hi, hi[i]);
        }
        a += TRANSPOSED ? lda : 1;
        b += ldb;
    }
#pragma GCC unroll 8
    for (int i = 0; i < TILE_ROWS; ++i) {
        out[i][0] = lo[i];
        out[i][1] = hi[i];
    }
}

// Multiplies one tile and calls epilogue(i, lo, hi) for its first `rows` rows.
template <bool TRANSPOSED, class Epilogue>
R1LAB_INLINE void tile(int64_t rows, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth,
                       const Epilogue& epilogue) {
    vec out[TILE_ROWS][2];
    multiply_tile<TRANSPOSED>(a, lda, b, ldb, depth, out);
    for (int64_t i = 0; i < std::min<int64_t>(rows, TILE_ROWS); ++i) epilogue(i, out[i][0], out[i][1]);
}

// A [rows, depth] times packed panels of B [depth, PANEL each]; epilogue(row, panel, lo, hi) takes a panel's row.
template <class Epilogue>
R1LAB_INLINE void multiply_panels(const float* a, int64_t lda, int64_t rows, const float* panels, int64_t num_panels,
                                  int64_t depth, const Epilogue& epilogue) {
    for (int64_t panel = 0; panel < num_panels; ++panel)
        for (int64_t row = 0; row < rows; row += TILE_ROWS)
            tile<false>(rows - row, a + row * lda, lda, panels + panel * depth * PANEL, PANEL, depth,
                        [&](int64_t i, vec lo, vec hi) { epilogue(row + i, panel, lo, hi); });
}

// to[i] += scale * from[i].
R1LAB_INLINE void add_scaled(const float* from, float scale, int64_t size, float* to) {
    for_each_vector(size, [&](int64_t i, auto left) {
        store_upto(to + i, multiply_add(splat(scale), load_upto(from + i, left), load_upto(to + i, left)), left);
    });
}

// c[0..n) += scale * the first n of (lo, hi).
R1LAB_INLINE void add_scaled_upto(float* c, vec scale, vec lo, vec hi, int64_t n) {
    store_upto(c, multiply_add(scale, lo, load_upto(c, n)), n);
    if (n > LANES) store_upto(c + LANES, multiply_add(scale, hi, load_upto(c + LANES, n - LANES)), n - LANES);
}

// c[0..n) += the first n of (lo, hi).
R1LAB_INLINE void add_upto(float* c, vec lo, vec hi, int64_t n) {
    store_upto(c, load_upto(c, n) + lo, n);
    if (n > LANES) store_upto(c + LANES, load_upto(c + LANES, n - LANES) + hi, n - LANES);
}

// C [m, n] += transpose(A [rows, m]) B [rows, n]. A's and B's row strides must leave room for whole tiles (row_stride).
static inline void add_transposed_product(const float* a, int64_t lda, int64_t m, const float* b, int64_t ldb,
                                          int64_t n, int64_t rows, float* c, int64_t ldc) {
    for (int64_t column = 0; column < n; column += PANEL)
        for (int64_t row = 0; row < m; row += TILE_ROWS)
            tile<true>(m - row, a + row, lda, b + column, ldb, rows, [&](int64_t i, vec lo, vec hi) {
                add_upto(c + (row + i) * ldc + column, lo, hi, n - column);
            });
}

// Panels of B [depth, columns] (row-major, stride ldb): panel p holds columns p * PANEL and on row by row, zero-padded.
static inline void pack_panels(const float* b, int64_t ldb, int64_t depth, int64_t columns, float* panels) {
    for (int64_t column = 0; column < columns; column += PANEL) {
        const int64_t width = columns - column;
        for (int64_t k = 0; k < depth; ++k, panels += PANEL) {
            const float* from = b + k * ldb + column;
            store(panels, load_upto(from, width));
            store(panels + LANES, width > LANES ? load_upto(from + LANES, width - LANES) : splat(0.0f));
        }
    }
}

// to[k * ld_to + j] = from[j * ld_from + k] for j, k < 8: pairs of rows, then of pairs, then of halves.
R1LAB_INLINE void transpose_8x8(const float* from, int64_t ld_from, float* to, int64_t ld_to) {
    v8 rows[8], pairs[8], quads[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) rows[j] = load<v8>(from + j * ld_from);
#pragma GCC unroll 4
    for (int j = 0; j < 8; j += 2) {
        pairs[j] = R1LAB_SHUFFLE(rows[j], rows[j + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        pairs[j + 1] = R1LAB_SHUFFLE(rows[j], rows[j + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const int j = i / 2 * 4 + i % 2;
        quads[i / 2 * 4 + i % 2 * 2] = R1LAB_SHUFFLE(pairs[j], pairs[j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
        quads[i / 2 * 4 + i % 2 * 2 + 1] = R1LAB_SHUFFLE(pairs[j], pairs[j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
        store(to + k * ld_to, R1LAB_SHUFFLE(quads[k], quads[k + 4], 0, 1, 2, 3, 8, 9, 10, 11));
        store(to + (k + 4) * ld_to, R1LAB_SHUFFLE(quads[k], quads[k + 4], 4, 5, 6, 7, 12, 13, 14, 15));
    }
}

// panels[k * PANEL + j] = b[j * ldb + k] for j < width.
R1LAB_INLINE void transpose_columns(const float* b, int64_t ldb, int64_t width, int64_t depth, float* panels) {
    int64_t j = 0;
    for (; j + 8 <= width; j += 8) {
        int64_t k = 0;
        for (; k + 8 <= depth; k += 8) transpose_8x8(b + j * ldb + k, ldb, panels + k * PANEL + j, PANEL);
        for (; k < depth; ++k)
            for (int64_t i = j; i < j + 8; ++i) panels[k * PANEL + i] = b[i * ldb + k];
    }
    for (; j < width; ++j)
        for (int64_t k = 0; k < depth; ++k) panels[k * PANEL + j] = b[j * ldb + k];
}

// Panels of transpose(B), B [columns, depth] row-major with stride ldb.
static inline void pack_transposed_panels(const float* b, int64_t ldb, int64_t columns, int64_t depth, float* panels) {
    for (int64_t column = 0; column < columns; column += PANEL, panels += depth * PANEL, b += PANEL * ldb) {
        if (columns - column < PANEL) std::fill_n(panels, depth * PANEL, 0.0f);
        transpose_columns(b, ldb, std::min<int64_t>(PANEL, columns - column), depth, panels);
    }
}

// [T, heads, size] of any strides, the last dimension contiguous; one head's rows read as a matrix.
struct Rows {
    const float* data;
    int64_t row_stride, head_stride;
    const float* at(int64_t row, int64_t head) const { return data + row * row_stride + head * head_stride; }
};

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
