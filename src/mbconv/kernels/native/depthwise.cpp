// Depthwise convolution of act(norm(x)), with the statistics of what it writes.
//
// Order: 32 channels > sample > output row > eight outputs > taps. Batch norm and activation are
// applied to an input row once, when it enters a ring of `kernel` rows of floats; zeros around the
// ring stand for the padding, so that no tap asks where it is. Each row of outputs is written and
// summed (as differences from the task's first output) while it is in the first cache.
#include <algorithm>
#include <vector>

#include "api.h"
#include "floats.h"
#include "parallel.h"
#include "rows.h"

namespace mbconv {
namespace {

constexpr int64_t STRIP = MANY ? 8 : 7;  // outputs whose sums are held in registers together

// Sums of (y - shift) and their squares, one task's.
struct Sums {
    float shift[GROUP], sum[GROUP], square[GROUP];
};
using AllSums = std::vector<Sums, CacheLines<Sums>>;

template <class Act, class T>
void activate_row(const T* x, const Grid& grid, int64_t channels, const Norm& norm, int64_t columns,
                  float* row) {
    for_lanes(channels, [&](int64_t lane, auto lanes) {
        const NormVec n(norm, lane, lanes);
        float* const own = row + part(lane, columns);
        for_several<TOGETHER<Act>>(grid.w, [&](int64_t first, auto count) {
            vec z[count];
            each<count>([&](int i) {
                const T* const pixel = x + (first + i) * grid.pixel;
                fetch(pixel + grid.row, lane);
                z[i] = n.affine(n.centred(load(pixel + lane, lanes)));
            });
            values(Act{}, z);
            each<count>([&](int i) { store(own + (first + i) * LANES, z[i]); });
        });
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
            if constexpr (MANY) {
                vec v[COLUMNS];
#pragma GCC unroll 32
                for (int column = 0; column < COLUMNS; ++column)
                    v[column] = load(row + column * LANES);
#pragma GCC unroll 8
                for (int kw = 0; kw < K; ++kw) {
                    const vec w = load(weights + (kh * K + kw) * GROUP);
#pragma GCC unroll 8
                    for (int s = 0; s < STRIP; ++s) sum[s] += v[s * S + kw] * w;
                }
            } else {
#pragma GCC unroll 8
                for (int kw = 0; kw < K; ++kw, row += LANES) {
                    asm("" : "+r"(row));  // lest the compiler keeps columns after all, on the stack
                    const vec w = load(weights + (kh * K + kw) * GROUP);
#pragma GCC unroll 8
                    for (int s = 0; s < STRIP; ++s) sum[s] += load(row + s * S * LANES) * w;
                }
            }
        }
#pragma GCC unroll 8
        for (int s = 0; s < STRIP; ++s) store(out + (o + s) * LANES, sum[s]);
    }
}

template <class T>
void store_row(const float* row, const Grid& grid, int64_t channels, int64_t columns, bool first,
               Sums* sums, T* y) {
    for_lanes(channels, [&](int64_t lane, auto lanes) {
        const float* const own = row + part(lane, columns);
        if (sums && first) store(sums->shift + lane, as_stored(y, load(own)));
        const vec shift = sums ? load(sums->shift + lane) : vec{};
        vec s{}, q{};
        for (int64_t i = 0; i < grid.w; ++i) {
            const vec v = load(own + i * LANES);
            fetch(y + i * grid.pixel + grid.row, lane);
            store(y + i * grid.pixel + lane, v, lanes);
            const vec d = as_stored(y, v) - shift;
            s += d;
            q += d * d;
        }
        if (!sums) return;
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
using Activate = void (*)(const T*, const Grid&, int64_t, const Norm&, int64_t, float*);

template <int K, int S, class T>
void sweep(const T* x, const Depthwise& d, const Task& task, int64_t sample, const float* norm,
           Activate<T> activate, const float* weight, const float* bias, float* scratch, Sums* sums,
           T* y) {
    const Grid in = task.in(d), target = task.out(d);
    const int64_t begin = task.group * GROUP, channels = d.c - begin, above = d.top / d.dilation;
    const int64_t outputs = rounded_up(d.ow, STRIP), width = columns(d), row_size = width * GROUP;
    float* const zeros = scratch + K * row_size;
    float* const out = zeros + row_size;
    const float* const weights = weight + task.group * K * K * GROUP;
    if (d.dilation > 1) std::fill(scratch, out, 0.0f);  // the last task's grid may be wider
    x += sample * d.h * d.w * d.c + begin;
    y += sample * d.oh * d.ow * d.c + begin;
    int64_t loaded = 0;
    for (int64_t oh = 0; oh < target.h; ++oh) {
        const int64_t top = oh * S - above;
        for (; loaded < in.h && loaded < top + K; ++loaded) {
            float* row = scratch + loaded % K * row_size + d.left / d.dilation * LANES;
            if (norm)
                activate(x + in.at(loaded), in, channels, Norm(norm, d.c, begin), width, row);
            else
                load_row(x + in.at(loaded), in, channels, width, row);
        }
        for_lanes(channels, [&](int64_t lane, auto lanes) {
            const float* rows[K];
            for (int64_t kh = 0; kh < K; ++kh) {
                const bool inside = top + kh >= 0 && top + kh < in.h;
                rows[kh] = (inside ? scratch + (top + kh) % K * row_size : zeros) + part(lane, width);
            }
            const vec start = bias ? load(bias + begin + lane, lanes) : vec{};
            convolve_row<K, S>(rows, weights + lane, start, target.w, out + part(lane, outputs));
        });
        store_row(out, target, channels, outputs, oh == 0 && sample == task.first, sums,
                  y + target.at(oh));
    }
}

int64_t scratch_size(const Depthwise& d) {
    return ((d.kernel + 1) * columns(d) + rounded_up(d.ow, STRIP)) * GROUP;
}

void join(const AllSums& sums, const Depthwise& d, float* mean, float* variance) {
    std::vector<double> middle(d.c, 0.0), total(d.c, 0.0), seen(d.c, 0.0);
    for (int64_t number = 0; number < Task::count(d); ++number) {
        const Task task(d, number);
        const Grid grid = task.out(d);
        const double n = static_cast<double>(grid.h * grid.w * (task.end - task.first));
        if (!n) continue;  // a phase beyond a tiny map
        const int64_t begin = task.group * GROUP;
        for (int64_t c = begin; c < d.c && c < begin + GROUP; ++c) {
            const Sums& own = sums[number];
            const double s = own.sum[c - begin], gap = own.shift[c - begin] + s / n - middle[c];
            middle[c] += gap * n / (seen[c] + n);
            total[c] += own.square[c - begin] - s * s / n + gap * gap * seen[c] * n / (seen[c] + n);
            seen[c] += n;
        }
    }
    for (int64_t c = 0; c < d.c; ++c) {
        mean[c] = static_cast<float>(middle[c]);
        variance[c] = static_cast<float>(total[c] < 0 || !seen[c] ? 0.0 : total[c] / seen[c]);
    }
}

template <class T>
bool depthwise(const T* x, const Depthwise& d, const float* norm, int act, const float* weight,
               const float* bias, int threads, T* y, float* mean, float* variance) {
    const int64_t tasks = Task::count(d), size = scratch_size(d);
    AllSums sums(mean ? tasks : 0);  // zeros
    Floats scratch(threads * size, 0.0f);
    const Floats weights = grouped(weight, d.kernel * d.kernel, d.c);
    Activate<T> activate = nullptr;
    with_activation<T>(act, [&](auto kind) { activate = activate_row<decltype(kind), T>; });
    const bool known = with_geometry(d.kernel, d.stride, [&](auto k, auto s) {
        parallel(tasks, threads, [&](int64_t number, int thread) {
            const Task task(d, number);
            for (int64_t sample = task.first; sample < task.end; ++sample)
                sweep<k, s>(x, d, task, sample, norm, activate, weights.data(), bias,
                            &scratch[thread * size], mean ? &sums[number] : nullptr, y);
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
