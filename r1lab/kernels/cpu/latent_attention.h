// Absorbed attention of one query, all heads together, over the latents of its sequence: what a decode step and the
// training pass both do (decode_step.cpp, mla_absorbed_attention.cpp), bit for bit the same.
//
// A cache is read once, a chunk of positions at a time, for all heads: scores, their exponentials against the largest
// so far, and the weighted sum of latents, which is rescaled when a later chunk holds a larger score (Milakov and
// Gimelshein, 2018). It lies [positions / 8][latent][8].
#pragma once

#include <limits>
#include <vector>

#include "common.h"

namespace r1lab {
namespace {

constexpr int POSITIONS = 8;  // that lie side by side in the cache
constexpr int CHUNK = 256;    // positions read at a time, for all heads: they stay in L2
constexpr int MAX_HEADS = 6;  // at a time: 6 x 2 sums, 2 of the cache and a number of a query fill AVX2

struct LatentShape {
  int heads, kv_rank, rope;
  float scale;  // of scores
  int latent() const { return kv_rank + rope; }
};

// What one head's softmax knows of the chunks so far.
struct HeadSoftmax {
  float top = -std::numeric_limits<float>::infinity();  // the largest scaled score
  float sum = 0.0f;                                     // of exp(score - top)
};

struct LatentScratch {
  explicit LatentScratch(int heads) : scores(MAX_HEADS * CHUNK), running(heads) {}
  std::vector<float> scores;
  std::vector<HeadSoftmax> running;  // one a head
};

// Calls body with min(value, N) as a constant, value at least 1.
template <int N, class Body>
inline void with_constant(int value, const Body& body) {
  if constexpr (N > 1)
    if (value < N) return with_constant<N - 1>(value, body);
  body(std::integral_constant<int, N>());
}

// Sums of the lanes of eight vectors, the first one's in lane 0.
inline v8 sums_of_lanes(const v8* v) {
  v8 quarters[4], pairs[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)  // halves: lanes 0 to 3 are left of v[i], 4 to 7 of v[i + 4]
    quarters[i] = R1LAB_SHUFFLE(v[i], v[i + 4], 0, 1, 2, 3, 8, 9, 10, 11) +
                  R1LAB_SHUFFLE(v[i], v[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)  // v[i], v[i + 2], v[i + 4], v[i + 6]
    pairs[i] = R1LAB_SHUFFLE(quarters[i], quarters[i + 2], 0, 1, 8, 9, 4, 5, 12, 13) +
               R1LAB_SHUFFLE(quarters[i], quarters[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
  return R1LAB_SHUFFLE(pairs[0], pairs[1], 0, 8, 2, 10, 4, 12, 6, 14) +
         R1LAB_SHUFFLE(pairs[0], pairs[1], 1, 9, 3, 11, 5, 13, 7, 15);
}

// What attention reads after this chunk, fetched a cache line at a time between sums: all caches together do not fit
// into L2, and at once their lines would fill the queue of what is under way.
struct Ahead {
  const float *next, *end;

  void fetch() {
    if (next >= end) return;
    __builtin_prefetch(next);
    next += 16;
  }
};

// scores[h][s] = q[h] . cache[s] for NH heads and NB blocks of 8 positions.
template <int NH, int NB>
inline void score_blocks(const float* q, const float* keys, Ahead& ahead, int latent, float* scores) {
  const size_t block_size = static_cast<size_t>(latent) * POSITIONS;
  v8 acc[NH][NB] = {};
  for (int d = 0; d < latent; ++d, keys += POSITIONS, ++q) {
    ahead.fetch();
    v8 key[NB];
#pragma GCC unroll 8
    for (int b = 0; b < NB; ++b) key[b] = in_register(load<v8>(keys + b * block_size));
#pragma GCC unroll 8
    for (int h = 0; h < NH; ++h) {
      const v8 x = splat<v8>(q[h * latent]);
#pragma GCC unroll 8
      for (int b = 0; b < NB; ++b) acc[h][b] = multiply_add(x, key[b], acc[h][b]);
    }
  }
#pragma GCC unroll 8
  for (int h = 0; h < NH; ++h)
#pragma GCC unroll 8
    for (int b = 0; b < NB; ++b) store(scores + h * CHUNK + b * POSITIONS, acc[h][b]);
}

template <int NH>
void attention_scores(const float* q, const float* cache, Ahead& ahead, int latent, int num_blocks, float* scores) {
  constexpr int MOST = NH > 4 ? 2 : NH > 2 ? 3 : 4;  // blocks whose sums and keys the registers hold
  for (int block = 0; block < num_blocks;) {
    const size_t first = static_cast<size_t>(block) * latent * POSITIONS;
    with_constant<MOST>(num_blocks - block, [&](auto NB) {
      score_blocks<NH, NB>(q, cache + first, ahead, latent, scores + block * POSITIONS);
      block += NB;
    });
  }
}

// In place exp(score * scale - top) of the first `length` scores; the rest of the last block becomes 0. Returns what
// sums over earlier chunks have to be multiplied by, now that `top` may be larger.
float exponentials(float* scores, int length, int num_blocks, float scale, HeadSoftmax& running) {
  for (int s = length; s < num_blocks * POSITIONS; ++s) scores[s] = scores[0];  // a copy cannot change the maximum
  v8 best = load<v8>(scores);
  for (int b = 1; b < num_blocks; ++b) {
    const v8 value = load<v8>(scores + b * POSITIONS);
    best = value > best ? value : best;
  }
  const float top = std::max(running.top, max_lane(best) * scale);
  const float correction = exp_lanes(splat<v8>(running.top - top))[0];
  for (int b = 0; b < num_blocks; ++b)
    store(scores + b * POSITIONS, exp_lanes(load<v8>(scores + b * POSITIONS) * scale - top));
  for (int s = length; s < num_blocks * POSITIONS; ++s) scores[s] = 0.0f;
  v8 sum{};
  for (int b = 0; b < num_blocks; ++b) sum += load<v8>(scores + b * POSITIONS);
  running.top = top;
  running.sum = running.sum * correction + sum_lanes(sum);
  return correction;
}

// context[h][c] = context[h][c] * corrections[h] + sum_s weights[h][s] * cache[s][c] for NH heads: two latent
// dimensions at a time, the lanes of eight summed together.
template <int NH>
void attention_context(const float* weights, const float* corrections, const float* cache, Ahead& ahead, int latent,
                       int kv_rank, int num_blocks, float* context) {
  const size_t block_size = static_cast<size_t>(latent) * POSITIONS;
  v8 sums[NH][8] = {};
  for (int c = 0; c < kv_rank; c += 2) {
    const int second = c + 1 < kv_rank ? POSITIONS : 0;
    v8 acc[NH][2] = {};
    const float* values = cache + c * POSITIONS;
    for (int block = 0; block < num_blocks; ++block, values += block_size) {
      ahead.fetch();
      const v8 value0 = in_register(load<v8>(values)), value1 = in_register(load<v8>(values + second));
#pragma GCC unroll 8
      for (int h = 0; h < NH; ++h) {
        const v8 p = in_register(load<v8>(weights + h * CHUNK + block * POSITIONS));
        acc[h][0] = multiply_add(p, value0, acc[h][0]);
        acc[h][1] = multiply_add(p, value1, acc[h][1]);
      }
    }
    for (int h = 0; h < NH; ++h) {
      sums[h][c % 8] = acc[h][0];
      sums[h][c % 8 + 1] = acc[h][1];
    }
    if (c % 8 < 6 && c + 2 < kv_rank) continue;
    for (int h = 0; h < NH; ++h) {
      float* out = context + h * kv_rank + c / 8 * 8;
      const int left = kv_rank - c / 8 * 8;
      store_upto(out, load_upto<v8>(out, left) * corrections[h] + sums_of_lanes(sums[h]), left);
    }
  }
}

// One chunk of `length` positions for NH heads.
template <int NH>
void attend_chunk(const LatentShape& shape, const float* q, const float* cache, Ahead& ahead, int length, float* scores,
                  HeadSoftmax* running, float* context) {
  const int latent = shape.latent(), num_blocks = (length + POSITIONS - 1) / POSITIONS;
  attention_scores<NH>(q, cache, ahead, latent, num_blocks, scores);
  float corrections[NH];
  for (int h = 0; h < NH; ++h)
    corrections[h] = exponentials(scores + h * CHUNK, length, num_blocks, shape.scale, running[h]);
  attention_context<NH>(scores, corrections, cache, ahead, latent, shape.kv_rank, num_blocks, context);
}

// q [heads][latent] against the first `length` positions of `cache`; sets context [heads][kv_rank] and scratch.running.
// Meanwhile what the next call reads is fetched.
void attend_row(const LatentShape& shape, const float* q, const float* cache, int length, const float* next_cache,
                int next_length, LatentScratch& scratch, float* context) {
  const int latent = shape.latent(), kv_rank = shape.kv_rank;
  float* scores = scratch.scores.data();
  std::vector<HeadSoftmax>& running = scratch.running;
  std::fill(running.begin(), running.end(), HeadSoftmax());
  std::fill_n(context, static_cast<size_t>(shape.heads) * kv_rank, 0.0f);
  for (int first = 0; first < length; first += CHUNK) {
    const int size = std::min(CHUNK, length - first);
    const float* chunk = cache + static_cast<size_t>(first) * latent;
    const bool is_last = first + CHUNK >= length;
    const int next_size = is_last ? next_length : length - first - CHUNK;
    const float* next = is_last ? next_cache : chunk + static_cast<size_t>(CHUNK) * latent;
    Ahead ahead{next, next + round_up(std::min(next_size, CHUNK), POSITIONS) * latent};
    for (int h = 0; h < shape.heads;) {
      const auto attend = [&](auto NH) {
        attend_chunk<NH>(shape, q + h * latent, chunk, ahead, size, scores, running.data() + h, context + h * kv_rank);
        h += NH;
      };
      with_constant<MAX_HEADS>(shape.heads - h, attend);
    }
  }
  for (int h = 0; h < shape.heads; ++h) {
    const float inverse = 1.0f / running[h].sum;
    for (int c = 0; c < kv_rank; ++c) context[h * kv_rank + c] *= inverse;
  }
}

}  // namespace
}  // namespace r1lab
