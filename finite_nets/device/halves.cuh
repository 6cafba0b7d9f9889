// Numbers as pairs of halves, and matrix units that multiply them: x = unit (high + low), 22 bits, with a power of two
// for all numbers of a sample, or 16 weights of each of 32 neurons, which come up to 2^15 so.  None is too large, and of
// small ones what is lost is 2^-39 of the largest.  Factors of updates alone share one among samples (`Rows::in_common`).
#pragma once

#include "layers.cuh"

#define PARTS (PRODUCTS == 3 ? 2 : 1)  // of a number

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

// 2^(exponent - 127), as far as there are such numbers
__device__ __forceinline__ float power(int exponent) { return __uint_as_float(min(max(exponent, 0), 255) << 23); }

// A power of two and its inverse, by which numbers up to `largest` come up to 2^15
struct Unit {
    float unit, inverse;

    __device__ __forceinline__ Unit(unsigned largest) {
        unsigned exponent = max(largest >> 23, 15u);
        unit = __uint_as_float(exponent == 255 ? 0x7fffffffu : (exponent - 14) << 23);
        inverse = __uint_as_float((268 - exponent) << 23);
    }

    __device__ __forceinline__ int exponent() const { return __float_as_uint(unit) >> 23; }
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

// c (32, 16) += a (32, 16) b (16, 16), in sums of 16 or 32: matrix units cut off what they add to a long one
__device__ __forceinline__ void multiply(float (&c)[2][2][4], const Split<4> (&a)[2], const Split<2> (&b)[2]) {
#if PRODUCTS == 3
#pragma unroll
    for (int i = 0; i < 4; i++) multiply(c[i & 1][i >> 1], a[i & 1].low, b[i >> 1].high);
#pragma unroll
    for (int i = 0; i < 4; i++) multiply(c[i & 1][i >> 1], a[i & 1].high, b[i >> 1].low);
#endif
#pragma unroll
    for (int i = 0; i < 4; i++) multiply(c[i & 1][i >> 1], a[i & 1].high, b[i >> 1].high);
}

// y += unit c
__device__ __forceinline__ void add(float (&y)[2][2][4], float unit, const float (&c)[2][2][4]) {
#pragma unroll
    for (int i = 0; i < 16; i++) y[i / 8][i / 4 % 2][i % 4] += unit * c[i / 8][i / 4 % 2][i % 4];
}

// y += c, which is zero then
__device__ __forceinline__ void move(float (&y)[2][2][4], float (&c)[2][2][4]) {
#pragma unroll
    for (int i = 0; i < 16; i++) {
        float &from = c[i / 8][i / 4 % 2][i % 4];
        y[i / 8][i / 4 % 2][i % 4] += from;
        from = 0.0f;
    }
}

__device__ __forceinline__ void put(float *to, const unsigned (&of)[4]) {
    *(uint4 *)to = uint4{of[0], of[1], of[2], of[3]};
}

__device__ __forceinline__ void take(unsigned (&to)[4], const float *from) {
    uint4 v = *(const uint4 *)from;
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

// Four scaled numbers of each of four; of numbers [k][neuron] with DOWN, else [neuron][k]
template <bool DOWN> __device__ __forceinline__ void split(Split<4> (&a)[2], const float4 *z) {
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
}
