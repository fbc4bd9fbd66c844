// E4M3 numbers: sign, 4 bits of exponent with bias 7, 3 of mantissa; no infinity, NaN is S.1111.111, and below 2^-6 the
// numbers are the multiples of 2^-9.
#pragma once

#include <limits>

#include "common.h"

namespace r1lab {

typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

constexpr int64_t E4M3_TILE = 128;  // columns of a tile, and rows of a weight's block
constexpr int32_t E4M3_NAN = 0x7F;
constexpr float E4M3_MAX = 448.0f;
constexpr float LEAST_SCALE = 0x1p-126f;  // the smallest normal number: a division by a scale never overflows

// The codes of the numbers nearest to x, ties to the even code; |x| <= 448 or NaN.
R1LAB_INLINE ivec encode_lanes(vec x) {
    const ivec bits = reinterpret_cast<ivec>(x), magnitude = bits & 0x7FFFFFFF;
    // 20 bits of fp32's mantissa go; the exponent's bias falls from 127 to 7.
    const ivec normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - ((127 - 7) << 3);
    // Added to 2^14, where fp32's numbers are 2^-9 apart, a subnormal number is rounded to its multiple.
    const ivec subnormal = reinterpret_cast<ivec>(reinterpret_cast<vec>(magnitude) + 16384.0f) - 0x46800000;
    ivec code = magnitude < 0x3C800000 ? subnormal : normal;
    code = magnitude > 0x7F800000 ? ivec{} + E4M3_NAN : code;
    return code | ((bits >> 24) & 0x80);
}

R1LAB_INLINE vec decode_lanes(ivec code) {
    const ivec magnitude = code & 0x7F;
    const ivec normal = (magnitude << 20) + ((127 - 7) << 23);
    const vec subnormal = __builtin_convertvector(magnitude, vec) * 0x1p-9f;
    ivec bits = magnitude < 8 ? reinterpret_cast<ivec>(subnormal) : normal;
    bits = magnitude == E4M3_NAN ? ivec{} + 0x7FC00000 : bits;
    return reinterpret_cast<vec>(bits | ((code & 0x80) << 24));
}

// codes[0..size) of at most a tile's row, by quotient(i, left), the vector of numbers from i on. Codes become bytes in a
// loop of their own, which compilers turn into packing instructions.
template <class Quotient>
R1LAB_INLINE void encode(int64_t size, const Quotient& quotient, uint8_t* codes) {
    alignas(64) int32_t wide[E4M3_TILE];
    for_each_vector(size, [&](int64_t i, auto left) {
        *reinterpret_cast<ivec*>(wide + i) = encode_lanes(quotient(i, left));
    });
    for (int64_t i = 0; i < size; ++i) codes[i] = static_cast<uint8_t>(wide[i]);
}

// out[0..size) = the numbers of at most a tile's row, times scale.
R1LAB_INLINE void decode(const uint8_t* codes, int64_t size, float scale, float* out) {
    alignas(64) int32_t wide[E4M3_TILE];
    for (int64_t i = 0; i < size; ++i) wide[i] = codes[i];
    for_each_vector(size, [&](int64_t i, auto left) {
        store_upto(out + i, scale * decode_lanes(*reinterpret_cast<const ivec*>(wide + i)), left);
    });
}

// |x| as an integer. Compared so, NaN is above infinity, and a maximum cannot lose it.
R1LAB_INLINE ivec magnitude_bits(vec x) { return reinterpret_cast<ivec>(x) & 0x7FFFFFFF; }

R1LAB_INLINE ivec larger(ivec a, ivec b) { return a > b ? a : b; }

// Of each lane's numbers among x[0..size).
R1LAB_INLINE ivec largest_bits(const float* x, int64_t size) {
    ivec largest{};
    for_each_vector(
        size, [&](int64_t i, auto left) { largest = larger(largest, magnitude_bits(load_upto(x + i, left))); });
    return largest;
}

// The scale of a tile whose largest magnitude has these bits.
static inline float scale_of(int32_t largest_bits, bool is_power_of_two) {
    float largest;
    std::memcpy(&largest, &largest_bits, sizeof largest);
    if (!(largest <= std::numeric_limits<float>::max())) return std::numeric_limits<float>::quiet_NaN();
    if (largest == 0.0f) return 1.0f;
    float scale = std::max(largest / E4M3_MAX, LEAST_SCALE);
    if (!is_power_of_two) return scale;
    uint32_t bits;
    std::memcpy(&bits, &scale, sizeof bits);
    bits = (bits + 0x7FFFFF) & 0x7F800000;  // a carry steps to the next exponent; exact powers stay
    std::memcpy(&scale, &bits, sizeof scale);
    return scale;
}

static inline float scale_of(ivec largest, bool is_power_of_two) {
    int32_t most = 0;
    for (int lane = 0; lane < LANES; ++lane) most = std::max(most, largest[lane]);
    return scale_of(most, is_power_of_two);
}

R1LAB_INLINE vec saturate(vec x) {
    x = x > E4M3_MAX ? splat(E4M3_MAX) : x;
    return x < -E4M3_MAX ? splat(-E4M3_MAX) : x;
}

// x[0..size) as E4M3 in 1x128 tiles with scales that are powers of two, and back: what an FP8 product sees of a row.
static inline void round_row(float* x, int64_t size) {
    for (int64_t k = 0; k < size; k += E4M3_TILE) {
        float* tile = x + k;
        const int64_t columns = std::min(E4M3_TILE, size - k);
        const float scale = scale_of(largest_bits(tile, columns), true);
        for_each_vector(columns, [&](int64_t i, auto left) {
            const vec quotient = saturate(load_upto(tile + i, left) / scale);
            store_upto(tile + i, scale * decode_lanes(encode_lanes(quotient)), left);
        });
    }
}

}  // namespace r1lab
