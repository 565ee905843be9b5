// Depthwise convolution of act(norm(x)), with the statistics of what it writes.
//
// Order: sample and 32 channels > output row > eight outputs > taps. Batch norm and activation are
// applied to an input row once, when it enters a ring of `kernel` rows of floats; zeros around the
// ring stand for the padding, so that no tap asks where it is. Each row of outputs is written and
// summed (as differences from the task's first output) while it is in the first cache.
#include <type_traits>
#include <vector>

#include "api.h"
#include "parallel.h"
#include "rows.h"

namespace mbconv {
namespace {

constexpr int64_t STRIP = 8;  // outputs whose sums are held in registers together

// Sums of (y - shift) and their squares, one sample and group.
struct Sums {
    float shift[GROUP], sum[GROUP], square[GROUP];
};

template <class Act, class T>
void activate_row(const T* x, int64_t width, int64_t c, int64_t channels, const Norm& norm,
                  int64_t columns, float* row) {
    for_lanes(channels, [&](int64_t lane, auto lanes) {
        const NormVec n(norm, lane, lanes);
        float* const own = row + part(lane, columns);
        for (int64_t i = 0; i < width; ++i) {
            if (lane == 0) __builtin_prefetch(x + (i + width) * c);
            store(own + i * LANES,
                  Act::value(n.affine(n.centred(load(x + i * c + lane, lanes)))));
        }
    });
}

template <int K, int S>
void convolve_row(const float* const* rows, const float* weights, vec start, int64_t outputs,
                  float* out) {
    constexpr int COLUMNS = (STRIP - 1) * S + K;
    for (int64_t o = 0; o < outputs; o += STRIP) {
        vec sum[STRIP];
        for (auto& s : sum) s = start;
        for (int kh = 0; kh < K; ++kh) {
            const float* row = rows[kh] + o * S * LANES;
            vec v[COLUMNS];
#pragma GCC unroll 32
            for (int column = 0; column < COLUMNS; ++column) v[column] = load(row + column * LANES);
#pragma GCC unroll 8
            for (int kw = 0; kw < K; ++kw) {
                const vec w = load(weights + (kh * K + kw) * GROUP);
#pragma GCC unroll 8
                for (int s = 0; s < STRIP; ++s) sum[s] += v[s * S + kw] * w;
            }
        }
#pragma GCC unroll 8
        for (int s = 0; s < STRIP; ++s) store(out + (o + s) * LANES, sum[s]);
    }
}

template <class T>
void store_row(const float* row, int64_t width, int64_t c, int64_t channels, int64_t columns,
               bool first, Sums* sums, T* y) {
    for_lanes(channels, [&](int64_t lane, auto lanes) {
        const float* const own = row + part(lane, columns);
        if (!sums) {
            for (int64_t i = 0; i < width; ++i)
                store(y + i * c + lane, load(own + i * LANES), lanes);
            return;
        }
        if (first) store(sums->shift + lane, as_stored(y, load(own)));
        const vec shift = load(sums->shift + lane);
        vec s{}, q{};
        for (int64_t i = 0; i < width; ++i) {
            const vec v = load(own + i * LANES);
            store(y + i * c + lane, v, lanes);
            const vec d = as_stored(y, v) - shift;
            s += d;
            q += d * d;
        }
        store(sums->sum + lane, load(sums->sum + lane) + s);
        store(sums->square + lane, load(sums->square + lane) + q);
    });
}

// Of a row in the ring: what the last strip reads.
int64_t columns(const Depthwise& d) {
    const int64_t read = (rounded_up(d.ow, STRIP) - 1) * d.stride + d.kernel;
    return read > d.left + d.w ? read : d.left + d.w;
}

template <class T>
using Activate = void (*)(const T*, int64_t, int64_t, int64_t, const Norm&, int64_t, float*);

template <int K, int S, class T>
void sweep(const T* x, const Depthwise& d, int64_t sample, int64_t group, const float* norm,
           Activate<T> activate, const float* weight, const float* bias, float* scratch, Sums* sums,
           T* y) {
    const int64_t begin = group * GROUP, channels = d.c - begin;
    const int64_t outputs = rounded_up(d.ow, STRIP), width = columns(d), row_size = width * GROUP;
    float* const zeros = scratch + K * row_size;
    float* const out = zeros + row_size;
    float* const weights = out + outputs * GROUP;
    load_weights(weight + begin * K * K, K * K, channels, weights);
    const T* const plane = x + sample * d.h * d.w * d.c + begin;
    T* const target = y + sample * d.oh * d.ow * d.c + begin;
    int64_t loaded = 0;
    for (int64_t oh = 0; oh < d.oh; ++oh) {
        const int64_t top = oh * S - d.top;
        for (; loaded < d.h && loaded < top + K; ++loaded) {
            float* row = scratch + loaded % K * row_size + d.left * LANES;
            const T* source = plane + loaded * d.w * d.c;
            if (norm)
                activate(source, d.w, d.c, channels, Norm(norm, d.c, begin), width, row);
            else
                load_row(source, d.w, d.c, channels, width, row);
        }
        for_lanes(channels, [&](int64_t lane, auto lanes) {
            const float* rows[K];
            for (int64_t kh = 0; kh < K; ++kh) {
                const bool inside = top + kh >= 0 && top + kh < d.h;
                rows[kh] = (inside ? scratch + (top + kh) % K * row_size : zeros) + part(lane, width);
            }
            const vec start = bias ? load(bias + begin + lane, lanes) : vec{};
            convolve_row<K, S>(rows, weights + lane, start, d.ow, out + part(lane, outputs));
        });
        store_row(out, d.ow, d.c, channels, outputs, oh == 0, sums, target + oh * d.ow * d.c);
    }
}

int64_t scratch_size(const Depthwise& d) {
    return ((d.kernel + 1) * columns(d) + rounded_up(d.ow, STRIP) + d.kernel * d.kernel) * GROUP;
}

void join(const std::vector<Sums>& sums, const Depthwise& d, float* mean, float* variance) {
    const double n = static_cast<double>(d.oh * d.ow);
    for (int64_t c = 0; c < d.c; ++c) {
        double middle = 0, total = 0, seen = 0;
        for (int64_t sample = 0; sample < d.n; ++sample, seen += n) {
            const Sums& own = sums[sample * groups(d.c) + c / GROUP];
            const double s = own.sum[c % GROUP], gap = own.shift[c % GROUP] + s / n - middle;
            middle += gap * n / (seen + n);
            total += own.square[c % GROUP] - s * s / n + gap * gap * seen * n / (seen + n);
        }
        mean[c] = static_cast<float>(middle);
        variance[c] = static_cast<float>(total < 0 || seen == 0 ? 0.0 : total / seen);
    }
}

template <class T>
bool depthwise(const T* x, const Depthwise& d, const float* norm, int act, const float* weight,
               const float* bias, int threads, T* y, float* mean, float* variance) {
    const int64_t per = groups(d.c), size = scratch_size(d);
    std::vector<Sums> sums(mean ? d.n * per : 0);  // zeros
    std::vector<float> scratch(threads * size, 0.0f);
    Activate<T> activate = nullptr;
    with_activation(act, [&](auto kind) { activate = activate_row<decltype(kind), T>; });
    const bool known = with_geometry(d.kernel, d.stride, [&](auto k, auto s) {
        parallel(d.n * per, threads, [&](int64_t task, int thread) {
            sweep<k, s>(x, d, task / per, task % per, norm, activate, weight, bias,
                        &scratch[thread * size], mean ? &sums[task] : nullptr, y);
        });
    });
    if (known && mean) join(sums, d, mean, variance);
    return known;
}

}  // namespace
}  // namespace mbconv

using namespace mbconv;

MBCONV_API int mbconv_depthwise(const void* x, int half, const Depthwise* d, const float* norm,
                                int act, const float* weight, const float* bias, int threads,
                                void* y, float* mean, float* variance) {
    if (half)
        return depthwise(static_cast<const bf16*>(x), *d, norm, act, weight, bias, threads,
                         static_cast<bf16*>(y), mean, variance);
    return depthwise(static_cast<const float*>(x), *d, norm, act, weight, bias, threads,
                     static_cast<float*>(y), mean, variance);
}
