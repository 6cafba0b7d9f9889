// A perceptron drawn and trained by one block of threads, from its first weight to its last step.
//
// The equations are those of finite_nets/training/perceptrons.py.  Compiled with
//
//     NN        neurons, filled up         LAYERS    hidden layers
//     WARPS     of a block                 BLOCKS    that are to fit on a multiprocessor
//     ACT, LOSS which activation and loss  KERNELS   whether kernels are recorded
//     UNITS     whether products are those of tensor units
//
// and what its products ask for.  Fields (sample, neuron) are in shared memory; g takes the place of phi'.  Weights of the
// first layer are met by their images alone: h^1_b moves by sum_a Delta_a g^1_a x_a . x_b / D.

#define THREADS (32 * WARPS)
#define MATRICES (LAYERS - 1)
#if UNITS
#define STRIDE (NN + 8)
#else
#define STRIDE NN
#endif

#include "chip_formulas.cuh"
#if UNITS
#include "chip_units.cuh"
#else
#include "chip_registers.cuh"
#endif

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) trained(Args p) {
#ifdef __CUDACC__
    extern __shared__ __align__(16) float shared[];
#endif
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int samples = p.samples, trained = p.trained;
    const int rows = (samples + TOGETHER - 1) / TOGETHER * TOGETHER, size = rows * STRIDE;
    const int filled_up = (2 * LAYERS - FOLDED) * size;  // by fields behind h^1
    float *h = shared, *readout = h + size + filled_up, *own = readout + NN, *delta = own + OWN;
    float *value = delta + rows, *offset = value + rows, *overlaps = offset + rows;
    const Fields x = {h, readout, rows, p.width, p.gain, 1.0f / p.gain};
    Matrices matrices(own, p, x);
    const long long member = blockIdx.x;
    const unsigned seed = (unsigned)p.members[member];

    // ---- drawn
    float *first = h + size;  // weights of the first layer, in the place of fields
    const int apart_by = apart(p.directions);
    for (int i = thread; i < filled_up; i += THREADS) first[i] = 0.0f;
    for (int a = thread; a < rows; a += THREADS) delta[a] = 0.0f;
    const int beside = overlap_stride(x, samples);
    for (int i = thread; i < overlap_rows(trained) * beside; i += THREADS) {
        const int a = i / beside, b = i % beside;
        overlaps[i] = a < trained && b < samples ? p.overlaps[a * samples + b] : 0.0f;
    }
    __syncthreads();
    for (int quad = thread; quad < p.width * p.directions / 4; quad += THREADS) {
        const float4 z = drawn(quad, 0, seed, p);
        const float four[4] = {z.x, z.y, z.z, z.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int at = 4 * quad + i;
            first[at / p.directions * apart_by + at % p.directions] = four[i];
        }
    }
    for (int quad = thread; quad < NN / 4; quad += THREADS) {
        float4 z = {0.0f, 0.0f, 0.0f, 0.0f};
        if (4 * quad < p.width) z = drawn(quad, LAYERS, seed, p);
        *(float4 *)(readout + 4 * quad) = z;
    }
    matrices.draw(seed);
    __syncthreads();
    matrices.first(h, first, apart_by);
    __syncthreads();
    for (int i = thread; i < filled_up; i += THREADS) first[i] = 0.0f;
    __syncthreads();

    float initial = 0.0f, exploded = p.never;
    for (int t = 0; t <= p.steps; t++) {
        const int slot = p.slot[t];
        const int met = slot >= 0 || t == 0 ? samples : trained;
        const int starts = KERNELS && slot >= 0 ? samples : trained;
        const float *keep = p.keep + t * (LAYERS + 1), *push = p.push + t * (LAYERS + 1);

        // ---- forward
        for (int i = thread; i < met * NN; i += THREADS) x.fire(0, i / NN, i % NN, h[i / NN * STRIDE + i % NN]);
        __syncthreads();
#pragma unroll
        for (int l = 0; l < MATRICES; l++) matrices.forward(l, met);
        const float *top = x.phi(MATRICES);
        for (int i = thread / 8; i < (met + 3) / 4 * 4; i += THREADS / 8) {  // 8 lanes a sample
            const int a = min(i, met - 1);
            float sum = 0.0f;
#pragma unroll
            for (int j = 4 * (lane % 8); j < NN; j += 32) {
                float4 v = *(const float4 *)(top + a * STRIDE + j), w = *(const float4 *)(readout + j);
                sum += v.x * w.x + v.y * w.y + v.z * w.z + v.w * w.w;
            }
#pragma unroll
            for (int mask = 4; mask; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
            if (lane % 8 == 0 && i < met) value[a] = p.output_scale * sum;
        }
        __syncthreads();
        for (int a = thread; a < met; a += THREADS) {
            float f = value[a], change;
            if (t == 0) offset[a] = p.centered ? f : 0.0f;
            f -= offset[a];
            lost(f, p.targets[a], value[a], change);
            if (a < trained) delta[a] = change;
            if (slot >= 0) p.outputs[(slot * (long long)p.count + member) * samples + a] = f;
        }
        __syncthreads();
        if (warp == 0) {
            float sum = 0.0f;
            for (int a = lane; a < trained; a += 32) sum += value[a];
            float loss = over_lanes(sum) / trained;
            if (t == 0) initial = loss;
            if (!(loss <= p.diverged * initial) && !(loss <= p.diverged)) exploded = fminf(exploded, (float)t);
        }
        if (t == p.steps && !(KERNELS && slot >= 0)) break;

        // ---- backward, and what training adds
        if (t < p.steps)
            for (int j = thread; j < NN; j += THREADS) {
                float sum = 0.0f;
#pragma unroll 4
                for (int a = 0; a < trained; a++) sum += delta[a] * top[a * STRIDE + j];
                readout[j] = keep[LAYERS] * readout[j] + push[LAYERS] * sum;
            }
#pragma unroll
        for (int l = MATRICES - 1; l >= 0; l--)
            matrices.backward(l, starts, t < p.steps, keep[l + 1], push[l + 1], delta);
#if KERNELS
        if (slot >= 0) {
            __syncthreads();
            const long long at = (slot * (long long)p.count + member) * LAYERS * samples * samples;
            matrices.record(p.phi_kernels + at, p.g_kernels + at);
        }
        if (t == p.steps) break;
#endif
        matrices.move_first(overlaps, keep[0], push[0], delta);
        __syncthreads();
    }
    if (thread == 0) p.exploded[member] = exploded;
}
