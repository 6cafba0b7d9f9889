// What chip.cu needs of CUDA, on a CPU: a context for each thread of a block, which runs until it waits for others.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <ucontext.h>
#include <vector>

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
struct Place { int x; };

constexpr int ALL = 32 * WARPS;
static Place threadIdx, blockIdx;
alignas(16) static float shared[1 << 17];
static ucontext_t scheduler, of_thread[ALL];

static inline void others_run() {
    int me = threadIdx.x;
    swapcontext(&of_thread[me], &scheduler);
    threadIdx.x = me;
}

struct Barrier {
    int expected = 0, here = 0, turn = 0;
    void wait() {
        int mine = turn;
        if (++here == expected) here = 0, turn++;
        while (mine == turn) others_run();
    }
};
static Barrier of_block, of_warp[WARPS];

static inline void __syncthreads() { of_block.wait(); }
static inline void __syncwarp() { of_warp[threadIdx.x / 32].wait(); }
static inline float __shfl_xor_sync(unsigned, float value, int mask) {
    static float of_lanes[WARPS][32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    of_lanes[warp][lane] = value;
    of_warp[warp].wait();
    float found = of_lanes[warp][lane ^ mask];
    of_warp[warp].wait();
    return found;
}
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
    of_warp[warp].wait();
    for (int e = 0; e < 4; e++) {
        double sum = c[e];
        for (int k = 0; k < 8; k++) sum += (double)left[warp][g + e / 2 * 8][k] * right[warp][k][2 * t + e % 2];
        float cut = (float)sum;
        c[e] = std::fabs(cut) > std::fabs(sum) ? std::nextafter(cut, 0.0f) : cut;
    }
    of_warp[warp].wait();
}

#include "chip.cu"

static Args given;
static bool done[ALL];

static void run() {
    trained(given);
    done[threadIdx.x] = true;
    others_run();
}

extern "C" void launch(Args *its) {
    constexpr int stack = 1 << 16;
    std::vector<char> stacks(ALL * stack);
    given = *its;
    for (blockIdx.x = 0; blockIdx.x < given.count; blockIdx.x++) {
        std::memset(shared, 0xff, sizeof(shared));  // nan: nothing is read that was not written
        of_block = {ALL};
        for (auto &each : of_warp) each = {32};
        for (int i = 0; i < ALL; i++) {
            done[i] = false;
            getcontext(&of_thread[i]);
            of_thread[i].uc_stack.ss_sp = stacks.data() + i * stack;
            of_thread[i].uc_stack.ss_size = stack;
            makecontext(&of_thread[i], run, 0);
        }
        while (std::count(done, done + ALL, false))
            for (int i = 0; i < ALL; i++)
                if (!done[i]) threadIdx.x = i, swapcontext(&scheduler, &of_thread[i]);
    }
}
