// A perceptron drawn and trained by one block of threads, from its first weight to its last step.
//
// The equations are those of finite_nets/training/perceptrons.py.  Compiled with
//
//     NN        neurons, filled up to a power of two     LAYERS    hidden layers
//     WARPS     of a block                               TX        lanes that share a row of a matrix
//     ACT, LOSS which activation, which loss             KERNELS   whether kernels are recorded
//
// A thread keeps R x C entries of every hidden matrix in registers: rows ty R + r, columns 4 (tx + TX k) + i.  Products
// end with sums over the TX lanes of a row, or over the lanes and warps of a column, in which every lane keeps a part.
// Fields (sample, neuron) are in shared memory; g takes the place of phi'.  Weights of the first layer are met by their
// images alone: h^1_b moves by sum_a Delta_a g^1_a x_a . x_b / D.

#define THREADS (32 * WARPS)
#define LY (32 / TX)
#define TY (LY * WARPS)
#define R (NN / TY)
#define C (NN / TX)
#define MATRICES (LAYERS - 1)
#define TOGETHER (TX > R ? TX / R : 1)  // samples of a forward product
#define CHUNK (WARPS > 1 ? 4 : 1)       // samples of a backward product whose parts wait for their sum

struct Args {
    const long long *members;
    const float *inputs;    // (sample, direction)
    const float *overlaps;  // (trained, sample), x . x' / D
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
    int width, directions, trained, samples, steps, slots, count, centered;
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

// ---- formulas --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void activated(float h, float gain, float inverse, float &phi, float &slope) {
#if ACT == 0  // tanh: the polynomial of Cephes near zero, exponentials beyond
    float x = gain * h, square = x * x;
    float p = -5.70498872745e-3f * square + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    float near = x + x * square * p;
    float far = 1.0f - __fdividef(2.0f, __expf(2.0f * fabsf(x)) + 1.0f);
    float t = fabsf(x) < 0.625f ? near : copysignf(far, x);
    phi = t * inverse;
    slope = 1.0f - t * t;
#elif ACT == 1  // relu
    slope = h > 0 ? 1.4142135623730951f : 0.0f;
    phi = slope * h;
#elif ACT == 2  // erf
    phi = erff(h);
    slope = 1.1283791670955126f * expf(-h * h);
#elif ACT == 3  // gelu
    float cdf = 0.5f * (1.0f + erff(h * 0.7071067811865476f));
    phi = h * cdf;
    slope = cdf + h * expf(-0.5f * h * h) * 0.3989422804014327f;
#elif ACT == 4  // softplus
    float small = expf(-fabsf(gain * h));
    phi = (fmaxf(gain * h, 0.0f) + logf(1.0f + small)) * inverse;
    slope = (h > 0 ? 1.0f : small) / (1.0f + small);
#else
    phi = h;
    slope = 1.0f;
#endif
}

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

// ---- sums over lanes -------------------------------------------------------------------------------------------------

// Of COUNT values of each of LANES lanes (lane / STRIDE % LANES): lane i keeps values i COUNT / LANES, ...
template <int COUNT, int LANES, int STRIDE>
struct Scattered {
    static __device__ __forceinline__ void sum(float *v, int lane) {
        constexpr int mask = LANES / 2 * STRIDE;
        bool up = lane & mask;
#pragma unroll
        for (int i = 0; i < COUNT / 2; i++) {
            float sent = up ? v[i] : v[i + COUNT / 2], kept = up ? v[i + COUNT / 2] : v[i];
            v[i] = kept + __shfl_xor_sync(0xffffffffu, sent, mask);
        }
        Scattered<COUNT / 2, LANES / 2, STRIDE>::sum(v, lane);
    }
};
template <int COUNT, int STRIDE>
struct Scattered<COUNT, 1, STRIDE> {
    static __device__ __forceinline__ void sum(float *, int) {}
};

__device__ __forceinline__ float over_lanes(float v) {
#pragma unroll
    for (int mask = 16; mask; mask /= 2) v += __shfl_xor_sync(0xffffffffu, v, mask);
    return v;
}

template <int n>
__device__ __forceinline__ void copied(float *to, const float *from) {
    if (n % 4 == 0) {
#pragma unroll
        for (int i = 0; i < n; i += 4) *(float4 *)(to + i) = *(const float4 *)(from + i);
    } else if (n % 2 == 0) {
#pragma unroll
        for (int i = 0; i < n; i += 2) *(float2 *)(to + i) = *(const float2 *)(from + i);
    } else {
#pragma unroll
        for (int i = 0; i < n; i++) to[i] = from[i];
    }
}

