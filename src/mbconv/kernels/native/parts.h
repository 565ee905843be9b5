// A batch in parts, which threads take one by one through several steps, and what they add up to.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "floats.h"
#include "parallel.h"

namespace mbconv {

// A norm as `Norm` reads it: mean, 1 / deviation, gamma, beta.
inline Floats norm_rows(const float* mean, const float* variance, const float* gamma,
                        const float* beta, double eps, int64_t c) {
    Floats norm(4 * c);
    for (int64_t i = 0; i < c; ++i) {
        norm[i] = mean[i];
        norm[c + i] = 1.0f / std::sqrt(variance[i] + static_cast<float>(eps));
        norm[2 * c + i] = gamma[i];
        norm[3 * c + i] = beta[i];
    }
    return norm;
}

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
    static constexpr int64_t CACHE = 5 << 18, LEAST = 4;
    int64_t samples;
    int outer;
};

// Statistics of a map whose parts are taken one by one.
class Moments {
  public:
    Moments(int64_t parts, int64_t channels) : channels(channels), found(parts * 2 * channels) {}
    float* mean(int64_t part) { return &found[part * 2 * channels]; }
    float* variance(int64_t part) { return mean(part) + channels; }

    // All parts as one; the last may have fewer samples.
    void join(const Parts& parts, int64_t samples, float* mean_of_all, float* variance_of_all) {
        std::vector<double> share(parts.count());
        for (int64_t i = 0; i < parts.count(); ++i)
            share[i] = double(std::min(parts.size, samples - i * parts.size)) / double(samples);
        for (int64_t c = 0; c < channels; ++c) {
            double middle = 0, square = 0;
            for (size_t i = 0; i < share.size(); ++i) middle += share[i] * mean(i)[c];
            for (size_t i = 0; i < share.size(); ++i) {
                const double gap = mean(i)[c] - middle;
                square += share[i] * (variance(i)[c] + gap * gap);
            }
            mean_of_all[c] = static_cast<float>(middle);
            variance_of_all[c] = static_cast<float>(square);
        }
    }

  private:
    int64_t channels;
    Floats found;
};

}  // namespace mbconv
