// Products of a matrix and the few rows of a batch, as fast as the memory is: each weight is read once
// for all rows, in the order in which the weights lie.

#pragma once

#include "vectors.h"

struct Matrix {
    const void* weight;  // (outputs, inputs)
    const float* bias;   // (outputs,) or none
};

namespace {

constexpr int64_t MOST_ROWS = 8;          // whose sums fit into the registers
constexpr int64_t BLOCK = 32;             // outputs whose weights stay in the cache for more rows
constexpr int64_t PREFETCH_BYTES = 8192;  // the processor itself stops at the end of a page

struct Range {
    int64_t begin, end;
};

Range share(int64_t size, int64_t part, int64_t num_parts) {
    return {size * part / num_parts, size * (part + 1) / num_parts};
}

template <typename W, int ROWS, typename Take>
void multiply_rows(const Matrix& matrix, int64_t size, const float* x, Range outputs, Take take) {
    constexpr int CHAINS = ROWS == 1 ? 4 : ROWS <= 4 ? 3 : 2;  // of sums that do not wait
    for (int64_t output = outputs.begin; output < outputs.end; output++) {
        const W* weight = static_cast<const W*>(matrix.weight) + output * size;
        Vector sums[CHAINS][ROWS] = {};
        int64_t i = 0;
        for (; i + CHAINS * WIDTH <= size; i += CHAINS * WIDTH) {
#pragma GCC unroll 4
            for (int chain = 0; chain < CHAINS; chain++) {
                const W* from = weight + i + chain * WIDTH;
                __builtin_prefetch(reinterpret_cast<const char*>(from) + PREFETCH_BYTES);
                const Vector w = load(from);
#pragma GCC unroll 8
                for (int row = 0; row < ROWS; row++)
                    sums[chain][row] += w * load(x + row * size + i + chain * WIDTH);
            }
        }
        for (; i + WIDTH <= size; i += WIDTH) {
            const Vector w = load(weight + i);
#pragma GCC unroll 8
            for (int row = 0; row < ROWS; row++) sums[0][row] += w * load(x + row * size + i);
        }
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; row++) {
#pragma GCC unroll 4
            for (int chain = 1; chain < CHAINS; chain++) sums[0][row] += sums[chain][row];
            float total = sum(sums[0][row]);
            for (int64_t j = i; j < size; j++) total += to_float(weight[j]) * x[row * size + j];
            take(row, output, matrix.bias ? total + matrix.bias[output] : total);
        }
    }
}

// Give take(row, output, value) each product of x (rows, size) with some outputs of a matrix.
template <typename W, typename Take>
void multiply(const Matrix& matrix, int64_t size, const float* x, int64_t num_rows, Range outputs,
              Take take) {
    for (int64_t begin = outputs.begin; begin < outputs.end; begin += BLOCK) {
        const Range block = {begin, std::min(begin + BLOCK, outputs.end)};
        for (int64_t first = 0; first < num_rows; first += MOST_ROWS) {
            const float* from = x + first * size;
            auto take_here = [&](int64_t row, int64_t output, float value) {
                take(first + row, output, value);
            };
            switch (std::min(num_rows - first, MOST_ROWS)) {
                case 1: multiply_rows<W, 1>(matrix, size, from, block, take_here); break;
                case 2: multiply_rows<W, 2>(matrix, size, from, block, take_here); break;
                case 3: multiply_rows<W, 3>(matrix, size, from, block, take_here); break;
                case 4: multiply_rows<W, 4>(matrix, size, from, block, take_here); break;
                case 5: multiply_rows<W, 5>(matrix, size, from, block, take_here); break;
                case 6: multiply_rows<W, 6>(matrix, size, from, block, take_here); break;
                case 7: multiply_rows<W, 7>(matrix, size, from, block, take_here); break;
                case 8: multiply_rows<W, 8>(matrix, size, from, block, take_here); break;
            }
        }
    }
}

}  // namespace
