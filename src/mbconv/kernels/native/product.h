// Rows of a map times a small matrix: a 1x1 convolution.
#pragma once

#include "floats.h"
#include "simd.h"

namespace mbconv {

// The matrix as it lies: element (k, n) at weight[k * along_k + n * along_n], one of which is 1.
struct Matrix {
    const float* weight;
    int64_t k, n, along_k, along_n;
};

// The same as the microkernel reads it, for maps of T.
template <class T>
class Packed {
  public:
    Packed(const Matrix& m, int threads);
    // x [rows, k] -> y [rows, n]; with bf16, k must be even: pairs are read in twos.
    void product(const T* x, int64_t rows, int threads, T* y) const;

  private:
    Matrix shape;
    Scratch<float> numbers;
};

}  // namespace mbconv
