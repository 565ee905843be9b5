// Convolution, batch norm and activation, forward and backward: a network's head (1x1), of which only the
// mean over the pixels goes on, and its stem, whose few input channels make the pixels that an
// output sees one short row of a matrix.
//
// Two rounds over the batch each way, as in a block: the convolution and its output's statistics, then
// norm and activation (one round where the statistics are constants); the sums of the norm's backward,
// then that and the convolution's gradients. The matrix of a stem's patches exists for one part of the
// batch at a time.
#include "pairs.h"
#include "parts.h"
#include "passes.h"
#include "product.h"
#include "sums.h"
#include "weight_gradient.h"

namespace mbconv {

struct Convolution {
    int64_t n, h, w, in, oh, ow, out, kernel, stride, top, left;
    int64_t half, act, frozen, threads;
    double eps;
    const void* x;        // [n, h, w, in]
    const float* weight;  // [out, k, k, in]
    const float* affine;  // gamma and beta, [2, out]
    void* c;              // the convolution's output [n, oh, ow, out]; null: not kept, if frozen
    float* statistics;    // mean and variance of it, [2, out]; if frozen, constants
};

namespace {

template <class T>
class Triple {
  public:
    explicit Triple(const Convolution& v)
        : v(v), threads(static_cast<int>(v.threads)), act(static_cast<int>(v.act)),
          pixels(v.oh * v.ow), taps(v.kernel * v.kernel * v.in),
          columns(v.kernel == 1 ? taps : (taps + STEP<T> - 1) / STEP<T> * STEP<T>), x(static_cast<const T*>(v.x)),
          c(static_cast<T*>(v.c)),
          parts(v.n, pixels * std::max(v.out, columns) * int64_t(sizeof(T)), threads),
          gathered(parts.workers(), v.kernel == 1 ? 0 : parts.size * pixels * columns) {}

    // y or, unless null, `mean` [n, out] of it over the pixels.
    void forward(T* y, float* mean) const {
        const Floats own = padded_weight();
        const Packed<T> weight({own.data(), columns, v.out, 1, columns}, threads);
        const auto convolve = [&](const Parts::Part& part, int thread, T* to) {
            weight.product(rows(part, thread), part.count * pixels, parts.inner, to);
        };
        if (!v.frozen) {
            Moments found(parts.count(), v.out);
            parts.each([&](const Parts::Part& part, int thread) {
                const Map m = map(part);
                convolve(part, thread, output(part));
                mbconv_moments(output(part), HALF, &m, parts.inner, found.mean(part.number),
                               found.variance(part.number));
            });
            found.join(parts, v.n, v.statistics, v.statistics + v.out);
        }
        const Floats norm = this->norm();
        const Scratch<T> scratch(parts.workers(), c || y ? 0 : parts.size * pixels * v.out);
        parts.each([&](const Parts::Part& part, int thread) {
            const Map m = map(part);
            T* const to = y ? y + part.first * pixels * v.out : scratch.of(thread);
            T* const own = c ? output(part) : to;  // norm and activation then work in place
            if (v.frozen) convolve(part, thread, own);
            if (mean)
                mbconv_pool(own, HALF, &m, norm.data(), act, parts.inner,
                            mean + part.first * v.out, nullptr);
            else
                mbconv_normalise(own, HALF, &m, norm.data(), act, nullptr, nullptr, parts.inner, to);
        });
    }

    // `grad` is that of y; or null, and `offset` [n, out] what the mean sends back to each pixel.
    // dx null: not asked for, as it must be unless the kernel is 1x1.
    void backward(const T* grad, const float* offset, T* dx, float* dweight, float* daffine) const {
        const Floats norm = this->norm(), means = sums(norm, grad, offset, daffine);
        const Packed<T> back(dx ? Matrix{v.weight, v.out, columns, columns, 1} : Matrix{}, threads);
        const Scratch<T> scratch(parts.workers(), parts.size * pixels * v.out);
        const Scratch<float> weights(parts.count(), columns * v.out);
        parts.each([&](const Parts::Part& part, int thread) {
            const Map m = map(part);
            const int64_t count = part.count * pixels;
            T* const dc = scratch.of(thread);
            mbconv_apply(output(part), behind(grad, part), HALF, &m, norm.data(), act, nullptr,
                         offset ? offset + part.first * v.out : nullptr, means.data(), parts.inner,
                         dc);
            weight_gradient(rows(part, thread), dc, count, columns, v.out, parts.inner,
                            weights.of(part.number));
            if (dx) back.product(dc, count, parts.inner, dx + part.first * pixels * v.in);
        });
        Floats sums(columns == taps ? 0 : v.out * columns);
        float* const all = sums.empty() ? dweight : sums.data();
        join_weights(weights, parts.count(), columns, v.out, true, threads, all);
        for (int64_t i = 0; !sums.empty() && i < v.out; ++i)
            std::copy_n(all + i * columns, taps, dweight + i * taps);
    }

