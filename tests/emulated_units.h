// What KERNELS, tensor_units.cu or factors.cu, need of CUDA, on a CPU, with ALL threads in a block.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#define EMULATED
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define INFINITE HUGE_VAL

constexpr int WARPS = ALL / 32;
alignas(16) static double shared[SHARED + 1];
#include "emulated_threads.h"

static inline int least(int a, int b) { return std::min(a, b); }

// Copies arrive as late as is allowed: when they are waited for
struct Copy { double *to, of[2]; int count; };
static std::vector<std::vector<Copy>> under_way[ALL];
static inline void copy(double *to, const double *from, bool there) {
    Copy one{to, {}, 2};
    if (there) std::memcpy(one.of, from, 16);
    under_way[threadIdx.x].back().push_back(one);
}
static inline void copy_one(double *to, const double *from) { under_way[threadIdx.x].back().push_back({to, {*from}, 1}); }
static inline void copied() { under_way[threadIdx.x].push_back({}); }
template <int UNDER_WAY> static inline void wait() {
    auto &its = under_way[threadIdx.x];
    for (; its.size() > UNDER_WAY + 1; its.erase(its.begin()))
        for (auto &one : its.front()) std::memcpy(one.to, one.of, 8 * one.count);
}

// mma.sync.m16n8k8, by the layout of its fragments
template <class Both> static inline void multiply(double (&c)[4], const double (&a)[4], Both b) {
    const double pair[] = {b.x, b.y};
    static double left[ALL / 32][16][8], right[ALL / 32][8][8];
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int e = 0; e < 4; e++) left[warp][g + e % 2 * 8][t + e / 2 * 4] = a[e];
    for (int e = 0; e < 2; e++) right[warp][t + 4 * e][g] = pair[e];
    __syncwarp();
    for (int e = 0; e < 4; e++)
        for (int k = 0; k < 8; k++) c[e] += left[warp][g + e / 2 * 8][k] * right[warp][k][2 * t + e % 2];
    __syncwarp();
}

using std::sqrt;
struct Pair;
static inline Pair read(const double *from);
#include KERNELS
#ifndef N
static inline Pair read(const double *from) { return *(const Pair *)from; }
#endif

static std::function<void()> its;
static void run() {
    under_way[threadIdx.x] = {{}};
    its();
}

static void launched(int columns, int rows, std::function<void()> kernel) {
    its = kernel;
    for (blockIdx.y = 0; blockIdx.y < rows; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < columns; blockIdx.x++) run_block();
}

// With pointers to what is given and what is made
extern "C" void launch(int columns, int rows, void **its) {
    auto numbers = [=](int i) { return (double *)its[i]; };
    auto counts = [=](int i) { return (int *)its[i]; };
#ifdef PIVOTED
    launched(columns, rows, [=] { pivoted(numbers(0), numbers(1), numbers(2), counts(3), counts(4)); });
#elif defined(NORMALISING)
    launched(columns, rows, [=] { normalising(numbers(0), counts(1), numbers(2)); });
#elif defined(ACROSS)
    launched(columns, rows, [=] { across(numbers(0), numbers(1), counts(2), numbers(3)); });
#elif defined(GATHERED)
    launched(columns, rows, [=] { gathered(numbers(0), counts(1), numbers(2)); });
#elif defined(PLACED)
    launched(columns, rows, [=] { placed(numbers(0), numbers(1), counts(2), counts(3), numbers(4)); });
#elif SECOND && ONTO
    auto given = [=] { mixed(numbers(0), numbers(1), counts(2), numbers(3), numbers(4), counts(5), numbers(6), numbers(7)); };
    launched(columns, rows, given);
#elif SECOND
    auto given = [=] { mixed(numbers(0), numbers(1), counts(2), numbers(3), numbers(4), counts(5), numbers(6)); };
    launched(columns, rows, given);
#elif ONTO
    launched(columns, rows, [=] { mixed(numbers(0), numbers(1), counts(2), numbers(3), numbers(4)); });
#else
    launched(columns, rows, [=] { mixed(numbers(0), numbers(1), counts(2), numbers(3)); });
#endif
}
