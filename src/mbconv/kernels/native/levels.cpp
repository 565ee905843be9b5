// Bytes of pictures as floats, one table a channel: whoever fills the tables decides how they are
// rounded, so that the result is that of plain torch, bit for bit.
#include "api.h"
#include "parallel.h"

using namespace mbconv;

// [count, pixels, 3] bytes and tables [3, 256] -> floats of the same shape.
MBCONV_API void mbconv_levels(const uint8_t* pictures, int64_t count, int64_t pixels,
                              const float* tables, int threads, float* out) {
    const int64_t size = 3 * pixels;
    parallel(count, threads, [&](int64_t picture, int) {
        const uint8_t* const from = pictures + picture * size;
        float* const to = out + picture * size;
        for (int64_t i = 0; i < size; i += 3) {
            to[i] = tables[from[i]];
            to[i + 1] = tables[256 + from[i + 1]];
            to[i + 2] = tables[512 + from[i + 2]];
        }
    });
}
