// Backward of a depthwise convolution of act(norm(x)): the gradient dz at norm(x), the weights'
// gradient and the sums that the norm's own backward needs, in one sweep over x and the output's
// gradient g.
//
// Order: 32 channels > sample > input row > four outputs of each phase > taps. For an input row
// the output rows that saw it wait in a ring as floats, with zeros around them. Each g loaded is
// used twice while it is in a register: times the weight for dz, times the activation for the
// weight's gradient. At stride 2 the columns of one parity ("phase") meet the same taps, so that
// which tap goes with which column is known when this is compiled. The gradients of the weights
// and the sums are kept a task, and joined in double in the tasks' order.
//
// Where the convolution's output y has gone through norm, activation and gate (`After`), g is the
// gradient behind those: rows of g and y become the gradient at y when they enter the ring.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "api.h"
#include "floats.h"
#include "parallel.h"
#include "rows.h"

namespace mbconv {
namespace {

constexpr int64_t STRIP = 4;  // pixels of each phase whose sums are held in registers together
constexpr int64_t FLUSH = 100;  // pixels whose share of the weights' gradient is summed by itself

// The rows that belong to one input row.
struct Rows {
    int64_t columns;
    float *value, *slope, *centred, *sum;
};

template <class Act, class T>
void prepare_row(const T* x, const Grid& grid, int64_t channels, const Norm* norm, Rows r) {
    for_lanes(channels, [&](int64_t lane, auto lanes) {
        const int64_t own = part(lane, r.columns);
        if (!norm) {
            for (int64_t i = 0; i < grid.w; ++i)
                store(r.value + own + i * LANES, load(x + i * grid.pixel + lane, lanes));
            return;
        }
        const NormVec n(*norm, lane, lanes);
        for (int64_t i = 0; i < grid.w; ++i) {
            const T* const pixel = x + i * grid.pixel;
            fetch(pixel + grid.row, lane);
            const vec centred = n.centred(load(pixel + lane, lanes));
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
    vec sum[STRIP * S], held[STRIP * S];
#pragma GCC unroll 16
    for (int i = 0; i < STRIP * S; ++i) {
        sum[i] = vec{};
        if (MANY) held[i] = load(value + (at * S + i) * LANES);
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
                dw += g[from] * (MANY ? held[place] : load(value + (at * S + place) * LANES));
            }
            store(target, dw);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < STRIP * S; ++i) store(out + (at * S + i) * LANES, sum[i]);
}

// What follows the convolution: y its output, the rest as in NormBackward.
template <class T>
struct After {
    const T* y;
    const float *norm, *means, *factor, *offset;
};

template <class Act, class T>
void grad_row(const T* y, const T* g, const After<T>& after, const Grid& grid, int64_t c,
              int64_t begin, int64_t sample, int64_t columns, float* row) {
    const Norm norm(after.norm, c);
    const auto own = [&](const float* all) { return all ? all + sample * c : nullptr; };
    for_lanes(c - begin, [&](int64_t lane, auto lanes) {
        const NormBackward<Act> back(norm, c, after.means, own(after.factor), own(after.offset),
                                     begin + lane, lanes);
        float* const target = row + part(lane, columns);
        for (int64_t i = 0; i < grid.w; ++i) {
            const int64_t at = i * grid.pixel;
            fetch(y + at + grid.row, lane);
            fetch(g + at + grid.row, lane);
            store(target + i * LANES, back(load(y + at + lane, lanes), load(g + at + lane, lanes)));
        }
    });
}

template <class T>
void finish_row(Rows r, const Grid& grid, int64_t channels, const Norm* norm, float* sums, T* dz) {
    for_lanes(channels, [&](int64_t lane, auto lanes) {
        const int64_t own = part(lane, r.columns);
        if (!norm) {
            for (int64_t i = 0; i < grid.w; ++i)
                store(dz + i * grid.pixel + lane, load(r.sum + own + i * LANES), lanes);
            return;
        }
        vec s0{}, s1{};
        for (int64_t i = 0; i < grid.w; ++i) {
            const int64_t at = own + i * LANES;
            const vec v = load(r.sum + at) * load(r.slope + at);
            s0 += v;
            s1 += v * load(r.centred + at);
            fetch_to_write(dz + i * grid.pixel + grid.row, lane);
            store(dz + i * grid.pixel + lane, v, lanes);
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
        const int64_t left = d.left / d.dilation;
        start = left % d.stride;  // the first strip starts at a column of phase 0
        const int64_t span = STRIP * d.stride;
        strips = rounded_up(start + d.w, span) / span;
        grad_margin = (d.kernel - 1) / d.stride;
        row = strips * span * GROUP;
        const int64_t read = left / d.stride + strips * STRIP;
        grad_row = (grad_margin + (read > d.ow ? read : d.ow)) * GROUP;
        weights = d.kernel * d.kernel * GROUP;
        total = 4 * row + d.kernel * grad_row + weights;
    }
};

// The rows' functions for one activation.
template <class T>
struct ByActivation {
    void (*prepare)(const T*, const Grid&, int64_t, const Norm*, Rows);
    void (*grad)(const T*, const T*, const After<T>&, const Grid&, int64_t, int64_t, int64_t,
                 int64_t, float*);
};

// What all tasks share.
template <class T>
struct Job {
    const T *x, *grad;
    const Depthwise& d;
    const float *norm, *weights;  // weights: as `grouped` lays them out
    After<T> after;
    ByActivation<T> rows;
    T* dz;
};

template <int K, int S, class T>
void sweep(const Job<T>& job, const Task& task, int64_t sample, float* scratch, float* dw,
           float* sums) {
    const Depthwise& d = job.d;
    const Layout size(d);
    const Grid in = task.in(d), out = task.out(d);
    const int64_t begin = task.group * GROUP, channels = d.c - begin, margin = size.start * LANES;
    const int64_t above = d.top / d.dilation, left = d.left / d.dilation;
    const int64_t strips = rounded_up(size.start + in.w, STRIP * S) / (STRIP * S);
    float* const base = scratch + 4 * size.row;
    float* const own_dw = base + K * size.grad_row;
    const float* const weights = job.weights + task.group * size.weights;
    const int64_t columns = size.row / GROUP, grad_columns = size.grad_row / GROUP;
    const Rows whole{columns, scratch, scratch + size.row, scratch + 2 * size.row,
                     scratch + 3 * size.row};
    const Rows pixels{columns, whole.value + margin, whole.slope + margin, whole.centred + margin,
                      whole.sum + margin};
    const Norm own(job.norm, d.c, begin), *const norm = job.norm ? &own : nullptr;
    if (d.dilation > 1) std::fill(scratch, own_dw, 0.0f);  // the last task's grid may be wider
    const int64_t first = sample * d.h * d.w * d.c + begin;
    const int64_t first_out = sample * d.oh * d.ow * d.c + begin;
    std::memset(own_dw, 0, size.weights * sizeof(float));
    int64_t loaded = 0, pending = 0;
    for (int64_t ih = 0; ih < in.h; ++ih) {
        const int64_t reach = ih + above;  // tap row kh of output row (reach - kh) / S
        for (; loaded < out.h && loaded <= reach / S; ++loaded) {
            float* const row = base + loaded % K * size.grad_row + size.grad_margin * LANES;
            const int64_t at = first_out + out.at(loaded);
            if (job.after.y)
                job.rows.grad(job.after.y + at, job.grad + at, job.after, out, d.c, begin, sample,
                              grad_columns, row);
            else
                load_row(job.grad + at, out, channels, grad_columns, row);
        }
        job.rows.prepare(job.x + first + in.at(ih), in, channels, norm, pixels);
        for_lanes(channels, [&](int64_t lane, auto) {
            const float* rows[K] = {};
            for (int64_t kh = reach % S; kh < K; kh += S) {
                const int64_t oh = (reach - kh) / S;
                if (reach >= kh && oh < out.h)
                    rows[kh] = base + oh % K * size.grad_row + part(lane, grad_columns) +
                               left / S * LANES;
            }
            for (int64_t i = 0; i < strips; ++i)
                strip<K, S>(rows, reach % S, weights + lane, whole.value + part(lane, columns),
                            i * STRIP, own_dw + lane, whole.sum + part(lane, columns));
        });
        if ((pending += in.w) >= FLUSH || ih + 1 == in.h) {
            for (int64_t i = 0; i < size.weights; i += LANES) {
                store(dw + i, load(dw + i) + load(own_dw + i));
                store(own_dw + i, vec{});
            }
            pending = 0;
        }
        finish_row(pixels, in, channels, norm, sums, job.dz + first + in.at(ih));
    }
}

// The tasks' gradients at the weights and sums, joined in the tasks' order for each group.
void join(const Floats& partial, const Depthwise& d, int threads, float* dw,
          float* sums) {
    const int64_t taps = d.kernel * d.kernel, own = (taps + 2) * GROUP;
    const int64_t phases = d.dilation * d.dilation;
    parallel(groups(d.c), threads, [&](int64_t group, int) {
        std::vector<double> total(own, 0.0);
        for (int64_t run = 0; run < Task::runs(d); ++run) {
            const float* task = &partial[(run * groups(d.c) + group) * phases * own];
            for (int64_t phase = 0; phase < phases; ++phase, task += own)
                for (int64_t i = 0; i < own; ++i) total[i] += task[i];
        }
        for (int64_t lane = 0, c = group * GROUP; lane < GROUP && c < d.c; ++lane, ++c)
            for (int64_t t = 0; t < taps + 2; ++t)
                (t < taps ? dw[c * taps + t] : sums[(t - taps) * d.c + c]) =
                    static_cast<float>(total[t * GROUP + lane]);
    });
}

template <class T>
bool backward(const Job<T>& job, int threads, float* dw, float* sums) {
    const Depthwise& d = job.d;
    const Layout size(d);
    const int64_t tasks = Task::count(d), taps = d.kernel * d.kernel, own = (taps + 2) * GROUP;
    Floats partial(tasks * own, 0.0f);
    Floats scratch(threads * size.total, 0.0f);
    const bool known = with_geometry(d.kernel, d.stride, [&](auto k, auto s) {
        parallel(tasks, threads, [&](int64_t number, int thread) {
            const Task task(d, number);
            float* const mine = &partial[number * own];
            for (int64_t sample = task.first; sample < task.end; ++sample)
                sweep<k, s>(job, task, sample, &scratch[thread * size.total], mine,
                            mine + taps * GROUP);
        });
    });
    if (known) join(partial, d, threads, dw, sums);
    return known;
}

}  // namespace
}  // namespace mbconv

using namespace mbconv;

MBCONV_API int mbconv_depthwise_backward(const void* x, const void* grad, int half,
                                         const Depthwise* d, const float* norm, int act,
                                         const float* weight, const void* y, const float* y_norm,
                                         const float* means, const float* factor,
                                         const float* offset, int threads, void* dz, float* dw,
                                         float* sums) {
    const auto run = [&](auto format) {
        using T = decltype(format);
        const Floats weights = grouped(weight, d->kernel * d->kernel, d->c);
        Job<T> job{static_cast<const T*>(x), static_cast<const T*>(grad), *d, norm, weights.data(),
                   {static_cast<const T*>(y), y_norm, means, factor, offset}, {},
                   static_cast<T*>(dz)};
        with_activation<T>(act, [&](auto kind) {
            job.rows = {prepare_row<decltype(kind), T>, grad_row<decltype(kind), T>};
        });
        return backward(job, threads, dw, sums);
    };
    return half ? run(bf16{}) : run(0.0f);
}
