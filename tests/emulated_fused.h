// What KERNELS, fused.cu or readouts.cu, need of CUDA, on a CPU.
#include <math.h>  // and few others: a second is what compiling takes

#define EMULATED
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
template <class T> inline T max(T a, T b) { return a > b ? a : b; }
template <class T> inline T min(T a, T b) { return a < b ? a : b; }

struct float4 { float x, y, z, w; };
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };

alignas(16) static float shared[1 << 17];
#include "emulated_threads.h"

static unsigned of_lanes[WARPS][32][6];
static const float *row_of_lanes[WARPS][32];

struct Copy { float *to, of[4]; int group; };
static struct { Copy under_way[256]; int copies, group; } of_threads[32 * WARPS];

// ---- what threads call -----------------------------------------------------------------------------------------------

inline float __uint_as_float(unsigned bits) { float x; return memcpy(&x, &bits, 4), x; }
inline unsigned __float_as_uint(float x) { unsigned bits; return memcpy(&bits, &x, 4), bits; }
inline void atomicMax(unsigned *to, unsigned x) { *to = max(*to, x); }
inline float __fdividef(float a, float b) { return a / b; }

// Copies arrive as late as is allowed: when they are waited for
inline void copy(float *to, const float *from, bool inside) {
    auto &own = of_threads[threadIdx.x];
    Copy &one = own.under_way[own.copies++] = {to, {}, own.group};
    if (inside) memcpy(one.of, from, 16);
}
inline void copied() { of_threads[threadIdx.x].group++; }
template <int UNDER_WAY> inline void wait() {
    auto &own = of_threads[threadIdx.x];
    int kept = 0;
    for (int i = 0; i < own.copies; i++)
        if (own.under_way[i].group < own.group - UNDER_WAY) memcpy(own.under_way[i].to, own.under_way[i].of, 16);
        else own.under_way[kept++] = own.under_way[i];
    own.copies = kept;
}

// A half as bits, the nearest, and its number
inline unsigned half(float x) {
    unsigned sign = __float_as_uint(x) >> 16 & 0x8000u;
    double size = fabs((double)x);
    if (!(size < 65520)) return sign | (size == size ? 0x7c00u : 0x7e00u);
    int exponent = size < ldexp(1, -14) ? -14 : ilogb(size);
    int steps = (int)nearbyint(ldexp(size, 10 - exponent));  // 1024 to 2048, or fewer
    return sign | (unsigned)((exponent + 14) * 1024 + steps);
}
inline float number(unsigned bits) {
    int exponent = bits >> 10 & 31, steps = bits & 1023;
    float size = exponent == 31 ? (steps ? NAN : INFINITY) : ldexp(exponent ? 1024 + steps : steps, max(exponent, 1) - 25);
    return bits & 0x8000u ? -size : size;
}
inline unsigned halves(float x, float y) { return half(x) | half(y) << 16; }
inline float2 floats(unsigned both) { return {number(both & 0xffffu), number(both >> 16)}; }

inline unsigned largest(unsigned x) {
    int warp = threadIdx.x / 32;
    of_lanes[warp][threadIdx.x % 32][0] = x;
    __syncwarp();
    unsigned found = 0;
    for (auto &lane : of_lanes[warp]) found = max(found, lane[0]);
    __syncwarp();
    return found;
}

inline float __shfl_xor_sync(unsigned, float x, int mask) { return of_lane(x, mask); }

// ldmatrix, by the layout of its fragments
template <bool TRANSPOSED> inline void load(unsigned (&to)[4], const float *row) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    row_of_lanes[warp][lane] = row;
    __syncwarp();
    for (int i = 0; i < 4; i++) {
        unsigned short both[2];
        for (int e = 0; e < 2; e++) {
            int row = TRANSPOSED ? lane % 4 * 2 + e : lane / 4, column = TRANSPOSED ? lane / 4 : lane % 4 * 2 + e;
            memcpy(&both[e], (const unsigned short *)row_of_lanes[warp][8 * i + row] + column, 2);
        }
        to[i] = both[0] | (unsigned)both[1] << 16;
    }
    __syncwarp();
}

// mma.sync.m16n8k16, by the layout of its fragments
inline void multiply(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    auto &of = of_lanes[warp];
    for (int i = 0; i < 4; i++) of[lane][i] = a[i];
    for (int i = 0; i < 2; i++) of[lane][4 + i] = b[i];
    __syncwarp();
    for (int i = 0; i < 4; i++) {
        int row = g + i / 2 * 8, column = 2 * t + i % 2;
        double sum = c[i];
        for (int k = 0; k < 16; k++) {
            unsigned left = of[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
            unsigned right = of[column * 4 + k % 8 / 2][4 + k / 8];
            sum += (double)number(left >> k % 2 * 16 & 0xffffu) * number(right >> k % 2 * 16 & 0xffffu);
        }
        c[i] = sum;
    }
    __syncwarp();
}

#include KERNELS

static Args *given;
static void run() {
    of_threads[threadIdx.x].copies = of_threads[threadIdx.x].group = 0;
    pass(*given);
}
extern "C" void launch(int blocks, Args *args) {
    given = args;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) run_block();
}
