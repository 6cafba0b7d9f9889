// A layer of every member in one pass over its matrix: forward, and backward with the update.
//
//     forward     h = scale x W^T + add,  phi(h), phi'(h)
//     backward    g' = scale phi' (g W)
//     update      W <- keep W + push sum_a g_a x_a^T
//
// by matrix units, three products of halves in the place of one (halves.cuh).  Compiled with
//
//     ROWS      of a tile of fields, a multiple of 16    WARPS     of a block, 32 neurons each
//     STAGES    of copies, three at least                BLOCKS    that are to fit on a multiprocessor
//     PRODUCTS  three, or one of rounded numbers         ACT       which activation
//     PASS      0 forward, 1 backward with the update, 2 the update alone, 3 backward alone, 4 backward with the update
//               and that of the layer below, of which g' is all that is asked:  V <- keep V + push sum_a g'_a z_a^T
//
// Weights go from memory to the registers of the thread that multiplies and updates them, by a slot of shared memory
// that is its own.  Which numbers a thread holds (lane 4 g + t, neurons 4 g ... 4 g + 3, 4 t ... 4 t + 3 of the sum) is
// chosen so that it reads and writes four at a time, and so that the sums of an update lie as the weights do.  Fields
// are copied, and while others are multiplied split in place by the warp that copied them, 16 rows of 16 numbers by one
// unit.

#define THREADS (32 * WARPS)
#define NEURONS (32 * WARPS)
#define PULLS (PASS != 2)
#define UPDATES (PASS != 3)

#include "layers.cuh"
#include "fields.cuh"
#if PASS == 0
#ifdef EMULATED
inline float unconditional(float x) { return x; }
#else
// Made where it is written, or the compiler branches around it, number by number
__device__ __forceinline__ float unconditional(float x) {
    asm volatile("" : "+f"(x));
    return x;
}
#endif
#include "activations.cuh"
#if ACT == 0
__device__ __forceinline__ float far_tanh(float x) {
    return 1.0f - unconditional(__fdividef(2.0f, __expf(2.0f * x) + 1.0f));
}
#endif
#endif

// Four numbers of a matrix after their update, of one of two columns of sums
__device__ __forceinline__ float4 moved(float4 v, float keep, float push, float a, float b, float c, float d) {
    return float4{keep * v.x + push * a, keep * v.y + push * b, keep * v.z + push * c, keep * v.w + push * d};
}

// What this thread has copied of a stage
__device__ __forceinline__ void read(float4 (&v)[4], const float *own, int slot) {
#pragma unroll
    for (int r = 0; r < 4; r++) v[r] = four(own + (slot * 4 + r) * 4 * THREADS);
}

// and as factors, of their unit
template <bool DOWN> __device__ __forceinline__ float weights(Split<4> (&a)[2], const float *own, int slot) {
    float4 v[4];
    read(v, own, slot);
    return split<DOWN>(a, v, Unit(largest(size_of(v))));
}

__device__ __forceinline__ int after(int slot) { return slot == STAGES - 1 ? 0 : slot + 1; }

// ---- forward ---------------------------------------------------------------------------------------------------------

#if PASS == 0
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
            fields.rows_of(b, slot, j);
            add_product(y[j], unit * fields.unit(slot, j), a, b);
        }
        a[0] = coming[0], a[1] = coming[1], unit = unit_coming;
        slot = after(slot);
    }
    if (!is_out) return;
    float inverse = 1.0f / args.gain;
    long long at = (member * args.rows + first) * n_out + out;
    const float *add = args.add ? args.add + member * args.add_member + first * args.add_row + out : nullptr;
    float *kept = args.y ? args.y + at : nullptr, *to_phi = args.phi + at, *to_slope = args.phi_slope + at;
