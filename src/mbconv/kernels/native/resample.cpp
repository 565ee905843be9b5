// A part of an RGB picture at another size, bilinear and antialiased, mirrored on the way.
//
// Order: row of the result > its rows of the part, blended into one row of floats > columns. The
// filter is a triangle as wide as a pixel of the coarser grid. Nothing is rounded before the end,
// and no pixel is read that the part doesn't touch.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "api.h"

namespace mbconv {
namespace {

using vec4 = float __attribute__((vector_size(16)));
using int4 = int32_t __attribute__((vector_size(16)));
using byte4 = uint8_t __attribute__((vector_size(4)));

// For each of `to` pixels, the first of those that it is made of and `taps` weights.
struct Blend {
    int64_t low, count, taps;  // the pixels that the part touches
    std::vector<int64_t> first;  // from `low` on
    std::vector<float> weight;

    Blend(double start, double end, int64_t limit, int64_t to, bool mirrored) : first(to) {
        low = std::max<int64_t>(0, static_cast<int64_t>(std::floor(start)));
        count = std::min(limit, static_cast<int64_t>(std::ceil(end))) - low;
        const double scale = (end - start) / to, reach = std::max(scale, 1.0);
        taps = std::min(count, static_cast<int64_t>(std::ceil(2 * reach)));
        weight.resize(to * taps);
        for (int64_t i = 0; i < to; ++i) {
            const int64_t place = mirrored ? to - 1 - i : i;
            const double middle = start - low + scale * (i + 0.5);
            const auto lowest = static_cast<int64_t>(std::floor(middle - reach + 0.5));
            first[place] = std::clamp<int64_t>(lowest, 0, count - taps);
            double sum = 0;
            const auto triangle = [&](int64_t tap) {
                return std::max(0.0, 1 - std::abs(first[place] + tap + 0.5 - middle) / reach);
            };
            for (int64_t t = 0; t < taps; ++t) sum += triangle(t);
            for (int64_t t = 0; t < taps; ++t)
                weight[place * taps + t] = static_cast<float>(triangle(t) / sum);
        }
    }
};

// Rows of bytes, weighed and summed; two at a time, so that the sum is fetched half as often.
void blend_rows(const uint8_t* rows, int64_t stride, const float* weight, int64_t taps,
                int64_t count, float* __restrict out) {
    std::fill(out, out + count, 0.5f);  // what is cut off at the end is then rounded
    int64_t t = 0;
    for (; t + 2 <= taps; t += 2, rows += 2 * stride) {
        const uint8_t *one = rows, *two = rows + stride;
        const float a = weight[t], b = weight[t + 1];
        for (int64_t i = 0; i < count; ++i) out[i] += a * one[i] + b * two[i];
    }
    if (t < taps)
        for (int64_t i = 0; i < count; ++i) out[i] += weight[t] * rows[i];
}

// Each pixel is computed as four numbers, the fourth of which is its neighbour's and written over.
template <int64_t TAPS>
void blend_columns(const float* row, const Blend& blend, int64_t count, uint8_t* out) {
    const int64_t taps = TAPS ? TAPS : blend.taps;
    const float* weight = blend.weight.data();
    for (int64_t i = 0; i < count; ++i, weight += taps) {
        vec4 sum{};
        for (int64_t t = 0; t < taps; ++t) {
            vec4 pixel;
            std::memcpy(&pixel, row + 3 * (blend.first[i] + t), sizeof pixel);
            sum += pixel * weight[t];
        }
        const byte4 cut = __builtin_convertvector(__builtin_convertvector(sum, int4), byte4);
        std::memcpy(out + 3 * i, &cut, sizeof cut);
    }
}

auto columns_of(int64_t taps) {
    switch (taps) {
        case 2: return blend_columns<2>;
        case 3: return blend_columns<3>;
        case 4: return blend_columns<4>;
        case 5: return blend_columns<5>;
        case 6: return blend_columns<6>;
        default: return blend_columns<0>;
    }
}

}  // namespace
}  // namespace mbconv

using namespace mbconv;

// `box`: left, top, right and bottom of the part, in pixels of the picture [height, width, 3].
MBCONV_API void mbconv_resample(const uint8_t* picture, int64_t height, int64_t width,
                                const double* box, int64_t out_height, int64_t out_width,
                                int mirrored, uint8_t* out) {
    const Blend rows(box[1], box[3], height, out_height, false);
    const Blend columns(box[0], box[2], width, out_width, mirrored != 0);
    const auto blend_columns = columns_of(columns.taps);
    std::vector<float> row(3 * columns.count + 1);
    std::vector<uint8_t> line(3 * out_width + 1);
    for (int64_t i = 0; i < out_height; ++i) {
        blend_rows(picture + 3 * ((rows.low + rows.first[i]) * width + columns.low), 3 * width,
                   &rows.weight[i * rows.taps], rows.taps, 3 * columns.count, row.data());
        blend_columns(row.data(), columns, out_width, line.data());
        std::memcpy(out + 3 * out_width * i, line.data(), 3 * out_width);
    }
}
