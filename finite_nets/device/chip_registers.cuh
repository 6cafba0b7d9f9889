// A network on chip whose products are multiply-adds, its matrices in registers, its fields in shared memory.
//
// Compiled with TX, lanes that share a row of a matrix.  A thread keeps R x C entries of every hidden matrix: rows
// ty R + r, columns 4 (tx + TX k) + i.  Products end with sums over the TX lanes of a row, or over the lanes and warps of
// a column, in which every lane keeps a part.
#pragma once
#include "chip_formulas.cuh"

#define LY (32 / TX)
#define TY (LY * WARPS)
#define R (NN / TY)
#define C (NN / TX)
#define TOGETHER (TX > R ? TX / R : 1)  // samples of a forward product
#define CHUNK (WARPS > 1 ? 4 : 1)       // samples of a backward product whose parts wait for their sum

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

struct Network {
    const Args &p;
    const int thread, lane, warp, tx, ty, rows, size;
    const float gain, inverse;
    // shared: fields (sample, neuron) in the order h^1, phi^L .. phi^1, g^1 .. g^L, of which g takes the place of phi'
    float *h, *readout, *parts, *values, *overlaps;
    float W[MATRICES > 0 ? MATRICES : 1][R][C];

    __device__ __forceinline__ Network(float *shared, const Args &p)
        : p(p), thread(threadIdx.x), lane(thread % 32), warp(thread / 32), tx(lane % TX), ty(warp * LY + lane / TX),
          rows((p.samples + TOGETHER - 1) / TOGETHER * TOGETHER), size(rows * NN),
          gain(SCALED ? p.gain : 1.0f), inverse(1.0f / gain) {
        h = shared;
        readout = h + (1 + 2 * LAYERS) * size;
        parts = readout + NN;
        values = parts + (WARPS > 1 ? WARPS * CHUNK * NN : 0);
        overlaps = values + rows;
    }

    __device__ __forceinline__ float *phi(int l) const { return h + (LAYERS - l) * size; }
    __device__ __forceinline__ float *g(int l) const { return h + (LAYERS + 1 + l) * size; }

    __device__ __forceinline__ void draw(unsigned seed) {
        float *first = h + size;  // weights of the first layer, in the place of fields
        for (int i = thread; i < 2 * LAYERS * size; i += THREADS) first[i] = 0.0f;
        for (int i = thread; i < p.trained * p.samples; i += THREADS)
            overlaps[i] = p.overlaps[i / p.samples * rows + i % p.samples];
        __syncthreads();
        for (int quad = thread; quad < p.width * p.directions / 4; quad += THREADS)
            *(float4 *)(first + 4 * quad) = drawn(quad, 0, seed, p);
        for (int quad = thread; quad < NN / 4; quad += THREADS) {
            float4 z = {0.0f, 0.0f, 0.0f, 0.0f};
            if (4 * quad < p.width) z = drawn(quad, LAYERS, seed, p);
            *(float4 *)(readout + 4 * quad) = z;
        }
        draw_matrices(seed);
        __syncthreads();
        for (int i = thread; i < size; i += THREADS) {
            const int a = i / NN, j = i % NN;
            float sum = 0.0f;
            if (a < p.samples && j < p.width)
                for (int d = 0; d < p.directions; d++) sum += first[j * p.directions + d] * p.inputs[a * p.input_stride + d];
            h[i] = p.input_scale * sum;
        }
        __syncthreads();
        for (int i = thread; i < 2 * LAYERS * size; i += THREADS) first[i] = 0.0f;
        __syncthreads();
    }

