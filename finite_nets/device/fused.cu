// A layer of every member in one pass over its matrix: forward, and backward with the update.
//
//     forward     h = scale x W^T + add,  phi(h), phi'(h)
//     backward    g' = scale phi' (g W)
//     update      W <- keep W + push sum_a g_a x_a^T
//
// by matrix units, three products of TF32 numbers in the place of one (finite_nets/device/triton.py).  Compiled with
//
//     ROWS      of a tile of fields, a multiple of 16    WARPS     of a block, 32 neurons each
//     STAGES    of copies under way                      BLOCKS    that are to fit on a multiprocessor
//     PRODUCTS  three, or one of rounded numbers         ACT       which activation
//     PASS      0 forward, 1 backward with the update, 2 the update alone
//
// Weights go from memory to the registers of the thread that multiplies and updates them, by a slot of shared memory
// that is its own.  Which numbers a thread holds (lane 4 g + t, neurons 4 g ... 4 g + 3, 4 t ... 4 t + 3 of the sum) is
// chosen so that it reads and writes four at a time, and so that the sums of an update lie as the weights do.

#define THREADS (32 * WARPS)
#define TILES (ROWS / 8)
#define DEEP 16            // of a sum, a stage
#define NEURONS (32 * WARPS)
#define STRIDE_G 24        // rows of a tile of g, that two kinds of reads find in different banks
#define PARTS (PRODUCTS == 3 ? 2 : 1)  // of a number

struct Args {
    float *w;          // (member, n_out, n_in)
    const float *x;    // (member, row, n_in)
    const float *g;    // (member, row, n_out)
    const float *add;  // (member, row, n_out)
    const float *slope;  // (member, row, n_in)
    float *y;          // (member, row, n_out), or of a backward pass n_in
    float *phi;        // (member, row, n_out)
    float *phi_slope;
    long long w_member, x_member, g_member, add_member, add_row, slope_member;
    int rows, n_out, n_in;
    float scale, keep, push, gain;
};

#ifndef EMULATED
extern __shared__ __align__(16) float shared[];

// 16 bytes to shared memory, or zeros
__device__ __forceinline__ void copy(float *to, const float *from, bool inside) {
    unsigned place = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(place), "l"(from), "r"(inside ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void copied() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory"); }

// c (16, 8) += a (16, 8) b (8, 8)
__device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// The nearest TF32 number: matrix units cut the last 13 bits off
__device__ __forceinline__ unsigned rounded(float x) {
    unsigned bits = (__float_as_uint(x) + 0x1000u) & ~0x1fffu;
    // what is not a number stays so; of three products one has what is left, which is none either
    return PRODUCTS == 3 || x == x ? bits : __float_as_uint(x);
}

// Numbers as TF32, and what that leaves of them
template <int COUNT> struct Split {
    unsigned high[COUNT];
    unsigned low[COUNT];
};

template <int COUNT> __device__ __forceinline__ void split(Split<COUNT> &s, int i, float x) {
    s.high[i] = rounded(x);
#if PRODUCTS == 3
    s.low[i] = __float_as_uint(x - __uint_as_float(s.high[i]));
#endif
}

// y (32, 16) += a (32, 16) b (16, 16), a[k][m], b[k][n], by a sum of its own: units cut off what they add to a long one
__device__ __forceinline__ void add_product(float (&y0)[2][4], float (&y1)[2][4], const Split<4> (&a)[2][2],
                                            const Split<2> (&b)[2][2]) {
    float c[2][2][4] = {};
#if PRODUCTS == 3
#pragma unroll
    for (int i = 0; i < 8; i++) multiply(c[i & 1][i >> 1 & 1], a[i >> 2][i & 1].low, b[i >> 2][i >> 1 & 1].high);
#pragma unroll
    for (int i = 0; i < 8; i++) multiply(c[i & 1][i >> 1 & 1], a[i >> 2][i & 1].high, b[i >> 2][i >> 1 & 1].low);
#endif
#pragma unroll
    for (int i = 0; i < 8; i++) multiply(c[i & 1][i >> 1 & 1], a[i >> 2][i & 1].high, b[i >> 2][i >> 1 & 1].high);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        y0[i / 4][i % 4] += c[0][i / 4][i % 4];
        y1[i / 4][i % 4] += c[1][i / 4][i % 4];
    }
}

__device__ __forceinline__ float4 four(const float *from) { return *(const float4 *)from; }

__device__ __forceinline__ void put(float *to, const unsigned (&of)[4]) { *(uint4 *)to = uint4{of[0], of[1], of[2], of[3]}; }

__device__ __forceinline__ void take(unsigned (&to)[4], const float *from) {
    uint4 v = *(const uint4 *)from;
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

#if PASS == 0
#include "activations.cuh"
#if ACT == 0
__device__ __forceinline__ float short_of_one(float x) { return __fdividef(2.0f, __expf(2.0f * x) + 1.0f); }
#endif
#endif

// What a thread copies of tiles (ROWS, DEEP) of fields, one part of a sum after the other
struct Tiles {
    static const int COUNT = (ROWS * DEEP / 4 + THREADS - 1) / THREADS;
    const float *from[COUNT];
    int to[COUNT], column[COUNT];
    bool inside[COUNT];

    // of rows of `size` numbers, to rows of `stride`
    __device__ __forceinline__ Tiles(const float *fields, int size, int rows, int stride) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            int part = threadIdx.x + i * THREADS, row = part / (DEEP / 4);
            column[i] = part % (DEEP / 4) * 4;
            inside[i] = row < rows;
            from[i] = fields + (inside[i] ? row : 0) * size + column[i];
            to[i] = row < ROWS ? row * stride + column[i] : -1;
        }
    }

    __device__ __forceinline__ void copy_next(float *tile, int left) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            bool is_there = inside[i] && column[i] < left;
            if (to[i] >= 0) copy(tile + to[i], from[i], is_there);
            from[i] += DEEP;
        }
    }
};

