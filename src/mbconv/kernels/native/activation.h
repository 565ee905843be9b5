// Activations as types, so that a loop is compiled for each of them.
#pragma once

#include "simd.h"

namespace mbconv {

struct Both {
    vec value, slope;
};

struct Linear {
    [[gnu::always_inline]] static vec value(vec z) { return z; }
    [[gnu::always_inline]] static Both both(vec z) { return {z, splat(1.0f)}; }
};

struct Relu {
    [[gnu::always_inline]] static vec value(vec z) { return z < 0.0f ? vec{} : z; }
    [[gnu::always_inline]] static Both both(vec z) { return {value(z), z > 0.0f ? splat(1.0f) : vec{}}; }
};

struct Relu6 {
    [[gnu::always_inline]] static vec value(vec z) {
        const vec low = z < 0.0f ? vec{} : z;
        return low > 6.0f ? splat(6.0f) : low;
    }
    [[gnu::always_inline]] static Both both(vec z) {
        const ivec inside = (z > 0.0f) & (z < 6.0f);
        return {value(z), inside ? splat(1.0f) : vec{}};
    }
};

template <class T>
struct Silu {
    [[gnu::always_inline]] static vec value(vec z) { return z * sigmoid_for<T>(z); }
    [[gnu::always_inline]] static Both both(vec z) {
        const vec s = sigmoid_for<T>(z), y = z * s;
        return {y, s + y * (1.0f - s)};
    }
};

struct HardSwish {
    [[gnu::always_inline]] static vec value(vec z) { return z * Relu6::value(z + 3.0f) * (1.0f / 6.0f); }
    [[gnu::always_inline]] static Both both(vec z) {
        const vec middle = z * (1.0f / 3.0f) + 0.5f;
        const vec low = z < -3.0f ? vec{} : middle;
        return {value(z), z > 3.0f ? splat(1.0f) : low};
    }
};

// How many vectors are quickest side by side: where a vector's steps wait for each other, the processor does
// not look far enough ahead to find the next one's.
template <class Act>
inline constexpr int TOGETHER = 1;
template <>
inline constexpr int TOGETHER<Silu<bf16>> = LANES == 16 ? 4 : 1;  // elsewhere its steps are not taken apart

// The values in the place of z.
template <class Act, int N>
[[gnu::always_inline]] inline void values(Act, vec (&z)[N]) {
    each<N>([&](int i) { z[i] = Act::value(z[i]); });
}
template <class T, int N>
[[gnu::always_inline]] inline void values(Silu<T>, vec (&z)[N]) {
    vec s[N];
    sigmoids<T>(z, s);
    each<N>([&](int i) { z[i] *= s[i]; });
}

// The slopes too.
template <class Act, int N>
[[gnu::always_inline]] inline void both(Act, vec (&z)[N], vec (&slope)[N]) {
    each<N>([&](int i) {
        const Both one = Act::both(z[i]);
        z[i] = one.value;
        slope[i] = one.slope;
    });
}
template <class T, int N>
[[gnu::always_inline]] inline void both(Silu<T>, vec (&z)[N], vec (&slope)[N]) {
    vec s[N];
    sigmoids<T>(z, s);
    each<N>([&](int i) { z[i] *= s[i]; });
    each<N>([&](int i) { slope[i] = s[i] + z[i] * (1.0f - s[i]); });
}

// Calls `f` with the activation of that number (mbconv.kernels.ACTIVATIONS has the order), as exact as
// maps of T ask for.
template <class T, class F>
inline void with_activation(int number, F&& f) {
    switch (number) {
        case 1: return f(Relu{});
        case 2: return f(Relu6{});
        case 3: return f(Silu<T>{});
        case 4: return f(HardSwish{});
        default: return f(Linear{});
    }
}

// A batch norm as four rows of C floats: mean, 1 / deviation, gamma, beta. It is computed as
// (x - mean) * scale + beta rather than x * a + b, which cancels where the mean is large.
struct Norm {
    const float *mean, *inverse, *gamma, *beta;
    Norm(const float* rows, int64_t c, int64_t first = 0)
        : mean(rows + first), inverse(mean + c), gamma(inverse + c), beta(gamma + c) {}
};

struct NormVec {
    vec mean, inverse, scale, beta;
    template <class Lanes>
    NormVec(const Norm& n, int64_t c, Lanes lanes)
        : mean(load(n.mean + c, lanes)),
          inverse(load(n.inverse + c, lanes)),
          scale(inverse * load(n.gamma + c, lanes)),
          beta(load(n.beta + c, lanes)) {}
    // Times `inverse` this is the normalised value; sums of it are scaled once, at their end.
    [[gnu::always_inline]] vec centred(vec x) const { return x - mean; }
    [[gnu::always_inline]] vec affine(vec centred) const { return centred * scale + beta; }
};

// The gradient at x of act(norm(x)) for one vector of channels of one sample:
//     gamma * inverse * (dz - m0 - n * m1),  dz = (g * factor + offset) a'
// m0 and m1 are the means of dz and of dz * n over the batch, zeros where the statistics are
// constants.
template <class Act>
struct NormBackward {
    NormVec n;
    vec m0, m1, factor, offset;
    template <class Lanes>
    NormBackward(const Norm& norm, int64_t norms, const float* means, const float* factors,
                 const float* offsets, int64_t c, Lanes lanes)
        : n(norm, c, lanes),
          m0(load(means + c, lanes)),
          m1(load(means + norms + c, lanes) * n.inverse),
          factor(factors ? load(factors + c, lanes) : splat(1.0f)),
          offset(offsets ? load(offsets + c, lanes) : vec{}) {}
    [[gnu::always_inline]] vec operator()(vec x, vec g) const {
        const vec centred = n.centred(x);
        const vec dz = (g * factor + offset) * Act::both(n.affine(centred)).slope;
        return n.scale * (dz - m0 - centred * m1);
    }
    // Of several vectors, in the place of g. (As a case of this the above would be a tenth slower.)
    template <int N>
    [[gnu::always_inline]] void all(vec (&x)[N], vec (&g)[N]) const {
        vec z[N], slope[N];
        each<N>([&](int i) { x[i] = n.centred(x[i]); });
        each<N>([&](int i) { z[i] = n.affine(x[i]); });
        both(Act{}, z, slope);
        each<N>([&](int i) { g[i] = (g[i] * factor + offset) * slope[i]; });
        each<N>([&](int i) { g[i] = n.scale * (g[i] - m0 - x[i] * m1); });
    }
};

}  // namespace mbconv
