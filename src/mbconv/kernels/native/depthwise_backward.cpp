// Backward of a depthwise convolution of act(norm(x)): the gradient dz at norm(x), the weights'
// gradient and the sums that the norm's own backward needs, in one sweep over x and the output's
// gradient g.
//
// Order: sample and 32 channels > input row > four outputs of each phase > taps. For an input row
// the output rows that saw it wait in a ring as floats, with zeros around them. Each g loaded is
// used twice while it is in a register: times the weight for dz, times the activation for the
// weight's gradient. At stride 2 the columns of one parity ("phase") meet the same taps, so that
// which tap goes with which column is known when this is compiled. The gradients of the weights
// and the sums are kept a task, and joined in double in the samples' order.
#include <type_traits>
#include <vector>

#include "api.h"
#include "parallel.h"
#include "rows.h"

namespace mbconv {
namespace {

constexpr int64_t STRIP = 4;  // pixels of each phase whose sums are held in registers together

// The rows that belong to one input row.
struct Rows {
    int64_t columns;
    float *value, *slope, *centred, *sum;
};

template <class Act, class T>
void prepare_row(const T* x, int64_t width, int64_t c, int64_t channels, const Norm* norm, Rows r) {
    for_lanes(channels, [&](int64_t lane, auto lanes) {
        const int64_t own = part(lane, r.columns);
        if (!norm) {
            for (int64_t i = 0; i < width; ++i)
                store(r.value + own + i * LANES, load(x + i * c + lane, lanes));
            return;
        }
        const NormVec n(*norm, lane, lanes);
        for (int64_t i = 0; i < width; ++i) {
            if (lane == 0) __builtin_prefetch(x + (i + width) * c);
            const vec centred = n.centred(load(x + i * c + lane, lanes));
            const Both act = Act::both(n.affine(centred));
            store(r.value + own + i * LANES, act.value);
            store(r.slope + own + i * LANES, act.slope);
            store(r.centred + own + i * LANES, centred);
        }
    });
}

// grads[kh]: the output row that saw this input row through tap row kh, or null.
template <int K, int S>
void strip(const float* const* grads, int64_t first_row, const float* weights, const float* value,
           int64_t at, float* weight_sums, float* out) {
    constexpr int BACK = (K - 1) / S, LOADED = STRIP + BACK;
    vec sum[STRIP * S], a[STRIP * S];
#pragma GCC unroll 16
    for (int i = 0; i < STRIP * S; ++i) {
        sum[i] = vec{};
        a[i] = load(value + (at * S + i) * LANES);
    }
    for (int64_t kh = first_row; kh < K; kh += S) {
        if (!grads[kh]) continue;
        vec g[LOADED];
#pragma GCC unroll 16
        for (int i = 0; i < LOADED; ++i) g[i] = load(grads[kh] + (at + i) * LANES);
#pragma GCC unroll 8
        for (int kw = 0; kw < K; ++kw) {
            const vec w = load(weights + (kh * K + kw) * GROUP);
            float* const target = weight_sums + (kh * K + kw) * GROUP;
            vec dw = load(target);
#pragma GCC unroll 8
            for (int j = 0; j < STRIP; ++j) {
                const int place = j * S + kw % S, from = j - kw / S + BACK;
                sum[place] += g[from] * w;
                dw += g[from] * a[place];
            }
            store(target, dw);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < STRIP * S; ++i) store(out + (at * S + i) * LANES, sum[i]);
}

template <class T>
void finish_row(Rows r, int64_t width, int64_t c, int64_t channels, const Norm* norm, float* sums,
                T* dz) {
    for_lanes(channels, [&](int64_t lane, auto lanes) {
        const int64_t own = part(lane, r.columns);
        if (!norm) {
            for (int64_t i = 0; i < width; ++i)
                store(dz + i * c + lane, load(r.sum + own + i * LANES), lanes);
            return;
        }
        vec s0{}, s1{};
        for (int64_t i = 0; i < width; ++i) {
            const int64_t at = own + i * LANES;
            const vec v = load(r.sum + at) * load(r.slope + at);
            s0 += v;
            s1 += v * load(r.centred + at);
            store(dz + i * c + lane, v, lanes);
        }
        store(sums + lane, load(sums + lane) + s0);
        const vec inverse = load(norm->inverse + lane, lanes);
        store(sums + GROUP + lane, load(sums + GROUP + lane) + s1 * inverse);
    });
}

// Sizes in floats of a thread's scratch.
struct Layout {
    int64_t strips, start, grad_margin, row, grad_row, weights, total;
    explicit Layout(const Depthwise& d) {
        start = d.left % d.stride;  // the first strip starts at a column of phase 0
        const int64_t span = STRIP * d.stride;
        strips = rounded_up(start + d.w, span) / span;
        grad_margin = (d.kernel - 1) / d.stride;
        row = strips * span * GROUP;
        const int64_t read = d.left / d.stride + strips * STRIP;
        grad_row = (grad_margin + (read > d.ow ? read : d.ow)) * GROUP;
        weights = d.kernel * d.kernel * GROUP;
        total = 4 * row + d.kernel * grad_row + 2 * weights;
    }
};

template <class T>
using Prepare = void (*)(const T*, int64_t, int64_t, int64_t, const Norm*, Rows);

template <int K, int S, class T>
void sweep(const T* x, const T* grad, const Depthwise& d, int64_t sample, int64_t group,
           const float* norm_rows, Prepare<T> prepare, const float* weight, float* scratch,
           float* dw, float* sums, T* dz) {
    const Layout size(d);
    const int64_t begin = group * GROUP, channels = d.c - begin, margin = size.start * LANES;
    float* const base = scratch + 4 * size.row;
    float* const weights = base + K * size.grad_row;
    float* const row_dw = weights + size.weights;
    const int64_t columns = size.row / GROUP, grad_columns = size.grad_row / GROUP;
    const Rows whole{columns, scratch, scratch + size.row, scratch + 2 * size.row,
                     scratch + 3 * size.row};
    const Rows pixels{columns, whole.value + margin, whole.slope + margin, whole.centred + margin,
                      whole.sum + margin};
    const Norm norm(norm_rows, d.c, begin);
    load_weights(weight + begin * K * K, K * K, channels, weights);
    const int64_t in = sample * d.h * d.w * d.c + begin;
    const T* const grads = grad + sample * d.oh * d.ow * d.c + begin;
    int64_t loaded = 0;
    for (int64_t ih = 0; ih < d.h; ++ih) {
        const int64_t reach = ih + d.top;  // tap row kh of output row (reach - kh) / S
        for (; loaded < d.oh && loaded <= reach / S; ++loaded)
            load_row(grads + loaded * d.ow * d.c, d.ow, d.c, channels, grad_columns,
                     base + loaded % K * size.grad_row + size.grad_margin * LANES);
        prepare(x + in + ih * d.w * d.c, d.w, d.c, channels, norm_rows ? &norm : nullptr, pixels);
        std::memset(row_dw, 0, size.weights * sizeof(float));
        for_lanes(channels, [&](int64_t lane, auto) {
            const float* rows[K] = {};
            for (int64_t kh = reach % S; kh < K; kh += S) {
                const int64_t oh = (reach - kh) / S;
                if (reach >= kh && oh < d.oh)
                    rows[kh] = base + oh % K * size.grad_row + part(lane, grad_columns) +
                               d.left / S * LANES;
            }
            for (int64_t i = 0; i < size.strips; ++i)
                strip<K, S>(rows, reach % S, weights + lane, whole.value + part(lane, columns),
                            i * STRIP, row_dw + lane, whole.sum + part(lane, columns));
        });
        for (int64_t i = 0; i < size.weights; i += LANES)
            store(dw + i, load(dw + i) + load(row_dw + i));
        finish_row(pixels, d.w, d.c, channels, norm_rows ? &norm : nullptr, sums,
                   dz + in + ih * d.w * d.c);
    }
}

template <class T>
bool backward(const T* x, const T* grad, const Depthwise& d, const float* norm, int act,
              const float* weight, int threads, T* dz, float* dw, float* sums) {
    const Layout size(d);
    const int64_t per = groups(d.c), taps = d.kernel * d.kernel, own = (taps + 2) * GROUP;
    std::vector<float> partial(d.n * per * own, 0.0f);
    std::vector<float> scratch(threads * size.total, 0.0f);
    Prepare<T> prepare = nullptr;
    with_activation(act, [&](auto kind) { prepare = prepare_row<decltype(kind), T>; });
    const bool known = with_geometry(d.kernel, d.stride, [&](auto k, auto s) {
        parallel(d.n * per, threads, [&](int64_t task, int thread) {
            float* const mine = &partial[task * own];
            sweep<k, s>(x, grad, d, task / per, task % per, norm, prepare, weight,
                        &scratch[thread * size.total], mine, mine + taps * GROUP, dz);
        });
    });
    for (int64_t c = 0; known && c < d.c; ++c)
        for (int64_t t = 0; t < taps + 2; ++t) {
            double sum = 0;
            for (int64_t sample = 0; sample < d.n; ++sample)
                sum += partial[(sample * per + c / GROUP) * own + t * GROUP + c % GROUP];
            (t < taps ? dw[c * taps + t] : sums[(t - taps) * d.c + c]) = static_cast<float>(sum);
        }
    return known;
}

}  // namespace
}  // namespace mbconv

using namespace mbconv;

MBCONV_API int mbconv_depthwise_backward(const void* x, const void* grad, int half,
                                         const Depthwise* d, const float* norm, int act,
                                         const float* weight, int threads, void* dz, float* dw,
                                         float* sums) {
    if (half)
        return backward(static_cast<const bf16*>(x), static_cast<const bf16*>(grad), *d, norm, act,
                        weight, threads, static_cast<bf16*>(dz), dw, sums);
    return backward(static_cast<const float*>(x), static_cast<const float*>(grad), *d, norm, act,
                    weight, threads, static_cast<float*>(dz), dw, sums);
}