// ---- a network -------------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) trained(Args p) {
#ifdef __CUDACC__
    extern __shared__ __align__(16) float shared[];
#endif
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int tx = lane % TX, ty = warp * LY + lane / TX;
    const int width = p.width, samples = p.samples, trained = p.trained;
    const int rows = (samples + TOGETHER - 1) / TOGETHER * TOGETHER, size = rows * NN;
    float *h = shared, *phi = h + size, *g = phi + LAYERS * size, *readout = g + LAYERS * size;
    float *parts = readout + NN, *delta = parts + (WARPS > 1 ? WARPS * CHUNK * NN : 0);
    float *value = delta + rows, *offset = value + rows, *overlaps = offset + rows;
    const long long member = blockIdx.x;
    const unsigned seed = (unsigned)p.members[member];
    const float inverse = 1.0f / p.gain;

    // ---- drawn
    for (int quad = thread; quad < width * p.directions / 4; quad += THREADS) {
        float4 z = normals(quad, 0, seed, width, p.key_low, p.key_high);
        *(float4 *)(phi + 4 * quad) = z;
    }
    for (int quad = thread; quad < NN / 4; quad += THREADS) {
        float4 z = {0.0f, 0.0f, 0.0f, 0.0f};
        if (4 * quad < width) z = normals(quad, LAYERS, seed, width, p.key_low, p.key_high);
        float d = p.deviations[LAYERS];
        readout[4 * quad] = d * z.x, readout[4 * quad + 1] = d * z.y;
        readout[4 * quad + 2] = d * z.z, readout[4 * quad + 3] = d * z.w;
    }
    for (int i = thread; i < trained * samples; i += THREADS) overlaps[i] = p.overlaps[i];
    float W[MATRICES > 0 ? MATRICES : 1][R][C];
