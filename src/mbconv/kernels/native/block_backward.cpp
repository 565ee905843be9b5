// Backward of an MBConv block. Three or four rounds over the batch:
//     the sums of the projection's norm;
//     that norm, projection and gate, down to the gradient behind the gate;
//     (a dense convolution in its place: gate, activation and norm behind it, and no more)
//     the depthwise convolution, with the norm before it and, where that one's statistics follow from
//     the block's input (or are constants), the expansion;
//     the expansion (else), or what its norm takes off the gradient at the block's input.
// For the last: with s = gamma / deviation, n the normalised output w (x - mean(x)) / deviation, and
// m0, m1 the means that the norm subtracts, the gradient at the expansion's output is
//     s (dz - m0 - m1 n)
// What multiplies it can multiply dz instead, with small matrices that correct the result.
#include "block.h"
#include "sums.h"
#include "weight_gradient.h"

namespace mbconv {

// Where the gradients go; null: not asked for.
struct BlockGradients {
    void* x;
    float *expand, *depthwise, *project, *affine;
    float *gate_reduce, *gate_reduce_bias, *gate_expand, *gate_expand_bias;
    // On the way, allocated by whoever can say that memory is short: behind the gate, as large as d;
    // behind the expansion's norm and, unless it was kept, the expansion itself, as large as e, where
    // sums over the batch must come between two looks at them.
    void *behind_gate, *behind_norm, *expanded;
};

namespace {

template <class T>
class Backward {
  public:
    Backward(const Block& b, const void* grad, const BlockGradients& to)
        : b(b), d(b.middle), to(to), norms(b), threads(static_cast<int>(b.threads)),
          act(int(b.act)), into(d.h * d.w), pixels(d.oh * d.ow), x(static_cast<const T*>(b.x)),
          g(static_cast<const T*>(grad)), e(static_cast<const T*>(b.e)),
          middle(static_cast<const T*>(b.d)), p(static_cast<const T*>(b.p)),
          dx(static_cast<T*>(to.x)),
          parts(d.n, std::max(b.expand ? into : 0, pixels) * d.c * sizeof(T), threads),
          db(static_cast<T*>(to.behind_gate)), factor(b.squeezed ? d.n * d.c : 0), offset(factor.size()),
          squeezed(d.n * b.squeezed), hidden(squeezed.size()), inner(squeezed.size()),
          outer(factor.size()),
          gate(gate_of(b)) {}

    void run() {
        project_norm();
        projection();
        if (b.dense)
            behind_dense();
        else if (!b.expand)
            depthwise();
        else if (b.frozen || b.spread)
            depthwise_and_expansion();
        else
            depthwise_then_expansion();
    }

  private:
    static constexpr int HALF = sizeof(T) == 2;

    // For the norm that comes so many convolutions before the last.
    Floats means_of(Floats sums, int back, int64_t count) {
        float* const gamma = to.affine + norms.begin(back);
        return norm_means(std::move(sums), count, b.frozen != 0, gamma, gamma + norms.total);
    }

    void project_norm() {
        const Floats norm = norms.rows(PROJECTION);
        Sums found(parts.count(), 2 * b.out);
        parts.each([&](const Parts::Part& part, int) {
            const Map m{part.count, pixels, b.out};
            const int64_t at = part.first * pixels * b.out;
            Floats own(part.count * 5 * b.out);
            mbconv_reduce(p + at, g + at, HALF, &m, norm.data(), 0, 0, nullptr, parts.inner,
                          own.data(), nullptr);
            float* const sums = found.of(part.number);
            std::fill(sums, sums + 2 * b.out, 0.0f);
            for (int64_t s = 0; s < part.count; ++s)
                add_times(b.keep ? b.keep[part.first + s] : 1.0f, &own[s * 5 * b.out], 2 * b.out,
                          sums);
        });
        project_means = means_of(found.total(0, 2 * b.out), PROJECTION, d.n * pixels);
    }

