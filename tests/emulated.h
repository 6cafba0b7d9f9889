// What chip.cu needs of CUDA, on a CPU.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#define __device__
#define __global__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(threads, blocks)
#ifndef WARPS
#define WARPS (((EIGHTS + 1) / 2 + HELD - 1) / HELD * PARTS)
#endif
using std::max;
using std::min;

struct float4 { float x, y, z, w; };
struct float2 { float x, y; };

alignas(16) static float shared[1 << 17];
#include "emulated_threads.h"

static inline float __shfl_xor_sync(unsigned, float value, int mask) { return of_lane(value, mask); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (std::uint64_t)a * b >> 32; }
static inline float power_of_two(float x) { return std::exp2(x); }
static inline float reciprocal(float x) { return 1.0f / x; }
static inline unsigned __float_as_uint(float x) { unsigned found; return std::memcpy(&found, &x, 4), found; }
static inline float __uint_as_float(unsigned x) { float found; return std::memcpy(&found, &x, 4), found; }
static inline float in_tf32(float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); }  // units read no more

// mma.sync.m16n8k8, by the layout of its fragments; sums are cut off, not rounded
static inline void mma(float (&c)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
    const float a[] = {a0, a1, a2, a3}, b[] = {b0, b1};
    static float left[WARPS][16][8], right[WARPS][8][8];
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int e = 0; e < 4; e++) left[warp][g + e % 2 * 8][t + e / 2 * 4] = in_tf32(a[e]);
    for (int e = 0; e < 2; e++) right[warp][t + 4 * e][g] = in_tf32(b[e]);
    __syncwarp();
    for (int e = 0; e < 4; e++) {
        double sum = c[e];
        for (int k = 0; k < 8; k++) sum += (double)left[warp][g + e / 2 * 8][k] * right[warp][k][2 * t + e % 2];
        float cut = (float)sum;
        c[e] = std::fabs(cut) > std::fabs(sum) ? std::nextafter(cut, 0.0f) : cut;
    }
    __syncwarp();
}

#include "chip.cu"

static Args given;
static void run() { trained(given); }

extern "C" void launch(Args *its) {
    given = *its;
    for (blockIdx.x = 0; blockIdx.x < given.count; blockIdx.x++) run_block();
}
