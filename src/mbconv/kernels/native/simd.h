// One vector of floats, as wide as the instruction set this file is compiled for, and the two
// formats maps are stored in. The compiler's vector types make one source serve every processor;
// intrinsics appear only where they save instructions that the compiler does not find, and inlining
// is not left to it: a call inside a loop costs every register.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace mbconv {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

// Vector registers: how many numbers a loop can hold. With half as many, the sums stay there and what
// they are made of is read again.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif
constexpr bool MANY = REGISTERS >= 32;

using vec = float __attribute__((vector_size(4 * LANES)));
using ivec = int32_t __attribute__((vector_size(4 * LANES)));
using uvec = uint32_t __attribute__((vector_size(4 * LANES)));
using half_vec = uint16_t __attribute__((vector_size(2 * LANES)));

struct bf16 {
    uint16_t bits;
};

[[gnu::always_inline]] inline vec splat(float x) { return x - vec{}; }  // no addition is left, as 0 + x has one

[[gnu::always_inline]] inline vec load(const float* p) {
    vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

[[gnu::always_inline]] inline vec from_bf16(half_vec h) {
#if defined(__AVX512F__)
    return (vec)_mm512_maskz_slli_epi32(-1, _mm512_maskz_cvtepu16_epi32(-1, (__m256i)h), 16);
#elif defined(__AVX2__)
    return (vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)h), 16);
#else
    return (vec)(__builtin_convertvector(h, uvec) << 16);
#endif
}

[[gnu::always_inline]] inline vec load(const bf16* p) {
    half_vec h;
    std::memcpy(&h, p, sizeof h);
    return from_bf16(h);
}

[[gnu::always_inline]] inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }

// To the nearest, ties to even; NaN stays NaN.
[[gnu::always_inline]] inline half_vec to_bf16(vec v) {
#if defined(__AVX512BF16__)
    return (half_vec)_mm512_cvtneps_pbh((__m512)v);
#else
    const uvec bits = (uvec)v;
    const uvec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const uvec quiet = (bits >> 16) | 0x40;
    return __builtin_convertvector((uvec)(v == v ? (ivec)rounded : (ivec)quiet), half_vec);
#endif
}

[[gnu::always_inline]] inline void store(bf16* p, vec v) {
    const half_vec h = to_bf16(v);
    std::memcpy(p, &h, sizeof h);
}

// What a later load would give back.
[[gnu::always_inline]] inline vec as_stored(const float*, vec v) { return v; }
[[gnu::always_inline]] inline vec as_stored(const bf16*, vec v) {
    return from_bf16(to_bf16(v));
}

// Which lanes of a vector hold channels. The last vector of a pixel may be short: its other lanes
// read as zero and are not written. Being types, the two cases are loops of their own.
struct All {};
struct Some {
    int64_t n;
};

template <class T>
[[gnu::always_inline]] inline vec load(const T* p, All) {
    return load(p);
}

#if defined(__AVX512F__)
[[gnu::always_inline]] inline uint16_t mask(Some lanes) {
    return static_cast<uint16_t>((1u << lanes.n) - 1);
}

[[gnu::always_inline]] inline vec load(const float* p, Some lanes) {
    return (vec)_mm512_maskz_loadu_ps(mask(lanes), p);
}

[[gnu::always_inline]] inline vec load(const bf16* p, Some lanes) {
    return from_bf16((half_vec)_mm256_maskz_loadu_epi16(mask(lanes), p));
}
#else
template <class T>
[[gnu::always_inline]] inline vec load(const T* p, Some lanes) {
    T some[LANES] = {};
    std::memcpy(some, p, lanes.n * sizeof(T));
    return load(some);
}
#endif

template <class T>
[[gnu::always_inline]] inline void store(T* p, vec v, All) {
    store(p, v);
}

#if defined(__AVX512F__)
[[gnu::always_inline]] inline void store(float* p, vec v, Some lanes) {
    _mm512_mask_storeu_ps(p, mask(lanes), (__m512)v);
}

[[gnu::always_inline]] inline void store(bf16* p, vec v, Some lanes) {
    _mm256_mask_storeu_epi16(p, mask(lanes), (__m256i)to_bf16(v));
}
#else
template <class T>
[[gnu::always_inline]] inline void store(T* p, vec v, Some lanes) {
    T some[LANES];
    store(some, v);
    std::memcpy(p, some, lanes.n * sizeof(T));
}
#endif

// f(first channel, lanes) for each vector of `channels`, up to `limit`.
template <class F>
[[gnu::always_inline]] inline void for_vectors(int64_t channels, int64_t limit, F&& f) {
    const int64_t end = channels < limit ? channels : limit;
    int64_t i = 0;
    for (; i + LANES <= end; i += LANES) f(i, All{});
    if (i < end) f(i, Some{end - i});
}

