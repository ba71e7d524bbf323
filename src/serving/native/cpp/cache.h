// Where keys and values of the rows lie.

#pragma once

#include <cstdint>

namespace {

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

}  // namespace
