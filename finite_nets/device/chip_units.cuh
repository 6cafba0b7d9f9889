// Products of a network on chip by tensor units, in three products of TF32.
//
// Compiled with GROUP, tiles of eight samples that are met together, and FOLDED: whether g^1 takes the place of phi^1,
// where shared memory is short.  Matrices lie in shared memory, (row, column); every warp has TALL x 16 neurons of every
// product.  Rows are 8 or 24 banks apart, so that no fragment but the transposed one of W meets a bank twice.
//
// A number is the sum of two in TF32, x = big + small to 2^-23; big big' + big small' + small big' leaves out 2^-24 of a
// product.  Units cut sums off where adders round: they add 16 terms at most, the rest is added in float32.
#pragma once

#define TALL (NN / 16 > WARPS ? NN / 16 / WARPS : 1)  // tiles of 16 neurons of a warp
#define BANDS (NN / 16 / TALL)
#define PARTS (WARPS / BANDS)  // warps that share their neurons, and divide samples and columns
#define WIDE (NN / 8 / PARTS)
#define TOGETHER (8 * GROUP)
#define OWN (MATRICES * NN * STRIDE)

__device__ __forceinline__ int filled(int count) { return (count + 7) / 8 * 8; }
__device__ __forceinline__ int apart(int count) { return filled(count) + (filled(count) % 16 ? 0 : 8); }
__device__ __forceinline__ int overlap_stride(const Fields &x, int) { return apart(x.rows); }
__device__ __forceinline__ int overlap_rows(int trained) { return filled(trained); }

#ifdef __CUDACC__
// c += a b: a (16, 8), b (8, 8); lane 4 g + t has a[g, t], a[g + 8, t], a[g, t + 4], a[g + 8, t + 4]; b[t, g], b[t + 4, g];
// c[g, 2 t], c[g, 2 t + 1], c[g + 8, 2 t], c[g + 8, 2 t + 1]
__device__ __forceinline__ void mma(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}
#endif

__device__ __forceinline__ float to_tf32(float x) {
#if __CUDA_ARCH__ >= 900  // one instruction
    unsigned found;
    asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(found) : "f"(x));
    return __uint_as_float(found);
#else
    return __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u);
#endif
}

__device__ __forceinline__ void split(float x, float &big, float &small) {
    big = to_tf32(x);
    small = x - big;
}

// A matrix (of the result's own index, contracted).
struct View {
    const float *at;
    int own, contracted;

    __device__ __forceinline__ float2 pair(int i, int one, int other) const {
        if (contracted == 1 && other == one + 1) return *(const float2 *)(at + i * own + one);
        return {at[i * own + one * contracted], at[i * own + other * contracted]};
    }
};

// sum += a b over `depth` indices, TERMS at a time, of which the k-th has a factor.  PAIRS: neighbours in b lie side by
// side, and are read together: what a unit takes for indices t and t + 4 are 2 t and 2 t + 1.
template <bool PAIRS, int TERMS, int M, int N>
__device__ __forceinline__ void multiply(float (&sum)[M][N][4], View a, View b, int depth,
                                         const float *factor = nullptr) {
    constexpr int TILES = TERMS / 8;
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll (M * N >= 8 ? 1 : M * N >= 3 ? 2 : 4)  // some eight products that do not wait for each other
    for (int k = 0; k < depth; k += TERMS) {
        float big[TILES][M][4], small[TILES][M][4];
#pragma unroll
        for (int c = 0; c < TILES; c++) {
            const int one = k + 8 * c + (PAIRS ? 2 * t : t), other = one + (PAIRS ? 1 : 4);
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float2 v = a.pair(16 * m + g + 8 * e, one, other);
                    if (factor) v.x *= factor[one], v.y *= factor[other];
                    split(v.x, big[c][m][e], small[c][m][e]);
                    split(v.y, big[c][m][e + 2], small[c][m][e + 2]);
                }
        }
#pragma unroll
        for (int n = 0; n < N; n++) {
            float part[M][4] = {};
#pragma unroll
            for (int c = 0; c < TILES; c++) {
                const int one = k + 8 * c + (PAIRS ? 2 * t : t), other = one + (PAIRS ? 1 : 4);
                float2 v = b.pair(8 * n + g, one, other);
                float whole[2], rest[2];
                split(v.x, whole[0], rest[0]);
                split(v.y, whole[1], rest[1]);
#pragma unroll
                for (int m = 0; m < M; m++) {
                    mma(part[m], small[c][m], whole);
                    mma(part[m], big[c][m], rest);
                    mma(part[m], big[c][m], whole);
                }
            }
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int e = 0; e < 4; e++) sum[m][n][e] += part[m][e];
        }
    }
}

// What is done with (neuron, sample) of a product.
template <int M, int N, class Done>
__device__ __forceinline__ void each(const float (&sum)[M][N][4], int row, int column, Done done) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) done(row + 16 * m + g + e / 2 * 8, column + 8 * n + 2 * t + e % 2, sum[m][n][e]);
}

struct Matrices {
    float *at;
    const Args &p;
    const Fields &x;
    int row, part;

    __device__ __forceinline__ Matrices(float *own, const Args &p, const Fields &x)
        : at(own), p(p), x(x), row(threadIdx.x / 32 % BANDS * 16 * TALL), part(threadIdx.x / 32 / BANDS) {}