#pragma unroll
    for (int l = 0; l < MATRICES; l++)
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int k = 0; k < C / 4; k++) {
                int i = ty * R + r, j = 4 * (tx + TX * k);
                float4 z = {0.0f, 0.0f, 0.0f, 0.0f};
                if (i < width && j < width) z = normals((i * width + j) / 4, l + 1, seed, width, p.key_low, p.key_high);
                float d = p.deviations[l + 1];
                W[l][r][4 * k] = d * z.x, W[l][r][4 * k + 1] = d * z.y;
                W[l][r][4 * k + 2] = d * z.z, W[l][r][4 * k + 3] = d * z.w;
            }
    __syncthreads();
    for (int i = thread; i < size; i += THREADS) {
        int a = i / NN, j = i % NN;
        float sum = 0.0f;
        if (a < samples && j < width)
            for (int d = 0; d < p.directions; d++) sum += phi[j * p.directions + d] * p.inputs[a * p.directions + d];
        h[i] = p.input_scale * p.deviations[0] * sum;
    }
    __syncthreads();

    float initial = 0.0f, exploded = p.never;
    for (int t = 0; t <= p.steps; t++) {
        const int slot = p.slot[t];
        const int met = slot >= 0 || t == 0 ? samples : trained;
        const int starts = KERNELS && slot >= 0 ? samples : trained;
        const float *keep = p.keep + t * (LAYERS + 1), *push = p.push + t * (LAYERS + 1);

        // ---- forward
        for (int i = thread; i < (met + TOGETHER - 1) / TOGETHER * TOGETHER * NN; i += THREADS) {
            float value, slope;
            activated(h[i], p.gain, inverse, value, slope);
            bool inside = NN == width || i % NN < width;
            phi[i] = inside ? value : 0.0f;
            g[i] = inside ? slope : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int l = 0; l < MATRICES; l++) {
            const float *x = phi + l * size + 4 * tx;
            float *next = phi + (l + 1) * size, *slopes = g + (l + 1) * size;
            for (int a = 0; a < met; a += TOGETHER) {
                float sum[TOGETHER * R];
#pragma unroll
                for (int i = 0; i < TOGETHER * R; i++) sum[i] = 0.0f;
#pragma unroll
                for (int k = 0; k < C / 4; k++)
#pragma unroll
                    for (int s = 0; s < TOGETHER; s++) {
                        float4 v = *(const float4 *)(x + (a + s) * NN + 4 * TX * k);
#pragma unroll
                        for (int r = 0; r < R; r++) {
                            float &y = sum[s * R + r];
                            const float *w = &W[l][r][4 * k];
                            y += w[0] * v.x;
                            y += w[1] * v.y;
                            y += w[2] * v.z;
                            y += w[3] * v.w;
                        }
                    }
                Scattered<TOGETHER * R, TX, 1>::sum(sum, lane);
#pragma unroll
                for (int e = 0; e < TOGETHER * R / TX; e++) {
                    int of = tx * (TOGETHER * R / TX) + e, row = ty * R + of % R, at = (a + of / R) * NN + row;
                    float value, slope;
                    activated(p.hidden_scale * sum[e], p.gain, inverse, value, slope);
                    bool inside = NN == width || row < width;
                    next[at] = inside ? value : 0.0f;
                    slopes[at] = inside ? slope : 0.0f;
                }
            }
            __syncthreads();
        }
        const float *top = phi + MATRICES * size;
        for (int i = thread / 8; i < (met + 3) / 4 * 4; i += THREADS / 8) {  // 8 lanes a sample
            const int a = min(i, met - 1);
            float sum = 0.0f;
#pragma unroll
            for (int j = 4 * (lane % 8); j < NN; j += 32) {
                float4 v = *(const float4 *)(top + a * NN + j), w = *(const float4 *)(readout + j);
                sum += v.x * w.x + v.y * w.y + v.z * w.z + v.w * w.w;
            }
#pragma unroll
            for (int mask = 4; mask; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
            if (lane % 8 == 0 && i < met) value[a] = p.output_scale * sum;
        }
        __syncthreads();
        for (int a = thread; a < met; a += THREADS) {
            float f = value[a];
            if (t == 0) offset[a] = p.centered ? f : 0.0f;
            f -= offset[a];
            lost(f, p.targets[a], value[a], delta[a]);
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
        float *above = g + MATRICES * size;
        for (int i = thread; i < starts * NN; i += THREADS) above[i] *= readout[i % NN];
        __syncthreads();
        if (t < p.steps)
            for (int j = thread; j < NN; j += THREADS) {
                float sum = 0.0f;
                for (int a = 0; a < trained; a++) sum += delta[a] * top[a * NN + j];
                readout[j] = keep[LAYERS] * readout[j] + push[LAYERS] * sum;
            }
#pragma unroll
        for (int l = MATRICES - 1; l >= 0; l--) {
            const float *out = g + (l + 1) * size + ty * R, *x = phi + l * size + 4 * tx;
            float *slopes = g + l * size;
            for (int a = 0; a < starts; a += CHUNK) {
#pragma unroll 1
                for (int s = 0; s < CHUNK && a + s < starts; s++) {
                    float v[R], sum[C];
                    copied<R>(v, out + (a + s) * NN);
#pragma unroll
                    for (int j = 0; j < C; j++) sum[j] = v[0] * W[l][0][j];
#pragma unroll
                    for (int r = 1; r < R; r++)
#pragma unroll
                        for (int j = 0; j < C; j++) sum[j] += v[r] * W[l][r][j];
                    Scattered<C, LY, TX>::sum(sum, lane);
                    constexpr int each = C / LY;
                    int of = lane / TX * each, column = 4 * (tx + TX * (of / 4)) + of % 4;
                    if (WARPS > 1) {
                        copied<each>(parts + (warp * CHUNK + s) * NN + column, sum);
                    } else {
#pragma unroll
                        for (int e = 0; e < each; e++) slopes[(a + s) * NN + column + e] *= p.hidden_scale * sum[e];
                    }
                }
                if (WARPS > 1) {
                    __syncthreads();
                    int end = min(CHUNK, starts - a) * NN;
                    for (int i = thread; i < end; i += THREADS) {
                        float sum = 0.0f;
#pragma unroll
                        for (int w = 0; w < WARPS; w++) sum += parts[w * CHUNK * NN + i];
                        slopes[a * NN + i] *= p.hidden_scale * sum;
                    }
                    __syncthreads();
                }
            }
            if (t < p.steps) {
                const float kept = keep[l + 1];
                if (kept != 1.0f)
#pragma unroll
                    for (int r = 0; r < R; r++)
#pragma unroll
                        for (int j = 0; j < C; j++) W[l][r][j] *= kept;
                for (int a = 0; a < trained; a++) {
                    float v[R], c = push[l + 1] * delta[a];
                    copied<R>(v, out + a * NN);
#pragma unroll
                    for (int r = 0; r < R; r++) v[r] *= c;
#pragma unroll
                    for (int k = 0; k < C / 4; k++) {
                        float4 u = *(const float4 *)(x + a * NN + 4 * TX * k);
#pragma unroll
                        for (int r = 0; r < R; r++) {
                            float *w = &W[l][r][4 * k];
                            w[0] += v[r] * u.x;
                            w[1] += v[r] * u.y;
                            w[2] += v[r] * u.z;
                            w[3] += v[r] * u.w;
                        }
                    }
                }
            }
            if (WARPS == 1) __syncthreads();
        }
#if KERNELS
        if (slot >= 0) {
            __syncthreads();
            // four lanes a square of 2 x 2 pairs, on or below the diagonal
            const int pairs = samples * samples, half = (samples + 1) / 2, squares = half * (half + 1) / 2;
            const int all = 2 * LAYERS * squares * 4;
            for (int turn = thread; turn < (all + THREADS - 1) / THREADS * THREADS; turn += THREADS) {
                const int i = min(turn, all - 1), part = turn % 4;
                const int kind = i / (4 * LAYERS * squares), l = i / (4 * squares) % LAYERS, square = i / 4 % squares;
                const int row = (int)((sqrtf(8.0f * square + 1.0f) - 1.0f) / 2.0f);
                const int a = 2 * row, b = 2 * (square - row * (row + 1) / 2);
                const float *of = (kind ? g : phi) + l * size;
                const float *rows[4] = {of + a * NN, of + min(a + 1, samples - 1) * NN, of + b * NN,
                                        of + min(b + 1, samples - 1) * NN};
                float sum[2][2] = {};
#pragma unroll 4
                for (int j = 0; j < NN; j += 16) {
                    float4 v[4];
                    int at = (j + 4 * (part + i / 4)) % NN;  // lanes begin in other places, and banks
#pragma unroll
                    for (int k = 0; k < 4; k++) v[k] = *(const float4 *)(rows[k] + at);
#pragma unroll
                    for (int r = 0; r < 2; r++)
#pragma unroll
                        for (int c = 0; c < 2; c++)
                            sum[r][c] += v[r].x * v[2 + c].x + v[r].y * v[2 + c].y + v[r].z * v[2 + c].z +
                                         v[r].w * v[2 + c].w;
                }
                float *to = (kind ? p.g_kernels : p.phi_kernels) +
                            ((slot * (long long)p.count + member) * LAYERS + l) * pairs;
#pragma unroll
                for (int r = 0; r < 2; r++)
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        float found = sum[r][c];
                        found += __shfl_xor_sync(0xffffffffu, found, 1);
                        found += __shfl_xor_sync(0xffffffffu, found, 2);
                        if (part == 0 && turn < all && a + r < samples && b + c < samples) {
                            to[(a + r) * samples + b + c] = found / width;
                            to[(b + c) * samples + a + r] = found / width;
                        }
                    }
            }
        }
        if (t == p.steps) break;
#endif
        for (int i = thread; i < (samples + 1) / 2 * (NN / 4); i += THREADS) {  // two samples a thread
            const int b = i / (NN / 4) * 2, other = min(b + 1, samples - 1), j = 4 * (i % (NN / 4));
            float moved[2][4] = {};
            for (int a = 0; a < trained; a++) {
                float4 v = *(const float4 *)(g + a * NN + j);
                float c = delta[a] * overlaps[a * samples + b], d = delta[a] * overlaps[a * samples + other];
                moved[0][0] += c * v.x, moved[0][1] += c * v.y, moved[0][2] += c * v.z, moved[0][3] += c * v.w;
                moved[1][0] += d * v.x, moved[1][1] += d * v.y, moved[1][2] += d * v.z, moved[1][3] += d * v.w;
            }
#pragma unroll
            for (int s = 0; s < 2; s++)
                if (b + s < samples) {
                    float *to = h + (b + s) * NN + j;
#pragma unroll
                    for (int k = 0; k < 4; k++) to[k] = keep[0] * to[k] + push[0] * moved[s][k];
                }
        }
        __syncthreads();
    }
    if (thread == 0) p.exploded[member] = exploded;
}
