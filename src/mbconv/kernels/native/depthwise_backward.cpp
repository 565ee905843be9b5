// Backward of a depthwise convolution of act(norm(x)): the gradient dz at norm(x), the weights'
// gradient and the sums that the norm's own backward needs, in one sweep over x and the output's
// gradient g.
//
// Order: 32 channels > sample > input row > a vector of channels > four outputs of each phase > taps. For
// an input row the output rows that saw it wait in a ring as floats, with zeros around them. Each g loaded
// is used twice while it is in a register: times the weight for dz, times the activation for the
// weight's gradient. What lies in between, values and slopes of one vector of a row, fits into the first
// cache (14 KB at 112 px); dz is finished in registers, and the centred x computed anew. At stride 2 the
// columns of one parity ("phase") meet the same taps, so that which tap goes with which column is known
// when this is compiled. The gradients of the weights and the sums are kept a task, and joined in double
// in the tasks' order.
//
// Where the convolution's output y has gone through norm, activation and gate (`After`), g is the
// gradient behind those: rows of g and y become the gradient at y when they enter the ring.
#include <algorithm>
#include <vector>

#include "api.h"
#include "floats.h"
#include "parallel.h"
#include "rows.h"

namespace mbconv {
namespace {

constexpr int64_t STRIP = 4;  // pixels of each phase whose sums are held in registers together
constexpr int64_t FLUSH = 100;  // pixels whose share of the weights' gradient is summed by itself

// One vector of channels of one input row.
template <class T>
struct Line {
    const T* x;  // the first pixel, from the group's first channel on; as dz
    T* dz;
    Grid grid;
    int64_t lane;          // the vector's first channel in the group
    const Norm* norm;      // or null
    int64_t start;         // the first pixel's column
    float *value, *slope;  // [columns][LANES], zeros around the pixels
};

template <class Act, class T>
void prepare(const Line<T>& line, int64_t channels) {
    for_vectors(channels - line.lane, LANES, [&](int64_t, auto lanes) {
        const int64_t lane = line.lane, pixel = line.grid.pixel, below = line.grid.row;
        float* const value = line.value + line.start * LANES;
        float* const slope = line.slope + line.start * LANES;
        const T* const x = line.x;
        if (!line.norm) return load_line(x, line.grid, lane, lanes, value);
        const NormVec n(*line.norm, lane, lanes);
        for_several<TOGETHER<Act>>(line.grid.w, [&](int64_t first, auto count) {
            vec z[count], s[count];
            each<count>([&](int i) {
                const T* const at = x + (first + i) * pixel;
                fetch(at + below, lane);
                z[i] = n.affine(n.centred(load(at + lane, lanes)));
            });
            both(Act{}, z, s);
            each<count>([&](int i) { store(value + (first + i) * LANES, z[i]); });
            each<count>([&](int i) { store(slope + (first + i) * LANES, s[i]); });
        });
    });
}

// Writes dz of the columns from `at` on; adds it, and it times the centred x, to the rows of `sums`.
template <int COLUMNS, class T, class Lanes>
[[gnu::always_inline]] inline void finish(const Line<T>& line, int64_t at, const vec* sum,
                                          float* sums, Lanes lanes) {
    const int64_t lane = line.lane, pixel = line.grid.pixel, below = line.grid.row;
    const int64_t first = at - line.start, end = line.grid.w - first;
    const T* const x = line.x + first * pixel;
    T* const dz = line.dz + first * pixel;
    const float* const slope = line.slope + at * LANES;
    const bool normed = line.norm;
    const vec mean = normed ? load(line.norm->mean + lane, lanes) : vec{};
    vec s0 = load(sums), s1 = load(sums + GROUP);
    const auto one = [&](int64_t i, vec v) {
        if (normed) {
            v *= load(slope + i * LANES);
            s0 += v;
            s1 += v * (load(x + i * pixel + lane, lanes) - mean);
        }
        fetch(dz + i * pixel + below, lane);
        store(dz + i * pixel + lane, v, lanes);
    };
    if (first >= 0 && end >= COLUMNS) {  // `each` made GCC 12's code 8% slower here
#pragma GCC unroll 16
        for (int i = 0; i < COLUMNS; ++i) one(i, sum[i]);
    } else {
#pragma GCC unroll 16
        for (int i = 0; i < COLUMNS; ++i)
            if (i >= -first && i < end) one(i, sum[i]);
    }
    store(sums, s0);
    store(sums + GROUP, s1);
}

// grads[kh]: the output row that saw this input row through tap row kh, or null. `sums` has a vector of
// each tap's weights, and `finish`'s two.
template <int K, int S, class T, class Lanes>
void strip(const float* const* grads, int64_t first_row, const float* weights, const Line<T>& line,
           int64_t at, float* sums, Lanes lanes) {
    constexpr int BACK = (K - 1) / S, LOADED = STRIP + BACK, COLUMNS = STRIP * S;
    const float* const value = line.value + at * S * LANES;
    vec sum[COLUMNS], held[COLUMNS];
#pragma GCC unroll 16
    for (int i = 0; i < COLUMNS; ++i) {
        sum[i] = vec{};
        if (MANY) held[i] = load(value + i * LANES);
    }
    for (int64_t kh = first_row; kh < K; kh += S) {
        if (!grads[kh]) continue;
        vec g[LOADED];
#pragma GCC unroll 16
        for (int i = 0; i < LOADED; ++i) g[i] = load(grads[kh] + (at + i) * LANES);
#pragma GCC unroll 8
        for (int kw = 0; kw < K; ++kw) {
            const vec w = load(weights + (kh * K + kw) * GROUP);
            float* const target = sums + (kh * K + kw) * GROUP;
            vec dw = load(target);
#pragma GCC unroll 8
            for (int j = 0; j < STRIP; ++j) {
                const int place = j * S + kw % S, from = j - kw / S + BACK;
                sum[place] += g[from] * w;
                dw += g[from] * (MANY ? held[place] : load(value + place * LANES));
            }
            store(target, dw);
        }
    }
    finish<COLUMNS>(line, at * S, sum, sums + K * K * GROUP, lanes);
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
        for_several<TOGETHER<Act>>(grid.w, [&](int64_t first, auto count) {
            vec v[count], grad[count];
            each<count>([&](int i) {
                const int64_t at = (first + i) * grid.pixel;
                fetch(y + at + grid.row, lane);
                fetch(g + at + grid.row, lane);
                v[i] = load(y + at + lane, lanes);
                grad[i] = load(g + at + lane, lanes);
            });
            back.all(v, grad);
            each<count>([&](int i) { store(target + (first + i) * LANES, grad[i]); });
        });
    });
}

