// Products and sums of maps. Where the processor multiplies pairs of bf16 (two products and two sums
// an instruction), a vector holds a pair in each float's place and a step takes two; else one, in
// float.
#pragma once

#include "simd.h"

namespace mbconv {

#if defined(__AVX512BF16__)
template <class T>
constexpr bool PAIRS = sizeof(T) == 2;
#else
template <class T>
constexpr bool PAIRS = false;
#endif
template <class T>
constexpr int STEP = PAIRS<T> ? 2 : 1;

// One number or pair in every place; by its bits, which for a pair are no float's.
[[gnu::always_inline]] inline vec spread(const float* x) {
    int32_t bits;
    std::memcpy(&bits, x, 4);
    return (vec)(ivec{} + bits);
}
[[gnu::always_inline]] inline vec spread(const bf16* x) {
#if defined(__AVX512BF16__)
    int32_t pair;
    std::memcpy(&pair, x, 4);
    return (vec)(ivec{} + pair);
#else
    const uint32_t bits = static_cast<uint32_t>(x->bits) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return splat(y);
#endif
}

template <class T>
[[gnu::always_inline]] inline vec multiply_add(vec a, vec b, vec sum) {
#if defined(__AVX512BF16__)
    if (PAIRS<T>) return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
    return sum + a * b;
}

}  // namespace mbconv
