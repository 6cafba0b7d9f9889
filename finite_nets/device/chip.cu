// A perceptron drawn and trained by one block of threads, from its first weight to its last step.
//
// The equations are those of finite_nets/training/perceptrons.py.  Compiled with
//
//     NN        neurons, filled up         LAYERS    hidden layers
//     ACT, LOSS which activation and loss  KERNELS   whether kernels are recorded
//     BLOCKS    that are to fit on a multiprocessor
//     SCALED    whether an activation has a gain that is not 1
//     UNITS     whether products are those of tensor units
//
// and what its products ask for.  Weights of the first layer are met by their images alone: h^1_b moves by
// sum_a Delta_a g^1_a x_a . x_b / D.

#define THREADS (32 * WARPS)
#define MATRICES (LAYERS - 1)

#if UNITS
#include "chip_units.cuh"
#else
#include "chip_registers.cuh"
#endif

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) trained(Args p) {
#ifdef __CUDACC__
    extern __shared__ __align__(16) float shared[];
#endif
    const int thread = threadIdx.x, lane = thread % 32, samples = p.samples, trained = p.trained;
    const int rows = (samples + 15) / 16 * 16;
    float *delta = shared, *offset = delta + rows;
    const long long member = blockIdx.x;
    Network network(offset + rows, p);
    for (int a = thread; a < rows; a += THREADS) delta[a] = 0.0f;
    network.draw((unsigned)p.members[member]);

    float initial = 0.0f, exploded = p.never;
    for (int t = 0; t <= p.steps; t++) {
        const int slot = p.slot[t];
        const int met = slot >= 0 || t == 0 ? samples : trained;
        const bool records = KERNELS && slot >= 0;
        const long long at = slot * (long long)p.count + member;
        float *phi_kernels = records ? p.phi_kernels + at * LAYERS * samples * samples : nullptr;
        float *g_kernels = records ? p.g_kernels + at * LAYERS * samples * samples : nullptr;
        network.forward(met);
        if (thread < 32) {
            float sum = 0.0f;
#pragma unroll 1
            for (int a = lane; a < met; a += 32) {
                float f = p.output_scale * network.output(a), value, change;
                if (t == 0) offset[a] = p.centered ? f : 0.0f;
                f -= offset[a];
                lost(f, p.targets[a], value, change);
                if (a < trained) delta[network.place(a)] = change, sum += value;
                if (slot >= 0) p.outputs[at * samples + a] = f;
            }
            const float loss = over_lanes(sum) / trained;
            if (t == 0) initial = loss;
            if (!(loss <= p.diverged * initial) && !(loss <= p.diverged)) exploded = fminf(exploded, (float)t);
        }
        together();
        if (t == p.steps && !records) break;
        network.backward(t < p.steps, p.keep + t * (LAYERS + 1), p.push + t * (LAYERS + 1), delta, phi_kernels, g_kernels);
    }
    if (thread == 0) p.exploded[member] = exploded;
}