// ---- forward ---------------------------------------------------------------------------------------------------------

#if PASS == 0
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) pass(const Args args) {
    int n_out = args.n_out, n_in = args.n_in;
    int outs = (n_out + NEURONS - 1) / NEURONS, tiles = (args.rows + ROWS - 1) / ROWS;
    long long member = blockIdx.x / (outs * tiles);
    int tile = blockIdx.x % tiles, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int first = tile * ROWS, rows = min(ROWS, args.rows - first);
    int out = blockIdx.x / tiles % outs * NEURONS + threadIdx.x / 32 * 32 + 4 * g;
    bool is_out = out < n_out;
    const float *w = args.w + member * args.w_member + (long long)(is_out ? out : 0) * n_in + 4 * t;
    const float *x = args.x + member * args.x_member + (long long)first * n_in;
    float *tile_w = shared + 4 * threadIdx.x, *tile_x = shared + STAGES * 16 * THREADS;
    Tiles tiles_x(x, n_in, rows, DEEP);
    int left = n_in, slot_next = 0, slot = 0;

    auto fetch = [&] {
        if (left > 0) {
            bool inside = is_out && 4 * t < left;
#pragma unroll
            for (int r = 0; r < 4; r++) copy(tile_w + (slot_next * 4 + r) * 4 * THREADS, w + r * n_in, inside);
            tiles_x.copy_next(tile_x + slot_next * ROWS * DEEP, left);
            w += DEEP;
            left -= DEEP;
            slot_next = slot_next == STAGES - 1 ? 0 : slot_next + 1;
        }
        copied();
    };

    float y[2][TILES / 2][2][4] = {};
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) fetch();
    for (int k = 0; k < n_in; k += DEEP, slot = slot == STAGES - 1 ? 0 : slot + 1) {
        const float *fields = tile_x + slot * ROWS * DEEP + g * DEEP + 4 * t;
        Split<4> a[2][2];  // half of the sum, half of the neurons
        wait();
#pragma unroll
        for (int r = 0; r < 4; r++) {
            float4 v = four(tile_w + (slot * 4 + r) * 4 * THREADS);
            split(a[0][r / 2], r % 2, v.x);
            split(a[0][r / 2], r % 2 + 2, v.y);
            split(a[1][r / 2], r % 2, v.z);
            split(a[1][r / 2], r % 2 + 2, v.w);
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < TILES / 2; j++) {
            if (j == TILES / 4) fetch();  // in the midst of products, that the copies' addresses are waited for beside them
            Split<2> b[2][2];
#pragma unroll
            for (int n = 0; n < 2; n++) {
                float4 v = four(fields + (16 * j + 8 * n) * DEEP);
                split(b[0][n], 0, v.x);
                split(b[0][n], 1, v.y);
                split(b[1][n], 0, v.z);
                split(b[1][n], 1, v.w);
            }
            add_product(y[0][j], y[1][j], a, b);
        }
    }
    if (!is_out) return;
    float inverse = 1.0f / args.gain;
