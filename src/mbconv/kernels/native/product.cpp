// A 1x1 convolution: rows of x [rows, k] times a small matrix [k, n].
//
// Order: 64 rows > strip of three vectors of outputs > eight rows (four where registers are few) > k.
// The matrix is first copied strip by strip, so that what one step along k needs lies together, and
// stays in the second cache; a strip's 24 or 12 sums stay in registers over all of k. Where the
// processor multiplies pairs of bf16 (two products and two sums an instruction), a step is two of k,
// else one, in float: the 64 rows of a map of bf16 are then first copied as floats.
#include "product.h"

#include <algorithm>
#include <type_traits>

#include "api.h"
#include "pairs.h"
#include "parallel.h"

namespace mbconv {
namespace {

constexpr int64_t BLOCK = 64;       // rows of a task
constexpr int VECTORS = 3;          // of outputs, whose sums are held in registers together
constexpr int SUMS = MANY ? 24 : 12;
template <int V>
constexpr int ROWS = SUMS / V < 8 ? SUMS / V : 8;  // as well
constexpr int64_t STRIP = VECTORS * LANES;

// Two vectors as pairs of bf16, the first one's numbers in the lower halves.
inline vec paired(vec low, vec high) {
    return (vec)(__builtin_convertvector(to_bf16(low), uvec) |
                 __builtin_convertvector(to_bf16(high), uvec) << 16);
}

// One strip, zeros where the matrix ends: [steps][STRIP] of floats, or of pairs of bf16 in a float's
// place. First a matrix whose n lie side by side.
template <class T>
void pack_rows(const Matrix& m, int64_t strip, int64_t steps, float* out) {
    const int64_t begin = strip * STRIP;
    for (int64_t s = 0; s < steps; ++s)
        for_vectors(m.n - begin, STRIP, [&](int64_t i, auto lanes) {
            const auto row = [&](int64_t k) {
                return k < m.k ? load(m.weight + k * m.along_k + begin + i, lanes) : vec{};
            };
            const vec v = PAIRS<T> ? paired(row(2 * s), row(2 * s + 1))
                                   : as_stored(static_cast<const T*>(nullptr), row(s));
            store(out + s * STRIP + i, v);
        });
}

// Then one whose k do: a vector along k is spread over as many steps.
template <class T>
void pack_columns(const Matrix& m, int64_t strip, float* out) {
    const int64_t begin = strip * STRIP, end = m.n - begin < STRIP ? m.n - begin : STRIP;
    for (int64_t i = 0; i < end; ++i)
        for_vectors(m.k, m.k, [&](int64_t k, auto lanes) {
            const vec v = load(m.weight + (begin + i) * m.along_n + k, lanes);
            float part[LANES];
            if (PAIRS<T>)
                store(reinterpret_cast<bf16*>(part), v);
            else
                store(part, as_stored(static_cast<const T*>(nullptr), v));
            const int64_t left = (m.k - k + STEP<T> - 1) / STEP<T>;
            for (int64_t j = 0; j < LANES / STEP<T> && j < left; ++j)
                std::memcpy(out + (k / STEP<T> + j) * STRIP + i, part + j, sizeof(float));
        });
}

template <class T>
void pack(const Matrix& m, int64_t strip, int64_t steps, float* out) {
    if (m.along_n == 1)
        pack_rows<T>(m, strip, steps, out);
    else
        pack_columns<T>(m, strip, out);
}

// What rows of maps of T are multiplied as.
template <class T>
using Multiplied = std::conditional_t<PAIRS<T>, T, float>;

// `V` vectors of R rows; `last` are the channels of the last vector.
template <int R, int V, class T>
void tile(const Multiplied<T>* x, int64_t k, const float* strip, int64_t steps, int64_t n,
          int64_t last, T* y) {
    vec sum[R][V] = {};
    for (int64_t s = 0; s < steps; ++s) {
        vec w[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) w[v] = load(strip + s * STRIP + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const vec a = spread(x + r * k + s * STEP<T>);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sum[r][v] = multiply_add<T>(a, w[v], sum[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < V - 1; ++v) store(y + r * n + v * LANES, sum[r][v]);
        T* const end = y + r * n + (V - 1) * LANES;
        if (last == LANES)
            store(end, sum[r][V - 1]);
        else
            store(end, sum[r][V - 1], Some{last});
    }
}

template <int V, class T>
void rows_of_strip(const Multiplied<T>* x, int64_t rows, int64_t k, const float* strip,
                   int64_t steps, int64_t n, int64_t last, T* y) {
    int64_t r = 0;
    const auto tiles = [&](auto size) {
        for (; r + size <= rows; r += size)
            tile<size, V, T>(x + r * k, k, strip, steps, n, last, y + r * n);
    };
    tiles(std::integral_constant<int, ROWS<V>>{});
    tiles(std::integral_constant<int, 3>{});
    tiles(std::integral_constant<int, 1>{});
}

const float* as_floats(const bf16* x, int64_t count, float* out) {
    for_vectors(count, count, [&](int64_t i, auto lanes) {
        store(out + i, load(x + i, lanes), lanes);
    });
    return out;
}

template <class T>
int64_t steps_of(const Matrix& m) {
    return (m.k + STEP<T> - 1) / STEP<T>;
}

int64_t strips_of(const Matrix& m) { return (m.n + STRIP - 1) / STRIP; }

template <class T>
void multiply(const T* x, int64_t rows, const Matrix& m, const float* packed, int threads, T* y) {
    const int64_t steps = steps_of<T>(m), strips = strips_of(m);
    constexpr bool COPIED = !std::is_same_v<Multiplied<T>, T>;
    const Scratch<float> copies(threads, COPIED ? BLOCK * m.k : 0);
    parallel((rows + BLOCK - 1) / BLOCK, threads, [&](int64_t task, int thread) {
        const int64_t first = task * BLOCK, own = rows - first < BLOCK ? rows - first : BLOCK;
        const auto* const from = [&] {
            if constexpr (COPIED)
                return as_floats(x + first * m.k, own * m.k, copies.of(thread));
            else
                return x + first * m.k;
        }();
        for (int64_t strip = 0; strip < strips; ++strip) {
            const int64_t begin = strip * STRIP, left = m.n - begin;
            const float* const w = packed + strip * steps * STRIP;
            T* const to = y + first * m.n + begin;
            if (left > 2 * LANES)
                rows_of_strip<3, T>(from, own, m.k, w, steps, m.n,
                                    left >= STRIP ? LANES : left - 2 * LANES, to);
            else if (left > LANES)
                rows_of_strip<2, T>(from, own, m.k, w, steps, m.n, left - LANES, to);
            else
                rows_of_strip<1, T>(from, own, m.k, w, steps, m.n, left, to);
        }
    });
}

}  // namespace

template <class T>
Packed<T>::Packed(const Matrix& m, int threads)
    : shape(m), numbers(1, strips_of(m) * steps_of<T>(m) * STRIP) {
    const int64_t steps = steps_of<T>(m), size = steps * STRIP;
    parallel(strips_of(m), threads, [&](int64_t strip, int) {
        float* const own = numbers.of(0) + strip * size;
        if ((strip + 1) * STRIP > m.n) std::fill(own, own + size, 0.0f);
        pack<T>(m, strip, steps, own);
    });
}

template <class T>
void Packed<T>::product(const T* x, int64_t rows, int threads, T* y) const {
    multiply(x, rows, shape, numbers.of(0), threads, y);
}

template class Packed<float>;
template class Packed<bf16>;

}  // namespace mbconv

using namespace mbconv;

// Pairs are read in twos: with bf16, k must be even.
MBCONV_API void mbconv_product(const void* x, int half, int64_t rows, const float* weight,
                               int64_t k, int64_t n, int64_t along_k, int64_t along_n, int threads,
                               void* y) {
    const Matrix m{weight, k, n, along_k, along_n};
    if (half)
        Packed<bf16>(m, threads).product(static_cast<const bf16*>(x), rows, threads,
                                         static_cast<bf16*>(y));
    else
        Packed<float>(m, threads).product(static_cast<const float*>(x), rows, threads,
                                          static_cast<float*>(y));
}
