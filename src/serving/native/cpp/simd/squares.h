// Products of small matrices of words, and matrices turned. A word is what the processor multiplies in a
// lane of 32 bits: a number in float32, or two neighbours in bfloat16. Sums are made in float32.

#pragma once

#include <utility>

#include "inputs.h"
#include "tiles.h"

namespace {

inline int64_t round_up(int64_t size, int64_t to) { return (size + to - 1) / to * to; }

template <typename W>
constexpr int64_t NUMBERS = sizeof(float) / sizeof(typename Terms<W>::Input);  // of a word

template <int64_t HALF, size_t... I>
void exchange(Vector& upper, Vector& lower, std::index_sequence<I...>) {
    const Vector a = upper, b = lower;
    upper = __builtin_shufflevector(a, b, (I & HALF ? WIDTH + I - HALF : I)...);
    lower = __builtin_shufflevector(a, b, (I & HALF ? WIDTH + I : I + HALF)...);
}

// Turn rows into columns: exchange ever smaller squares across the diagonal.
template <int64_t HALF = WIDTH / 2>
void transpose(Vector (&rows)[WIDTH]) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < WIDTH; i++)
        if (!(i & HALF)) exchange<HALF>(rows[i], rows[i + HALF], std::make_index_sequence<WIDTH>());
    if constexpr (HALF > 1) transpose<HALF / 2>(rows);
}

// sums += products of the numbers of each lane with those of one word
template <typename W>
void add_word(Vector& sums, Vector lanes, uint32_t word) {
    typedef typename Terms<W>::Lanes Lanes;
    Terms<W>::add_product(sums, reinterpret<Lanes>(lanes), reinterpret<Lanes>(Bits{} + word));
}

// to (ROWS, columns) += x (ROWS, depth) * y (depth, columns), for two vectors of columns
template <typename W, int ROWS>
void add_columns(const uint32_t* x, int64_t depth, const Vector* y, float* to, int64_t columns) {
    Vector left[ROWS], right[ROWS];
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++) {
        left[row] = load(to + row * columns);
        right[row] = load(to + row * columns + WIDTH);
    }
    for (int64_t i = 0; i < depth; i++) {
        const Vector* lanes = y + i * columns / WIDTH;
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; row++) {
            add_word<W>(left[row], lanes[0], x[row * depth + i]);
            add_word<W>(right[row], lanes[1], x[row * depth + i]);
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++) {
        store(to + row * columns, left[row]);
        store(to + row * columns + WIDTH, right[row]);
    }
}

#ifdef HAS_TILES
// The same for TILE rows in bfloat16, of whose words a tile has TILE each.
inline void add_tiles(const uint32_t* x, int64_t depth, const Vector* y, float* to,
                      int64_t columns) {
    const int64_t row = columns * sizeof(float);
    publish();
    _tile_loadd(0, to, row);
    _tile_loadd(1, to + WIDTH, row);
    for (int64_t i = 0; i < depth; i += WIDTH) {
        _tile_loadd(2, x + i, depth * sizeof(float));
        _tile_loadd(3, y + i * columns / WIDTH, row);
        _tile_loadd(4, y + i * columns / WIDTH + 1, row);
        _tile_dpbf16ps(0, 2, 3);
        _tile_dpbf16ps(1, 2, 4);
    }
    _tile_stored(0, to, row);
    _tile_stored(1, to + WIDTH, row);
}
#endif

// How many rows are multiplied at a time.
template <typename W>
int64_t rows_at_once() {
#ifdef HAS_TILES
    if (NUMBERS<W> == 2 && may_use_tiles()) return TILE;
#endif
    return 4;
}

// As `add_columns`, for a multiple of `rows_at_once` and whole pairs of vectors of columns; where tiles are
// used, the depth has whole vectors too.
template <typename W>
void add_matrices(const Vector* words, int64_t depth, const Vector* y, float* to, int64_t rows,
                  int64_t columns) {
    const uint32_t* x = reinterpret_cast<const uint32_t*>(words);
    for (int64_t column = 0; column < columns; column += 2 * WIDTH, y += 2, to += 2 * WIDTH) {
        int64_t row = 0;
#ifdef HAS_TILES
        if (rows_at_once<W>() == TILE)
            for (; row < rows; row += TILE)
                add_tiles(x + row * depth, depth, y, to + row * columns, columns);
#endif
        for (; row + 8 <= rows; row += 8)
            add_columns<W, 8>(x + row * depth, depth, y, to + row * columns, columns);
        if (row < rows) add_columns<W, 4>(x + row * depth, depth, y, to + row * columns, columns);
    }
}

}  // namespace
