// Mean and variance of each channel of a map, in one pass.
//
// Order: chunk of pixels > eight pixels > channels. Eight pixels at a time are read as eight
// streams, so that sums and shifts pass through registers once for eight values. Each chunk sums
// differences from its own first pixel, which keeps them small whatever the mean is; chunks are
// joined in double by Chan's formula.
#include <vector>

#include "api.h"
#include "floats.h"
#include "parallel.h"
#include "simd.h"

namespace mbconv {
namespace {

constexpr int64_t ROWS = 8;

template <class T>
void chunk_sums(const T* x, int64_t pixels, int64_t c, float* sum, float* square) {
    for (int64_t p = 0; p < pixels; p += ROWS) {
        const int64_t rows = pixels - p < ROWS ? pixels - p : ROWS;
        for_vectors(c, c, [&](int64_t i, auto lanes) {
            const vec shift = load(x + i, lanes);
            vec s{}, q{};
            for (int64_t r = 0; r < rows; ++r) {
                const vec d = load(x + (p + r) * c + i, lanes) - shift;
                s += d;
                q += d * d;
            }
            store(sum + i, load(sum + i, lanes) + s, lanes);
            store(square + i, load(square + i, lanes) + q, lanes);
        });
    }
}

template <class T>
void moments(const T* x, Map m, int threads, float* mean, float* variance) {
    const int64_t per = chunks(m.pixels), tasks = m.n * per, c = m.c;
    Floats partial(tasks * 2 * c, 0.0f);
    const auto first = [&](int64_t t) { return x + ((t / per) * m.pixels + t % per * CHUNK) * c; };
    const auto count = [&](int64_t t) {
        const int64_t rest = m.pixels - t % per * CHUNK;
        return rest < CHUNK ? rest : CHUNK;
    };
    parallel(tasks, threads, [&](int64_t t, int) {
        chunk_sums(first(t), count(t), c, &partial[t * 2 * c], &partial[t * 2 * c + c]);
    });
    std::vector<double> total(c, 0.0), middle(c, 0.0);
    double seen = 0;
    for (int64_t t = 0; t < tasks; ++t) {
        const double n = static_cast<double>(count(t));
        for (int64_t i = 0; i < c; ++i) {
            const double s = partial[t * 2 * c + i];
            float shift;
            if constexpr (sizeof(T) == 4) {
                shift = first(t)[i];
            } else {
                const uint32_t bits = static_cast<uint32_t>(first(t)[i].bits) << 16;
                std::memcpy(&shift, &bits, 4);
            }
            const double own = shift + s / n, gap = own - middle[i];
            middle[i] += gap * n / (seen + n);
            total[i] += partial[t * 2 * c + c + i] - s * s / n + gap * gap * seen * n / (seen + n);
        }
        seen += n;
    }
    for (int64_t i = 0; i < c; ++i) {
        mean[i] = static_cast<float>(middle[i]);
        variance[i] = static_cast<float>(total[i] > 0 ? total[i] / seen : 0.0);
        if (total[i] != total[i]) variance[i] = static_cast<float>(total[i]);
    }
}

}  // namespace
}  // namespace mbconv

using namespace mbconv;

MBCONV_API void mbconv_moments(const void* x, int half, const Map* m, int threads, float* mean,
                               float* variance) {
    if (half)
        moments(static_cast<const bf16*>(x), *m, threads, mean, variance);
    else
        moments(static_cast<const float*>(x), *m, threads, mean, variance);
}
