// Vectors of 16 numbers, and what is done with them. They are those of GCC and Clang, which turn them
// into what the processor has.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t WIDTH = 16;

typedef float Vector __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t Bits __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Whole __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));

struct bfloat16 {
    uint16_t bits;
};

template <typename To, typename From>
inline To reinterpret(const From& from) {
    static_assert(sizeof(To) <= sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) { return reinterpret<float>(uint32_t(x.bits) << 16); }

inline void assign(float& to, float x) { to = x; }
inline void assign(bfloat16& to, float x) {  // round to nearest, to even
    const uint32_t bits = reinterpret<uint32_t>(x);
    to.bits = std::isnan(x) ? 0x7FC0 : (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}

inline Vector load(const float* from) {
    Vector v;
    std::memcpy(&v, from, sizeof(v));
    return v;
}
inline Vector load(const bfloat16* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof(halves));
    return reinterpret<Vector>(__builtin_convertvector(halves, Bits) << 16);
}
inline void store(float* to, Vector v) { std::memcpy(to, &v, sizeof(v)); }
inline void store(bfloat16* to, Vector v) {  // as `assign` rounds numbers
    const Bits bits = reinterpret<Bits>(v);
    const Halves halves = __builtin_convertvector((bits + 0x7FFF + (bits >> 16 & 1)) >> 16, Halves);
    std::memcpy(to, &halves, sizeof(halves));
}

typedef float Half __attribute__((vector_size(2 * WIDTH)));
typedef float Quarter __attribute__((vector_size(WIDTH)));

// Join the two halves of a vector, and then of what comes of it.
template <typename Join>
inline float reduce(Vector v, Join join) {
    Half halves[2];
    std::memcpy(halves, &v, sizeof(v));
    halves[0] = join(halves[0], halves[1]);
    Quarter quarters[2];
    std::memcpy(quarters, halves, sizeof(quarters));
    quarters[0] = join(quarters[0], quarters[1]);
    return join(join(quarters[0][0], quarters[0][2]), join(quarters[0][1], quarters[0][3]));
}
inline float sum(Vector v) {
    return reduce(v, [](auto a, auto b) { return a + b; });
}
inline float highest(Vector v) {
    return reduce(v, [](auto a, auto b) { return a > b ? a : b; });
}

inline Vector exponential(Vector x) {  // as in the Cephes library, right to the last two bits
    x = x < -87.f ? Vector{} - 87.f : x;
    x = x > 88.f ? Vector{} + 88.f : x;
    const float rounder = 12582912.f;  // 1.5 * 2^23
    const Vector n = (x * 1.44269504f + rounder) - rounder;
    const Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const Whole exponent = (__builtin_convertvector(n, Whole) + 127) << 23;
    return (p * r * r + r + 1.f) * reinterpret<Vector>(exponent);
}

template <typename Function>
void map(const float* from, float* to, int64_t size, Function function) {
    int64_t i = 0;
    for (; i + WIDTH <= size; i += WIDTH) store(to + i, function(load(from + i)));
    if (i < size) {
        float rest[WIDTH] = {};
        std::copy(from + i, from + size, rest);
        store(rest, function(load(rest)));
        std::copy(rest, rest + size - i, to + i);
    }
}

template <typename T>
float dot(const float* x, const T* y, int64_t size) {
    Vector sums = {};
    int64_t i = 0;
    for (; i + WIDTH <= size; i += WIDTH) sums += load(x + i) * load(y + i);
    float total = sum(sums);
    for (; i < size; i++) total += x[i] * to_float(y[i]);
    return total;
}

// to += factor * from
template <typename T>
void add_scaled(float* to, float factor, const T* from, int64_t size) {
    int64_t i = 0;
    for (; i + WIDTH <= size; i += WIDTH) store(to + i, load(to + i) + factor * load(from + i));
    for (; i < size; i++) to[i] += factor * to_float(from[i]);
}

}  // namespace
