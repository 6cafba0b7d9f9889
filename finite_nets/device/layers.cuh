// What passes over the layer of every member are given, and numbers by four.
#pragma once

struct Args {
    float *w;          // (member, n_out, n_in)
    const float *x;    // (member, row, n_in)
    const float *g;    // (member, row, n_out)
    const float *add;  // (member, row, n_out)
    const float *slope;  // (member, row, n_in)
    float *y;          // (member, row, n_out), or of a backward pass n_in
    float *phi;        // (member, row, n_out)
    float *phi_slope;
    float *below;      // (member, n_in, n_below)
    const float *z;    // (member, row, n_below)
    long long w_member, x_member, g_member, add_member, add_row, slope_member, below_member, z_member;
    int rows, n_out, n_in, n_below;
    float scale, keep, push, gain, keep_below, push_below;
};

__device__ __forceinline__ float4 four(const float *from) { return *(const float4 *)from; }

__device__ __forceinline__ float4 times(float4 v, float factor) {
    return float4{v.x * factor, v.y * factor, v.z * factor, v.w * factor};
}
