// What chip.cu needs of CUDA, by threads of a CPU: one for each of a block, and barriers.
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(threads, blocks)
using std::min;

struct float4 { float x, y, z, w; };
struct float2 { float x, y; };
struct Place { int x; };

static thread_local Place threadIdx;
static Place blockIdx;
alignas(16) static float shared[1 << 17];
static float of_lanes[WARPS][32];
static std::unique_ptr<std::barrier<>> of_block, of_warp[WARPS];

inline void __syncthreads() { of_block->arrive_and_wait(); }
inline float __shfl_xor_sync(unsigned, float value, int mask) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    of_lanes[warp][lane] = value;
    of_warp[warp]->arrive_and_wait();
    float found = of_lanes[warp][lane ^ mask];
    of_warp[warp]->arrive_and_wait();
    return found;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (std::uint64_t)a * b >> 32; }
inline float __fdividef(float a, float b) { return a / b; }
inline float exponential(float x) { return std::exp(x); }
#define __expf exponential

#include "chip.cu"

extern "C" void launch(Args *given) {
    for (blockIdx.x = 0; blockIdx.x < given->count; blockIdx.x++) {
        std::memset(shared, 0xff, sizeof(shared));  // nan: nothing is read that was not written
        of_block = std::make_unique<std::barrier<>>(32 * WARPS);
        for (auto &each : of_warp) each = std::make_unique<std::barrier<>>(32);
        std::vector<std::thread> threads;
        for (int i = 0; i < 32 * WARPS; i++) threads.emplace_back([=] { threadIdx.x = i, trained(*given); });
        for (auto &each : threads) each.join();
    }
}
