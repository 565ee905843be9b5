// Squeeze-and-excitation of one sample: from the mean of each channel to its factor, and back.
#pragma once

#include <algorithm>

#include "activation.h"
#include "floats.h"
#include "parallel.h"
#include "simd.h"

namespace mbconv {

inline float dot(const float* a, const float* b, int64_t n) {
    vec sum{};
    for_vectors(n, n, [&](int64_t i, auto lanes) { sum += load(a + i, lanes) * load(b + i, lanes); });
    float whole = 0;
    for (int lane = 0; lane < LANES; ++lane) whole += sum[lane];
    return whole;
}

inline void add_times(float by, const float* x, int64_t n, float* y) {
    for_vectors(n, n, [&](int64_t i, auto lanes) {
        store(y + i, load(y + i, lanes) + by * load(x + i, lanes), lanes);
    });
}

// The gradient at the weights [m, n] and biases [m] of a layer, from what lies behind it [samples, m]
// and before it [samples, n].
inline void layer_gradient(const float* behind, const float* before, int64_t samples, int64_t m,
                           int64_t n, int threads, float* weight, float* bias) {
    parallel(m, threads, [&](int64_t i, int) {
        float* const row = weight + i * n;
        std::fill(row, row + n, 0.0f);
        bias[i] = 0.0f;
        for (int64_t s = 0; s < samples; ++s) {
            add_times(behind[s * m + i], before + s * n, n, row);
            bias[i] += behind[s * m + i];
        }
    });
}

struct Gate {
    int64_t wide, narrow;               // channels outside and inside
    const float *reduce, *reduce_bias;  // [narrow, wide], [narrow]
    const float* expand_bias;           // [wide]
    int act;
    bool hard;                          // hard-sigmoid instead of the sigmoid
    Floats expand;          // [narrow, wide], so that all vectors are long

    Gate(int64_t wide, int64_t narrow, const float* reduce, const float* reduce_bias,
         const float* expand_rows, const float* expand_bias, int act, bool hard, int threads)
        : wide(wide), narrow(narrow), reduce(reduce), reduce_bias(reduce_bias),
          expand_bias(expand_bias), act(act), hard(hard), expand(wide * narrow) {
        parallel(narrow, threads, [&](int64_t s, int) {
            for (int64_t i = 0; i < wide; ++i) expand[s * wide + i] = expand_rows[i * narrow + s];
        });
    }

    // pooled [wide] -> inside before its activation and after [narrow], factors [wide].
    void forward(const float* pooled, float* squeezed, float* hidden, float* factors) const {
        for (int64_t s = 0; s < narrow; ++s)
            squeezed[s] = reduce_bias[s] + dot(reduce + s * wide, pooled, wide);
        with_activation<float>(act, [&](auto kind) {
            for_vectors(narrow, narrow, [&](int64_t i, auto lanes) {
                store(hidden + i, decltype(kind)::value(load(squeezed + i, lanes)), lanes);
            });
        });
        for (int64_t i = 0; i < wide; ++i) factors[i] = expand_bias[i];
        for (int64_t s = 0; s < narrow; ++s)
            add_times(hidden[s], &expand[s * wide], wide, factors);
        for_vectors(wide, wide, [&](int64_t i, auto lanes) {
            const vec z = load(factors + i, lanes);
            const vec y = hard ? Relu6::value(z + 3.0f) * (1.0f / 6.0f) : sigmoid(z);
            store(factors + i, y, lanes);
        });
    }

    // The gradient of the factors [wide] -> of the means [wide], and behind each of the two layers:
    // `inner` [narrow], `outer` [wide], whose products with means and hidden are the weights'.
    void backward(const float* factors, const float* squeezed, const float* grad, float* inner,
                  float* outer, float* means) const {
        for_vectors(wide, wide, [&](int64_t i, auto lanes) {
            const vec y = load(factors + i, lanes);
            const ivec between = (y > 0.0f) & (y < 1.0f);
            const vec slope = between ? splat(1.0f / 6.0f) : vec{};
            store(outer + i, load(grad + i, lanes) * (hard ? slope : y * (1.0f - y)), lanes);
            store(means + i, vec{}, lanes);
        });
        for (int64_t s = 0; s < narrow; ++s) inner[s] = dot(outer, &expand[s * wide], wide);
        with_activation<float>(act, [&](auto kind) {
            for_vectors(narrow, narrow, [&](int64_t i, auto lanes) {
                const vec slope = decltype(kind)::both(load(squeezed + i, lanes)).slope;
                store(inner + i, load(inner + i, lanes) * slope, lanes);
            });
        });
        for (int64_t s = 0; s < narrow; ++s) add_times(inner[s], reduce + s * wide, wide, means);
    }
};

}  // namespace mbconv
