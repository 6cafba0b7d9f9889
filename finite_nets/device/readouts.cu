// The readout of every member, a matrix of a few rows, by multiply-adds: fields pass once forward and once backward.
//
//     forward     y_c = scale sum_n x_n w_cn
//     backward    g' = scale phi' (g W),   W <- keep W + push sum_a g_a x_a^T
//
// Compiled with
//
//     OUTPUTS  rows of W    WARPS  of a block    PASS  0 forward, 1 backward with the update    ACT  as in slopes.cuh

#define THREADS (32 * WARPS)

#include "layers.cuh"
#include "slopes.cuh"

__device__ __forceinline__ void add(float4 &sum, float factor, float4 v) {
    sum.x += factor * v.x, sum.y += factor * v.y, sum.z += factor * v.z, sum.w += factor * v.w;
}

#if PASS == 0
#define EACH 4  // rows of fields of a warp

extern "C" __global__ void __launch_bounds__(THREADS) pass(const Args args) {
    int n = args.n_in, parts = (args.rows + WARPS * EACH - 1) / (WARPS * EACH), lane = threadIdx.x % 32;
    long long member = blockIdx.x / parts;
    int first = (blockIdx.x % parts * WARPS + threadIdx.x / 32) * EACH;
    if (first >= args.rows) return;
    const float *x = args.x + member * args.x_member, *w = args.w + member * args.w_member;
    float sum[EACH][OUTPUTS] = {};
    for (int i = 4 * lane; i < n; i += 128) {
        float4 v[EACH];
#pragma unroll
        for (int r = 0; r < EACH; r++) v[r] = four(x + (long long)min(first + r, args.rows - 1) * n + i);
#pragma unroll
        for (int c = 0; c < OUTPUTS; c++) {
            float4 z = four(w + (long long)c * n + i);
#pragma unroll
            for (int r = 0; r < EACH; r++) sum[r][c] += v[r].x * z.x + v[r].y * z.y + (v[r].z * z.z + v[r].w * z.w);
        }
    }
#pragma unroll
    for (int r = 0; r < EACH; r++)
#pragma unroll
        for (int c = 0; c < OUTPUTS; c++) {
            float y = sum[r][c];
#pragma unroll
            for (int far = 16; far; far /= 2) y += __shfl_xor_sync(0xffffffffu, y, far);
            if (lane == 0 && first + r < args.rows)
                args.y[(member * args.rows + first + r) * OUTPUTS + c] = args.scale * y;
        }
}

#else
// A thread four neurons
extern "C" __global__ void __launch_bounds__(THREADS) pass(const Args args) {
    int n = args.n_in, parts = (n + 4 * THREADS - 1) / (4 * THREADS);
    long long member = blockIdx.x / parts;
    int place = (blockIdx.x % parts * THREADS + threadIdx.x) * 4, at = min(place, n - 4);
    bool inside = place < n;
    unsigned *sizes = args.sizes + member * args.rows;
    float *of_w = args.w + member * args.w_member + at, *y = args.y + member * args.rows * n + at;
    const float *x = args.x + member * args.x_member + at, *slope = args.slope + member * args.slope_member + at;
    const float *g = args.g + member * args.g_member;
    float4 w[OUTPUTS], change[OUTPUTS] = {};
#pragma unroll
    for (int c = 0; c < OUTPUTS; c++) w[c] = four(of_w + (long long)c * n);
#pragma unroll 4
    for (int row = 0; row < args.rows; row++, x += n, slope += n, y += n, g += OUTPUTS) {
        float4 v = four(x), s = slope_of(four(slope), args.gain), sum = {};
#pragma unroll
        for (int c = 0; c < OUTPUTS; c++) {
            add(sum, g[c], w[c]);
            add(change[c], g[c], v);
        }
        sum = times(sum, args.scale);
        float4 found{s.x * sum.x, s.y * sum.y, s.z * sum.z, s.w * sum.w};
        if (inside) *(float4 *)y = found;
        unsigned size = largest(size_of(found));
        if (threadIdx.x % 32 == 0) atomicMax(sizes + row, size);
    }
#pragma unroll
    for (int c = 0; c < OUTPUTS; c++) {
        float4 found = times(w[c], args.keep);
        add(found, args.push, change[c]);
        if (inside) *(float4 *)(of_w + (long long)c * n) = found;
    }
}
#endif
