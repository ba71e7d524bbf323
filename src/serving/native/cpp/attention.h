// Attention of the rows of a step over the cache: rows of one prompt read each key once for all of them.
//
// Threads share a long text, and join what they found.

#pragma once

#include "cache.h"
#include "mixture.h"

namespace {

constexpr int64_t QUERIES = 48;           // that read them together, at most
constexpr int64_t LEAST_KEYS = 8 * KEYS;  // worth the attention of one more thread
constexpr int64_t EXPECTED_LINES = 8192;  // half of a processor's own cache

// Neighbouring rows that have the same blocks.
struct Tile {
    int64_t first, num_rows, longest, num_shares;
};

template <typename W>
class Attention {
   public:
    // What a thread needs for itself.
    struct Scratch {
        std::vector<Vector> queries, keys, values, scores, weights;
        Mixture whole;
    };

    // `num_queries` share a head of keys; a length counts the keys that a row sees, 0 of an idle one.
    Attention(const Cache<W>& cache, int64_t num_queries, const int64_t* lengths, int64_t num_rows,
              int64_t num_threads)
        : num_heads(cache.num_heads), head_size(cache.head_size), num_queries(num_queries),
          lengths(lengths) {
        for (int64_t row = 0; row < num_rows; row++) {
            if (lengths[row] == 0) continue;
            if (!tiles.empty() && joins(cache, tiles.back(), row)) {
                tiles.back().num_rows++;
                tiles.back().longest = std::max(tiles.back().longest, lengths[row]);
            } else {
                tiles.push_back({row, 1, lengths[row], 1});
            }
        }
        for (Tile& tile : tiles) {
            tile.num_shares = std::clamp<int64_t>(tile.longest / LEAST_KEYS, 1, num_threads);
            if (tile.num_shares > 1) num_partial += tile.num_shares * num_heads;
        }
        partial.resize(num_partial);
    }

    // Whether threads have parts to join.
    bool is_shared() const { return num_partial > 0; }

    // Do a thread's part of mixing the values for all queries (rows, heads, head size); 0 is no window.
    void mix(const Cache<W>& cache, int64_t window, const float* queries, Inputs<W>& mixed,
             Scratch& scratch, int64_t part, int64_t num_parts) {
        expect(cache, window, part, num_parts);
        for_items(part, num_parts, [&](const Tile& tile, int64_t head, int64_t share, int64_t number) {
            Mixture& to = tile.num_shares > 1 ? partial[number] : scratch.whole;
            add(cache, window, queries, tile, head, share, scratch, to);
            if (tile.num_shares == 1) finish(tile, head, to, mixed);
        });
    }

    // Join what threads found of the texts that they share.
    void join(Inputs<W>& mixed, int64_t part, int64_t num_parts) {
        int64_t item = 0, number = 0;
        for (const Tile& tile : tiles) {
            if (tile.num_shares == 1) continue;
            for (int64_t head = 0; head < num_heads; head++, number += tile.num_shares) {
                if (item++ % num_parts != part) continue;
                Mixture& to = partial[number];
                for (int64_t share = 1; share < tile.num_shares; share++) {
                    Mixture& from = partial[number + share];
                    for (int64_t query = 0; query < tile.num_rows * num_queries; query++) {
                        if (from.best[query] == NONE) continue;
                        to.rise(query, from.best[query]);
                        from.scale(query, std::exp(from.best[query] - to.best[query]));
                        to.weights[query] += from.weights[query];
                        float* value = to.value(query);
                        add_scaled(value, 1, from.value(query), to.size);
                    }
                }
                finish(tile, head, to, mixed);
            }
        }
    }

   private:
    typedef typename Terms<W>::Input Number;  // of which words are

    const int64_t num_heads, head_size, num_queries;
    const int64_t* lengths;
    std::vector<Tile> tiles;
    int64_t num_partial = 0;
    std::vector<Mixture> partial;  // (tiles that are shared, heads, shares)

    bool joins(const Cache<W>& cache, const Tile& tile, int64_t row) const {
        if (tile.first + tile.num_rows != row || (tile.num_rows + 1) * num_queries > QUERIES)
            return false;
        const int64_t longest = std::max(tile.longest, lengths[row]);
        const int64_t *own = cache.blocks + row * cache.num_blocks,
                      *others = cache.blocks + tile.first * cache.num_blocks;
        return std::equal(own, own + (longest - 1) / cache.block_size + 1, others);
    }

    // Call function(tile, head, share, number of a partial result) for a thread's part.
    template <typename Function>
    void for_items(int64_t part, int64_t num_parts, Function function) const {
        int64_t item = 0, next_partial = 0;
        for (const Tile& tile : tiles)
            for (int64_t head = 0; head < num_heads; head++)
                for (int64_t share = 0; share < tile.num_shares; share++) {
                    const int64_t number = tile.num_shares > 1 ? next_partial++ : 0;
                    if (item++ % num_parts == part) function(tile, head, share, number);
                }
    }