// Sizes in floats of a thread's scratch.
struct Layout {
    int64_t start, grad_margin, row, grad_row, weights, sums, total;
    explicit Layout(const Depthwise& d) {
        const int64_t left = d.left / d.dilation;
        start = left % d.stride;  // the first strip starts at a column of phase 0
        const int64_t span = STRIP * d.stride;
        const int64_t strips = rounded_up(start + d.w, span) / span;
        grad_margin = (d.kernel - 1) / d.stride;
        row = strips * span * LANES;
        const int64_t read = left / d.stride + strips * STRIP;
        grad_row = (grad_margin + (read > d.ow ? read : d.ow)) * GROUP;
        weights = d.kernel * d.kernel * GROUP;
        sums = weights + 2 * GROUP;
        total = 2 * row + d.kernel * grad_row + sums;
    }
};

// The functions of one activation.
template <class T>
struct ByActivation {
    void (*prepare)(const Line<T>&, int64_t);
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
    ByActivation<T> act;
    T* dz;
};

template <int K, int S, class T>
void sweep(const Job<T>& job, const Task& task, int64_t sample, float* scratch, float* sums) {
    const Depthwise& d = job.d;
    const Layout size(d);
    const Grid in = task.in(d), out = task.out(d);
    const int64_t begin = task.group * GROUP, channels = d.c - begin;
    const Norm norm(job.norm, d.c, begin);
    const int64_t above = d.top / d.dilation, left = d.left / d.dilation;
    const int64_t strips = rounded_up(size.start + in.w, STRIP * S) / (STRIP * S);
    float* const base = scratch + 2 * size.row;
    float* const own_sums = base + K * size.grad_row;
    const float* const weights = job.weights + task.group * size.weights;
    const int64_t columns = size.grad_row / GROUP;
    if (d.dilation > 1) std::fill(scratch, own_sums, 0.0f);  // the last task's grid may be wider
    const int64_t first = sample * d.h * d.w * d.c + begin;
    const int64_t first_out = sample * d.oh * d.ow * d.c + begin;
    std::memset(own_sums, 0, size.sums * sizeof(float));
    int64_t loaded = 0, pending = 0;
    for (int64_t ih = 0; ih < in.h; ++ih) {
        const int64_t reach = ih + above;  // tap row kh of output row (reach - kh) / S
        for (; loaded < out.h && loaded <= reach / S; ++loaded) {
            float* const row = base + loaded % K * size.grad_row + size.grad_margin * LANES;
            const int64_t at = first_out + out.at(loaded);
            if (job.after.y)
                job.act.grad(job.after.y + at, job.grad + at, job.after, out, d.c, begin, sample,
                             columns, row);
            else
                load_row(job.grad + at, out, channels, columns, row);
        }
        const int64_t here = first + in.at(ih);
        for_lanes(channels, [&](int64_t lane, auto lanes) {
            const float* rows[K] = {};
            for (int64_t kh = reach % S; kh < K; kh += S) {
                const int64_t oh = (reach - kh) / S;
                if (reach >= kh && oh < out.h)
                    rows[kh] = base + oh % K * size.grad_row + part(lane, columns) + left / S * LANES;
            }
            const Line<T> line{job.x + here, job.dz + here, in, lane, job.norm ? &norm : nullptr,
                               size.start, scratch, scratch + size.row};
            job.act.prepare(line, channels);
            for (int64_t i = 0; i < strips; ++i)
                strip<K, S>(rows, reach % S, weights + lane, line, i * STRIP, own_sums + lane, lanes);
        });
        if ((pending += in.w) >= FLUSH || ih + 1 == in.h) {
            for (int64_t i = 0; i < size.sums; i += LANES) {
                store(sums + i, load(sums + i) + load(own_sums + i));
                store(own_sums + i, vec{});
            }
            pending = 0;
        }
    }
}

