// Products of tiles of 16 x 16, tile (own index, contracted index), by tensor units, and where tiles lie in shared memory.
//
// Lane 4 g + t has own indices 2 g, 2 g + 1 and contracted ones 4 t .. 4 t + 3 of a tile, and in the same places rows and
// columns of the result.
//
// A number is the sum of two in TF32, x = big + small to 2^-23; big big' + big small' + small big' leaves out 2^-24 of a
// product.  Units cut sums off where adders round: they add 16 terms, the rest is added in float32.
#pragma once

#ifdef __CUDACC__
// c += a b: a (16, 8), b (8, 8); lane 4 g + t has a[g, t], a[g + 8, t], a[g, t + 4], a[g + 8, t + 4]; b[t, g], b[t + 4, g];
// c[g, 2 t], c[g, 2 t + 1], c[g + 8, 2 t], c[g + 8, 2 t + 1]
__device__ __forceinline__ void mma(float (&c)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
          "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
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

typedef float Tile[2][4];  // [own index 2 g + u][contracted index 4 t + r], or of a result [row 2 g + u][column 4 t + r]

struct Split {
    Tile big, small;

    Split() = default;

    __device__ __forceinline__ explicit Split(const Tile &x) {
#pragma unroll
        for (int u = 0; u < 2; u++)
#pragma unroll
            for (int r = 0; r < 4; r++) big[u][r] = to_tf32(x[u][r]), small[u][r] = x[u][r] - big[u][r];
    }
};

// sum += a b^T, of the even of contracted indices or all, and the even of columns or all
template <int CONTRACTED, int COLUMNS>
__device__ __forceinline__ void add_product(Tile &sum, const Split &a, const Split &b) {
    float part[2][4] = {};
#pragma unroll
    for (int term = 0; term < 3; term++)  // the largest at last
#pragma unroll
        for (int k = 0; k < CONTRACTED; k++)
#pragma unroll
            for (int u = 0; u < COLUMNS; u++) {
                const Tile &x = term == 0 ? a.small : a.big, &y = term == 1 ? b.small : b.big;
                mma(part[u], x[0][k], x[1][k], x[0][k + 2], x[1][k + 2], y[u][k], y[u][k + 2]);
            }
#pragma unroll
    for (int u = 0; u < COLUMNS; u++)
#pragma unroll
        for (int e = 0; e < 4; e++) sum[e / 2][2 * (e % 2) + u] += part[u][e];
}

// Matrices in shared memory, rows STRIDE apart, whose quads change places so that lanes meet no bank twice.
struct Layout {
    int rows, odd, rows_down, odd_down;  // where a lane's numbers begin, and where those of every other tile of columns lie

    __device__ __forceinline__ explicit Layout(int lane) {
        const int g = lane / 4, t = lane % 4;
        rows = 2 * g * STRIDE + 4 * (t ^ (g & 2));
        odd = (g >> 2 ^ g) & 1;
        rows_down = 4 * t * STRIDE + 4 * (g / 2 ^ 2 * (t & 1)) + 2 * (g & 1);
        odd_down = t >> 1;
    }

    static __device__ __forceinline__ int at(int row, int quad) {
        return row * STRIDE + 4 * (quad ^ ((row >> 1 & 2) | ((row >> 3 ^ row >> 1) & 1) << 2));
    }

    __device__ __forceinline__ int across(int row, int column, int u) const {
        return rows + (16 * row + u) * STRIDE + 16 * (column ^ odd);
    }

    // own index: row
    __device__ __forceinline__ void get(Tile &tile, const float *of, int row, int column) const {
#pragma unroll
        for (int u = 0; u < 2; u++) {
            const float4 v = *(const float4 *)(of + across(row, column, u));
            tile[u][0] = v.x, tile[u][1] = v.y, tile[u][2] = v.z, tile[u][3] = v.w;
        }
    }

    __device__ __forceinline__ void put(float *to, int row, int column, const Tile &tile) const {
#pragma unroll
        for (int u = 0; u < 2; u++)
            *(float4 *)(to + across(row, column, u)) = float4{tile[u][0], tile[u][1], tile[u][2], tile[u][3]};
    }

    __device__ __forceinline__ int down(int row, int column, int r) const {
        return rows_down + (16 * row + r) * STRIDE + 16 * (column ^ odd_down ^ r / 2);
    }

    // own index: column
    __device__ __forceinline__ void get_down(Tile &tile, const float *of, int row, int column) const {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const float2 v = *(const float2 *)(of + down(row, column, r));
            tile[0][r] = v.x, tile[1][r] = v.y;
        }
    }

    __device__ __forceinline__ void put_down(float *to, int row, int column, const Tile &tile) const {
#pragma unroll
        for (int r = 0; r < 4; r++) *(float2 *)(to + down(row, column, r)) = float2{tile[0][r], tile[1][r]};
    }
};

// of a matrix whose rows are `stride` apart, as it is
__device__ __forceinline__ void get_plain(Tile &tile, const float *of, int stride, int lane) {
#pragma unroll
    for (int u = 0; u < 2; u++) {
        const float4 v = *(const float4 *)(of + (2 * (lane / 4) + u) * stride + 4 * (lane % 4));
        tile[u][0] = v.x, tile[u][1] = v.y, tile[u][2] = v.z, tile[u][3] = v.w;
    }
}
