// A whole MBConv block: what its forward and its backward share.
//
// A block is computed in a few rounds over the batch. In each round a thread takes a part, one or a few
// samples, through all steps up to the next one that needs the whole batch (a norm's statistics, or
// the sums of its backward), so that what one step writes the next one reads from the second cache.
#pragma once

#include "api.h"
#include "gate.h"
#include "parts.h"
#include "passes.h"
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
    // Each convolution's output. Null: e where it need not be there as a whole; p, and d unless dense,
    // where no backward waits and `frozen`.
    void *e, *d, *p;
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
        return norm_rows(mean(back), variance(back), b.affine + at, b.affine + total + at, b.eps, c);
    }

  private:
    const Block& b;
};
constexpr int EXPANSION = 2, DEPTHWISE = 1, PROJECTION = 0;  // convolutions before the last

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
