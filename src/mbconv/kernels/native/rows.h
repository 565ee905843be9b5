// What both depthwise sweeps share: a task is 32 channels (GROUP: one cache line of bf16) of one sample or
// of a few small ones, and works on rows of floats that stay in the first two caches:
// [vectors][columns][LANES], so that what one vector of channels needs lies together.
#pragma once

#include <algorithm>
#include <type_traits>

#include "activation.h"
#include "api.h"
#include "floats.h"
#include "simd.h"

namespace mbconv {

constexpr int64_t GROUP = 32;

inline int64_t groups(int64_t c) { return (c + GROUP - 1) / GROUP; }
inline int64_t rounded_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// The part of a map that a task works on: of a dilated convolution every r-th row and column, which
// meet no others and among themselves an undilated kernel; else the whole. Distances in elements.
struct Grid {
    int64_t h, w, first, row, pixel;
    Grid(int64_t height, int64_t width, int64_t c, int64_t dilation, int64_t phase) {
        const int64_t i = phase / dilation, j = phase % dilation;
        h = (height - i + dilation - 1) / dilation;
        w = (width - j + dilation - 1) / dilation;
        first = (i * width + j) * c;
        row = dilation * width * c;
        pixel = dilation * c;
    }
    int64_t at(int64_t r) const { return first + r * row; }
};

// A task: one phase of a group of channels, of as many samples as a small map needs to be worth it.
// Phases of one group lie side by side.
struct Task {
    int64_t phase, group, first, end;  // samples
    Task(const Depthwise& d, int64_t number) {
        phase = number % (d.dilation * d.dilation);
        const int64_t rest = number / (d.dilation * d.dilation);
        group = rest % groups(d.c);
        first = rest / groups(d.c) * samples(d);
        end = std::min(first + samples(d), d.n);
    }
    // Small ones together, as long as there are tasks for many threads.
    static int64_t samples(const Depthwise& d) {
        const int64_t pixels = std::max<int64_t>(1, d.h * d.w / (d.dilation * d.dilation));
        return std::max<int64_t>(1, std::min(LEAST / pixels, d.n * groups(d.c) / TASKS));
    }
    static int64_t runs(const Depthwise& d) { return (d.n + samples(d) - 1) / samples(d); }
    static int64_t count(const Depthwise& d) {
        return runs(d) * groups(d.c) * d.dilation * d.dilation;
    }
    Grid in(const Depthwise& d) const { return {d.h, d.w, d.c, d.dilation, phase}; }
    Grid out(const Depthwise& d) const { return {d.oh, d.ow, d.c, d.dilation, phase}; }

  private:
    static constexpr int64_t LEAST = 512, TASKS = 32;  // pixels of a task; tasks, if it can be
};

// f(first lane, lanes) for each vector of a group that holds any of the `channels` from its begin.
template <class F>
inline void for_lanes(int64_t channels, F&& f) {
    for_vectors(channels, GROUP, f);
}

// Where a row holds the vector that starts at channel `lane` of the group.
inline int64_t part(int64_t lane, int64_t columns) { return lane * columns; }

// Fetches the cache line of that lane, once a line, to be read or written a row later. Into the second
// cache: what is fetched into the first waits for one of its few places for misses, and the sweep with it.
template <class T>
[[gnu::always_inline]] inline void fetch(const T* p, int64_t lane) {
    if (lane % (64 / sizeof(T)) == 0) __builtin_prefetch(p + lane, 0, 2);
}

// One vector of channels of one row of a grid, as floats. The next row is fetched meanwhile: neighbours
// lie far apart.
template <class T, class Lanes>
[[gnu::always_inline]] inline void load_line(const T* x, const Grid& grid, int64_t lane, Lanes lanes,
                                             float* line) {
    for (int64_t i = 0; i < grid.w; ++i) {
        fetch(x + i * grid.pixel + grid.row, lane);
        store(line + i * LANES, load(x + i * grid.pixel + lane, lanes));
    }
}

template <class T>
inline void load_row(const T* x, const Grid& grid, int64_t channels, int64_t columns, float* row) {
    for_lanes(channels, [&](int64_t lane, auto lanes) {
        load_line(x, grid, lane, lanes, row + part(lane, columns));
    });
}

// [C][k][k] as [groups][k][k][GROUP], zeros where there is no channel.
inline Floats grouped(const float* weight, int64_t taps, int64_t c) {
    Floats all(groups(c) * taps * GROUP, 0.0f);
    for (int64_t i = 0; i < c; ++i)
        for (int64_t t = 0; t < taps; ++t)
            all[(i / GROUP * taps + t) * GROUP + i % GROUP] = weight[i * taps + t];
    return all;
}

// f(kernel, stride) as compile-time numbers; false where there is no such sweep.
template <class F>
inline bool with_geometry(int64_t kernel, int64_t stride, F&& f) {
    const auto by_stride = [&](auto k) {
        if (stride == 1) return f(k, std::integral_constant<int, 1>{}), true;
        if (stride == 2) return f(k, std::integral_constant<int, 2>{}), true;
        return false;
    };
    if (kernel == 3) return by_stride(std::integral_constant<int, 3>{});
    if (kernel == 5) return by_stride(std::integral_constant<int, 5>{});
    if (kernel == 7) return by_stride(std::integral_constant<int, 7>{});
    return false;
}

}  // namespace mbconv
