// Products of small matrices in float32, and matrices turned.

#pragma once

#include <utility>

#include "vectors.h"

namespace {

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

// to (ROWS, columns) += x (ROWS, depth) * y (depth, columns), for two vectors of columns
template <int ROWS>
void add_columns(const float* x, int64_t depth, const float* y, float* to, int64_t columns) {
    Vector left[ROWS], right[ROWS];
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++) {
        left[row] = load(to + row * columns);
        right[row] = load(to + row * columns + WIDTH);
    }
    for (int64_t i = 0; i < depth; i++) {
        const Vector y_left = load(y + i * columns), y_right = load(y + i * columns + WIDTH);
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; row++) {
            left[row] += y_left * x[row * depth + i];
            right[row] += y_right * x[row * depth + i];
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++) {
        store(to + row * columns, left[row]);
        store(to + row * columns + WIDTH, right[row]);
    }
}

// The same for all columns, of which there are whole pairs of vectors; four divides the rows.
inline void add_matrices(const float* x, int64_t depth, const float* y, float* to, int64_t rows,
                         int64_t columns) {
    for (int64_t column = 0; column < columns; column += 2 * WIDTH) {
        int64_t row = 0;
        for (; row + 8 <= rows; row += 8)
            add_columns<8>(x + row * depth, depth, y + column, to + row * columns + column, columns);
        if (row < rows)
            add_columns<4>(x + row * depth, depth, y + column, to + row * columns + column, columns);
    }
}

}  // namespace