// f(0) to f(N - 1), unrolled.
template <int N, class F>
[[gnu::always_inline]] inline void each(F&& f) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) f(i);
}

// f(first, n) for all of `count`: N at a time, then one by one; n is a compile-time number.
template <int N, class F>
[[gnu::always_inline]] inline void for_several(int64_t count, F&& f) {
    int64_t i = 0;
    for (; N > 1 && i + N <= count; i += N) f(i, std::integral_constant<int, N>{});
    for (; i < count; ++i) f(i, std::integral_constant<int, 1>{});
}

[[gnu::always_inline]] inline vec reciprocal(vec x) {
#if defined(__AVX512F__)
    const vec guess = (vec)_mm512_maskz_rcp14_ps(-1, (__m512)x);  // GCC warns of the unmasked one
    return guess * (2.0f - x * guess);
#else
    return 1.0f / x;
#endif
}

// 2^x to about two units in the last place, for x from -126 to 126; larger x count as 126. A whole
// power of two times a polynomial on +-1/2, whose coefficients keep the largest relative error low.
[[gnu::always_inline]] inline vec power_of_two(vec x) {
#if defined(__AVX512F__)
    x = (vec)_mm512_min_ps((__m512)splat(126.0f), (__m512)x);  // in this order NaN stays
    const vec n = (vec)_mm512_maskz_roundscale_ps(-1, (__m512)x, 0);
#else
#if defined(__AVX2__)
    x = (vec)_mm256_max_ps((__m256)splat(-126.0f), (__m256)x);
    x = (vec)_mm256_min_ps((__m256)splat(126.0f), (__m256)x);
#else
    x = x < -126.0f ? splat(-126.0f) : x;
    x = x > 126.0f ? splat(126.0f) : x;
#endif
    const vec shifted = x + 12582912.0f;  // 1.5 * 2^23: the low bits are round(x)
    const vec n = shifted - 12582912.0f;
#endif
    const vec r = x - n;
    vec p = 9.67554141e-3f + r * 1.32764721e-3f;
    p = 5.55071327e-2f + r * p;
    p = 2.40221197e-1f + r * p;
    p = 6.93146967e-1f + r * p;
    p = 1.0f + r * p;
#if defined(__AVX512F__)
    return (vec)_mm512_maskz_scalef_ps(-1, (__m512)p, (__m512)n);
#else
    return p * (vec)(((ivec)shifted << 23) + 0x3f800000);
#endif
}

[[gnu::always_inline]] inline vec sigmoid(vec x) { return reciprocal(1.0f + power_of_two(x * -1.44269504f)); }

// As exact as maps of that format ask for: in bf16 to 1.4e-4 of itself, a fourteenth of what storing
// the result may change. Whole powers of two by rounding down, and a cubic on what is left; the
// reciprocal's first guess must do, and turns infinity into zero by itself.
template <class T>
[[gnu::always_inline]] inline vec sigmoid_for(vec x) {
    return sigmoid(x);
}
#if defined(__AVX512F__) && defined(__AVX512DQ__)
struct Sigmoid {  // its steps
    [[gnu::always_inline]] static vec exponent(vec x) { return x * -1.44269504f; }
    [[gnu::always_inline]] static vec rest(vec t) {
        constexpr int DOWN = 9;  // quietly
        return (vec)_mm512_maskz_reduce_ps(-1, (__m512)t, DOWN);
    }
    [[gnu::always_inline]] static vec power(vec t, vec r) {
        vec p = 0.226067214f + r * 0.0780245811f;
        p = 0.695833442f + r * p;
        p = 0.999925237f + r * p;
        return (vec)_mm512_maskz_scalef_ps(-1, (__m512)p, (__m512)t);
    }
    [[gnu::always_inline]] static vec value(vec power) {
        return (vec)_mm512_maskz_rcp14_ps(-1, (__m512)(1.0f + power));
    }
};
template <>
[[gnu::always_inline]] inline vec sigmoid_for<bf16>(vec x) {
    const vec t = Sigmoid::exponent(x);
    return Sigmoid::value(Sigmoid::power(t, Sigmoid::rest(t)));
}
#endif

// Of several vectors, step by step.
template <class T, int N>
[[gnu::always_inline]] inline void sigmoids(const vec (&x)[N], vec (&y)[N]) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    if constexpr (std::is_same_v<T, bf16>) {
        vec t[N];
        each<N>([&](int i) { t[i] = Sigmoid::exponent(x[i]); });
        each<N>([&](int i) { y[i] = Sigmoid::rest(t[i]); });
        each<N>([&](int i) { y[i] = Sigmoid::power(t[i], y[i]); });
        each<N>([&](int i) { y[i] = Sigmoid::value(y[i]); });
        return;
    }
#endif
    each<N>([&](int i) { y[i] = sigmoid_for<T>(x[i]); });
}

}  // namespace mbconv