#pragma unroll
    for (int j = 0; j < TILES; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int row = 8 * j + 2 * t + e;
            if (row >= rows) continue;
            const float(&y0)[4] = y[0][j / 2][j % 2], (&y1)[4] = y[1][j / 2][j % 2];
            float h[4] = {y0[e], y0[2 + e], y1[e], y1[2 + e]}, phi[4], slope[4];
            long long at = (member * args.rows + first + row) * n_out + out;
#pragma unroll
            for (int i = 0; i < 4; i++) h[i] *= args.scale;
            if (args.add) {
                float4 more = four(args.add + member * args.add_member + (first + row) * args.add_row + out);
                h[0] += more.x, h[1] += more.y, h[2] += more.z, h[3] += more.w;
            }
            if (args.y) *(float4 *)(args.y + at) = float4{h[0], h[1], h[2], h[3]};
#pragma unroll
            for (int i = 0; i < 4; i++) activated(h[i], args.gain, inverse, phi[i], slope[i]);
            *(float4 *)(args.phi + at) = float4{phi[0], phi[1], phi[2], phi[3]};
            *(float4 *)(args.phi_slope + at) = float4{slope[0], slope[1], slope[2], slope[3]};
        }
}

#else
// ---- backward and update ---------------------------------------------------------------------------------------------

// Of a row of g and of y: the order in which lanes read g avoids banks, and is met again in sums (tile i / 2)
__device__ __forceinline__ int row_of(int i, int t) { return i / 2 * 8 + (t & 1) + (t & 2) * 2 + i % 2 * 2; }

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) pass(const Args args) {
    int n_out = args.n_out, n_in = args.n_in, rows = args.rows;
    int ins = (n_in + NEURONS - 1) / NEURONS;
    long long member = blockIdx.x / ins;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int first = blockIdx.x % ins * NEURONS, local = threadIdx.x / 32 * 32 + 4 * g, in = first + local;
    bool is_in = in < n_in;
    float *w = args.w + member * args.w_member + (is_in ? in : 0) + 4 * t * n_in;  // n_out is a multiple of 4
    float *tile_w = shared + 4 * threadIdx.x, *tile_g = shared + STAGES * 16 * THREADS;
    float *split_x = tile_g + STAGES * ROWS * STRIDE_G + 4 * threadIdx.x;
    Tiles tiles_g(args.g + member * args.g_member, n_out, rows, STRIDE_G);
    const float *next = w;
    int left = n_out, slot_next = 0, slot = 0;

    auto fetch = [&] {
        if (left > 0) {
#pragma unroll
            for (int r = 0; r < 4; r++)
                copy(tile_w + (slot_next * 4 + r) * 4 * THREADS, next + r * n_in, is_in && 4 * t < left);
            tiles_g.copy_next(tile_g + slot_next * ROWS * STRIDE_G, left);
            next += DEEP * n_in;
            left -= DEEP;
            slot_next = slot_next == STAGES - 1 ? 0 : slot_next + 1;
        }
        copied();
    };

#if PASS == 1
    float y[2][TILES / 2][2][4] = {};
#endif
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) fetch();
    // x, split once for all, in the order in which this thread multiplies it
    const float *x = args.x + member * args.x_member + in;
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        float4 v[2] = {};
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = 8 * i + 4 * half + t;
            if (is_in && row < rows) v[half] = four(x + row * n_in);
        }
        Split<4> a[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            split(a[0], 2 * half, v[half].x);
            split(a[0], 2 * half + 1, v[half].y);
            split(a[1], 2 * half, v[half].z);
            split(a[1], 2 * half + 1, v[half].w);
        }
