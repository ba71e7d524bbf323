// What adapters add beside frozen products: (x A') B', for the pages of each row.

#pragma once

#include "products.h"

// The pages of a projection, whose matrices read the same input.
struct Pages {
    const void* a;  // (pages, matrices * rank, inputs); none where no adapter changes it
    const void* b;  // (pages, matrices * rank, outputs), zero outside a matrix's own outputs
    int64_t num_matrices, inputs, outputs;
};

struct Adapters {
    const Pages* pages;    // of query, key and value; output; gate and up; down; then of the head
    const int64_t* table;  // (rows, most pages) which a row has; -1 is none
    int64_t most_pages, rank;
};

namespace {

constexpr int64_t MOST_MATRICES = 3;  // of a projection: query, key and value

template <typename W>
class Updates {
   public:
    Updates(const Adapters& adapters, int64_t num_rows)
        : adapters(adapters), most_ranks(MOST_MATRICES * adapters.rank),
          low(num_rows * adapters.most_pages * most_ranks) {}

    // Make a thread's part of the numbers between A and B; return whether there are any.
    bool read(int64_t projection, const Inputs<W>& x, int64_t num_rows, Part part) {
        if (adapters.pages == nullptr || adapters.pages[projection].a == nullptr) return false;
        const Pages& pages = adapters.pages[projection];
        const int64_t ranks = pages.num_matrices * adapters.rank;
        for_pages(num_rows, low.data(), [&](int64_t row, int64_t page, float* own) {
            const W* a = static_cast<const W*>(pages.a) + page * ranks * pages.inputs;
            multiply<W>({a, nullptr}, pages.inputs, x, {row, row + 1}, share(ranks, part),
                        [&](int64_t, int64_t rank, float value) { own[rank] = value; });
        });
        return true;
    }

    // Add to outputs of a matrix, which begin at a column of the projection's.
    void add(int64_t projection, int64_t number, int64_t column, float factor, float* to,
             int64_t num_rows, int64_t size, Range outputs) const {
        const Pages& pages = adapters.pages[projection];
        const int64_t ranks = pages.num_matrices * adapters.rank;
        // One matrix may have the outputs of several.
        const int64_t first = pages.num_matrices == 1 ? 0 : number * adapters.rank;
        for_pages(num_rows, low.data(), [&](int64_t row, int64_t page, const float* own) {
            const W* b = static_cast<const W*>(pages.b) + page * ranks * pages.outputs + column;
            for (int64_t rank = first; rank < first + adapters.rank; rank++)
                add_scaled(to + row * size + outputs.begin, factor * own[rank],
                           b + rank * pages.outputs + outputs.begin, outputs.end - outputs.begin);
        });
    }

   private:
    const Adapters& adapters;
    const int64_t most_ranks;
    std::vector<float> low;

    template <typename Number, typename Function>
    void for_pages(int64_t num_rows, Number* low, Function function) const {
        for (int64_t row = 0; row < num_rows; row++)
            for (int64_t n = row * adapters.most_pages; n < (row + 1) * adapters.most_pages; n++)
                if (adapters.table[n] >= 0) function(row, adapters.table[n], low + n * most_ranks);
    }
};

}  // namespace
