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
    const unsigned *x_sizes, *g_sizes, *z_sizes;  // (member, row), the largest of each row, by its bits
    unsigned *sizes;   // (member, row), of what is written, at least
    long long x_sizes_member, g_sizes_member, z_sizes_member;
    long long w_member, x_member, g_member, add_member, add_row, slope_member, below_member, z_member;
    int rows, n_out, n_in, n_below;
    float scale, keep, push, gain, keep_below, push_below;
};

__device__ __forceinline__ float4 four(const float *from) { return *(const float4 *)from; }

__device__ __forceinline__ float4 times(float4 v, float factor) {
    return float4{v.x * factor, v.y * factor, v.z * factor, v.w * factor};
}

__device__ __forceinline__ float size_of(float4 v) {
    return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}

#ifndef EMULATED
// The largest of a warp
__device__ __forceinline__ unsigned largest(unsigned x) {
    unsigned found;
    asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(found) : "r"(x) : "memory");
    return found;
}
#endif

// also of numbers that are not negative, by their bits
__device__ __forceinline__ unsigned largest(float x) { return largest(__float_as_uint(x)); }
