// A layer of every member in one pass over its matrix: forward, and backward with the update.
//
//     forward     h = scale x W^T + add,  phi(h), phi'(h)
//     backward    g' = scale phi' (g W)
//     update      W <- keep W + push sum_a g_a x_a^T
//
// by matrix units, three products of halves in the place of one (halves.cuh).  Compiled with
//
//     ROWS      of a tile of fields, a multiple of 16    WARPS     of a block, 32 neurons each
//     STAGES    of copies, three at least                BLOCKS    that are to fit on a multiprocessor
//     PRODUCTS  three, or one of rounded numbers         ACT       which activation, none of them backward with phi' as it is
//     PASS      0 forward, 1 backward with the update, 2 the update alone, 3 backward alone, 4 backward with the update
//               and that of the layer below, of which g' is all that is asked:  V <- keep V + push sum_a g'_a z_a^T
//     SLOPE_KEPT  whether a pass forward writes phi'(h)
//
// Weights go from memory to the registers of the thread that multiplies and updates them, by a slot of shared memory
// that is its own.  Which numbers a thread holds (lane 4 g + t, neurons 4 g ... 4 g + 3, 4 t ... 4 t + 3 of the sum) is
// chosen so that it reads and writes four at a time, and so that the sums of an update lie as the weights do.  Fields
// are copied, and while others are multiplied split in place by the warp that copied them, each row in the unit of its
// largest number (`sizes`), which whoever wrote the field has noted.

#define THREADS (32 * WARPS)
#define NEURONS (32 * WARPS)
#define PULLS (PASS != 2)
#define UPDATES (PASS % 3 != 0)

#include "layers.cuh"
#include "fields.cuh"
#include "rows.cuh"
#include "slopes.cuh"

// What this thread has copied of a stage
__device__ __forceinline__ void read(float4 (&v)[4], const float *own, int slot) {
#pragma unroll
    for (int r = 0; r < 4; r++) v[r] = four(own + (slot * 4 + r) * 4 * THREADS);
}

// and as factors, of their unit
template <bool DOWN> __device__ __forceinline__ float weights(Split<4> (&a)[2], const float *own, int slot) {
    float4 v[4];
    read(v, own, slot);
    Unit by(largest(fmaxf(fmaxf(size_of(v[0]), size_of(v[1])), fmaxf(size_of(v[2]), size_of(v[3])))));
#pragma unroll
    for (int r = 0; r < 4; r++) v[r] = times(v[r], by.inverse);
    split<DOWN>(a, v);
    return by.unit;
}

__device__ __forceinline__ int after(int slot) { return slot == STAGES - 1 ? 0 : slot + 1; }

#if PASS == 0
#include "fused_forward.cuh"
#else
#include "fused_backward.cuh"
#endif
