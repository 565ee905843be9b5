// The gradient at a 1x1 convolution's weight.
#pragma once

#include "simd.h"

namespace mbconv {

// sums [m, n] = the sum over all rows of a [rows, m] times b [rows, n]; fastest where b is the wider.
template <class T>
void weight_gradient(const T* a, const T* b, int64_t rows, int64_t m, int64_t n, int threads,
                     float* sums);

}  // namespace mbconv