    void projection() {
        const Packed<T> weight({b.project, b.out, d.c, d.c, 1}, threads);
        const Floats out_norm = norms.rows(PROJECTION), norm = norms.rows(DEPTHWISE);
        const int64_t wide = parts.size * pixels * d.c;
        const Scratch<T> gradients(parts.workers(), parts.size * pixels * b.out),
            activated(parts.workers(), wide);
        Sums found(parts.count(), 2 * d.c);
        const Scratch<float> weights(parts.count(), b.out * d.c);
        parts.each([&](const Parts::Part& part, int thread) {
            const Map out{part.count, pixels, b.out}, m{part.count, pixels, d.c};
            const int64_t rows = part.count * pixels, first = part.first * pixels;
            const Floats keep = spread_keep(b, part.first, part.count);
            T *const dp = gradients.of(thread), *const a = activated.of(thread);
            T* const own = db + first * d.c;
            mbconv_apply(p + first * b.out, g + first * b.out, HALF, &out, out_norm.data(), 0,
                         or_null(keep), nullptr, project_means.data(), parts.inner, dp);
            weight.product(dp, rows, parts.inner, own);
            Floats sums(part.count * 5 * d.c);
            const float* const scale = scales(part);
            mbconv_reduce(middle + first * d.c, own, HALF, &m, norm.data(), act, b.squeezed > 0,
                          scale, parts.inner, sums.data(), a);
            weight_gradient(dp, a, rows, b.out, d.c, parts.inner, weights.of(part.number));
            through_gate(part, sums.data(), found.of(part.number));
        });
        middle_means = means_of(found.total(0, 2 * d.c), DEPTHWISE, d.n * pixels);
        join_weights(weights, parts.count(), b.out, d.c, false, threads, to.project);
        if (!b.squeezed) return;
        layer_gradient(inner.data(), b.pooled, d.n, b.squeezed, d.c, threads, to.gate_reduce,
                       to.gate_reduce_bias);
        layer_gradient(outer.data(), hidden.data(), d.n, d.c, b.squeezed, threads, to.gate_expand,
                       to.gate_expand_bias);
    }

    // The gate's factors of these samples, anew; null without gate.
    const float* scales(const Parts::Part& part) {
        if (!b.squeezed) return nullptr;
        for (int64_t s = part.first; s < part.first + part.count; ++s)
            gate.forward(b.pooled + s * d.c, &squeezed[s * b.squeezed], &hidden[s * b.squeezed],
                         &factor[s * d.c]);
        return &factor[part.first * d.c];
    }

    // The five sums of each sample -> the two that the norm needs, all of the part.
    void through_gate(const Parts::Part& part, const float* sums, float* total) {
        std::fill(total, total + 2 * d.c, 0.0f);
        for (int64_t i = 0; i < part.count; ++i, sums += 5 * d.c) {
            if (!b.squeezed) {
                add_times(1.0f, sums, 2 * d.c, total);
                continue;
            }
            const int64_t s = part.first + i;
            float *const scale = &factor[s * d.c], *const back = &offset[s * d.c];
            gate.backward(scale, &squeezed[s * b.squeezed], sums + 4 * d.c,
                          &inner[s * b.squeezed], &outer[s * d.c], back);
            for (int64_t c = 0; c < d.c; ++c) {
                back[c] /= static_cast<float>(pixels);
                total[c] += sums[c] * scale[c] + sums[2 * d.c + c] * back[c];
                total[d.c + c] += sums[d.c + c] * scale[c] + sums[3 * d.c + c] * back[c];
            }
        }
    }

    // Gate, activation and norm: the gradient behind the gate becomes that at the dense convolution's
    // output.
    void behind_dense() {
        const Floats norm = norms.rows(DEPTHWISE);
        parts.each([&](const Parts::Part& part, int) {
            const Map m{part.count, pixels, d.c};
            const int64_t at = part.first * pixels * d.c, gate_at = part.first * d.c;
            mbconv_apply(middle + at, db + at, HALF, &m, norm.data(), act,
                         b.squeezed ? &factor[gate_at] : nullptr,
                         b.squeezed ? &offset[gate_at] : nullptr, middle_means.data(), parts.inner,
                         db + at);
        });
    }

    // Through the depthwise convolution of these samples; `norm` null: nothing stands before it.
    void depthwise_part(const Parts::Part& part, const T* source, const float* norm, T* dz,
                        float* weights, float* sums) {
        const Depthwise shape = of_part(d, part.count);
        const int64_t at = part.first * pixels * d.c, gate_at = part.first * d.c;
        mbconv_depthwise_backward(source, db + at, HALF, &shape, norm, act, b.depthwise,
                                  middle + at, after.data(), middle_means.data(),
                                  b.squeezed ? &factor[gate_at] : nullptr,
                                  b.squeezed ? &offset[gate_at] : nullptr, parts.inner, dz, weights,
                                  sums);
    }

