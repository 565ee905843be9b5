// The passes over maps that the other files offer, as they are called from inside too.
#pragma once

#include "api.h"

MBCONV_API void mbconv_covariance(const void* x, int half, const mbconv::Map*, int threads,
                                  float* mean, float* result);
MBCONV_API void mbconv_moments(const void* x, int half, const mbconv::Map*, int threads,
                               float* mean, float* variance);
MBCONV_API void mbconv_normalise(const void* x, int half, const mbconv::Map*, const float* norm,
                                 int act, const float* factor, const void* addend, int threads,
                                 void* y);
MBCONV_API void mbconv_pool(const void* x, int half, const mbconv::Map*, const float* norm, int act,
                            int threads, float* mean, void* y);
MBCONV_API void mbconv_reduce(const void* x, const void* grad, int half, const mbconv::Map*,
                              const float* norm, int act, int gated, const float* factor,
                              int threads, float* sums, void* y);
MBCONV_API void mbconv_apply(const void* x, const void* grad, int half, const mbconv::Map*,
                             const float* norm, int act, const float* factor, const float* offset,
                             const float* means, int threads, void* dx);
MBCONV_API int mbconv_depthwise(const void* x, int half, const mbconv::Depthwise*, const float* norm,
                                int act, const float* weight, const float* bias, int threads,
                                void* y, float* mean, float* variance);
MBCONV_API int mbconv_depthwise_backward(const void* x, const void* grad, int half,
                                         const mbconv::Depthwise*, const float* norm, int act,
                                         const float* weight, const void* y, const float* y_norm,
                                         const float* means, const float* factor,
                                         const float* offset, int threads, void* dz, float* dw,
                                         float* sums);
