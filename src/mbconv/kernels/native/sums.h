// Sums that each part of a batch takes for itself, and what joins them, always in the parts' order.
#pragma once

#include <algorithm>
#include <vector>

#include "gate.h"
#include "parts.h"

namespace mbconv {

// One vector of sums for each part.
class Sums {
  public:
    Sums(int64_t parts, int64_t size) : size(size), found(parts * size) {}
    float* of(int64_t part) { return &found[part * size]; }
    // Their totals, from `begin` on.
    Floats total(int64_t begin, int64_t count) const {
        std::vector<double> sum(count, 0.0);
        for (size_t at = begin; at < found.size(); at += size)
            for (int64_t i = 0; i < count; ++i) sum[i] += found[at + i];
        return {sum.begin(), sum.end()};
    }

  private:
    int64_t size;
    Floats found;
};

// The sums of a norm's backward [2, c]: into its gradients at gamma and beta, and as what it subtracts,
// means over so many values a channel; zeros where its statistics are constants.
inline Floats norm_means(Floats sums, int64_t count, bool frozen, float* gamma, float* beta) {
    const int64_t c = static_cast<int64_t>(sums.size()) / 2;
    std::copy_n(sums.data() + c, c, gamma);
    std::copy_n(sums.data(), c, beta);
    for (float& s : sums) s = frozen ? 0.0f : s / static_cast<float>(count);
    return sums;
}

// Sums [m, n] of each part -> the whole's in `to`, or transposed, [n, m].
inline void join_weights(const Scratch<float>& sums, int64_t parts, int64_t m, int64_t n,
                         bool transposed, int threads, float* to) {
    constexpr int64_t ROWS = 16;  // a cache line of the transposed
    parallel((m + ROWS - 1) / ROWS, threads, [&](int64_t task, int) {
        const int64_t first = task * ROWS, own = std::min(ROWS, m - first), count = own * n;
        Floats rows(transposed ? count : 0);
        float* const total = transposed ? rows.data() : to + first * n;
        std::copy_n(sums.of(0) + first * n, count, total);
        for (int64_t part = 1; part < parts; ++part)
            add_times(1.0f, sums.of(part) + first * n, count, total);
        for (int64_t j = 0; transposed && j < n; ++j)
            for (int64_t i = 0; i < own; ++i) to[j * m + first + i] = total[i * n + j];
    });
}

// y += x - row + addend, for each row of c channels.
template <class T>
inline void add_rows(const T* x, const float* row, const T* addend, int64_t rows, int64_t c, T* y) {
    for (int64_t at = 0; at < rows * c; at += c)
        for_vectors(c, c, [&](int64_t i, auto lanes) {
            vec sum = load(y + at + i, lanes);
            if (x) sum += load(x + at + i, lanes);
            if (row) sum -= load(row + i, lanes);
            if (addend) sum += load(addend + at + i, lanes);
            store(y + at + i, sum, lanes);
        });
}

}  // namespace mbconv
