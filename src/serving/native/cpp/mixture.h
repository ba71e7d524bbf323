// What queries make of keys and values, a few of them at a time.

#pragma once

#include "simd/vectors.h"

namespace {

constexpr float NONE = -INFINITY;

// What the queries of a tile make of some keys: sums of values, by weights of which the best key's is 1.
struct Mixture {
    int64_t num_queries, size;             // both rounded up
    std::vector<Vector> values, weights;   // (queries, size), (queries)
    std::vector<float> best;               // (queries,): the highest score

    void clear(int64_t queries, int64_t features) {
        num_queries = queries;
        size = features;
        values.assign(num_queries * size / WIDTH, Vector{});
        weights.assign(num_queries, Vector{});
        best.assign(num_queries, NONE);
    }
    float* value(int64_t query) { return reinterpret_cast<float*>(&values[query * size / WIDTH]); }
    void scale(int64_t query, float factor) {
        weights[query] *= factor;
        for (int64_t i = 0; i < size / WIDTH; i++) values[query * size / WIDTH + i] *= factor;
    }
    // Make room for a score, if it is higher than all before.
    void rise(int64_t query, float score) {
        if (!(score > best[query])) return;
        scale(query, std::exp(best[query] - score));
        best[query] = score;
    }
};

}  // namespace
