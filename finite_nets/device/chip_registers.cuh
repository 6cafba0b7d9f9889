// Products of a network on chip by multiply-adds, its matrices in registers.
//
// Compiled with TX, lanes that share a row of a matrix.  A thread keeps R x C entries of every hidden matrix: rows
// ty R + r, columns 4 (tx + TX k) + i.  Products end with sums over the TX lanes of a row, or over the lanes and warps of
// a column, in which every lane keeps a part.
#pragma once

#define LY (32 / TX)
#define TY (LY * WARPS)
#define R (NN / TY)
#define C (NN / TX)
#define TOGETHER (TX > R ? TX / R : 1)  // samples of a forward product
#define CHUNK (WARPS > 1 ? 4 : 1)       // samples of a backward product whose parts wait for their sum
#define OWN (WARPS > 1 ? WARPS * CHUNK * NN : 0)

__device__ __forceinline__ int apart(int count) { return count; }
__device__ __forceinline__ int overlap_stride(const Fields &, int samples) { return samples; }
__device__ __forceinline__ int overlap_rows(int trained) { return trained; }

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

struct Matrices {
    float W[MATRICES > 0 ? MATRICES : 1][R][C];
    float *parts;
    const Args &p;
    const Fields &x;
    int lane, warp, tx, ty;

    __device__ __forceinline__ Matrices(float *own, const Args &p, const Fields &x)
        : parts(own), p(p), x(x), lane(threadIdx.x % 32), warp(threadIdx.x / 32), tx(lane % TX),
          ty(warp * LY + lane / TX) {}

    __device__ __forceinline__ void draw(unsigned seed) {
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

    // h of normal variables (neuron, direction)
    __device__ __forceinline__ void first(float *h, const float *z, int stride) {
        for (int i = threadIdx.x; i < x.rows * NN; i += THREADS) {
            int a = i / NN, j = i % NN;
            float sum = 0.0f;
            if (a < p.samples && j < p.width)
                for (int d = 0; d < p.directions; d++) sum += z[j * stride + d] * p.inputs[a * p.input_stride + d];
            h[i] = p.input_scale * sum;
        }
    }

    __device__ __forceinline__ void forward(int l, int met) {
        const float *in = x.phi(l) + 4 * tx;
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
                x.fire(l + 1, a + of / R, ty * R + of % R, p.hidden_scale * sum[e]);
            }
        }
        __syncthreads();
    }

    // g of a layer from that above, and what training adds to the matrix between them
    __device__ __forceinline__ void backward(int l, int starts, bool trains, float keep, float push, const float *delta) {
        const float *out = x.g(l + 1) + ty * R, *in = x.phi(l) + 4 * tx;
        float *slopes = x.g(l);
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
                for (int i = threadIdx.x; i < end; i += THREADS) {
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

    __device__ __forceinline__ void move_first(const float *overlaps, float keep, float push, const float *delta) {
        const int samples = p.samples;
        for (int i = threadIdx.x; i < (samples + 1) / 2 * (NN / 4); i += THREADS) {  // two samples a thread
            const int b = i / (NN / 4) * 2, other = min(b + 1, samples - 1), j = 4 * (i % (NN / 4));
            float moved[2][4] = {};
            for (int a = 0; a < p.trained; a++) {
                float4 v = *(const float4 *)(x.g(0) + a * NN + j);
                float c = delta[a] * overlaps[a * samples + b], d = delta[a] * overlaps[a * samples + other];
                moved[0][0] += c * v.x, moved[0][1] += c * v.y, moved[0][2] += c * v.z, moved[0][3] += c * v.w;
                moved[1][0] += d * v.x, moved[1][1] += d * v.y, moved[1][2] += d * v.z, moved[1][3] += d * v.w;
            }
#pragma unroll
            for (int s = 0; s < 2; s++)
                if (b + s < samples) {
                    float *to = x.h + (b + s) * NN + j;
#pragma unroll
                    for (int k = 0; k < 4; k++) to[k] = keep * to[k] + push * moved[s][k];
                }
        }
    }

    // u u^T / N of all fields u (sample, neuron), phi at first; four lanes a square of 2 x 2 pairs, on or below the diagonal
    __device__ __forceinline__ void record(float *phi, float *g) {
        const int samples = p.samples, half = (samples + 1) / 2, squares = half * (half + 1) / 2;
        const int all = 2 * LAYERS * squares * 4;
        for (int turn = threadIdx.x; turn < (all + THREADS - 1) / THREADS * THREADS; turn += THREADS) {
            const int i = min(turn, all - 1), part = turn % 4;
            const int kind = i / (4 * LAYERS * squares), l = i / (4 * squares) % LAYERS, square = i / 4 % squares;
            const int row = (int)((sqrtf(8.0f * square + 1.0f) - 1.0f) / 2.0f);
            const int a = 2 * row, b = 2 * (square - row * (row + 1) / 2);
            const float *of = kind ? x.g(l) : x.phi(l);
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
            float *to = (kind ? g : phi) + l * samples * samples;
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