    __device__ __forceinline__ float *of(int l) const { return at + l * NN * STRIDE; }

    __device__ __forceinline__ void draw(unsigned seed) {
#pragma unroll 1
        for (int quad = threadIdx.x; quad < MATRICES * NN * NN / 4; quad += THREADS) {
            const int l = quad / (NN * NN / 4), i = quad / (NN / 4) % NN, j = 4 * (quad % (NN / 4));
            float4 z = {0.0f, 0.0f, 0.0f, 0.0f};
            if (i < p.width && j < p.width) z = drawn((i * p.width + j) / 4, l + 1, seed, p);
            *(float4 *)(of(l) + i * STRIDE + j) = z;
        }
    }

    // h of normal variables (neuron, direction)
    __device__ __forceinline__ void first(float *h, const float *z, int stride) {
        for (int a = part * 8 * GROUP; a < x.rows; a += PARTS * 8 * GROUP) {
            float sum[TALL][GROUP][4] = {};
            multiply<true, 8>(sum, View{z + row * stride, stride, 1},
                           View{p.inputs + a * p.input_stride, p.input_stride, 1}, p.input_stride);
            each(sum, row, a, [&](int j, int s, float v) { h[s * STRIDE + j] = p.input_scale * v; });
        }
    }

    __device__ __forceinline__ void forward(int l, int met) {
        for (int a = part * 8 * GROUP; a < met; a += PARTS * 8 * GROUP) {
            float sum[TALL][GROUP][4] = {};
            multiply<true, 16>(sum, View{of(l) + row * STRIDE, STRIDE, 1}, View{x.phi(l) + a * STRIDE, STRIDE, 1}, NN);
            each(sum, row, a, [&](int i, int s, float v) {
                if (s < met) x.fire(l + 1, s, i, p.hidden_scale * v);
            });
        }
        __syncthreads();
    }

    // g of a layer from that above, and what training adds to the matrix between them
    __device__ __forceinline__ void backward(int l, int starts, bool trains, float keep, float push, const float *delta) {
        float moved[TALL][WIDE][4] = {};
        if (trains)
            multiply<false, 8>(moved, View{x.g(l + 1) + row, 1, STRIDE}, View{x.phi(l) + part * 8 * WIDE, 1, STRIDE}, filled(p.trained), delta);
        if (FOLDED && l == 0) __syncthreads();
        float *g = x.g(l);
        for (int a = part * 8 * GROUP; a < starts; a += PARTS * 8 * GROUP) {
            float sum[TALL][GROUP][4] = {};
            multiply<true, 16>(sum, View{of(l) + row, 1, STRIDE}, View{x.g(l + 1) + a * STRIDE, STRIDE, 1}, NN);
            each(sum, row, a, [&](int j, int s, float v) {
                const int i = s * STRIDE + j;
                if (s < starts) g[i] = p.hidden_scale * v * (FOLDED && l == 0 ? x.slope(x.h[i]) : g[i]);
            });
        }
        __syncthreads();
        if (trains) {
            const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
            for (int m = 0; m < TALL; m++)
#pragma unroll
                for (int n = 0; n < WIDE; n++)
#pragma unroll
                    for (int e = 0; e < 4; e += 2) {
                        float2 *to = (float2 *)(of(l) + (row + 16 * m + g + 4 * e) * STRIDE + 8 * (part * WIDE + n) + 2 * t);
                        float2 w = *to;
                        w.x = keep * w.x + push * moved[m][n][e];
                        w.y = keep * w.y + push * moved[m][n][e + 1];
                        *to = w;
                    }
        }
    }

    __device__ __forceinline__ void move_first(const float *overlaps, float keep, float push, const float *delta) {
        for (int b = part * 8 * GROUP; b < p.samples; b += PARTS * 8 * GROUP) {
            float sum[TALL][GROUP][4] = {};
            multiply<false, 8>(sum, View{x.g(0) + row, 1, STRIDE}, View{overlaps + b, 1, overlap_stride(x, p.samples)},
                            filled(p.trained), delta);
            each(sum, row, b, [&](int j, int s, float v) {
                float &h = x.h[s * STRIDE + j];
                if (s < p.samples) h = keep * h + push * v;
            });
        }
    }

    // u u^T / N of all fields u (sample, neuron), phi at first; tiles on and below the diagonal, mirrored
    __device__ __forceinline__ void record(float *phi, float *g) {
        const int samples = p.samples, tall = (samples + 15) / 16, wide = (samples + 8 * GROUP - 1) / (8 * GROUP);
        for (int turn = threadIdx.x / 32; turn < 2 * LAYERS * tall * wide; turn += WARPS) {
            const int tile = turn % (tall * wide), l = turn / (tall * wide) % LAYERS;
            const bool kind = turn / (tall * wide) >= LAYERS;
            const int row = 16 * (tile / wide), column = 8 * GROUP * (tile % wide);
            if (column > row + 15) continue;
            const float *of = kind ? x.g(l) : x.phi(l);
            float *to = (kind ? g : phi) + l * samples * samples, sum[1][GROUP][4] = {};
            multiply<true, 16>(sum, View{of + row * STRIDE, STRIDE, 1}, View{of + column * STRIDE, STRIDE, 1}, NN);
            each(sum, row, column, [&](int a, int b, float v) {
                if (a < samples && b <= a) to[a * samples + b] = to[b * samples + a] = v / p.width;
            });
        }
    }
};