#pragma unroll
    for (int j = 0; j < 2 * GROUPS; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int row = 8 * j + 2 * t + e;
            bool inside = row < rows;
            const float(&y0)[4] = y[j / 2][0][j % 2], (&y1)[4] = y[j / 2][1][j % 2];
            float h[4] = {y0[e], y0[2 + e], y1[e], y1[2 + e]}, phi[4], slope[4];
#pragma unroll
            for (int i = 0; i < 4; i++) h[i] *= args.scale;
            if (add && inside) {
                float4 more = four(add + row * args.add_row);
                h[0] += more.x, h[1] += more.y, h[2] += more.z, h[3] += more.w;
            }
            if (kept && inside) *(float4 *)(kept + row * n_out) = float4{h[0], h[1], h[2], h[3]};
#pragma unroll
            for (int i = 0; i < 4; i++) activated(h[i], args.gain, inverse, phi[i], slope[i]);
            if (inside) *(float4 *)(to_phi + row * n_out) = float4{phi[0], phi[1], phi[2], phi[3]};
            if (inside) *(float4 *)(to_slope + row * n_out) = float4{slope[0], slope[1], slope[2], slope[3]};
        }
}

#else
// ---- backward and update ---------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) pass(const Args args) {
    int n_out = args.n_out, n_in = args.n_in;
    int ins = (n_in + NEURONS - 1) / NEURONS, tiles = (args.rows + ROWS - 1) / ROWS;
    long long member = blockIdx.x / (ins * tiles);
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int first = blockIdx.x % tiles * ROWS, rows = min(ROWS, args.rows - first);
    int in = blockIdx.x / tiles % ins * NEURONS + threadIdx.x / 32 * 32 + 4 * g;
    bool is_in = in < n_in;
    float *w = args.w + member * args.w_member + (is_in ? in : 0) + 4 * t * n_in;  // n_out is a multiple of 4
    float *own = shared + 4 * threadIdx.x;
    Fields fields(shared + STAGES * 16 * THREADS, args.g + member * args.g_member + (long long)first * n_out, n_out, rows);
    const float *next = w;
    int slot = 0, slot_next = 0;

    auto fetch = [&] {  // zeros, beyond the last
#pragma unroll
        for (int r = 0; r < 4; r++)
            copy(own + (slot_next * 4 + r) * 4 * THREADS, next + r * n_in, is_in && 4 * t < fields.left);
        fields.copy_next(slot_next);
        next += DEEP * n_in;
        slot_next = after(slot_next);
        copied();
    };

#if UPDATES
    float4 x[GROUPS][4];
#pragma unroll
    for (int i = 0; i < 4 * GROUPS; i++) {
        int row = i / 4 * 16 + i / 2 % 2 * 8 + 2 * t + i % 2;
        x[i / 4][i % 4] = is_in && row < rows ? four(args.x + member * args.x_member + (long long)row * n_in + in) : float4{};
    }
#endif
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) fetch();
#if UPDATES
    // x, split once for all, in the order in which this thread multiplies it
    float *split_x = shared + STAGES * (16 * THREADS + ROWS * STRIDE + (GROUPS + 3) / 4 * 4) + 4 * threadIdx.x;
    float size = 0.0f;
#pragma unroll
    for (int j = 0; j < GROUPS; j++) size = fmaxf(size, size_of(x[j]));
    Unit of_x(largest(size));
#pragma unroll
    for (int j = 0; j < GROUPS; j++) {
        Split<4> a[2];
        split<true>(a, x[j], of_x);
#pragma unroll
        for (int u = 0; u < 2; u++) {
            put(split_x + (2 * j + u) * PARTS * 4 * THREADS, a[u].high);
            if (PARTS == 2) put(split_x + ((2 * j + u) * PARTS + 1) * 4 * THREADS, a[u].low);
        }
    }
#endif
#if PULLS
    float y[GROUPS][2][2][4] = {};
#endif
    wait<STAGES - 2>();
    fields.split(0);
#if PULLS
    Split<4> factors[2];
    float unit = weights<true>(factors, own, 0);
