// Forward of an MBConv block. Three or four rounds over the batch:
//     expansion (where its statistics must be taken from its output);
//     expansion (else) and depthwise convolution; or statistics of a dense one's output;
//     gate and projection, of which the map in between is never written as a whole;
//     the projection's norm, drop-path and shortcut.
// One round does it all where the statistics are constants and no backward waits for the maps.
#include "block.h"

namespace mbconv {
namespace {

template <class T>
class Forward {
  public:
    Forward(const Block& b, void* y)
        : b(b), d(b.middle), norms(b), threads(static_cast<int>(b.threads)), act(int(b.act)),
          into(d.h * d.w), pixels(d.oh * d.ow), x(static_cast<const T*>(b.x)),
          e(static_cast<T*>(b.e)), middle(static_cast<T*>(b.d)), p(static_cast<T*>(b.p)),
          y(static_cast<T*>(y)),
          parts(d.n, std::max(b.expand ? into : 0, pixels) * d.c * sizeof(T), threads),
          gate(gate_of(b)) {}

    void run() {
        if (b.frozen && !p) return at_once();
        if (b.expand && !b.frozen && b.spread) narrow_statistics();
        const bool waits = b.expand && !b.frozen && !b.spread;  // for its output's statistics
        if (waits) expansion();
        if (!b.dense)
            depthwise(waits);
        else if (!b.frozen)
            dense_statistics();
        projection();
        const Floats norm = norms.rows(PROJECTION);
        parts.each([&](const Parts::Part& part, int) {
            finish(part, norm, p + part.first * pixels * b.out);
        });
    }

  private:
    static constexpr int HALF = sizeof(T) == 2;

    // Maps of one part at a time; norms and activations work in place.
    void at_once() {
        const Packed<T> expand(b.expand ? expansion_weight() : Matrix{}, threads),
            project(projection_weight(), threads);
        const Floats first = b.expand ? norms.rows(EXPANSION) : Floats(),
                     second = norms.rows(DEPTHWISE), third = norms.rows(PROJECTION);
        const Scratch<T> expanded(parts.workers(), b.expand ? parts.size * into * d.c : 0),
            convolved(parts.workers(), parts.size * pixels * d.c);
        parts.each([&](const Parts::Part& part, int thread) {
            const T* source = x + part.first * into * b.in;
            if (b.expand) {
                expand.product(source, part.count * into, parts.inner, expanded.of(thread));
                source = expanded.of(thread);
            }
            T *const own = convolved.of(thread), *const to = y + part.first * pixels * b.out;
            if (!b.dense) convolve(part, source, first, own, nullptr, nullptr);
            activate(part, b.dense ? middle + part.first * pixels * d.c : own, second, own);
            project.product(own, part.count * pixels, parts.inner, to);
            finish(part, third, to);
        });
    }

    Matrix expansion_weight() const { return {b.expand, b.in, d.c, 1, b.in}; }
    Matrix projection_weight() const { return {b.project, d.c, b.out, 1, d.c}; }

    // The depthwise convolution of act(norm(source)), or of `source` where the norm is empty.
    void convolve(const Parts::Part& part, const T* source, const Floats& norm, T* to, float* mean,
                  float* variance) const {
        const Depthwise shape = of_part(d, part.count);
        mbconv_depthwise(source, HALF, &shape, or_null(norm), act, b.depthwise, nullptr, parts.inner,
                         to, mean, variance);
    }

    // Norm, activation and gate behind it.
    void activate(const Parts::Part& part, const T* own, const Floats& norm, T* to) const {
        const Map m{part.count, pixels, d.c};
        if (b.squeezed)
            gated(own, m, norm, part.first, to);
        else
            mbconv_normalise(own, HALF, &m, norm.data(), act, nullptr, nullptr, parts.inner, to);
    }

    // From the projection's output.
    void finish(const Parts::Part& part, const Floats& norm, const T* projected) const {
        const Map m{part.count, pixels, b.out};
        const Floats factor = spread_keep(b, part.first, part.count);
        const int64_t at = part.first * pixels * b.out;
        mbconv_normalise(projected, HALF, &m, norm.data(), 0, or_null(factor),
                         b.residual ? x + at : nullptr, parts.inner, y + at);
    }

    // Of the expansion's output, by those of its input.
    void narrow_statistics() {
        const Map m{d.n, into, b.in};
        float* const covariance = b.spread + b.in;
        mbconv_covariance(x, HALF, &m, threads, b.spread, covariance);
        parallel(d.c, threads, [&](int64_t i, int) {
            Floats w(b.in), along(b.in, 0.0f);
            for (int64_t k = 0; k < b.in; ++k) w[k] = as_stored(x, splat(b.expand[i * b.in + k]))[0];
            for (int64_t k = 0; k < b.in; ++k)
                add_times(w[k], covariance + k * b.in, b.in, along.data());
            norms.mean(EXPANSION)[i] = dot(w.data(), b.spread, b.in);
            norms.variance(EXPANSION)[i] = std::max(0.0f, dot(along.data(), w.data(), b.in));
        });
    }

