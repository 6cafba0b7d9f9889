// What fused.cu needs of CUDA, by threads of a CPU: one for each of a block, and barriers.
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define EMULATED
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads, blocks)
using std::min;

struct float4 { float x, y, z, w; };
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct Place { int x; };

static thread_local Place threadIdx;
static Place blockIdx;
alignas(16) static float shared[1 << 17];
static std::unique_ptr<std::barrier<>> of_block, of_warp[WARPS];
static unsigned of_lanes[WARPS][32][6];

inline void __syncthreads() { of_block->arrive_and_wait(); }
inline float __uint_as_float(unsigned bits) { float x; return std::memcpy(&x, &bits, 4), x; }
inline unsigned __float_as_uint(float x) { unsigned bits; return std::memcpy(&bits, &x, 4), bits; }
inline float __fdividef(float a, float b) { return a / b; }
inline float exponential(float x) { return std::exp(x); }
#define __expf exponential

inline void copy(float *to, const float *from, bool inside) {
    if (inside) std::memcpy(to, from, 16);
    else std::memset(to, 0, 16);
}
inline void copied() {}
inline void wait() {}
inline float cut(unsigned bits) { return __uint_as_float(bits & ~0x1fffu); }

inline void multiply(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    auto &of = of_lanes[warp];
    for (int i = 0; i < 4; i++) of[lane][i] = a[i];
    for (int i = 0; i < 2; i++) of[lane][4 + i] = b[i];
    of_warp[warp]->arrive_and_wait();
    for (int i = 0; i < 4; i++) {
        int row = g + i / 2 * 8, column = 2 * t + i % 2;
        for (int k = 0; k < 8; k++) {
            float left = cut(of[row % 8 * 4 + k % 4][row / 8 + k / 4 * 2]);
            c[i] += left * cut(of[column * 4 + k % 4][4 + k / 4]);
        }
    }
    of_warp[warp]->arrive_and_wait();
}

#include "fused.cu"

extern "C" void launch(int blocks, Args *given) {
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
        std::memset(shared, 0xff, sizeof(shared));  // nan: nothing is read that was not written
        of_block = std::make_unique<std::barrier<>>(32 * WARPS);
        for (auto &each : of_warp) each = std::make_unique<std::barrier<>>(32);
        std::vector<std::thread> threads;
        for (int i = 0; i < 32 * WARPS; i++) threads.emplace_back([=] { threadIdx.x = i, pass(*given); });
        for (auto &each : threads) each.join();
    }
}