  private:
    static constexpr int HALF = sizeof(T) == 2;

    Map map(const Parts::Part& part) const { return {part.count, pixels, v.out}; }
    T* output(const Parts::Part& part) const { return c + part.first * pixels * v.out; }
    const T* behind(const T* grad, const Parts::Part& part) const {
        return grad ? grad + part.first * pixels * v.out : nullptr;
    }
    Floats norm() const {
        return norm_rows(v.statistics, v.statistics + v.out, v.affine, v.affine + v.out, v.eps, v.out);
    }

    // The sums of the norm's backward: into the affine's gradient, and as means over the batch.
    Floats sums(const Floats& norm, const T* grad, const float* offset, float* daffine) const {
        Sums found(parts.count(), 2 * v.out);
        parts.each([&](const Parts::Part& part, int) {
            const Map m = map(part);
            Floats own(part.count * 5 * v.out);
            mbconv_reduce(output(part), behind(grad, part), HALF, &m, norm.data(), act, !grad,
                          nullptr, parts.inner, own.data(), nullptr);
            float* const total = found.of(part.number);
            for (int64_t s = 0; s < part.count; ++s)
                for (int64_t k = 0; k < 2; ++k) {
                    const float* const sums = &own[(s * 5 + (grad ? k : 2 + k)) * v.out];
                    const float* const factor = grad ? nullptr : offset + (part.first + s) * v.out;
                    for (int64_t i = 0; i < v.out; ++i)
                        total[k * v.out + i] += sums[i] * (factor ? factor[i] : 1.0f);
                }
        });
        return norm_means(found.total(0, 2 * v.out), v.n * pixels, v.frozen != 0, daffine,
                          daffine + v.out);
    }

    // With a zero behind each row where numbers are multiplied in pairs and the last one has none.
    Floats padded_weight() const {
        Floats padded(v.out * columns, 0.0f);
        for (int64_t i = 0; i < v.out; ++i)
            std::copy_n(v.weight + i * taps, taps, &padded[i * columns]);
        return padded;
    }

    // What is multiplied with the weight, [pixels of these samples, columns].
    const T* rows(const Parts::Part& part, int thread) const {
        if (v.kernel == 1) return x + part.first * pixels * v.in;
        T* const to = gathered.of(thread);
        const auto gather = [&](auto run) {
            parallel(part.count * v.oh, parts.inner, [&](int64_t row, int) {
                gather_row(part.first + row / v.oh, row % v.oh, run, to + row * v.ow * columns);
            });
        };
        // The usual stem's copies are so short that their length must be known.
        if (v.kernel * v.in == 9)
            gather(std::integral_constant<int64_t, 9>{});
        else
            gather(v.kernel * v.in);
        return to;
    }

    // The patches of one row of outputs; `run`: numbers of a patch that lie side by side.
    template <class Run>
    void gather_row(int64_t sample, int64_t oh, Run run, T* to) const {
        std::fill(to, to + v.ow * columns, T{});
        for (int64_t kh = 0; kh < v.kernel; ++kh) {
            const int64_t ih = oh * v.stride - v.top + kh;
            if (ih < 0 || ih >= v.h) continue;
            const T* const row = x + (sample * v.h + ih) * v.w * v.in;
            for (int64_t ow = 0; ow < v.ow; ++ow) {
                const int64_t iw = ow * v.stride - v.left;
                T* const own = to + ow * columns + kh * run;
                if (iw >= 0 && iw + v.kernel <= v.w) {
                    std::memcpy(own, row + iw * v.in, run * sizeof(T));
                    continue;
                }
                const int64_t first = std::max<int64_t>(0, -iw), end = std::min(v.kernel, v.w - iw);
                if (first < end)
                    std::copy_n(row + (iw + first) * v.in, (end - first) * v.in, own + first * v.in);
            }
        }
    }

    const Convolution& v;
    const int threads, act;
    const int64_t pixels, taps, columns;  // of a sample's output; of a patch, and of a row as multiplied
    const T* const x;
    T* const c;
    const Parts parts;
    const Scratch<T> gathered;
};

}  // namespace
}  // namespace mbconv

using namespace mbconv;

MBCONV_API void mbconv_convolution(const Convolution* v, void* y, float* mean) {
    if (v->half)
        Triple<bf16>(*v).forward(static_cast<bf16*>(y), mean);
    else
        Triple<float>(*v).forward(static_cast<float*>(y), mean);
}

MBCONV_API void mbconv_convolution_backward(const Convolution* v, const void* grad,
                                            const float* offset, void* dx, float* dweight,
                                            float* daffine) {
    if (v->half)
        Triple<bf16>(*v).backward(static_cast<const bf16*>(grad), offset, static_cast<bf16*>(dx),
                                  dweight, daffine);
    else
        Triple<float>(*v).backward(static_cast<const float*>(grad), offset, static_cast<float*>(dx),
                                   dweight, daffine);
}
