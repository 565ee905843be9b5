// Batch norm and activation of a map, times a factor a sample and channel, plus another map:
//     y = act(norm(x)) * factor + addend
// The factor is the gate's (squeeze-and-excitation) or drop-path's, the addend the shortcut.
// `pool` takes the mean of act(norm(x)) over a sample's pixels, and writes that map only if asked.
//
// Order: chunk of pixels > eight pixels > channels: the map is streamed in the order it lies in
// memory, and the channel's parameters are loaded once for eight pixels. Those are eight streams, more
// than the processor foresees: the next eight pixels are fetched meanwhile.
#include "activation.h"
#include "api.h"
#include "floats.h"
#include "parallel.h"
#include "simd.h"

namespace mbconv {
namespace {

constexpr int64_t ROWS = 8;

template <class Act, bool ADDEND, class T>
void normalise_rows(const T* x, int64_t rows, int64_t c, const Norm& norm, const float* factor,
                    const T* addend, T* y) {
    for_vectors(c, c, [&](int64_t i, auto lanes) {
        const NormVec n(norm, i, lanes);
        const vec f = factor ? load(factor + i, lanes) : splat(1.0f);
        for (int64_t at = i; at < rows * c; at += c) {
            __builtin_prefetch(x + at + ROWS * c);
            vec v = Act::value(n.affine(n.centred(load(x + at, lanes)))) * f;
            if (ADDEND) v += load(addend + at, lanes);
            store(y + at, v, lanes);
        }
    });
}

template <class Act, bool OUTPUT, class T>
void pool_rows(const T* x, int64_t rows, int64_t c, const Norm& norm, float* sum, T* y) {
    for_vectors(c, c, [&](int64_t i, auto lanes) {
        const NormVec n(norm, i, lanes);
        vec s{};
        for (int64_t at = i; at < rows * c; at += c) {
            __builtin_prefetch(x + at + ROWS * c);
            const vec v = Act::value(n.affine(n.centred(load(x + at, lanes))));
            if (OUTPUT) store(y + at, v, lanes);
            s += v;
        }
        store(sum + i, load(sum + i, lanes) + s, lanes);
    });
}

// f(sample, first pixel, pixels, chunk) for every chunk.
template <class F>
void for_chunks(const Map& m, int threads, F&& f) {
    const int64_t per = chunks(m.pixels);
    parallel(m.n * per, threads, [&](int64_t t, int) {
        const int64_t first = t % per * CHUNK, rest = m.pixels - first;
        f(t / per, first, rest < CHUNK ? rest : CHUNK, t);
    });
}

template <class Act, bool ADDEND, class T>
void normalise(const T* x, const Map& m, const float* rows, const float* factor, const T* addend,
               int threads, T* y) {
    const Norm norm(rows, m.c);
    for_chunks(m, threads, [&](int64_t sample, int64_t first, int64_t pixels, int64_t) {
        for (int64_t p = 0; p < pixels; p += ROWS) {
            const int64_t at = (sample * m.pixels + first + p) * m.c;
            normalise_rows<Act, ADDEND>(
                x + at, pixels - p < ROWS ? pixels - p : ROWS, m.c, norm,
                factor ? factor + sample * m.c : nullptr, ADDEND ? addend + at : nullptr, y + at);
        }
    });
}

template <class Act, bool OUTPUT, class T>
void pool(const T* x, const Map& m, const float* rows, int threads, float* mean, T* y) {
    const Norm norm(rows, m.c);
    const int64_t per = chunks(m.pixels);
    Floats partial(m.n * per * m.c, 0.0f);
    for_chunks(m, threads, [&](int64_t sample, int64_t first, int64_t pixels, int64_t chunk) {
        for (int64_t p = 0; p < pixels; p += ROWS) {
            const int64_t at = (sample * m.pixels + first + p) * m.c;
            pool_rows<Act, OUTPUT>(x + at, pixels - p < ROWS ? pixels - p : ROWS, m.c, norm,
                                   &partial[chunk * m.c], OUTPUT ? y + at : nullptr);
        }
    });
    for (int64_t s = 0; s < m.n; ++s)
        for (int64_t i = 0; i < m.c; ++i) {
            double sum = 0;
            for (int64_t k = 0; k < per; ++k) sum += partial[(s * per + k) * m.c + i];
            mean[s * m.c + i] = static_cast<float>(sum / m.pixels);
        }
}

template <class T>
void normalise_any(const T* x, const Map& m, const float* norm, int act, const float* factor,
                   const T* addend, int threads, T* y) {
    with_activation<T>(act, [&](auto kind) {
        using Act = decltype(kind);
        if (addend)
            normalise<Act, true>(x, m, norm, factor, addend, threads, y);
        else
            normalise<Act, false>(x, m, norm, factor, addend, threads, y);
    });
}

template <class T>
void pool_any(const T* x, const Map& m, const float* norm, int act, int threads, float* mean,
              T* y) {
    with_activation<T>(act, [&](auto kind) {
        using Act = decltype(kind);
        if (y)
            pool<Act, true>(x, m, norm, threads, mean, y);
        else
            pool<Act, false>(x, m, norm, threads, mean, y);
    });
}

}  // namespace
}  // namespace mbconv

using namespace mbconv;

MBCONV_API void mbconv_normalise(const void* x, int half, const Map* m, const float* norm, int act,
                                 const float* factor, const void* addend, int threads, void* y) {
    if (half)
        normalise_any(static_cast<const bf16*>(x), *m, norm, act, factor,
                      static_cast<const bf16*>(addend), threads, static_cast<bf16*>(y));
    else
        normalise_any(static_cast<const float*>(x), *m, norm, act, factor,
                      static_cast<const float*>(addend), threads, static_cast<float*>(y));
}

MBCONV_API void mbconv_pool(const void* x, int half, const Map* m, const float* norm, int act,
                            int threads, float* mean, void* y) {
    if (half)
        pool_any(static_cast<const bf16*>(x), *m, norm, act, threads, mean, static_cast<bf16*>(y));
    else
        pool_any(static_cast<const float*>(x), *m, norm, act, threads, mean,
                 static_cast<float*>(y));
}
