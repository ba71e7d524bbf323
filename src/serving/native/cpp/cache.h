// Where keys and values of the rows lie, and how they are read for products: as words of what is
// multiplied together.

#pragma once

#include "simd/squares.h"

namespace {

constexpr int64_t KEYS = 2 * WIDTH;  // that are read at once; blocks hold a multiple of them

// A layer's cache, and the blocks of it that each row has.
template <typename W>
struct Cache {
    W* data;  // (places, keys' then values' heads, head size)
    int64_t num_heads, head_size;
    const int64_t* blocks;  // (rows, blocks of a row)
    int64_t num_blocks, block_size;

    int64_t key_size() const { return num_heads * head_size; }
    W* at(int64_t row, int64_t position) const {
        const int64_t block = blocks[row * num_blocks + position / block_size];
        return data + (block * block_size + position % block_size) * 2 * key_size();
    }
};

// Keys or values of a head, at most KEYS; the last one stands for those that are not there.
template <typename W>
struct Lines {
    const W* first;
    int64_t stride, number, size;

    const W* at(int64_t key, int64_t begin) const {
        return first + std::min(key, number - 1) * stride + begin;
    }
};

// Read up to a vector of numbers as float32, filled up with zeros.
template <typename W>
Vector load_some(const W* from, int64_t size) {
    Vector some = {};
    for (int64_t i = 0; i < size; i++) some[i] = to_float(from[i]);
    return some;
}

// Words of neighbours: the first numbers of a row, filled up with zeros.
template <typename W>
Vector load_words(const W* from, int64_t size) {
    if constexpr (NUMBERS<W> == 1) {
        return load_some(from, size);
    } else {
        W numbers[2 * WIDTH] = {};
        std::copy(from, from + size, numbers);
        return reinterpret<Vector>(numbers);
    }
}
template <typename W>
Vector load_words(const W* from) {
    if constexpr (NUMBERS<W> == 1) return load(from);
    Vector words;
    std::memcpy(&words, from, sizeof(words));
    return words;
}

// Words of the numbers of two rows, which are bfloat16.
inline Vector join(Vector lower, Vector upper) {
    return reinterpret<Vector>(reinterpret<Bits>(lower) >> 16 | reinterpret<Bits>(upper));
}

// Keys, turned: (depth, KEYS) words of which each has neighbours of a key.
template <typename W>
void read_keys(Lines<W> lines, int64_t depth, Vector* to) {
    constexpr int64_t STEP = WIDTH * NUMBERS<W>;
    for (int64_t half = 0; half < KEYS; half += WIDTH)
        for (int64_t word = 0; word < depth; word += WIDTH) {
            const int64_t begin = word * NUMBERS<W>, size = lines.size - begin;
            Vector square[WIDTH] = {};
            if (size >= STEP)
#pragma GCC unroll 16
                for (int64_t i = 0; i < WIDTH; i++)
                    square[i] = load_words(lines.at(half + i, begin));
            else if (size > 0)
                for (int64_t i = 0; i < WIDTH; i++)
                    square[i] = load_words(lines.at(half + i, begin), size);
            transpose(square);
#pragma GCC unroll 16
            for (int64_t i = 0; i < WIDTH; i++) to[((word + i) * KEYS + half) / WIDTH] = square[i];
        }
}

// Values: (KEYS / numbers, size) words of which each has the numbers of neighbouring keys.
template <typename W>
void read_values(Lines<W> lines, int64_t size, Vector* to) {
    for (int64_t key = 0; key < KEYS; key += NUMBERS<W>) {
        const W *first = lines.at(key, 0), *second = lines.at(key + NUMBERS<W> - 1, 0);
        for (int64_t begin = 0; begin < size; begin += WIDTH) {
            const int64_t rest = lines.size - begin;
            const auto row = [&](const W* from) {
                return rest >= WIDTH ? load(from + begin) : load_some(from + begin, rest);
            };
            *to++ = NUMBERS<W> == 1 ? row(first) : join(row(first), row(second));
        }
    }
}

}  // namespace