    void depthwise() {
        after = norms.rows(DEPTHWISE);
        const Scratch<T> scratch(parts.workers(), dx ? 0 : parts.size * into * d.c);
        const Scratch<float> weights(parts.count(), taps() * d.c);
        parts.each([&](const Parts::Part& part, int thread) {
            const int64_t at = part.first * into * d.c;
            Floats sums(2 * d.c);
            depthwise_part(part, x + at, nullptr, dx ? dx + at : scratch.of(thread),
                           weights.of(part.number), sums.data());
            if (dx && b.residual)
                add_rows<T>(nullptr, nullptr, g + at, part.count * into, d.c, dx + at);
        });
        join_weights(weights, parts.count(), d.c, taps(), false, threads, to.depthwise);
    }

    // One round as far as the block's input, which then lacks what the norm takes off.
    void depthwise_and_expansion() {
        after = norms.rows(DEPTHWISE);
        const Floats norm = norms.rows(EXPANSION), own = rounded_weight();
        Floats scale(d.c), scaled(own), less(4 * b.in, 1.0f);
        for (int64_t i = 0; i < d.c; ++i) {
            scale[i] = norm[2 * d.c + i] * norm[d.c + i];
            for (int64_t k = 0; k < b.in; ++k) scaled[i * b.in + k] *= scale[i];
        }
        if (b.spread) std::copy(b.spread, b.spread + b.in, less.begin());
        std::fill(less.begin() + 3 * b.in, less.end(), 0.0f);  // x - mean(x), as a norm
        const Packed<T> weight(again(), threads),
            back({scaled.data(), d.c, b.in, b.in, 1}, threads);
        const int64_t wide = parts.size * into * d.c;
        const Scratch<T> expanded(parts.workers(), e ? 0 : wide), gradients(parts.workers(), wide),
            centred(parts.workers(), b.spread ? parts.size * into * b.in : 0);
        Sums found(parts.count(), 2 * d.c);
        const Scratch<float> weights(parts.count(), taps() * d.c),
            expand(parts.count(), b.in * d.c);
        parts.each([&](const Parts::Part& part, int thread) {
            const int64_t first = part.first * into, rows = part.count * into;
            const T *source = x + first * b.in, *map = e + first * d.c;
            if (!e) {
                weight.product(source, rows, parts.inner, expanded.of(thread));
                map = expanded.of(thread);
            }
            T* const dz = gradients.of(thread);
            depthwise_part(part, map, norm.data(), dz, weights.of(part.number),
                           found.of(part.number));
            if (dx) back.product(dz, rows, parts.inner, dx + first * b.in);
            if (b.spread) {
                const Map m{part.count, into, b.in};
                mbconv_normalise(source, HALF, &m, less.data(), 0, nullptr, nullptr, parts.inner,
                                 centred.of(thread));
                source = centred.of(thread);
            }
            weight_gradient(source, dz, rows, b.in, d.c, parts.inner, expand.of(part.number));
        });
        const Floats means = means_of(found.total(0, 2 * d.c), EXPANSION, d.n * into);
        join_weights(weights, parts.count(), d.c, taps(), false, threads, to.depthwise);
        join_weights(expand, parts.count(), b.in, d.c, true, threads, to.expand);
        correct(own, norm, scale, means, less);
    }

    // What the norm takes off, at the expansion's weight and at the input; and the shortcut.
    void correct(const Floats& own, const Floats& norm,
                 const Floats& scale, const Floats& means,
                 const Floats& less) {
        Floats taken(own), matrix(b.in * b.in, 0.0f), row(b.in, 0.0f);
        const float count = static_cast<float>(d.n * into);
        for (int64_t i = 0; i < d.c; ++i) {
            const float along = b.spread ? scale[i] * means[d.c + i] * norm[d.c + i] : 0.0f;
            float* const dw = to.expand + i * b.in;
            for (int64_t k = 0; k < b.in; ++k) dw[k] *= scale[i];
            if (!b.spread) continue;
            for (int64_t k = 0; k < b.in; ++k) taken[i * b.in + k] *= along;
            for (int64_t k = 0; k < b.in; ++k) {
                const float t = taken[i * b.in + k];
                add_times(-t * count, b.spread + (1 + k) * b.in, b.in, dw);
                add_times(-t, &own[i * b.in], b.in, &matrix[k * b.in]);
            }
            add_times(scale[i] * means[i], &own[i * b.in], b.in, row.data());
        }
        if (!dx || !(b.spread || b.residual)) return;
        const Packed<T> rest(b.spread ? Matrix{matrix.data(), b.in, b.in, b.in, 1} : Matrix{}, threads);
        const int64_t size = b.spread ? parts.size * into * b.in : 0;
        const Scratch<T> centred(parts.workers(), size), product(parts.workers(), size);
        parts.each([&](const Parts::Part& part, int thread) {
            const int64_t at = part.first * into * b.in, rows = part.count * into;
            const Map m{part.count, into, b.in};
            if (b.spread) {
                mbconv_normalise(x + at, HALF, &m, less.data(), 0, nullptr, nullptr, parts.inner,
                                 centred.of(thread));
                rest.product(centred.of(thread), rows, parts.inner, product.of(thread));
            }
            add_rows<T>(b.spread ? product.of(thread) : nullptr, b.spread ? row.data() : nullptr,
                        b.residual ? g + at : nullptr, rows, b.in, dx + at);
        });
    }

