// A layer of every member in one pass over its matrix: forward, and backward with the update.
//
//     forward     h = scale x W^T + add,  phi(h), phi'(h)
//     backward    g' = scale phi' (g W)
//     update      W <- keep W + push sum_a g_a x_a^T
//
// by matrix units, three products of halves in the place of one: x = unit (high + low), 22 bits, with a power of two for
// all numbers of a part of a tile, which come up to 2^15 so: none is too large, and 2^-33 of the largest is what is lost
// of the small ones.  Compiled with
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
#define GROUPS (ROWS / 16)
#define DEEP 16            // of a sum, a stage
#define NEURONS (32 * WARPS)
#define STRIDE 20          // of rows of a tile of fields, that reads of eight find in different banks
#define PARTS (PRODUCTS == 3 ? 2 : 1)  // of a number
#define PULLS (PASS != 2)
#define UPDATES (PASS != 3)

#include "layers.cuh"

#ifndef EMULATED
extern __shared__ __align__(16) float shared[];

// 16 bytes to shared memory, or zeros
__device__ __forceinline__ void copy(float *to, const float *from, bool inside) {
    unsigned place = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(place), "l"(from), "r"(inside ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void copied() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int UNDER_WAY> __device__ __forceinline__ void wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(UNDER_WAY) : "memory");
}

// c (16, 8) += a (16, 16) b (16, 8)
__device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four matrices (8, 8) of halves, of which lane 8 i + j knows where row j of the i-th is
template <bool TRANSPOSED> __device__ __forceinline__ void load(unsigned (&to)[4], const float *row) {
    unsigned place = (unsigned)__cvta_generic_to_shared(row);
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(place) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(place) : "memory");
}

// The largest of a warp, of numbers that are not negative, by their bits
__device__ __forceinline__ unsigned largest(float x) {
    unsigned found;
    asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(found) : "r"(__float_as_uint(x)) : "memory");
    return found;
}

// The nearest halves, and back
__device__ __forceinline__ unsigned halves(float x, float y) {
    unsigned both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(y), "f"(x));
    return both;
}
__device__ __forceinline__ float2 floats(unsigned both) {
    float2 found;
    asm("{.reg .f16 x, y;\n\tmov.b32 {x, y}, %2;\n\tcvt.f32.f16 %0, x;\n\tcvt.f32.f16 %1, y;}"
        : "=f"(found.x), "=f"(found.y) : "r"(both));
    return found;
}
#endif

// A power of two and its inverse, by which numbers up to `largest` come up to 2^15
struct Unit {
    float unit, inverse;

    __device__ __forceinline__ Unit(unsigned largest) {
        unsigned exponent = max(largest >> 23, 15u);
        unit = __uint_as_float((exponent - 14) << 23);
        inverse = __uint_as_float((268 - exponent) << 23);
    }
};

// Numbers as halves, two a register, and what that leaves of them
template <int COUNT> struct Split {
    unsigned high[COUNT];
    unsigned low[COUNT];

    __device__ __forceinline__ void put(int i, float x, float y) {
        high[i] = halves(x, y);
#if PRODUCTS == 3
        float2 found = floats(high[i]);
        low[i] = halves(x - found.x, y - found.y);
#endif
    }
};

// y (32, 16) += unit a (32, 16) b (16, 16), by a sum of its own: units cut off what they add to a long one
__device__ __forceinline__ void add_product(float (&y)[2][2][4], float unit, const Split<4> (&a)[2],
                                            const Split<2> (&b)[2]) {
    float c[2][2][4] = {};
#if PRODUCTS == 3
#pragma unroll
    for (int i = 0; i < 4; i++) multiply(c[i & 1][i >> 1], a[i & 1].low, b[i >> 1].high);
#pragma unroll
    for (int i = 0; i < 4; i++) multiply(c[i & 1][i >> 1], a[i & 1].high, b[i >> 1].low);
#endif
#pragma unroll
    for (int i = 0; i < 4; i++) multiply(c[i & 1][i >> 1], a[i & 1].high, b[i >> 1].high);
#pragma unroll
    for (int i = 0; i < 16; i++) y[i / 8][i / 4 % 2][i % 4] += unit * c[i / 8][i / 4 % 2][i % 4];
}

__device__ __forceinline__ float size_of(float4 v) { return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))); }

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

// Tiles (ROWS, DEEP) of fields, one part of a sum after the other, each as many rows of 16 as it has groups.  A row of
// a tile that is split has numbers 0, 1, 4, 5 ... 12, 13 and then 2, 3 ... 15, high and then low.
struct Fields {
    static const int COUNT = (GROUPS + WARPS - 1) / WARPS;
    float *tiles, *units;  // of STAGES
    const float *from;
    int size, rows, left, lane, warp;

