// Fields in shared memory, part of a sum at a time, as pairs of halves in the unit of each row.
#pragma once

#include "halves.cuh"

#define GROUPS (ROWS / 16)
#define DEEP 16            // of a sum, a stage
#define STRIDE 20          // of rows of a tile, that reads of eight find in different banks
#define TILE (ROWS * STRIDE)

// Tiles (ROWS, DEEP) of fields, one part of a sum after the other, each as many rows of 16 as it has groups.  A row of
// a tile that is split has numbers 0, 1, 4, 5 ... 12, 13 and then 2, 3 ... 15, high and then low.
struct Fields {
    static const int COUNT = (GROUPS + WARPS - 1) / WARPS;
    float *tiles;  // of STAGES
    const float *from;
    int size, rows, left, lane, warp;
    float inverse[2 * COUNT];  // of units of the rows that this lane splits

    // of `rows` rows of `size` numbers, `left` of them in the sum
    __device__ __forceinline__ Fields(float *room, const float *fields, int size, int rows)
        : tiles(room), from(fields), size(size), rows(rows), left(size), lane(threadIdx.x % 32), warp(threadIdx.x / 32) {}

    // before any is split
    __device__ __forceinline__ void read_units(const unsigned *sizes) {
#pragma unroll
        for (int i = 0; i < 2 * COUNT; i++) inverse[i] = Unit(row_of(i) < rows ? sizes[row_of(i)] : 0).inverse;
    }

    __device__ __forceinline__ int row_of(int i) const { return (warp + i / 2 * WARPS) * 16 + i % 2 * 8 + lane / 4; }

    __device__ __forceinline__ void copy_next(int slot) {
#pragma unroll
        for (int i = 0; i < 2 * COUNT; i++) {
            int row = row_of(i), column = lane % 4 * 4;
            bool inside = row < rows && column < left;
            const float *at = from + (row < rows ? row * size + column : 0);
            if (GROUPS % WARPS == 0 || row < ROWS) copy(tiles + slot * TILE + row * STRIDE + column, at, inside);
        }
        from += DEEP;
        left -= DEEP;
    }

    // what this warp has copied
    __device__ __forceinline__ void split(int slot) const {
        float4 v[2 * COUNT];
#pragma unroll
        for (int i = 0; i < 2 * COUNT; i++)
            if (GROUPS % WARPS == 0 || row_of(i) < ROWS)
                v[i] = times(four(tiles + slot * TILE + row_of(i) * STRIDE + lane % 4 * 4), inverse[i]);
        __syncwarp();  // all have read
#pragma unroll
        for (int i = 0; i < 2 * COUNT; i++) {
            if (GROUPS % WARPS && row_of(i) >= ROWS) continue;
            Split<2> s;
            s.put(0, v[i].x, v[i].y);
            s.put(1, v[i].z, v[i].w);
            unsigned *to = (unsigned *)(tiles + slot * TILE + row_of(i) * STRIDE) + lane % 4;
            to[0] = s.high[0], to[4] = s.high[1];
#if PRODUCTS == 3
            to[8] = s.low[0], to[12] = s.low[1];
#endif
        }
    }

    // b[k][row], of 16 rows
    __device__ __forceinline__ void rows_of(Split<2> (&b)[2], int slot, int group) const {
#pragma unroll
        for (int n = 0; n < 2; n++) {
            unsigned v[4];
            load<false>(v, tiles + slot * TILE + (16 * group + 8 * n + lane % 8) * STRIDE + lane / 8 * 4);
            b[n].high[0] = v[0], b[n].high[1] = v[1], b[n].low[0] = v[2], b[n].low[1] = v[3];
        }
    }

    // b[row][k], of 16 rows
    __device__ __forceinline__ void columns_of(Split<2> (&b)[2], int slot, int group) const {
        const float *row = tiles + slot * TILE + (16 * group + lane % 16) * STRIDE + lane / 16 * 4;
        unsigned v[4];
        load<true>(v, row);
        b[0].high[0] = v[0], b[0].high[1] = v[1], b[1].high[0] = v[2], b[1].high[1] = v[3];
        if (PARTS == 2) {
            load<true>(v, row + 8);
            b[0].low[0] = v[0], b[0].low[1] = v[1], b[1].low[0] = v[2], b[1].low[1] = v[3];
        }
    }
};
