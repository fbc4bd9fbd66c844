// The DeepSeek-V3 gate, forward and backward (reference/moe_gate.py says what it computes).
//
// T tokens, E experts in G equal groups, K experts a token.
#include <limits>
#include <vector>

#include "common.h"

namespace r1lab {
namespace {

// Orders scores as torch's stable descending sort does: NaN first, then by value; equal scores keep their order.
inline bool is_above(float a, float b) { return a > b || (std::isnan(a) && !std::isnan(b)); }

// Position of the best score among those not yet taken.
int64_t take_best(const float* scores, int64_t n, std::vector<char>& is_taken) {
    int64_t best = -1;
    for (int64_t i = 0; i < n; ++i)
        if (!is_taken[i] && (best < 0 || is_above(scores[i], scores[best]))) best = i;
    is_taken[best] = 1;
    return best;
}

float sum_of_two_best(const float* scores, int64_t n) {
    if (n == 1) return scores[0];
    float first = scores[0], second = scores[1];
    if (is_above(second, first)) std::swap(first, second);
    for (int64_t i = 2; i < n; ++i) {
        if (is_above(scores[i], first)) {
            second = first;
            first = scores[i];
        } else if (is_above(scores[i], second)) {
            second = scores[i];
        }
    }
    return first + second;
}

class Router {
  public:
    Router(int64_t E, int64_t n_group, int64_t topk_group, int64_t top_k)
        : E_(E), n_group_(n_group), topk_group_(topk_group), top_k_(top_k), choice_(E), group_scores_(n_group) {}

    void choose(const float* scores, const float* bias, int64_t* topk_idx) {
        for (int64_t e = 0; e < E_; ++e) choice_[e] = scores[e] + bias[e];
        if (topk_group_ < n_group_) drop_groups();
        taken_.assign(E_, 0);
        for (int64_t k = 0; k < top_k_; ++k) topk_idx[k] = take_best(choice_.data(), E_, taken_);
    }

  private:
    void drop_groups() {
        const int64_t size = E_ / n_group_;
        for (int64_t g = 0; g < n_group_; ++g) group_scores_[g] = sum_of_two_best(choice_.data() + g * size, size);
        taken_.assign(n_group_, 0);
        for (int64_t i = 0; i < topk_group_; ++i) take_best(group_scores_.data(), n_group_, taken_);
        for (int64_t g = 0; g < n_group_; ++g)
            if (!taken_[g]) std::fill_n(choice_.data() + g * size, size, -std::numeric_limits<float>::infinity());
    }

    int64_t E_, n_group_, topk_group_, top_k_;
    std::vector<float> choice_, group_scores_;
    std::vector<char> taken_;
};

void sigmoid_row(const float* logits, int64_t n, float* scores) {
    for_each_vector<v8>(
        n, [&](int64_t e, auto left) { store_upto(scores + e, sigmoid_lanes(load_upto<v8>(logits + e, left)), left); });
}

// The weights of a token's experts, from all scores.
void weigh(const float* scores, const int64_t* idx, int64_t top_k, bool is_normed, float scale, float* weights) {
    float sum = 1e-20f;
    for (int64_t k = 0; k < top_k; ++k) sum += scores[idx[k]];
    for (int64_t k = 0; k < top_k; ++k) weights[k] = (is_normed ? scores[idx[k]] / sum : scores[idx[k]]) * scale;
}

}  // namespace
}  // namespace r1lab

using namespace r1lab;

R1LAB_API void r1lab_moe_gate(const float* logits, const float* bias, int64_t* topk_idx, float* topk_weights, int64_t T,
                              int64_t E, int64_t n_group, int64_t topk_group, int64_t top_k, int64_t norm_topk_prob,
                              double routed_scaling_factor, int64_t num_threads) {
    const float scale = static_cast<float>(routed_scaling_factor);
#pragma omp parallel num_threads(num_threads)
    {
        Router router(E, n_group, topk_group, top_k);
        std::vector<float> scores(E);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < T; ++t) {
            int64_t* idx = topk_idx + t * top_k;
            sigmoid_row(logits + t * E, E, scores.data());
            router.choose(scores.data(), bias, idx);
            weigh(scores.data(), idx, top_k, norm_topk_prob, scale, topk_weights + t * top_k);
        }
    }
}

// The weights alone, of given experts in 0..E-1.
R1LAB_API void r1lab_moe_gate_weights(const float* logits, const int64_t* topk_idx, float* topk_weights, int64_t T,
                                      int64_t E, int64_t top_k, int64_t norm_topk_prob, double routed_scaling_factor,
                                      int64_t num_threads) {
#pragma omp parallel num_threads(num_threads)
    {
        std::vector<float> scores(E);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < T; ++t) {
            sigmoid_row(logits + t * E, E, scores.data());
            weigh(scores.data(), topk_idx + t * top_k, top_k, norm_topk_prob, static_cast<float>(routed_scaling_factor),
                  topk_weights + t * top_k);
        }
    }
}

// grad_logits [T, E]; the scores are computed again from the logits.
R1LAB_API void r1lab_moe_gate_backward(const float* grad_weights, const float* logits, const int64_t* topk_idx,
                                       float* grad_logits, int64_t T, int64_t E, int64_t top_k, int64_t norm_topk_prob,
                                       double routed_scaling_factor, int64_t num_threads) {
    const float scale = static_cast<float>(routed_scaling_factor);
#pragma omp parallel num_threads(num_threads)
    {
        std::vector<float> scores(E);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < T; ++t) {
            const int64_t* idx = topk_idx + t * top_k;
            const float* grad = grad_weights + t * top_k;
            float* out = grad_logits + t * E;
            sigmoid_row(logits + t * E, E, scores.data());
            float sum = 1e-20f, dot = 0.0f;
            for (int64_t k = 0; k < top_k; ++k) {
                sum += scores[idx[k]];
                dot += grad[k] * scores[idx[k]];
            }
            std::fill_n(out, E, 0.0f);
            for (int64_t k = 0; k < top_k; ++k) {
                const float score = scores[idx[k]];
                const float grad_score = norm_topk_prob ? (grad[k] - dot / sum) / sum : grad[k];
                out[idx[k]] = scale * grad_score * score * (1.0f - score);
            }
        }
    }
}
