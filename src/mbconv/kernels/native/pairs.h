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
#if defined(__AVX512BF16__)
    int32_t bits;
    std::memcpy(&bits, x, 4);
    return (vec)(ivec{} + bits);
#else
    return splat(*x);
#endif
}
[[gnu::always_inline]] inline vec spread(const bf16* x) {
    static_assert(sizeof(bf16) == 2, "a pair fills a float's place");
    int32_t pair;
    std::memcpy(&pair, x, 4);
    return (vec)(ivec{} + pair);
}

// `channels` of two rows -> pairs, the first row's numbers in the lower halves; without a second row
// zeros in the upper ones. Whole vectors are written.
inline void pair_rows(const bf16* first, const bf16* second, int64_t channels, float* out) {
    int64_t i = 0;
#if defined(__AVX512BW__)
    using halves = uint16_t __attribute__((vector_size(64)));
    const halves lower{0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    for (; second && i + 32 <= channels; i += 32) {
        halves a, b;
        std::memcpy(&a, first + i, sizeof a);
        std::memcpy(&b, second + i, sizeof b);
        const auto picked = [&](halves which) {
            return _mm512_permutex2var_epi16((__m512i)a, (__m512i)which, (__m512i)b);
        };
        const __m512i low = picked(lower), high = picked(lower + static_cast<uint16_t>(16));
        std::memcpy(out + i, &low, sizeof low);
        std::memcpy(out + i + 16, &high, sizeof high);
    }
#endif
    for_vectors(channels - i, channels - i, [&](int64_t j, auto lanes) {
        const uvec two = second ? (uvec)load(second + i + j, lanes) : uvec{};
        store(out + i + j, (vec)((uvec)load(first + i + j, lanes) >> 16 | two));
    });
}

template <class T>
[[gnu::always_inline]] inline vec multiply_add(vec a, vec b, vec sum) {
#if defined(__AVX512BF16__)
    if (PAIRS<T>) return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
    return sum + a * b;
}

}  // namespace mbconv