    // of `rows` rows of `size` numbers, `left` of them in the sum
    __device__ __forceinline__ Fields(float *room, const float *fields, int size, int rows)
        : tiles(room), units(room + STAGES * ROWS * STRIDE), from(fields), size(size), rows(rows), left(size),
          lane(threadIdx.x % 32), warp(threadIdx.x / 32) {}

    __device__ __forceinline__ void copy_next(int slot) {
#pragma unroll
        for (int i = 0; i < 2 * COUNT; i++) {
            int row = (warp + i / 2 * WARPS) * 16 + i % 2 * 8 + lane / 4, column = lane % 4 * 4;
            bool inside = row < rows && column < left;
            if (row < ROWS) copy(tile(slot) + row * STRIDE + column, from + (row < rows ? row * size + column : 0), inside);
        }
        from += DEEP;
        left -= DEEP;
    }

    __device__ __forceinline__ float *tile(int slot) const { return tiles + slot * ROWS * STRIDE; }

    // what this warp has copied
    __device__ __forceinline__ void split(int slot) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            int group = warp + i * WARPS;
            if (group >= GROUPS) continue;
            float *row = tile(slot) + (group * 16 + lane / 4) * STRIDE;
            float4 v[2] = {four(row + lane % 4 * 4), four(row + 8 * STRIDE + lane % 4 * 4)};
            Unit by(largest(fmaxf(size_of(v[0]), size_of(v[1]))));  // when all have read
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float4 z = times(v[half], by.inverse);
                Split<2> s;
                s.put(0, z.x, z.y);
                s.put(1, z.z, z.w);
                unsigned *to = (unsigned *)(row + half * 8 * STRIDE) + lane % 4;
                to[0] = s.high[0], to[4] = s.high[1];
#if PRODUCTS == 3
                to[8] = s.low[0], to[12] = s.low[1];
#endif
            }
            if (lane == 0) units[slot * GROUPS + group] = by.unit;
        }
    }

    __device__ __forceinline__ float unit(int slot, int group) const { return units[slot * GROUPS + group]; }

    // b[k][row], of 16 rows
    __device__ __forceinline__ void rows_of(Split<2> (&b)[2], int slot, int group) const {
#pragma unroll
        for (int n = 0; n < 2; n++) {
            unsigned v[4];
            load<false>(v, tile(slot) + (16 * group + 8 * n + lane % 8) * STRIDE + lane / 8 * 4);
            b[n].high[0] = v[0], b[n].high[1] = v[1], b[n].low[0] = v[2], b[n].low[1] = v[3];
        }
    }

    // b[row][k], of 16 rows
    __device__ __forceinline__ void columns_of(Split<2> (&b)[2], int slot, int group) const {
        const float *row = tile(slot) + (16 * group + lane % 16) * STRIDE + lane / 16 * 4;
        unsigned v[4];
        load<true>(v, row);
        b[0].high[0] = v[0], b[0].high[1] = v[1], b[1].high[0] = v[2], b[1].high[1] = v[3];
        if (PARTS == 2) {
            load<true>(v, row + 8);
            b[0].low[0] = v[0], b[0].low[1] = v[1], b[1].low[0] = v[2], b[1].low[1] = v[3];
        }
    }
};

// Four numbers of each of four, scaled and split; of numbers [k][neuron] with DOWN, else [neuron][k].  Their unit.
template <bool DOWN> __device__ __forceinline__ float split(Split<4> (&a)[2], const float4 (&v)[4], Unit by) {
    float4 z[4];
#pragma unroll
    for (int r = 0; r < 4; r++) z[r] = times(v[r], by.inverse);
    if (DOWN) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float4 &first = z[2 * half], &second = z[2 * half + 1];
            a[0].put(2 * half, first.x, second.x);
            a[0].put(2 * half + 1, first.y, second.y);
            a[1].put(2 * half, first.z, second.z);
            a[1].put(2 * half + 1, first.w, second.w);
        }
    } else {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            a[r / 2].put(r % 2, z[r].x, z[r].y);
            a[r / 2].put(r % 2 + 2, z[r].z, z[r].w);
        }
    }
    return by.unit;
}

__device__ __forceinline__ float size_of(const float4 (&v)[4]) {
    return fmaxf(fmaxf(size_of(v[0]), size_of(v[1])), fmaxf(size_of(v[2]), size_of(v[3])));
}

