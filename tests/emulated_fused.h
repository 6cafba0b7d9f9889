// What KERNELS, fused.cu or readouts.cu, need of CUDA, by threads of a CPU: one for each of a block, and barriers.
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
#define __launch_bounds__(...)
using std::max;
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
static const float *row_of_lanes[WARPS][32];

inline void __syncthreads() { of_block->arrive_and_wait(); }
inline float __uint_as_float(unsigned bits) { float x; return std::memcpy(&x, &bits, 4), x; }
inline unsigned __float_as_uint(float x) { unsigned bits; return std::memcpy(&bits, &x, 4), bits; }
inline float __fdividef(float a, float b) { return a / b; }
inline float exponential(float x) { return std::exp(x); }
#define __expf exponential

// Copies arrive as late as is allowed: when they are waited for
struct Copy { float *to; float of[4]; };
static thread_local std::vector<std::vector<Copy>> under_way{{}};
inline void copy(float *to, const float *from, bool inside) {
    Copy one{to, {}};
    if (inside) std::memcpy(one.of, from, 16);
    under_way.back().push_back(one);
}
inline void copied() { under_way.push_back({}); }
template <int UNDER_WAY> inline void wait() {
    for (; under_way.size() > UNDER_WAY + 1; under_way.erase(under_way.begin()))
        for (auto &one : under_way.front()) std::memcpy(one.to, one.of, 16);
}

// A half as bits, the nearest, and its number
inline unsigned half(float x) {
    unsigned sign = __float_as_uint(x) >> 16 & 0x8000u;
    double size = std::fabs((double)x);
    if (!(size < 65520)) return sign | (size == size ? 0x7c00u : 0x7e00u);
    int exponent = size < std::ldexp(1, -14) ? -14 : std::ilogb(size);
    int steps = (int)std::nearbyint(std::ldexp(size, 10 - exponent));  // 1024 to 2048, or fewer
    return sign | (unsigned)((exponent + 14) * 1024 + steps);
}
inline float number(unsigned bits) {
    int exponent = bits >> 10 & 31, steps = bits & 1023;
    float size = exponent == 31 ? (steps ? NAN : INFINITY) : std::ldexp(exponent ? 1024 + steps : steps, std::max(exponent, 1) - 25);
    return bits & 0x8000u ? -size : size;
}
inline unsigned halves(float x, float y) { return half(x) | half(y) << 16; }
inline float2 floats(unsigned both) { return {number(both & 0xffffu), number(both >> 16)}; }

inline unsigned largest(float x) {
    int warp = threadIdx.x / 32;
    of_lanes[warp][threadIdx.x % 32][0] = __float_as_uint(x);
    of_warp[warp]->arrive_and_wait();
    unsigned found = 0;
    for (auto &lane : of_lanes[warp]) found = max(found, lane[0]);
    of_warp[warp]->arrive_and_wait();
    return found;
}

inline float __shfl_xor_sync(unsigned, float x, int mask) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    of_lanes[warp][lane][0] = __float_as_uint(x);
    of_warp[warp]->arrive_and_wait();
    float found = __uint_as_float(of_lanes[warp][lane ^ mask][0]);
    of_warp[warp]->arrive_and_wait();
    return found;
}

// ldmatrix, by the layout of its fragments
template <bool TRANSPOSED> inline void load(unsigned (&to)[4], const float *row) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    row_of_lanes[warp][lane] = row;
    of_warp[warp]->arrive_and_wait();
    for (int i = 0; i < 4; i++) {
        std::uint16_t both[2];
        for (int e = 0; e < 2; e++) {
            int row = TRANSPOSED ? lane % 4 * 2 + e : lane / 4, column = TRANSPOSED ? lane / 4 : lane % 4 * 2 + e;
            std::memcpy(&both[e], (const std::uint16_t *)row_of_lanes[warp][8 * i + row] + column, 2);
        }
        to[i] = both[0] | (unsigned)both[1] << 16;
    }
    of_warp[warp]->arrive_and_wait();
}

// mma.sync.m16n8k16, by the layout of its fragments
inline void multiply(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    auto &of = of_lanes[warp];
    for (int i = 0; i < 4; i++) of[lane][i] = a[i];
    for (int i = 0; i < 2; i++) of[lane][4 + i] = b[i];
    of_warp[warp]->arrive_and_wait();
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
    of_warp[warp]->arrive_and_wait();
}

#include KERNELS

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
