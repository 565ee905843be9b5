// A whole MBConv block: what its forward and its backward share.
//
// A block is computed in a few rounds over the batch. In each round a thread takes a part, one or a few
// samples, through all steps up to the next one that needs the whole batch (a norm's statistics, or
// the sums of its backward), so that what one step writes the next one reads from the second cache.
#pragma once

#include <algorithm>
#include <cmath>

#include "api.h"
#include "floats.h"
#include "gate.h"
#include "parallel.h"
#include "product.h"

namespace mbconv {

// Null pointers stand for what the block does not have. Vectors are float; those of all norms lie side
// by side, [2, sum of widths], in the order expansion, depthwise, projection.
struct Block {
    Depthwise middle;  // its c is the expanded width
    int64_t in, out, squeezed;
    // dense: the middle convolution is none of ours. It is done before the forward; the backward
    // ends at its output.
    int64_t half, act, gate_act, gate_hard, frozen, residual, dense, threads;
    double eps;
    const void* x;                                     // [n, h, w, in]
    const float *expand, *depthwise, *project;         // [c, in], [c, k, k], [out, c]
    const float *affine, *gate_reduce, *gate_reduce_bias, *gate_expand, *gate_expand_bias;
    const float* keep;                                 // [n]
    void *e, *d, *p;  // each convolution's output; e null where it need not be there as a whole
    float* statistics;                                 // means and variances; given where `frozen`
    float* pooled;                                     // [n, c], the gate's means
    float* spread;                                     // mean and covariance of a narrow x, [1 + in, in]
};

// Every norm's four rows, as `Norm` reads them.
class Norms {
  public:
    explicit Norms(const Block& b) : total((b.expand ? 2 : 1) * b.middle.c + b.out), b(b) {}

    const int64_t total;

    // Where the norm begins that comes so many convolutions before the last.
    int64_t begin(int back) const {
        return total - b.out - back * b.middle.c;
    }
    float* mean(int back) const { return b.statistics + begin(back); }
    float* variance(int back) const { return mean(back) + total; }

    Floats rows(int back) const {
        const int64_t c = back ? b.middle.c : b.out, at = begin(back);
        Floats norm(4 * c);
        for (int64_t i = 0; i < c; ++i) {
            norm[i] = mean(back)[i];
            norm[c + i] = 1.0f / std::sqrt(variance(back)[i] + static_cast<float>(b.eps));
            norm[2 * c + i] = b.affine[at + i];
            norm[3 * c + i] = b.affine[total + at + i];
        }
        return norm;
    }

  private:
    const Block& b;
};
constexpr int EXPANSION = 2, DEPTHWISE = 1, PROJECTION = 0;  // convolutions before the last

// Runs of samples. What they are does not depend on the threads.
class Parts {
  public:
    // `bytes` of a sample's widest map; the more samples a part has, the fewer sums are to be joined.
    Parts(int64_t samples, int64_t bytes, int threads) : samples(samples) {
        int64_t wanted = 1;
        while (wanted < LEAST || wanted * CACHE < samples * bytes) wanted *= 2;
        size = (samples + wanted - 1) / wanted;
        const bool many = count() >= threads;
        outer = many ? threads : 1;
        inner = many ? 1 : threads;
    }
    int64_t count() const { return (samples + size - 1) / size; }
    int64_t size;
    int inner;  // threads within a part

    struct Part {
        int64_t number, first, count;
    };
    // f(part, thread) for each
    template <class F>
    void each(F&& f) const {
        parallel(count(), outer, [&](int64_t number, int thread) {
            const int64_t first = number * size;
            f(Part{number, first, std::min(size, samples - first)}, thread);
        });
    }
    int workers() const { return outer; }

  private:
    static constexpr int64_t CACHE = 1 << 20, LEAST = 4;
    int64_t samples;
    int outer;
};

inline Depthwise of_part(Depthwise d, int64_t samples) {
    d.n = samples;
    return d;
}

inline Gate gate_of(const Block& b) {
    return {b.middle.c, b.squeezed, b.gate_reduce, b.gate_reduce_bias, b.gate_expand,
            b.gate_expand_bias, static_cast<int>(b.gate_act), b.gate_hard != 0,
            static_cast<int>(b.threads)};
}

// Drop-path's factor of these samples, for every channel.
inline Floats spread_keep(const Block& b, int64_t first, int64_t count) {
    Floats factor;
    for (int64_t s = 0; b.keep && s < count; ++s)
        factor.insert(factor.end(), b.out, b.keep[first + s]);
    return factor;
}
inline const float* or_null(const Floats& v) { return v.empty() ? nullptr : v.data(); }

}  // namespace mbconv

// What the other files offer.
MBCONV_API void mbconv_covariance(const void* x, int half, const mbconv::Map*, int threads,
                                  float* mean, float* result);
MBCONV_API void mbconv_moments(const void* x, int half, const mbconv::Map*, int threads,
                               float* mean, float* variance);
MBCONV_API void mbconv_normalise(const void* x, int half, const mbconv::Map*, const float* norm,
                                 int act, const float* factor, const void* addend, int threads,
                                 void* y);
MBCONV_API void mbconv_pool(const void* x, int half, const mbconv::Map*, const float* norm, int act,
                            int threads, float* mean, void* y);
MBCONV_API void mbconv_reduce(const void* x, const void* grad, int half, const mbconv::Map*,
                              const float* norm, int act, int gated, const float* factor,
                              int threads, float* sums, void* y);
MBCONV_API void mbconv_apply(const void* x, const void* grad, int half, const mbconv::Map*,
                             const float* norm, int act, const float* factor, const float* offset,
                             const float* means, int threads, void* dx);
MBCONV_API int mbconv_depthwise(const void* x, int half, const mbconv::Depthwise*, const float* norm,
                                int act, const float* weight, const float* bias, int threads,
                                void* y, float* mean, float* variance);
MBCONV_API int mbconv_depthwise_backward(const void* x, const void* grad, int half,
                                         const mbconv::Depthwise*, const float* norm, int act,
                                         const float* weight, const void* y, const float* y_norm,
                                         const float* means, const float* factor,
                                         const float* offset, int threads, void* dz, float* dw,
                                         float* sums);