// Four numbers of a matrix after their update, of one of two columns of sums
__device__ __forceinline__ float4 moved(float4 v, float keep, float push, float a, float b, float c, float d) {
    return float4{keep * v.x + push * a, keep * v.y + push * b, keep * v.z + push * c, keep * v.w + push * d};
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

    auto fetch = [&] {
        if (fields.left > 0) {
            bool inside = is_out && 4 * t < fields.left;
#pragma unroll
            for (int r = 0; r < 4; r++) copy(own + (slot_next * 4 + r) * 4 * THREADS, w + r * n_in, inside);
            fields.copy_next(slot_next);
            w += DEEP;
            slot_next = after(slot_next);
        }
        copied();
    };

    float y[GROUPS][2][2][4] = {};
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) fetch();
    wait<STAGES - 2>();
    fields.split(0);
    for (int k = 0; k < n_in; k += DEEP) {
        float4 v[4];
        Split<4> a[2];
        wait<STAGES - 3>();
        __syncthreads();
#pragma unroll
        for (int r = 0; r < 4; r++) v[r] = four(own + (slot * 4 + r) * 4 * THREADS);
        float unit = split<false>(a, v, Unit(largest(size_of(v))));
#pragma unroll
        for (int j = 0; j < GROUPS; j++) {
            if (j == GROUPS / 2) {  // in the midst of products, beside which this waits
                fetch();
                if (k + DEEP < n_in) fields.split(after(slot));
            }
            Split<2> b[2];
            fields.rows_of(b, slot, j);
            add_product(y[j], unit * fields.unit(slot, j), a, b);
        }
        slot = after(slot);
    }
    if (!is_out) return;
    float inverse = 1.0f / args.gain;
#pragma unroll
    for (int j = 0; j < 2 * GROUPS; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int row = 8 * j + 2 * t + e;
            if (row >= rows) continue;
            const float(&y0)[4] = y[j / 2][0][j % 2], (&y1)[4] = y[j / 2][1][j % 2];
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

    auto fetch = [&] {
        if (fields.left > 0) {
#pragma unroll
            for (int r = 0; r < 4; r++)
                copy(own + (slot_next * 4 + r) * 4 * THREADS, next + r * n_in, is_in && 4 * t < fields.left);
            fields.copy_next(slot_next);
            next += DEEP * n_in;
            slot_next = after(slot_next);
        }
        copied();
    };

#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) fetch();
#if UPDATES
    // x, split once for all, in the order in which this thread multiplies it
    const float *x = args.x + member * args.x_member + in;
    float *split_x = shared + STAGES * (16 * THREADS + ROWS * STRIDE + (GROUPS + 3) / 4 * 4) + 4 * threadIdx.x;
    auto rows_of_x = [&](float4(&v)[4], int j) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            int row = 16 * j + r / 2 * 8 + 2 * t + r % 2;
            v[r] = is_in && row < rows ? four(x + (long long)row * n_in) : float4{};
        }
    };
    float size = 0.0f;
#pragma unroll
    for (int j = 0; j < GROUPS; j++) {
        float4 v[4];
        rows_of_x(v, j);
        size = fmaxf(size, size_of(v));
    }
    Unit of_x(largest(size));
#pragma unroll
    for (int j = 0; j < GROUPS; j++) {
        float4 v[4];
        Split<4> a[2];
        rows_of_x(v, j);
        split<true>(a, v, of_x);
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
    for (int out = 4 * t; out - 4 * t < n_out; out += DEEP) {
        float4 v[4];
        wait<STAGES - 3>();
        __syncthreads();
#pragma unroll
        for (int r = 0; r < 4; r++) v[r] = four(own + (slot * 4 + r) * 4 * THREADS);
        fetch();
        if (out - 4 * t + DEEP < n_out) fields.split(after(slot));
#if PULLS
        Split<4> weights[2];
        float unit = split<true>(weights, v, Unit(largest(size_of(v))));
#pragma unroll
        for (int j = 0; j < GROUPS; j++) {
            Split<2> b[2];
            fields.rows_of(b, slot, j);
            add_product(y[j], unit * fields.unit(slot, j), weights, b);
        }
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
    for (int j = 0; j < GROUPS; j++) {
        float4 slopes[4];
#pragma unroll
        for (int i = 0; i < 4; i++) slopes[i] = four(slope + min(16 * j + i / 2 * 8 + 2 * t + i % 2, rows - 1) * n_in);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int e = i % 2, row = 16 * j + i / 2 * 8 + 2 * t + e;
            float(&y0)[4] = y[j][0][i / 2], (&y1)[4] = y[j][1][i / 2];
            float4 v = times(slopes[i], args.scale);
            v = float4{v.x * y0[e], v.y * y0[2 + e], v.z * y1[e], v.w * y1[2 + e]};
            if (PASS == 4) y0[e] = v.x, y0[2 + e] = v.y, y1[e] = v.z, y1[2 + e] = v.w;
            else if (is_in && row < rows) *(float4 *)(args.y + (member * args.rows + first + row) * n_in + in) = v;
        }
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
