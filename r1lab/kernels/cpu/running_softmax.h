// Log-probabilities over the vocabulary, a chunk of logits at a time: the sampler and the training pass say the same
// numbers, bit for bit.
#pragma once

#include <limits>

#include "common.h"

namespace r1lab {
namespace {

constexpr int64_t VOCAB_CHUNK = 512;

// What logits are multiplied by.
inline float inverse_of(double temperature) { return static_cast<float>(1.0 / static_cast<float>(temperature)); }

// Softmax statistics of one row, updated chunk by chunk: max, sum of exp(l - max), sum of exp(l - max) * (l - max).
struct RunningSoftmax {
    float max = -std::numeric_limits<float>::infinity(), sum = 0.0f, weighted = 0.0f;

    // weights [n]: receives exp(logit - max so far), unless null.
    void add(const float* logits, int64_t n, float* weights = nullptr) {
        const float lowest = -1e30f;
        vec best = splat(lowest);
        for_each_vector(n, [&](int64_t v, auto left) {
            const vec l = load_upto(logits + v, left, lowest);
            best = l > best ? l : best;
        });
        const float new_max = std::max(max, max_lane(best));
        if (new_max > max) rescale(new_max);
        vec sums = splat(0.0f), weighted_sums = splat(0.0f);
        for_each_vector(n, [&](int64_t v, auto left) {
            vec shifted = load_upto(logits + v, left, lowest) - max;
            shifted = shifted < lowest ? splat(lowest) : shifted;  // a logit of -inf adds 0, not 0 * -inf
            const vec weight = exp_lanes(shifted);
            if (weights) store_upto(weights + v, weight, left);
            sums += weight;
            weighted_sums += weight * shifted;
        });
        sum += sum_lanes(sums);
        weighted += sum_lanes(weighted_sums);
    }

    float logp(float logit) const { return (logit - max) - std::log(sum); }
    float log_sum_exp() const { return max + std::log(sum); }
    float entropy() const { return std::log(sum) - weighted / sum; }

  private:
    void rescale(float new_max) {
        if (sum != 0.0f) {
            const float shift = max - new_max, factor = std::exp(shift);
            weighted = factor * (weighted + shift * sum);
            sum *= factor;
        }
        max = new_max;
    }
};

}  // namespace
}  // namespace r1lab