#endif
    for (int out = 4 * t; out - 4 * t < n_out; out += DEEP) {
        wait<STAGES - 3>();
        __syncthreads();
        fetch();
#if PULLS
#pragma unroll
        for (int j = 0; j < GROUPS; j++) {
            if (j == GROUPS / 2) fields.split(after(slot));
            Split<2> b[2];
            fields.rows_of(b, slot, j);
            add_product(y[j], unit * fields.unit(slot, j), factors, b);
        }
        unit = weights<true>(factors, own, after(slot));
#else
        fields.split(after(slot));
#endif
#if UPDATES
        float change[2][2][4] = {};
#pragma unroll
        for (int j = 0; j < GROUPS; j++) {
            Split<4> a[2];
            Split<2> b[2];
#pragma unroll
            for (int u = 0; u < 2; u++) {
                take(a[u].high, split_x + (2 * j + u) * PARTS * 4 * THREADS);
                if (PARTS == 2) take(a[u].low, split_x + ((2 * j + u) * PARTS + 1) * 4 * THREADS);
            }
            fields.columns_of(b, slot, j);
            add_product(change, of_x.unit * fields.unit(slot, j), a, b);
        }
        float4 v[4];
        read(v, own, slot);
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const float(&c0)[4] = change[0][r / 2], (&c1)[4] = change[1][r / 2];
            int e = r % 2;
            float4 found = moved(v[r], args.keep, args.push, c0[e], c0[2 + e], c1[e], c1[2 + e]);
            if (is_in && out < n_out) *(float4 *)(w + r * n_in) = found;
        }
        w += DEEP * n_in;
#endif
        slot = after(slot);
    }
#if PULLS
    const float *slope = args.slope + member * args.slope_member + (long long)first * n_in + (is_in ? in : 0);
#pragma unroll
    for (int j = 0; j < GROUPS; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int e = i % 2, row = 16 * j + i / 2 * 8 + 2 * t + e;
            float(&y0)[4] = y[j][0][i / 2], (&y1)[4] = y[j][1][i / 2];
            float4 v = times(four(slope + min(row, rows - 1) * n_in), args.scale);
            y0[e] *= v.x, y0[2 + e] *= v.y, y1[e] *= v.z, y1[2 + e] *= v.w;
        }
#endif
#if PASS == 1 || PASS == 3
    float *to = args.y + (member * args.rows + first) * n_in + in;
#pragma unroll
    for (int i = 0; i < 4 * GROUPS; i++) {
        int e = i % 2, row = i / 2 * 8 + 2 * t + e;
        const float(&y0)[4] = y[i / 4][0][i / 2 % 2], (&y1)[4] = y[i / 4][1][i / 2 % 2];
        if (is_in && row < rows) *(float4 *)(to + row * n_in) = float4{y0[e], y0[2 + e], y1[e], y1[2 + e]};
    }
#endif
#if PASS == 4
    // g', split as it lies: sums of one product are factors of the next
    float size_of_y = 0.0f;
#pragma unroll
    for (int i = 0; i < 16 * GROUPS; i++) size_of_y = fmaxf(size_of_y, fabsf(y[i / 16][i / 8 % 2][i / 4 % 2][i % 4]));
    Unit of_y(largest(size_of_y));
    Split<4> split_y[GROUPS][2];
#pragma unroll
    for (int i = 0; i < 8 * GROUPS; i++) {
        const float *both = y[i / 8][i / 4 % 2][i / 2 % 2] + i % 2 * 2;
        split_y[i / 8][i / 4 % 2].put(i % 4, both[0] * of_y.inverse, both[1] * of_y.inverse);
    }
    int d = args.n_below;
    float *v = args.below + member * args.below_member + (long long)(is_in ? in : 0) * d + 4 * t;
    wait<0>();  // zeros, from beyond the last of g, to where the first of what comes next lies
    __syncthreads();
    Fields inputs(fields.tiles, args.z + member * args.z_member, d, rows);
    inputs.copy_next(slot = 0);
    copied();
    for (int k = 0; k < d; k += DEEP, v += DEEP) {
        float change[2][2][4] = {};
        float4 before[4] = {};
        bool inside = is_in && k + 4 * t < d;
#pragma unroll
        for (int r = 0; r < 4; r++)
            if (inside) before[r] = four(v + r * d);
        wait<0>();
        inputs.split(slot);
        __syncthreads();
        inputs.copy_next(1 - slot);
        copied();
#pragma unroll
        for (int j = 0; j < GROUPS; j++) {
            Split<2> b[2];
            inputs.columns_of(b, slot, j);
            add_product(change, of_y.unit * inputs.unit(slot, j), split_y[j], b);
        }
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const float(&c0)[4] = change[r / 2][0], (&c1)[4] = change[r / 2][1];
            int h = r % 2 * 2;
            float4 found = moved(before[r], args.keep_below, args.push_below, c0[h], c0[h + 1], c1[h], c1[h + 1]);
            if (inside) *(float4 *)(v + r * d) = found;
        }
        slot = 1 - slot;
    }
#endif
}
#endif