    // Two rounds: the norm needs the sums over the batch before the expansion's turn.
    void depthwise_then_expansion() {
        after = norms.rows(DEPTHWISE);
        const Floats norm = norms.rows(EXPANSION);
        const Packed<T> weight(again(), threads),
            back({b.expand, d.c, b.in, b.in, 1}, threads);
        const Scratch<T> scratch(parts.workers(), parts.size * into * d.c);
        T *const dz = static_cast<T*>(to.behind_norm), *const anew = static_cast<T*>(to.expanded);
        const T* const map = e ? e : anew;
        Sums found(parts.count(), 2 * d.c);
        const Scratch<float> weights(parts.count(), taps() * d.c),
            expand(parts.count(), b.in * d.c);
        parts.each([&](const Parts::Part& part, int) {
            const int64_t first = part.first * into, at = first * d.c;
            if (!e) weight.product(x + first * b.in, part.count * into, parts.inner, anew + at);
            depthwise_part(part, map + at, norm.data(), dz + at, weights.of(part.number),
                           found.of(part.number));
        });
        const Floats means = means_of(found.total(0, 2 * d.c), EXPANSION, d.n * into);
        join_weights(weights, parts.count(), d.c, taps(), false, threads, to.depthwise);
        parts.each([&](const Parts::Part& part, int thread) {
            const int64_t first = part.first * into, rows = part.count * into, at = first * b.in;
            const Map m{part.count, into, d.c};
            T* const de = scratch.of(thread);
            mbconv_apply(map + first * d.c, dz + first * d.c, HALF, &m, norm.data(), 0, nullptr,
                         nullptr, means.data(), parts.inner, de);
            weight_gradient(x + at, de, rows, b.in, d.c, parts.inner, expand.of(part.number));
            if (!dx) return;
            back.product(de, rows, parts.inner, dx + at);
            if (b.residual) add_rows<T>(nullptr, nullptr, g + at, rows, b.in, dx + at);
        });
        join_weights(expand, parts.count(), b.in, d.c, true, threads, to.expand);
    }

    // What computes the expansion again; nothing where its output was kept.
    Matrix again() const { return e ? Matrix{} : Matrix{b.expand, b.in, d.c, 1, b.in}; }

    // The expansion's weight, as exact as maps are multiplied with it.
    Floats rounded_weight() const {
        Floats w(d.c * b.in);
        for_vectors(d.c * b.in, d.c * b.in, [&](int64_t i, auto lanes) {
            store(&w[i], as_stored(x, load(b.expand + i, lanes)), lanes);
        });
        return w;
    }

    int64_t taps() const { return d.kernel * d.kernel; }

    const Block& b;
    const Depthwise& d;
    const BlockGradients& to;
    const Norms norms;
    const int threads, act;
    const int64_t into, pixels;  // of a sample, before and after the depthwise convolution
    const T *const x, *const g, *const e, *const middle, *const p;
    T* const dx;
    const Parts parts;
    T* const db;  // the gradient behind the gate
    Floats factor, offset;  // [n, c]: of the gate, and what its mean sends back
    Floats squeezed, hidden;  // [n, squeezed]: inside the gate, before and after its activation
    Floats inner, outer;      // [n, squeezed], [n, c]: the gradients behind the gate's layers
    const Gate gate;
    Floats project_means, middle_means, after;
};

}  // namespace
}  // namespace mbconv

using namespace mbconv;

// `grad` [n, oh, ow, out] is that of y.
MBCONV_API void mbconv_block_backward(const Block* b, const void* grad, const BlockGradients* to) {
    if (b->half)
        Backward<bf16>(*b, grad, *to).run();
    else
        Backward<float>(*b, grad, *to).run();
}
