// Products of a matrix and the few rows of a batch, as fast as the memory is: each weight is read once
// for all rows, in the order in which the weights lie. A row's sums are the same, bit for bit,
// whichever rows are beside it.

#pragma once

#include "tile_products.h"

namespace {

constexpr int64_t MOST_ROWS = 8;          // whose sums fit into the registers
constexpr int64_t BLOCK = 24;             // outputs whose weights stay in the cache for more rows
constexpr int64_t PREFETCH_BYTES = 8192;  // the processor itself stops at the end of a page

// What one of some threads does.
struct Part {
    int64_t number, of;
};

Range share(int64_t size, Part part) {
    return {size * part.number / part.of, size * (part.number + 1) / part.of};
}

// Give take(row, output, sum) the products of some rows, from `first` on, with some outputs.
template <typename W, int ROWS, int OUTPUTS, typename Take>
void multiply_tile(const Matrix& matrix, int64_t size, const Inputs<W>& x, int64_t first,
                   int64_t output, Take take) {
    typedef Terms<W> T;
    const W* weights = static_cast<const W*>(matrix.weight) + output * size;
    const typename T::Input* inputs[ROWS];
    for (int row = 0; row < ROWS; row++) inputs[row] = x.row(first + row);
    Vector sums[ROWS][OUTPUTS] = {};
    auto add = [&](const W* from, int64_t distance, int64_t i) {
        typename T::Lanes lanes[OUTPUTS];
#pragma GCC unroll 4
        for (int n = 0; n < OUTPUTS; n++) lanes[n] = T::load(from + n * distance);
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; row++) {
            const typename T::Lanes own = T::load_input(inputs[row] + i);
#pragma GCC unroll 4
            for (int n = 0; n < OUTPUTS; n++) T::add_product(sums[row][n], lanes[n], own);
        }
    };
    int64_t i = 0;
    for (; i + T::WIDTH <= size; i += T::WIDTH) {
#pragma GCC unroll 4
        for (int n = 0; n < OUTPUTS; n++)
            __builtin_prefetch(reinterpret_cast<const char*>(weights + i * OUTPUTS + n * T::WIDTH) +
                               PREFETCH_BYTES);
        add(weights + i, size, i);
    }
    if (i < size) {
        W rest[OUTPUTS][T::WIDTH] = {};
        for (int n = 0; n < OUTPUTS; n++)
            std::copy(weights + n * size + i, weights + (n + 1) * size, rest[n]);
        add(rest[0], T::WIDTH, i);
    }
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 4
        for (int n = 0; n < OUTPUTS; n++) {
            const float total = sum(sums[row][n]);
            take(first + row, output + n, matrix.bias ? total + matrix.bias[output + n] : total);
        }
}

template <typename W, int ROWS, typename Take>
void multiply_rows(const Matrix& matrix, int64_t size, const Inputs<W>& x, int64_t first,
                   Range outputs, Take take) {
    // The inputs of many rows are worth more than one product each time they are read.
    constexpr int OUTPUTS = ROWS <= 4 ? 1 : 2;
    int64_t output = outputs.begin;
    for (; output + OUTPUTS <= outputs.end; output += OUTPUTS)
        multiply_tile<W, ROWS, OUTPUTS>(matrix, size, x, first, output, take);
    for (; output < outputs.end; output++)
        multiply_tile<W, ROWS, 1>(matrix, size, x, first, output, take);
}

// Give take(row, output, value) each product of the rows of x with some outputs of a matrix.
template <typename W, typename Take>
void multiply(const Matrix& matrix, int64_t size, const Inputs<W>& x, Range rows, Range outputs,
              Take take) {
    for (int64_t begin = outputs.begin; begin < outputs.end; begin += BLOCK) {
        const Range block = {begin, std::min(begin + BLOCK, outputs.end)};
        for (int64_t first = rows.begin; first < rows.end; first += MOST_ROWS) {
            switch (std::min(rows.end - first, MOST_ROWS)) {
                case 1: multiply_rows<W, 1>(matrix, size, x, first, block, take); break;
                case 2: multiply_rows<W, 2>(matrix, size, x, first, block, take); break;
                case 3: multiply_rows<W, 3>(matrix, size, x, first, block, take); break;
                case 4: multiply_rows<W, 4>(matrix, size, x, first, block, take); break;
                case 5: multiply_rows<W, 5>(matrix, size, x, first, block, take); break;
                case 6: multiply_rows<W, 6>(matrix, size, x, first, block, take); break;
                case 7: multiply_rows<W, 7>(matrix, size, x, first, block, take); break;
                case 8: multiply_rows<W, 8>(matrix, size, x, first, block, take); break;
            }
        }
    }
}

// The products of a thread with the inputs that it read last.
template <typename W>
class Products {
   public:
    void read(const Inputs<W>& x, int64_t size, int64_t num_rows) {
        this->x = &x, this->size = size, this->num_rows = num_rows;
    }
    // Give take(row, output, value) each product with some outputs of a matrix.
    template <typename Take>
    void multiply(const Matrix& matrix, Range outputs, Take take) const {
        ::multiply<W>(matrix, size, *x, {0, num_rows}, outputs, take);
    }

   private:
    const Inputs<W>* x;
    int64_t size, num_rows;
};

#ifdef HAS_TILES
template <>
class Products<bfloat16> {
   public:
    void read(const Inputs<bfloat16>& x, int64_t size, int64_t num_rows) {
        this->x = &x, this->size = size, this->num_rows = num_rows;
        if (may_use_tiles()) columns.read(x, size, num_rows);
    }
    template <typename Take>
    void multiply(const Matrix& matrix, Range outputs, Take take) const {
        if (may_use_tiles())
            multiply_tiles(matrix, size, columns, outputs, take);
        else
            ::multiply(matrix, size, *x, {0, num_rows}, outputs, take);
    }

   private:
    const Inputs<bfloat16>* x;
    int64_t size, num_rows;
    Columns columns;
};
#endif

}  // namespace
