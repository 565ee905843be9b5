// Backward of y = act(norm(x)) * factor, normalised values and activation recomputed from x.
//
// `reduce` gathers, for each sample and channel, what the gradients of everything else need:
//     0: sum g a'   1: sum g a' n   2: sum a'   3: sum a' n   4: sum g a
// (g the gradient, n the normalised value, a and a' activation and slope at norm(x); 2 to 4 only
// where a gate asks for them). The factor and what the gate's mean sends back are constant over a
// sample's pixels, so they multiply these sums later, and one pass over the maps is enough. On the
// way it writes act(norm(x)) * factor anew, which the projection's weight gradient needs.
// `apply` then gives the gradient of x:
//     dx = gamma * inverse * (dz - m0 - n * m1),  dz = (g * factor + offset) a'
//
// Order: chunk of pixels > eight pixels > channels, as in the forward pass; the next eight are fetched.
#include "activation.h"
#include "api.h"
#include "floats.h"
#include "parallel.h"
#include "simd.h"

namespace mbconv {
namespace {

constexpr int64_t ROWS = 8;
constexpr int SUMS = 5;

template <class Lanes>
inline void add_to(float* p, vec v, Lanes lanes) {
    store(p, load(p, lanes) + v, lanes);
}

template <class Act, bool GATED, bool OUTPUT, bool GRAD, class T>
void reduce_rows(const T* x, const T* grad, int64_t rows, int64_t c, const Norm& norm,
                 const float* factor, float* sums, T* y) {
    for_vectors(c, c, [&](int64_t i, auto lanes) {
        const NormVec n(norm, i, lanes);
        const vec f = factor ? load(factor + i, lanes) : splat(1.0f);
        vec s0{}, s1{}, s2{}, s3{}, s4{};
        for (int64_t at = i; at < rows * c; at += c) {
            __builtin_prefetch(x + at + ROWS * c);
            if (GRAD) __builtin_prefetch(grad + at + ROWS * c);
            const vec centred = n.centred(load(x + at, lanes));
            const Both act = Act::both(n.affine(centred));
            if (GRAD) {
                const vec g = load(grad + at, lanes);
                const vec dz = g * act.slope;
                s0 += dz;
                s1 += dz * centred;
                if (GATED) s4 += g * act.value;
            }
            if (GATED) {
                s2 += act.slope;
                s3 += act.slope * centred;
            }
            if (OUTPUT) store(y + at, act.value * f, lanes);
        }
        if (GRAD) {
            add_to(sums + i, s0, lanes);
            add_to(sums + c + i, s1 * n.inverse, lanes);
        }
        if (GATED) {
            add_to(sums + 2 * c + i, s2, lanes);
            add_to(sums + 3 * c + i, s3 * n.inverse, lanes);
            add_to(sums + 4 * c + i, s4, lanes);
        }
    });
}

template <class Act, bool GATED, bool OUTPUT, bool GRAD, class T>
void reduce(const T* x, const T* grad, const Map& m, const float* rows, const float* factor,
            int threads, float* sums, T* y) {
    const Norm norm(rows, m.c);
    const int64_t per = chunks(m.pixels), width = SUMS * m.c;
    Floats partial(m.n * per * width, 0.0f);
    parallel(m.n * per, threads, [&](int64_t t, int) {
        const int64_t first = t % per * CHUNK, sample = t / per, rest = m.pixels - first;
        const int64_t pixels = rest < CHUNK ? rest : CHUNK;
        for (int64_t p = 0; p < pixels; p += ROWS) {
            const int64_t at = (sample * m.pixels + first + p) * m.c;
            reduce_rows<Act, GATED, OUTPUT, GRAD>(
                x + at, GRAD ? grad + at : nullptr, pixels - p < ROWS ? pixels - p : ROWS, m.c,
                norm, factor ? factor + sample * m.c : nullptr, &partial[t * width],
                OUTPUT ? y + at : nullptr);
        }
    });
    for (int64_t s = 0; s < m.n; ++s)
        for (int64_t i = 0; i < width; ++i) {
            double sum = 0;
            for (int64_t k = 0; k < per; ++k) sum += partial[(s * per + k) * width + i];
            sums[s * width + i] = static_cast<float>(sum);
        }
}

template <class T>
void reduce_any(const T* x, const T* grad, const Map& m, const float* norm, int act, bool gated,
                const float* factor, int threads, float* sums, T* y) {
    with_activation<T>(act, [&](auto kind) {
        using Act = decltype(kind);
        const auto run = [&](auto... on) {
            reduce<Act, decltype(on)::value...>(x, grad, m, norm, factor, threads, sums, y);
        };
        const std::true_type yes;
        const std::false_type no;
        if (!grad)
            run(yes, no, no);
        else if (gated && y)
            run(yes, yes, yes);
        else if (gated)
            run(yes, no, yes);
        else if (y)
            run(no, yes, yes);
        else
            run(no, no, yes);
    });
}

template <class Act, bool GRAD, class T>
void apply_rows(const T* x, const T* grad, int64_t rows, int64_t c, const Norm& norm,
                const float* factor, const float* offset, const float* means, T* dx) {
    for_vectors(c, c, [&](int64_t i, auto lanes) {
        const NormBackward<Act> back(norm, c, means, factor, offset, i, lanes);
        for (int64_t at = i; at < rows * c; at += c) {
            __builtin_prefetch(x + at + ROWS * c);
            if (GRAD) __builtin_prefetch(grad + at + ROWS * c);
            const vec g = GRAD ? load(grad + at, lanes) : vec{};
            store(dx + at, back(load(x + at, lanes), g), lanes);
        }
    });
}

template <class Act, bool GRAD, class T>
void apply(const T* x, const T* grad, const Map& m, const float* rows, const float* factor,
           const float* offset, const float* means, int threads, T* dx) {
    const Norm norm(rows, m.c);
    const int64_t per = chunks(m.pixels);
    parallel(m.n * per, threads, [&](int64_t t, int) {
        const int64_t first = t % per * CHUNK, sample = t / per, rest = m.pixels - first;
        const int64_t pixels = rest < CHUNK ? rest : CHUNK;
        for (int64_t p = 0; p < pixels; p += ROWS) {
            const int64_t at = (sample * m.pixels + first + p) * m.c;
            apply_rows<Act, GRAD>(
                x + at, GRAD ? grad + at : nullptr, pixels - p < ROWS ? pixels - p : ROWS, m.c,
                norm, factor ? factor + sample * m.c : nullptr,
                offset ? offset + sample * m.c : nullptr, means, dx + at);
        }
    });
}

template <class T>
void apply_any(const T* x, const T* grad, const Map& m, const float* norm, int act,
               const float* factor, const float* offset, const float* means, int threads, T* dx) {
    with_activation<T>(act, [&](auto kind) {
        using Act = decltype(kind);
        if (grad)
            apply<Act, true>(x, grad, m, norm, factor, offset, means, threads, dx);
        else
            apply<Act, false>(x, grad, m, norm, factor, offset, means, threads, dx);
    });
}

}  // namespace
}  // namespace mbconv

using namespace mbconv;

MBCONV_API void mbconv_reduce(const void* x, const void* grad, int half, const Map* m,
                              const float* norm, int act, int gated, const float* factor,
                              int threads, float* sums, void* y) {
    if (half)
        reduce_any(static_cast<const bf16*>(x), static_cast<const bf16*>(grad), *m, norm, act,
                   gated, factor, threads, sums, static_cast<bf16*>(y));
    else
        reduce_any(static_cast<const float*>(x), static_cast<const float*>(grad), *m, norm, act,
                   gated, factor, threads, sums, static_cast<float*>(y));
}

MBCONV_API void mbconv_apply(const void* x, const void* grad, int half, const Map* m,
                             const float* norm, int act, const float* factor, const float* offset,
                             const float* means, int threads, void* dx) {
    if (half)
        apply_any(static_cast<const bf16*>(x), static_cast<const bf16*>(grad), *m, norm, act,
                  factor, offset, means, threads, static_cast<bf16*>(dx));
    else
        apply_any(static_cast<const float*>(x), static_cast<const float*>(grad), *m, norm, act,
                  factor, offset, means, threads, static_cast<float*>(dx));
}