// The tasks' gradients at the weights and sums, joined in the tasks' order for each group. The last sum is
// of dz times the centred x until it is scaled here.
void join(const Floats& partial, const Depthwise& d, const float* norm, int threads, float* dw,
          float* sums) {
    const int64_t taps = d.kernel * d.kernel, own = (taps + 2) * GROUP;
    const int64_t phases = d.dilation * d.dilation;
    const float* const inverse = norm ? Norm(norm, d.c).inverse : nullptr;
    parallel(groups(d.c), threads, [&](int64_t group, int) {
        std::vector<double> total(own, 0.0);
        for (int64_t run = 0; run < Task::runs(d); ++run) {
            const float* task = &partial[(run * groups(d.c) + group) * phases * own];
            for (int64_t phase = 0; phase < phases; ++phase, task += own)
                for (int64_t i = 0; i < own; ++i) total[i] += task[i];
        }
        for (int64_t lane = 0, c = group * GROUP; lane < GROUP && c < d.c; ++lane, ++c) {
            if (inverse) total[(taps + 1) * GROUP + lane] *= inverse[c];
            for (int64_t t = 0; t < taps + 2; ++t)
                (t < taps ? dw[c * taps + t] : sums[(t - taps) * d.c + c]) =
                    static_cast<float>(total[t * GROUP + lane]);
        }
    });
}

template <class T>
bool backward(const Job<T>& job, int threads, float* dw, float* sums) {
    const Depthwise& d = job.d;
    const Layout size(d);
    const int64_t tasks = Task::count(d);
    Floats partial(tasks * size.sums, 0.0f);
    Floats scratch(threads * size.total, 0.0f);
    const bool known = with_geometry(d.kernel, d.stride, [&](auto k, auto s) {
        parallel(tasks, threads, [&](int64_t number, int thread) {
            const Task task(d, number);
            for (int64_t sample = task.first; sample < task.end; ++sample)
                sweep<k, s>(job, task, sample, &scratch[thread * size.total],
                            &partial[number * size.sums]);
        });
    });
    if (known) join(partial, d, job.norm, threads, dw, sums);
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
            job.act = {prepare<decltype(kind), T>, grad_row<decltype(kind), T>};
        });
        return backward(job, threads, dw, sums);
    };
    return half ? run(bf16{}) : run(0.0f);
}
