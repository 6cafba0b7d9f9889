// Threads of a block of CUDA on one of a CPU: each has a context, and runs until it waits for others.  To be included by
// what has defined WARPS and `shared`, the shared memory.
#include <string.h>
#include <ucontext.h>

struct Indices { int x, y; };
static Indices threadIdx, blockIdx;

struct Thread {
    ucontext_t context;
    char stack[1 << 17];
    bool ended;
};
static Thread threads[32 * WARPS];
static ucontext_t scheduler;

struct Barrier { int count, arrived, generation; };
static Barrier of_block, of_warp[WARPS];

static inline void meet(Barrier &barrier) {
    int generation = barrier.generation;
    if (++barrier.arrived == barrier.count) barrier.arrived = 0, barrier.generation++;
    while (barrier.generation == generation) swapcontext(&threads[threadIdx.x].context, &scheduler);
}
static inline void __syncthreads() { meet(of_block); }
static inline void __syncwarp() { meet(of_warp[threadIdx.x / 32]); }

// x of the thread of this warp whose number differs by the bits of a mask
template <class T> static inline T of_lane(T x, int mask) {
    static T of_lanes[32 * WARPS];
    of_lanes[threadIdx.x] = x;
    __syncwarp();
    T found = of_lanes[threadIdx.x ^ mask];
    __syncwarp();
    return found;
}

static void run();  // the kernel, by the thread whose turn it is
static void run_block() {
    memset(shared, 0xff, sizeof(shared));  // nan: nothing is read that was not written
    of_block = {32 * WARPS, 0, 0};
    for (auto &each : of_warp) each = {32, 0, 0};
    for (auto &each : threads) {
        getcontext(&each.context);
        each.context.uc_stack.ss_sp = each.stack, each.context.uc_stack.ss_size = sizeof(each.stack);
        each.context.uc_link = &scheduler, each.ended = false;
        makecontext(&each.context, [] { run(), threads[threadIdx.x].ended = true; }, 0);
    }
    for (bool any = true; any;) {
        any = false;
        for (threadIdx.x = 0; threadIdx.x < 32 * WARPS; threadIdx.x++)
            if (!threads[threadIdx.x].ended) any = true, swapcontext(&scheduler, &threads[threadIdx.x].context);
    }
}
