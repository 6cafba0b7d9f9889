// What a network on chip is made of, whichever way its matrices lie: normal variables, activations, losses.
#pragma once
#include "activations.cuh"

struct Args {
    const long long *members;
    const float *inputs;    // (sample, direction), filled up with zeros to (row, input_stride)
    const float *overlaps;  // (row, row), x . x', with zeros
    const float *targets;   // (sample,)
    const float *keep;      // (step, layer)
    const float *push;      // (step, layer), with all factors of the update
    const int *slot;        // (step,), where a step is recorded; -1 of others
    float *outputs;         // (slot, member, sample)
    float *phi_kernels;     // (slot, member, layer, sample, sample_2)
    float *g_kernels;
    float *exploded;        // (member,)
    const float *deviations;  // (layer,) at initialisation
    float input_scale, hidden_scale, output_scale, gain, never, diverged;
    unsigned key_low, key_high;
    int width, directions, input_stride, trained, samples, steps, count, centered;
};

// ---- normal variables, as finite_nets/device/random.py --------------------------------------------------------------

__device__ __forceinline__ float uniform(unsigned word) { return ((float)word + 0.5f) * 2.3283064365386963e-10f; }

__device__ __forceinline__ void box_muller(unsigned u, unsigned v, float &a, float &b) {
    float radius = sqrtf(-2.0f * logf(uniform(u))), angle = 6.283185307179586f * uniform(v), s, c;
    sincosf(angle, &s, &c);
    a = radius * c;
    b = radius * s;
}

__device__ __noinline__ float4 normals(unsigned quad, unsigned parameter, unsigned member, unsigned width, unsigned k0,
                                       unsigned k1) {
    unsigned c0 = quad, c1 = parameter, c2 = member, c3 = width;
#pragma unroll
    for (int i = 0; i < 10; i++) {
        unsigned high0 = __umulhi(c0, 0xD2511F53u), low0 = c0 * 0xD2511F53u;
        unsigned high1 = __umulhi(c2, 0xCD9E8D57u), low1 = c2 * 0xCD9E8D57u;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    float4 z;
    box_muller(c0, c1, z.x, z.y);
    box_muller(c2, c3, z.z, z.w);
    return z;
}

// Four of a parameter's weights at initialisation.
__device__ __forceinline__ float4 drawn(int quad, int parameter, unsigned member, const Args &p) {
    float4 z = normals(quad, parameter, member, p.width, p.key_low, p.key_high);
    float d = p.deviations[parameter];
    z.x *= d, z.y *= d, z.z *= d, z.w *= d;
    return z;
}

#ifdef __CUDACC__  // as units give them, two units in the last place off
__device__ __forceinline__ float power_of_two(float x) {
    float found;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x));
    return found;
}

__device__ __forceinline__ float reciprocal(float x) {
    float found;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x));
    return found;
}
#endif

// ---- formulas --------------------------------------------------------------------------------------------------------

#if ACT == 0
__device__ __forceinline__ float far_tanh(float x) {
    return fmaf(-2.0f, reciprocal(power_of_two(2.8853900817779268f * x) + 1.0f), 1.0f);
}
#elif ACT == 4
// to 6e-8 of one, in fewer registers
__device__ __forceinline__ float log_1_and(float x) { return logf(1.0f + x); }
#endif

// ell and -d ell / df
__device__ __forceinline__ void lost(float f, float y, float &value, float &delta) {
#if LOSS == 0  // squared
    delta = y - f;
    value = 0.5f * delta * delta;
#elif LOSS == 1  // logistic
    float u = -y * f, small = expf(-fabsf(u));
    value = fmaxf(u, 0.0f) + log1pf(small);
    delta = y * (u > 0 ? 1.0f : small) / (1.0f + small);
#else  // hinge
    value = fmaxf(1.0f - y * f, 0.0f);
    if (!(f == f)) value = f;
    delta = y * f < 1.0f ? y : 0.0f;
#endif
}

__device__ __forceinline__ float over_lanes(float v) {
#pragma unroll
    for (int mask = 16; mask; mask /= 2) v += __shfl_xor_sync(0xffffffffu, v, mask);
    return v;
}

// All threads of the block have come so far.
__device__ __forceinline__ void together() {
    if (WARPS > 1)
        __syncthreads();
    else
        __syncwarp();
}

// Of COUNT values of each of LANES lanes (lane / EVERY % LANES): lane i keeps values i COUNT / LANES, ...
template <int COUNT, int LANES, int EVERY>
struct Scattered {
    static __device__ __forceinline__ void sum(float *v, int lane) {
        constexpr int mask = LANES / 2 * EVERY;
        bool up = lane & mask;
#pragma unroll
        for (int i = 0; i < COUNT / 2; i++) {
            float sent = up ? v[i] : v[i + COUNT / 2], kept = up ? v[i + COUNT / 2] : v[i];
            v[i] = kept + __shfl_xor_sync(0xffffffffu, sent, mask);
        }
        Scattered<COUNT / 2, LANES / 2, EVERY>::sum(v, lane);
    }
};
template <int COUNT, int EVERY>
struct Scattered<COUNT, 1, EVERY> {
    static __device__ __forceinline__ void sum(float *, int) {}
};
