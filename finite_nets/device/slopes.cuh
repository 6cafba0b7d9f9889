// phi'(h) of what is kept of it between passes: for tanh, relu, softplus and the identity phi(h), of which it is a
// function (`SLOPES` of fields.py); for all other ACT itself.
#pragma once

__device__ __forceinline__ float slope_of(float kept, float gain) {
#if ACT == 0
    return 1.0f - gain * kept * (gain * kept);
#elif ACT == 1
    return kept > 0 ? 1.4142135623730951f : 0.0f;
#elif ACT == 4
    return -expm1f(-gain * kept);
#elif ACT == 5
    return 1.0f;
#else
    return kept;
#endif
}

__device__ __forceinline__ float4 slope_of(float4 v, float gain) {
    return float4{slope_of(v.x, gain), slope_of(v.y, gain), slope_of(v.z, gain), slope_of(v.w, gain)};
}