    // Let the memory send what a thread will read: the weights have taken its place in the cache, and
    // keys of one head lie too far apart for the processor to foresee the next.
    void expect(const Cache<W>& cache, int64_t window, int64_t part, int64_t num_parts) const {
        int64_t num_lines = 0;
        for_items(part, num_parts, [&](const Tile& tile, int64_t head, int64_t share, int64_t) {
            const Steps steps = steps_of(tile, share, window);
            const int64_t end = std::min(steps.end * KEYS, tile.longest);
            for (int64_t i = steps.begin * KEYS; i < end && num_lines < EXPECTED_LINES; i++) {
                const W* key = cache.at(tile.first, i) + head * head_size;
                for (const W* from : {key, key + cache.key_size()})
                    for (int64_t j = 0; j < head_size; j += LINE_BYTES / sizeof(W), num_lines++)
                        __builtin_prefetch(from + j);
            }
        });
    }

    int64_t start(int64_t row, int64_t window) const {
        return window ? std::max<int64_t>(0, lengths[row] - window) : 0;
    }

    // Which KEYS keys a thread reads in a step.
    struct Steps {
        int64_t begin, end;
    };
    Steps steps_of(const Tile& tile, int64_t share, int64_t window) const {
        int64_t begin = tile.longest;
        for (int64_t row = tile.first; row < tile.first + tile.num_rows; row++)
            begin = std::min(begin, start(row, window));
        const int64_t first = begin / KEYS, number = (tile.longest - 1) / KEYS + 1 - first;
        return {first + number * share / tile.num_shares,
                first + number * (share + 1) / tile.num_shares};
    }

    void add(const Cache<W>& cache, int64_t window, const float* queries, const Tile& tile,
             int64_t head, int64_t share, Scratch& scratch, Mixture& to) {
        const int64_t number = tile.num_rows * num_queries;
        to.clear(round_up(number, rows_at_once<W>()), round_up(head_size, 2 * WIDTH));
        const int64_t depth = to.size / NUMBERS<W>, key_depth = KEYS / NUMBERS<W>;
        scratch.keys.resize(depth * KEYS / WIDTH);
        scratch.values.resize(key_depth * to.size / WIDTH);
        scratch.scores.resize(to.num_queries * KEYS / WIDTH);
        scratch.weights.assign(to.num_queries * key_depth / WIDTH, Vector{});
        scratch.queries.assign(to.num_queries * depth / WIDTH, Vector{});
        auto *own = reinterpret_cast<Number*>(scratch.queries.data()),
             *weights = reinterpret_cast<Number*>(scratch.weights.data());
        float* scores = reinterpret_cast<float*>(scratch.scores.data());
        for (int64_t query = 0; query < number; query++) {
            const int64_t row = tile.first + query / num_queries;
            const int64_t of_row = head * num_queries + query % num_queries;
            const float* from = queries + (row * num_heads * num_queries + of_row) * head_size;
            for (int64_t i = 0; i < head_size; i++) assign(own[query * to.size + i], from[i]);
        }
        const Steps steps = steps_of(tile, share, window);
        for (int64_t position = steps.begin * KEYS; position < steps.end * KEYS; position += KEYS) {
            const W* key = cache.at(tile.first, position) + head * head_size;
            const int64_t stride = 2 * cache.key_size();
            const int64_t num_keys = std::min(KEYS, tile.longest - position);
            read_keys<W>({key, stride, num_keys, head_size}, depth, scratch.keys.data());
            read_values<W>({key + cache.key_size(), stride, num_keys, head_size}, to.size,
                           scratch.values.data());
            std::fill(scratch.scores.begin(), scratch.scores.end(), Vector{});
            add_matrices<W>(scratch.queries.data(), depth, scratch.keys.data(), scores,
                            to.num_queries, KEYS);
            for (int64_t query = 0; query < number; query++) {
                const int64_t row = tile.first + query / num_queries;
                weigh(to, query, scores + query * KEYS, start(row, window) - position,
                      lengths[row] - position, weights + query * KEYS);
            }
            add_matrices<W>(scratch.weights.data(), key_depth, scratch.values.data(), to.value(0),
                            to.num_queries, to.size);
        }
    }

    // Turn the scores of KEYS keys, of which a row sees those from `begin` to `end`, into weights.
    void weigh(Mixture& to, int64_t query, float* scores, int64_t begin, int64_t end,
               Number* weights) {
        const bool sees_all = begin <= 0 && end >= KEYS;
        if (!sees_all)
            for (int64_t i = 0; i < KEYS; i++)
                if (i < begin || i >= end) scores[i] = NONE;
        const Vector left = load(scores), right = load(scores + WIDTH);
        to.rise(query, highest(left > right ? left : right));
        const float best = to.best[query];
        Vector found[2] = {exponential(left - best), exponential(right - best)};
        if (!sees_all) {
            found[0] = left == NONE ? Vector{} : found[0];
            found[1] = right == NONE ? Vector{} : found[1];
        }
        store(weights, found[0]);
        store(weights + WIDTH, found[1]);
        to.weights[query] += load(weights) + load(weights + WIDTH);  // as they are rounded
    }

    void finish(const Tile& tile, int64_t head, Mixture& from, Inputs<W>& mixed) {
        for (int64_t query = 0; query < tile.num_rows * num_queries; query++) {
            const int64_t row = tile.first + query / num_queries;
            const int64_t of_row = head * num_queries + query % num_queries;
            auto* to = mixed.row(row) + of_row * head_size;
            const float* value = from.value(query);
            const float factor = 1 / sum(from.weights[query]);
            for (int64_t i = 0; i < head_size; i++) assign(to[i], value[i] * factor);
        }
    }
};

}  // namespace