    // phi^L . readout of so many samples
    __device__ __forceinline__ void forward(int met) {
        for (int i = thread; i < met * NN; i += THREADS) fire(0, i / NN, i % NN, h[i]);
        __syncthreads();
#pragma unroll
        for (int l = 0; l < MATRICES; l++) forward(l, met);
        const float *top = phi(MATRICES);
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
            if (lane % 8 == 0 && i < met) values[a] = sum;
        }
        __syncthreads();
    }

    static __device__ __forceinline__ int place(int a) { return a; }

    __device__ __forceinline__ float output(int a) const { return values[a]; }

    // A step of all weights, by `keep` and `push` (layer,), and of h^1, which moves with them by the samples' products; and
    // kernels (layer, sample, sample_2), if there is a place for them.
    __device__ __forceinline__ void backward(bool trains, const float *keep, const float *push, const float *delta,
                                             float *phi_kernels, float *g_kernels) {
        if (trains)
            for (int j = thread; j < NN; j += THREADS) {
                float sum = 0.0f;
#pragma unroll 4
                for (int a = 0; a < p.trained; a++) sum += delta[a] * phi(MATRICES)[a * NN + j];
                readout[j] = keep[LAYERS] * readout[j] + push[LAYERS] * sum;
            }
#pragma unroll
        for (int l = MATRICES - 1; l >= 0; l--)
            backward(l, phi_kernels ? p.samples : p.trained, trains, keep[l + 1], push[l + 1], delta);
#if KERNELS
        if (phi_kernels) {
            __syncthreads();
            record(phi_kernels, g_kernels);
        }
#endif
        if (trains) move_first(keep[0], push[0], delta);
        __syncthreads();
    }

  private:
    // what a layer makes of the field of neuron j: phi, and phi', which the last multiplies by its readout
    __device__ __forceinline__ void fire(int l, int sample, int j, float its) const {
        float value, slope;
        activated(its, gain, inverse, value, slope);
        const int at = sample * NN + j;
        phi(l)[at] = NN == p.width || j < p.width ? value : 0.0f;
        g(l)[at] = l == MATRICES ? slope * readout[j] : slope;  // whose weights are zero beyond
    }

    __device__ __forceinline__ void draw_matrices(unsigned seed) {
#pragma unroll
        for (int l = 0; l < MATRICES; l++)
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (int k = 0; k < C / 4; k++) {
                    int i = ty * R + r, j = 4 * (tx + TX * k);
                    float4 z = {0.0f, 0.0f, 0.0f, 0.0f};
                    if (i < p.width && j < p.width) z = drawn((i * p.width + j) / 4, l + 1, seed, p);
                    W[l][r][4 * k] = z.x, W[l][r][4 * k + 1] = z.y;
                    W[l][r][4 * k + 2] = z.z, W[l][r][4 * k + 3] = z.w;
                }
    }

    __device__ __forceinline__ void forward(int l, int met) {
        const float *in = phi(l) + 4 * tx;
        for (int a = 0; a < met; a += TOGETHER) {
            float sum[TOGETHER * R];
#pragma unroll
            for (int i = 0; i < TOGETHER * R; i++) sum[i] = 0.0f;
#pragma unroll
            for (int k = 0; k < C / 4; k++)
#pragma unroll
                for (int s = 0; s < TOGETHER; s++) {
                    float4 v = *(const float4 *)(in + (a + s) * NN + 4 * TX * k);
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
                int of = tx * (TOGETHER * R / TX) + e;
                fire(l + 1, a + of / R, ty * R + of % R, p.hidden_scale * sum[e]);
            }
        }
        __syncthreads();
    }

    // g of a layer from that above, and what training adds to the matrix between them
    __device__ __forceinline__ void backward(int l, int starts, bool trains, float keep, float push, const float *delta) {
        const float *out = g(l + 1) + ty * R, *in = phi(l) + 4 * tx;
        float *slopes = g(l);
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
        if (trains) {
            if (keep != 1.0f)
#pragma unroll
                for (int r = 0; r < R; r++)
#pragma unroll
                    for (int j = 0; j < C; j++) W[l][r][j] *= keep;
            for (int a = 0; a < p.trained; a++) {
                float v[R], c = push * delta[a];
                copied<R>(v, out + a * NN);
#pragma unroll
                for (int r = 0; r < R; r++) v[r] *= c;
#pragma unroll
                for (int k = 0; k < C / 4; k++) {
                    float4 u = *(const float4 *)(in + a * NN + 4 * TX * k);
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

    __device__ __forceinline__ void move_first(float keep, float push, const float *delta) {
        const int samples = p.samples;
        for (int i = thread; i < (samples + 1) / 2 * (NN / 4); i += THREADS) {  // two samples a thread
            const int b = i / (NN / 4) * 2, other = min(b + 1, samples - 1), j = 4 * (i % (NN / 4));
            float moved[2][4] = {};
            for (int a = 0; a < p.trained; a++) {
                float4 v = *(const float4 *)(g(0) + a * NN + j);
                float c = delta[a] * overlaps[a * samples + b], d = delta[a] * overlaps[a * samples + other];
                moved[0][0] += c * v.x, moved[0][1] += c * v.y, moved[0][2] += c * v.z, moved[0][3] += c * v.w;
                moved[1][0] += d * v.x, moved[1][1] += d * v.y, moved[1][2] += d * v.z, moved[1][3] += d * v.w;
            }
#pragma unroll
            for (int s = 0; s < 2; s++)
                if (b + s < samples) {
                    float *to = h + (b + s) * NN + j;
#pragma unroll
                    for (int k = 0; k < 4; k++) to[k] = keep * to[k] + push * moved[s][k];
                }
        }
    }

    // u u^T / N of all fields u (sample, neuron), phi at first; four lanes a square of 2 x 2 pairs, on or below the diagonal
    __device__ __forceinline__ void record(float *phi_kernels, float *g_kernels) const {
        const int samples = p.samples, half = (samples + 1) / 2, squares = half * (half + 1) / 2;
        const int all = 2 * LAYERS * squares * 4;
        for (int turn = thread; turn < (all + THREADS - 1) / THREADS * THREADS; turn += THREADS) {
            const int i = min(turn, all - 1), part = turn % 4;
            const int kind = i / (4 * LAYERS * squares), l = i / (4 * squares) % LAYERS, square = i / 4 % squares;
            const int row = (int)((sqrtf(8.0f * square + 1.0f) - 1.0f) / 2.0f);
            const int a = 2 * row, b = 2 * (square - row * (row + 1) / 2);
            const float *of = kind ? g(l) : phi(l);
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
            float *to = (kind ? g_kernels : phi_kernels) + l * samples * samples;
#pragma unroll
            for (int r = 0; r < 2; r++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    float found = sum[r][c];
                    found += __shfl_xor_sync(0xffffffffu, found, 1);
                    found += __shfl_xor_sync(0xffffffffu, found, 2);
                    if (part == 0 && turn < all && a + r < samples && b + c < samples) {
                        to[(a + r) * samples + b + c] = found / p.width;
                        to[(b + c) * samples + a + r] = found / p.width;
                    }
                }
        }
    }
};
