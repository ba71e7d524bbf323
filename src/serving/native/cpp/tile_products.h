// Products of a matrix of 16 bits by tiles: the weights are loaded as they lie, each once for all rows.
// A row's sums are the same, bit for bit, whichever rows are beside it.

#pragma once

#include "simd/inputs.h"
#include "simd/squares.h"
#include "simd/tiles.h"

struct Matrix {
    const void* weight;  // (outputs, inputs)
    const float* bias;   // (outputs,) or none
};

namespace {

struct Range {
    int64_t begin, end;
};

#ifdef HAS_TILES

// The inputs of rows as the right side of a product: each tile has pairs of inputs of 16 rows.
class Columns {
   public:
    void read(const Inputs<bfloat16>& x, int64_t size, int64_t num_rows) {
        this->num_rows = num_rows;
        num_tiles = (num_rows + TILE - 1) / TILE;
        tiles.resize((size + TILE_INPUTS - 1) / TILE_INPUTS * num_tiles * TILE);
        Vector* to = tiles.data();
        for (int64_t i = 0; i < size; i += TILE_INPUTS)
            for (int64_t first = 0; first < num_rows; first += TILE, to += TILE) {
                Vector square[TILE] = {};
                for (int64_t n = 0; n < std::min(TILE, num_rows - first); n++)
                    std::memcpy(&square[n], x.row(first + n) + i, sizeof(Vector));
                transpose(square);
                std::copy(square, square + TILE, to);
            }
        publish();
    }
    const Vector* tile(int64_t input, int64_t row) const {
        return tiles.data() + (input / TILE_INPUTS * num_tiles + row / TILE) * TILE;
    }
    int64_t num_rows = 0;

   private:
    int64_t num_tiles = 0;
    std::vector<Vector> tiles;  // (parts of the inputs, tiles of rows, TILE)
};

// Multiply at most 16 outputs with COLUMNS tiles of rows, from `first` on.
template <int COLUMNS, typename Take>
void multiply_block(const Matrix& matrix, int64_t size, const Columns& x, int64_t first,
                    Range outputs, Take take) {
    const int64_t num_outputs = outputs.end - outputs.begin;
    const bfloat16* weights = static_cast<const bfloat16*>(matrix.weight) + outputs.begin * size;
    const bfloat16* next = weights + TILE * size;
    bfloat16 rest[TILE][TILE_INPUTS];
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < size; i += TILE_INPUTS) {
        // In the order in which they lie, which the memory is fastest in.
        for (int64_t n = 0; first == 0 && n < TILE; n++)
            __builtin_prefetch(next + (i * TILE + n * TILE_INPUTS), 0, 2);
        const bfloat16* from = weights + i;
        int64_t stride = size * sizeof(bfloat16);
        const int64_t width = std::min(TILE_INPUTS, size - i);
        if (num_outputs < TILE || width < TILE_INPUTS) {
            std::memset(rest, 0, sizeof(rest));
            for (int64_t n = 0; n < num_outputs; n++)
                std::copy(from + n * size, from + n * size + width, rest[n]);
            publish();
            from = rest[0];
            stride = LINE_BYTES;
        }
        const Vector* columns = x.tile(i, first);
        _tile_loadd(4, from, stride);
        _tile_loadd(5, columns, LINE_BYTES);
        _tile_dpbf16ps(0, 4, 5);
        if (COLUMNS > 1) {
            _tile_loadd(6, columns + TILE, LINE_BYTES);
            _tile_dpbf16ps(1, 4, 6);
        }
        if (COLUMNS > 2) {
            _tile_loadd(7, columns + 2 * TILE, LINE_BYTES);
            _tile_dpbf16ps(2, 4, 7);
        }
        if (COLUMNS > 3) {
            _tile_loadd(5, columns + 3 * TILE, LINE_BYTES);
            _tile_dpbf16ps(3, 4, 5);
        }
    }
    Vector sums[4][TILE];
    _tile_stored(0, sums[0], LINE_BYTES);
    _tile_stored(1, sums[1], LINE_BYTES);
    _tile_stored(2, sums[2], LINE_BYTES);
    _tile_stored(3, sums[3], LINE_BYTES);
    for (int64_t i = 0; i < COLUMNS; i++, first += TILE) {
        transpose(sums[i]);
        for (int64_t row = 0; row < std::min(TILE, x.num_rows - first); row++)
            for (int64_t n = 0; n < num_outputs; n++) {
                const int64_t output = outputs.begin + n;
                const float total = sums[i][row][n];
                take(first + row, output, matrix.bias ? total + matrix.bias[output] : total);
            }
    }
}

// Give take(row, output, value) each product with some outputs of a matrix.
template <typename Take>
void multiply_tiles(const Matrix& matrix, int64_t size, const Columns& x, Range outputs, Take take) {
    for (int64_t begin = outputs.begin; begin < outputs.end; begin += TILE) {
        const Range block = {begin, std::min(begin + TILE, outputs.end)};
        for (int64_t first = 0; first < x.num_rows; first += 4 * TILE) {
            switch (std::min((x.num_rows - first + TILE - 1) / TILE, int64_t(4))) {
                case 1: multiply_block<1>(matrix, size, x, first, block, take); break;
                case 2: multiply_block<2>(matrix, size, x, first, block, take); break;
                case 3: multiply_block<3>(matrix, size, x, first, block, take); break;
                case 4: multiply_block<4>(matrix, size, x, first, block, take); break;
            }
        }
    }
}

#endif

}  // namespace