    void expansion() {
        const Packed<T> weight(expansion_weight(), threads);
        Moments found(parts.count(), d.c);
        parts.each([&](const Parts::Part& part, int) {
            const Map m{part.count, into, d.c};
            T* const own = e + part.first * into * d.c;
            weight.product(x + part.first * into * b.in, part.count * into, parts.inner, own);
            mbconv_moments(own, HALF, &m, parts.inner, found.mean(part.number),
                           found.variance(part.number));
        });
        found.join(parts, d.n, norms.mean(EXPANSION), norms.variance(EXPANSION));
    }

    void depthwise(bool expanded) {
        const bool expands = b.expand && !expanded;
        const Packed<T> weight(expands ? expansion_weight() : Matrix{}, threads);
        const Floats norm = b.expand ? norms.rows(EXPANSION) : Floats();
        const Scratch<T> scratch(parts.workers(), expands && !e ? parts.size * into * d.c : 0);
        Moments found(parts.count(), d.c);
        parts.each([&](const Parts::Part& part, int thread) {
            const int64_t at = part.first * into;
            const T* source = x + at * b.in;
            if (b.expand) {
                T* const own = e ? e + at * d.c : scratch.of(thread);
                if (expands) weight.product(source, part.count * into, parts.inner, own);
                source = own;
            }
            convolve(part, source, norm, middle + part.first * pixels * d.c,
                     b.frozen ? nullptr : found.mean(part.number), found.variance(part.number));
        });
        if (!b.frozen) found.join(parts, d.n, norms.mean(DEPTHWISE), norms.variance(DEPTHWISE));
    }

    void dense_statistics() {
        Moments found(parts.count(), d.c);
        parts.each([&](const Parts::Part& part, int) {
            const Map m{part.count, pixels, d.c};
            mbconv_moments(middle + part.first * pixels * d.c, HALF, &m, parts.inner,
                           found.mean(part.number), found.variance(part.number));
        });
        found.join(parts, d.n, norms.mean(DEPTHWISE), norms.variance(DEPTHWISE));
    }

    void projection() {
        const Packed<T> weight(projection_weight(), threads);
        const Floats norm = norms.rows(DEPTHWISE);
        const Scratch<T> scratch(parts.workers(), parts.size * pixels * d.c);
        Moments found(parts.count(), b.out);
        parts.each([&](const Parts::Part& part, int thread) {
            const Map out{part.count, pixels, b.out};
            T *const target = p + part.first * pixels * b.out, *const a = scratch.of(thread);
            activate(part, middle + part.first * pixels * d.c, norm, a);
            weight.product(a, part.count * pixels, parts.inner, target);
            if (!b.frozen)
                mbconv_moments(target, HALF, &out, parts.inner, found.mean(part.number),
                               found.variance(part.number));
        });
        if (!b.frozen) found.join(parts, d.n, norms.mean(PROJECTION), norms.variance(PROJECTION));
    }

    // Activation and gate of these samples: `a` is written once for the means, then multiplied.
    void gated(const T* own, const Map& m, const Floats& norm, int64_t first,
               T* a) const {
        float* const pooled = b.pooled + first * d.c;
        mbconv_pool(own, HALF, &m, norm.data(), act, parts.inner, pooled, a);
        Floats factor(d.c), inside(2 * b.squeezed);
        for (int64_t s = 0; s < m.n; ++s) {
            gate.forward(pooled + s * d.c, inside.data(), &inside[b.squeezed], factor.data());
            parallel(chunks(pixels), parts.inner, [&](int64_t chunk, int) {
                const int64_t from = chunk * CHUNK, end = std::min(from + CHUNK, pixels);
                for (T* row = a + (s * pixels + from) * d.c; row < a + (s * pixels + end) * d.c;
                     row += d.c)
                    for_vectors(d.c, d.c, [&](int64_t i, auto lanes) {
                        store(row + i, load(row + i, lanes) * load(&factor[i], lanes), lanes);
                    });
            });
        }
    }

    const Block& b;
    const Depthwise& d;
    const Norms norms;
    const int threads, act;
    const int64_t into, pixels;  // of a sample, before and after the depthwise convolution
    const T* const x;
    T *const e, *const middle, *const p, *const y;
    const Parts parts;
    const Gate gate;
};

}  // namespace
}  // namespace mbconv

using namespace mbconv;

// Writes what the struct's e, d and p (unless null), statistics, pooled and spread point to, and y.
MBCONV_API void mbconv_block(const Block* b, void* y) {
    if (b->half)
        Forward<bf16>(*b, y).run();
    else
        Forward<float>(*b, y).run();
}
