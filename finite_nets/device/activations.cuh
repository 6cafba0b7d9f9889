// phi(h) and phi'(h), for ACT of tanh, relu, erf, gelu, softplus and the identity.
#pragma once

#if ACT == 0
__device__ __forceinline__ float far_tanh(float x);  // 1 - 2 / (exp 2x + 1), by whoever includes this
#elif ACT == 4
__device__ __forceinline__ float log_1_and(float x);  // log(1 + x), as well
#endif

__device__ __forceinline__ void activated(float h, float gain, float inverse, float &phi, float &slope) {
#if ACT == 0  // tanh: the polynomial of Cephes near zero, exponentials beyond
    float x = gain * h, square = x * x;
    float p = -5.70498872745e-3f * square + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    float near = x + x * square * p;
    float t = fabsf(x) < 0.625f ? near : copysignf(far_tanh(fabsf(x)), x);
    phi = t * inverse;
    slope = 1.0f - t * t;
#elif ACT == 1  // relu
    slope = h > 0 ? 1.4142135623730951f : 0.0f;
    phi = slope * h;
#elif ACT == 2  // erf
    phi = erff(h);
    slope = 1.1283791670955126f * expf(-h * h);
#elif ACT == 3  // gelu
    float cdf = 0.5f * (1.0f + erff(h * 0.7071067811865476f));
    phi = h * cdf;
    slope = cdf + h * expf(-0.5f * h * h) * 0.3989422804014327f;
#elif ACT == 4  // softplus
    float small = expf(-fabsf(gain * h));
    phi = (fmaxf(gain * h, 0.0f) + log_1_and(small)) * inverse;
    slope = (h > 0 ? 1.0f : small) / (1.0f + small);
#else
    phi = h;
    slope = 1.0f;
#endif
}
