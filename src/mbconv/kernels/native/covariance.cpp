// Means and covariances of a map's channels, in one pass: what the statistics of a 1x1 convolution's
// output and the gradient through them follow from. For narrow maps: the work grows with the square
// of the channels.
//
// Order: chunk of pixels > 32 pixels > eight channels by one vector of channels > pixels. The pixels
// are first written as floats, less the chunk's first pixel, which keeps sums small whatever the
// mean is; eight sums then stay in registers over the 32 pixels. What lies below the diagonal is
// left out and mirrored at the end. Chunks are joined in double by Chan's formula.
#include <vector>

#include "api.h"
#include "floats.h"
#include "parallel.h"
#include "simd.h"

namespace mbconv {
namespace {

constexpr int64_t TILE = 32;  // pixels
constexpr int64_t ROWS = 8;   // channels whose sums are held in registers together

constexpr int64_t WIDTH = LANES > ROWS ? LANES : ROWS;

int64_t padded(int64_t c) { return (c + WIDTH - 1) / WIDTH * WIDTH; }

// Eight rows of the products' sums, one vector wide, over `pixels` rows of `width` floats.
inline void add_products(const float* tile, int64_t pixels, int64_t width, int64_t row, int64_t at,
                         float* products) {
    vec sum[ROWS];
#pragma GCC unroll 8
    for (int64_t r = 0; r < ROWS; ++r) sum[r] = load(products + (row + r) * width + at);
    for (int64_t p = 0; p < pixels; ++p) {
        const float* const pixel = tile + p * width;
        const vec v = load(pixel + at);
#pragma GCC unroll 8
        for (int64_t r = 0; r < ROWS; ++r) sum[r] += v * pixel[row + r];
    }
#pragma GCC unroll 8
    for (int64_t r = 0; r < ROWS; ++r) store(products + (row + r) * width + at, sum[r]);
}

// A chunk's shift [width], sums [width] and products [width, width], one after the other.
template <class T>
void chunk_sums(const T* x, int64_t pixels, int64_t c, float* own) {
    const int64_t width = padded(c);
    float *const shift = own, *const sum = own + width, *const products = sum + width;
    Floats tile(TILE * width, 0.0f);
    for_vectors(c, c, [&](int64_t i, auto lanes) { store(shift + i, load(x + i, lanes)); });
    for (int64_t first = 0; first < pixels; first += TILE) {
        const int64_t rows = pixels - first < TILE ? pixels - first : TILE;
        for_vectors(c, c, [&](int64_t i, auto lanes) {
            const vec base = load(shift + i);
            vec s = load(sum + i);
            for (int64_t p = 0; p < rows; ++p) {
                const vec v = load(x + (first + p) * c + i, lanes) - base;
                store(&tile[p * width + i], v);
                s += v;
            }
            store(sum + i, s);
        });
        for (int64_t row = 0; row < width; row += ROWS)
            for (int64_t at = row / LANES * LANES; at < width; at += LANES)
                add_products(tile.data(), rows, width, row, at, products);
    }
}

template <class T>
void covariance(const T* x, const Map& m, int threads, float* mean, float* result) {
    const int64_t per = chunks(m.pixels), tasks = m.n * per, c = m.c, width = padded(c);
    const int64_t size = (2 + width) * width;
    Floats partial(tasks * size, 0.0f);
    const auto count = [&](int64_t t) {
        const int64_t rest = m.pixels - t % per * CHUNK;
        return rest < CHUNK ? rest : CHUNK;
    };
    parallel(tasks, threads, [&](int64_t t, int) {
        const T* const first = x + ((t / per) * m.pixels + t % per * CHUNK) * c;
        chunk_sums(first, count(t), c, &partial[t * size]);
    });
    std::vector<double> total(c * c, 0.0), middle(c, 0.0), gap(c);
    double seen = 0;
    for (int64_t t = 0; t < tasks; ++t) {
        const double n = static_cast<double>(count(t));
        const float *const shift = &partial[t * size], *const sum = shift + width;
        const float* const products = sum + width;
        for (int64_t i = 0; i < c; ++i) gap[i] = shift[i] + sum[i] / n - middle[i];
        for (int64_t i = 0; i < c; ++i)
            for (int64_t j = i; j < c; ++j)
                total[i * c + j] += products[i * width + j] - double(sum[i]) * sum[j] / n +
                                    gap[i] * gap[j] * seen * n / (seen + n);
        for (int64_t i = 0; i < c; ++i) middle[i] += gap[i] * n / (seen + n);
        seen += n;
    }
    for (int64_t i = 0; i < c; ++i) {
        mean[i] = static_cast<float>(middle[i]);
        for (int64_t j = i; j < c; ++j)
            result[i * c + j] = result[j * c + i] =
                static_cast<float>(seen ? total[i * c + j] / seen : 0.0);
    }
}

}  // namespace
}  // namespace mbconv

using namespace mbconv;

MBCONV_API void mbconv_covariance(const void* x, int half, const Map* m, int threads, float* mean,
                                  float* result) {
    if (half)
        covariance(static_cast<const bf16*>(x), *m, threads, mean, result);
    else
        covariance(static_cast<const float*>(x), *m, threads, mean, result);
}
