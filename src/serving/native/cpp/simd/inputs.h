// What products read beside the weights, and how weights are multiplied with it.

#pragma once

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "vectors.h"

namespace {

constexpr int64_t LINE_BYTES = 64;  // of the processor's cache

// Inputs of weights of one type, in the type in which the processor multiplies both.
template <typename W>
struct Terms {
    typedef float Input;
    typedef Vector Lanes;
    static constexpr int64_t WIDTH = ::WIDTH;

    static Lanes load(const W* from) { return ::load(from); }
    static Lanes load_input(const Input* from) { return ::load(from); }
    static void add_product(Vector& sums, Lanes weights, Lanes inputs) { sums += weights * inputs; }
};

#ifdef __AVX512BF16__
template <>
struct Terms<bfloat16> {
    typedef bfloat16 Input;
    typedef __m512bh Lanes;
    static constexpr int64_t WIDTH = 32;

    static Lanes load(const bfloat16* from) {
        Lanes lanes;
        std::memcpy(&lanes, from, sizeof(lanes));
        return lanes;
    }
    static Lanes load_input(const bfloat16* from) { return load(from); }
    static void add_product(Vector& sums, Lanes weights, Lanes inputs) {
        sums = Vector(_mm512_dpbf16_ps(__m512(sums), weights, inputs));
    }
};
#endif

// The inputs of some rows. No vector of them lies across two lines of the cache, and the last one is
// filled up with zeros.
template <typename W>
class Inputs {
   public:
    typedef typename Terms<W>::Input Input;

    Inputs(int64_t num_rows, int64_t size)
        : lines_of_row((size * sizeof(Input) + LINE_BYTES - 1) / LINE_BYTES),
          lines(num_rows * lines_of_row) {}

    Input* row(int64_t number) {
        return reinterpret_cast<Input*>(lines.data() + number * lines_of_row);
    }
    const Input* row(int64_t number) const { return const_cast<Inputs*>(this)->row(number); }

   private:
    struct alignas(LINE_BYTES) Line {
        char bytes[LINE_BYTES] = {};
    };
    int64_t lines_of_row;
    std::vector<Line> lines;
};

}  // namespace
