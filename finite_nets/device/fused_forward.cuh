// Forward through a layer of every member: h, phi(h) and, where it is no function of that, phi'(h).
#pragma once

#ifdef EMULATED
inline float unconditional(float x) { return x; }
inline float power_of_two(float x) { return exp2f(x); }
#else
// Made where it is written, or the compiler branches around it, number by number
__device__ __forceinline__ float unconditional(float x) {
    asm volatile("" : "+f"(x));
    return x;
}
__device__ __forceinline__ float power_of_two(float x) {
    asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
    return x;
}
#endif
#include "activations.cuh"
#if ACT == 0
__device__ __forceinline__ float far_tanh(float x) {
    return 1.0f - unconditional(__fdividef(2.0f, power_of_two(2.8853900817779268f * x) + 1.0f));
}
#elif ACT == 4
// to the last digits: phi'(h) is made of phi(h) again
__device__ __forceinline__ float log_1_and(float x) { return log1pf(x); }
#endif

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) pass(const Args args) {
    int n_out = args.n_out, n_in = args.n_in;
    int outs = (n_out + NEURONS - 1) / NEURONS, tiles = (args.rows + ROWS - 1) / ROWS;
    long long member = blockIdx.x / (outs * tiles);
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int first = blockIdx.x % tiles * ROWS, rows = min(ROWS, args.rows - first);
    int out = blockIdx.x / tiles % outs * NEURONS + threadIdx.x / 32 * 32 + 4 * g;
    bool is_out = out < n_out;
    const float *w = args.w + member * args.w_member + (long long)(is_out ? out : 0) * n_in + 4 * t;
    float *own = shared + 4 * threadIdx.x;
    Fields fields(shared + STAGES * 16 * THREADS, args.x + member * args.x_member + (long long)first * n_in, n_in, rows);
    const unsigned *sizes = args.x_sizes + member * args.x_sizes_member + first;
    Rows of_rows(shared + STAGES * (16 * THREADS + TILE));
    int slot = 0, slot_next = 0;

    auto fetch = [&] {  // zeros, beyond the last
        bool inside = is_out && 4 * t < fields.left;
#pragma unroll
        for (int r = 0; r < 4; r++) copy(own + (slot_next * 4 + r) * 4 * THREADS, w + r * n_in, inside);
        fields.copy_next(slot_next);
        w += DEEP;
        slot_next = after(slot_next);
        copied();
    };

    float y[GROUPS][2][2][4] = {};
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) fetch();
    fields.read_units(sizes);
    of_rows.begin(sizes, rows);
    wait<STAGES - 2>();
    fields.split(0);
    Split<4> a[2], coming[2];
    float unit = weights<false>(a, own, 0), unit_coming = 0.0f;
    for (int k = 0; k < n_in; k += DEEP) {
        wait<STAGES - 3>();
        __syncthreads();
#pragma unroll
        for (int j = 0; j < GROUPS; j++) {
            if (j == GROUPS / 4) fetch();  // in the midst of products, beside which this waits
            if (j == GROUPS / 2) {
                unit_coming = weights<false>(coming, own, after(slot));
                fields.split(after(slot));
            }
            Split<2> b[2];
            float c[2][2][4] = {};
            fields.rows_of(b, slot, j);
            multiply(c, a, b);
            add(y[j], unit, c);
        }
        a[0] = coming[0], a[1] = coming[1], unit = unit_coming;
        slot = after(slot);
    }
    float inverse = 1.0f / args.gain;
    long long at = (member * args.rows + first) * n_out + out;
    const float *add = args.add ? args.add + member * args.add_member + first * args.add_row + out : nullptr;
    float *kept = args.y ? args.y + at : nullptr, *to_phi = args.phi + at;
#pragma unroll
    for (int j = 0; j < 2 * GROUPS; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int row = 8 * j + 2 * t + e;
            bool inside = is_out && row < rows;
            const float(&y0)[4] = y[j / 2][0][j % 2], (&y1)[4] = y[j / 2][1][j % 2];
            float h[4] = {y0[e], y0[2 + e], y1[e], y1[2 + e]}, phi[4], slope[4];
#pragma unroll
            for (int i = 0; i < 4; i++) h[i] *= args.scale * of_rows.units[row];
            if (add && inside) {
                float4 more = four(add + row * args.add_row);
                h[0] += more.x, h[1] += more.y, h[2] += more.z, h[3] += more.w;
            }
            if (kept && inside) *(float4 *)(kept + row * n_out) = float4{h[0], h[1], h[2], h[3]};
#pragma unroll
            for (int i = 0; i < 4; i++) activated(h[i], args.gain, inverse, phi[i], slope[i]);
            float4 found{phi[0], phi[1], phi[2], phi[3]};
            if (inside) *(float4 *)(to_phi + row * n_out) = found, of_rows.note(row, found);
            if (SLOPE_KEPT && inside)
                *(float4 *)(args.phi_slope + at + row * n_out) = float4{slope[0], slope[1], slope[2], slope[3]};
        }
    of_rows.give(args.sizes + member * args.rows + first, rows);
}