#pragma unroll
        for (int u = 0; u < 2; u++) {
            put(split_x + (2 * i + u) * PARTS * 4 * THREADS, a[u].high);
            if (PARTS == 2) put(split_x + ((2 * i + u) * PARTS + 1) * 4 * THREADS, a[u].low);
        }
    }
    [[maybe_unused]] int even = g & 4 | (g & 1) << 1 | (g & 2) >> 1;  // the row that lane g reads, for banks
    for (int out = 4 * t; out - 4 * t < n_out; out += DEEP, slot = slot == STAGES - 1 ? 0 : slot + 1) {
        const float *fields = tile_g + slot * ROWS * STRIDE_G;
        float4 own[4];
        wait();
#pragma unroll
        for (int r = 0; r < 4; r++) own[r] = four(tile_w + (slot * 4 + r) * 4 * THREADS);
#if PASS == 1
        Split<4> weights[2][2];  // half of the sum, half of the neurons
#pragma unroll
        for (int r = 0; r < 4; r++) {
            split(weights[r / 2][0], r % 2 * 2, own[r].x);
            split(weights[r / 2][0], r % 2 * 2 + 1, own[r].y);
            split(weights[r / 2][1], r % 2 * 2, own[r].z);
            split(weights[r / 2][1], r % 2 * 2 + 1, own[r].w);
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < TILES / 2; j++) {
            Split<2> b[2][2];
#pragma unroll
            for (int n = 0; n < 2; n++) {
                float4 v = four(fields + (16 * j + 8 * n + even) * STRIDE_G + 4 * t);
                split(b[0][n], 0, v.x);
                split(b[0][n], 1, v.y);
                split(b[1][n], 0, v.z);
                split(b[1][n], 1, v.w);
            }
            add_product(y[0][j], y[1][j], weights, b);
        }
#else
        __syncthreads();
#endif
        fetch();
        float change[2][2][4] = {};
#pragma unroll
        for (int j = 0; j < TILES / 2; j++) {
            Split<4> a[2][2];
            Split<2> b[2][2];
#pragma unroll
            for (int k = 0; k < 2; k++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const float *of = split_x + ((2 * j + k) * 2 + half) * PARTS * 4 * THREADS;
                    take(a[k][half].high, of);
                    if (PARTS == 2) take(a[k][half].low, of + 4 * THREADS);
                    float2 z = *(const float2 *)(fields + (16 * j + 8 * k + 4 * half + t) * STRIDE_G + 2 * g);
                    split(b[k][0], half, z.x);
                    split(b[k][1], half, z.y);
                }
            add_product(change[0], change[1], a, b);
        }
#pragma unroll
        for (int r = 0; r < 4; r++) {
            int s = r % 2, e = r / 2;
            float4 v = own[r];
            v.x = args.keep * v.x + args.push * change[0][s][e];
            v.y = args.keep * v.y + args.push * change[0][s][2 + e];
            v.z = args.keep * v.z + args.push * change[1][s][e];
            v.w = args.keep * v.w + args.push * change[1][s][2 + e];
            if (is_in && out < n_out) *(float4 *)(w + r * n_in) = v;
        }
        w += DEEP * n_in;
    }
#if PASS == 1
    if (!is_in) return;
    float4 slopes[TILES][2];
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++)
        slopes[i / 2][i % 2] = four(args.slope + member * args.slope_member + min(row_of(i, t), rows - 1) * n_in + in);
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++) {
        int row = row_of(i, t), j = i / 2, e = i % 2;
        const float(&y0)[4] = y[0][j / 2][j % 2], (&y1)[4] = y[1][j / 2][j % 2];
        float4 v = slopes[j][e];
        v.x *= args.scale * y0[e], v.y *= args.scale * y0[2 + e];
        v.z *= args.scale * y1[e], v.w *= args.scale * y1[2 + e];
        if (row < rows) *(float4 *)(args.y + (member * rows + row) * n_in + in) = v;
    }
#endif
}
#endif
