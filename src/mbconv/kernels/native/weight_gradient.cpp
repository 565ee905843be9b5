// Sums over all pixels of a map's channels times another's: the gradient at a 1x1 convolution's
// weight.
//
// Order: strip of three vectors of b > 128 rows > eight channels of a (four where registers are few) >
// rows. All of a, the narrow one, is first copied as floats, or as pairs of two rows where pairs are
// multiplied; of b the 128 rows that come next, which then lie in the first cache. 24 or 12 sums stay in
// registers over these. Every 2,048 rows they are added to the result, so that a sum's error does not
// grow with the map.
#include "weight_gradient.h"

#include <algorithm>

#include "floats.h"
#include "pairs.h"
#include "parallel.h"

namespace mbconv {
namespace {

constexpr int64_t TILE = 128;  // rows
constexpr int64_t FLUSH = 2048;
constexpr int64_t ROWS = MANY ? 8 : 4;  // channels of a whose sums are held in registers together
constexpr int VECTORS = 3;              // of b, as well
constexpr int64_t STRIP = VECTORS * LANES;
constexpr int64_t WIDTH = LANES > ROWS ? LANES : ROWS;

int64_t padded(int64_t m) { return (m + WIDTH - 1) / WIDTH * WIDTH; }

// `channels` of these rows -> [steps][width] of floats or pairs.
template <class T>
void copy_rows(const T* x, int64_t rows, int64_t stride, int64_t channels, int64_t width,
               float* out) {
    for (int64_t r = 0; r < rows; r += STEP<T>, x += STEP<T> * stride, out += width)
        if constexpr (PAIRS<T>)
            pair_rows(x, r + 1 < rows ? x + stride : nullptr, channels, out);
        else
            for_vectors(channels, width, [&](int64_t i, auto lanes) {
                store(out + i, load(x + i, lanes));
            });
}

// ROWS channels of a times a strip of b, of which V vectors hold channels, over some steps.
template <int V, class T>
void add_products(const float* a, int64_t a_width, const float* b, int64_t steps, float* sums) {
    vec sum[ROWS][V];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[r][v] = load(sums + r * STRIP + v * LANES);
    for (int64_t s = 0; s < steps; ++s) {
        vec w[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) w[v] = load(b + s * STRIP + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const vec own = spread(a + s * a_width + r);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sum[r][v] = multiply_add<T>(own, w[v], sum[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(sums + r * STRIP + v * LANES, sum[r][v]);
}

// The channels of b from `begin`; `narrow` is a, copied.
template <class T>
void strip_of(const float* narrow, const T* b, int64_t rows, int64_t m, int64_t n, int64_t begin,
              float* result) {
    const int64_t own = std::min(STRIP, n - begin), width = padded(m);
    const auto add = own > 2 * LANES ? add_products<3, T>
                     : own > LANES   ? add_products<2, T>
                                     : add_products<1, T>;
    Floats sums(width * STRIP, 0.0f);
    const Scratch<float> rows_of_b(1, TILE / STEP<T> * STRIP);  // vectors without channels are not read
    float* const wide = rows_of_b.of(0);
    for (int64_t first = 0; first < rows; first += TILE) {
        const int64_t count = std::min(TILE, rows - first), steps = (count + STEP<T> - 1) / STEP<T>;
        copy_rows(b + first * n + begin, count, n, own, STRIP, wide);
        for (int64_t i = 0; i < m; i += ROWS)
            add(narrow + first / STEP<T> * width + i, width, wide, steps, &sums[i * STRIP]);
        const bool last = first + TILE >= rows;
        if ((first + TILE) % FLUSH && !last) continue;
        for (int64_t i = 0; i < m; ++i)
            for_vectors(own, STRIP, [&](int64_t j, auto lanes) {
                float* const to = result + i * n + begin + j;
                const vec sum = load(&sums[i * STRIP + j], lanes);
                store(to, first < FLUSH ? sum : load(to, lanes) + sum, lanes);
            });
        if (!last) std::fill(sums.begin(), sums.end(), 0.0f);
    }
}

}  // namespace

template <class T>
void weight_gradient(const T* a, const T* b, int64_t rows, int64_t m, int64_t n, int threads,
                     float* sums) {
    const int64_t width = padded(m), tiles = (rows + TILE - 1) / TILE;
    const Scratch<float> copy(1, (rows + STEP<T> - 1) / STEP<T> * width);
    float* const narrow = copy.of(0);
    parallel(tiles, threads, [&](int64_t tile, int) {
        const int64_t first = tile * TILE;
        copy_rows(a + first * m, std::min(TILE, rows - first), m, m, width,
                  narrow + first / STEP<T> * width);
    });
    parallel((n + STRIP - 1) / STRIP, threads, [&](int64_t strip, int) {
        strip_of(narrow, b, rows, m, n, strip * STRIP, sums);
    });
}

template void weight_gradient<float>(const float*, const float*, int64_t, int64_t, int64_t, int,
                                     float*);
template void weight_gradient<bf16>(const bf16*, const bf16*, int64_t, int64_t, int64_t, int,
                                    float*);

}  // namespace mbconv
