// What a core can do at most: 12 independent chains of 8-float fused multiply-adds, the registers of a 6 x 16 tile.
#include <cstdint>

typedef float v8 __attribute__((vector_size(32)));

// iterations x 12 x 8 x 2 operations; the result keeps the compiler from leaving them out.
extern "C" float fma_peak(int64_t iterations) {
    v8 sums[12];
    for (int i = 0; i < 12; ++i) sums[i] = v8{} + 0.5f * i;
    v8 a = v8{} + 0.999f, b = v8{} + 0.001f;
    for (int64_t k = 0; k < iterations; ++k) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; ++i) sums[i] = sums[i] * a + b;
        asm volatile("" : "+x"(a), "+x"(b));
    }
    v8 total{};
    for (int i = 0; i < 12; ++i) total += sums[i];
    return total[0] + total[7];
}
