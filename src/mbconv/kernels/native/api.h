// The plain C interface that native.py calls. Maps are [N, H, W, C] without gaps, bf16 or float;
// per-channel numbers are float. A null pointer leaves out what it would hold.
#pragma once

#include <cstdint>

#define MBCONV_API extern "C" __attribute__((visibility("default")))

namespace mbconv {

struct Map {
    int64_t n, pixels, c;  // pixels: H * W
};

// A depthwise convolution: [n, h, w, c] -> [n, oh, ow, c], `top` and `left` rows of zeros before.
// With a dilation the stride is 1 and `top` and `left` are multiples of the dilation.
struct Depthwise {
    int64_t n, h, w, c, oh, ow, kernel, stride, top, left, dilation;
};

// A sample's pixels are summed in chunks of this many, in float, then in double: neither the
// number of threads nor the size of the map then decides how exact a sum is.
constexpr int64_t CHUNK = 512;
inline int64_t chunks(int64_t pixels) { return (pixels + CHUNK - 1) / CHUNK; }

}  // namespace mbconv
