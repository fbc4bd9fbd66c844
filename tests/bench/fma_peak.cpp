// What a core can do at most: 12 independent chains of fused multiply-adds on vectors of the kernels' width.
#include "common.h"

using r1lab::LANES;
using r1lab::vec;

extern "C" int64_t operations_of_iteration() { return 12 * LANES * 2; }

// iterations x operations_of_iteration() operations; the result keeps the compiler from leaving them out.
extern "C" float fma_peak(int64_t iterations) {
    vec sums[12];
    for (int i = 0; i < 12; ++i) sums[i] = vec{} + 0.5f * i;
    vec a = vec{} + 0.999f, b = vec{} + 0.001f;
    for (int64_t k = 0; k < iterations; ++k) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; ++i) sums[i] = sums[i] * a + b;
        asm volatile("" : "+x"(a), "+x"(b));
    }
    vec total{};
    for (int i = 0; i < 12; ++i) total += sums[i];
    return total[0] + total[7];
}
