// Fields that a warp holds in registers, and their products with matrices in shared memory.
//
// Compiled with EIGHTS of samples, HELD and PARTS of neurons: two eights are a band, and a warp has the fields of HELD bands,
// a group, and of one part.  A band has its first eight samples in even places: the others are left out where there are
// none.
#pragma once

#define BANDS ((EIGHTS + 1) / 2)
#define GROUPS ((BANDS + HELD - 1) / HELD)
#define LAST (EIGHTS - 2 * HELD * (GROUPS - 1))  // eights of the last group
#define WARPS (GROUPS * PARTS)
#define ROWS (16 * BANDS)
#define TILES (NN / 16)
#define WIDE (TILES / PARTS)  // tiles of a warp
#define STRIDE ((NN + 31) / 32 * 32)

#include "chip_tiles.cuh"

typedef Tile Fields[HELD][WIDE];  // (neuron, sample)

struct Held {
    const int thread, lane, group, part;
    const bool whole;  // whether all eights of the group have samples
    const Layout lies;

    __device__ __forceinline__ Held()
        : thread(threadIdx.x), lane(thread % 32), group(GROUPS > 1 ? thread / 32 / PARTS : 0), part(thread / 32 % PARTS),
          whole(LAST == 2 * HELD || group < GROUPS - 1), lies(lane) {}

    __device__ __forceinline__ int band(int i) const { return group * HELD + i; }
    __device__ __forceinline__ int tile(int w) const { return part * WIDE + w; }
    __device__ __forceinline__ int neuron(int w) const { return 16 * tile(w) + 2 * (lane / 4); }
    __device__ __forceinline__ bool has(int eight) const { return eight < LAST || whole; }

    // Of the samples that there are; what others hold is used nowhere.
    template <class Done>
    __device__ __forceinline__ void each(Done done) const {
#pragma unroll
        for (int eight = 0; eight < 2 * HELD; eight++)
            if (has(eight))
#pragma unroll
                for (int w = 0; w < WIDE; w++)
#pragma unroll
                    for (int u = 0; u < 2; u++)
#pragma unroll
                        for (int r = eight % 2; r < 4; r += 2) done(eight / 2, w, u, r);
    }

    // -0 + x is x: the first that is added replaces it
    template <int COUNT>
    static __device__ __forceinline__ void clear(Tile (&tiles)[COUNT]) {
#pragma unroll
        for (int w = 0; w < COUNT; w++)
#pragma unroll
            for (int i = 0; i < 8; i++) tiles[w][i / 4][i % 4] = -0.0f;
    }

    static __device__ __forceinline__ void clear(Fields &fields) {
#pragma unroll
        for (int i = 0; i < HELD; i++) clear(fields[i]);
    }

    __device__ __forceinline__ void store(float *to, const Fields &fields) const {
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if (has(2 * i))
#pragma unroll
                for (int w = 0; w < WIDE; w++) lies.put_down(to, band(i), tile(w), fields[i][w]);
    }

    // Products of weights (own neuron, neuron of what is passed on) with fields (sample, neuron)
    template <class Weights>
    __device__ __forceinline__ void pass(Fields &found, const float *from, Weights get) const {
        clear(found);
        if (whole)
            pass_of<2 * HELD>(found, from, get);
        else
            pass_of<LAST>(found, from, get);
    }

    template <int COUNT, class Weights>
    __device__ __forceinline__ void pass_of(Fields &found, const float *from, Weights get) const {
#pragma unroll 1
        for (int m = 0; m < TILES; m++) {
            Split b[HELD];
#pragma unroll
            for (int i = 0; 2 * i < COUNT; i++) {
                Tile x;
                lies.get(x, from, band(i), m);
                b[i] = Split(x);
            }
#pragma unroll
            for (int w = 0; w < WIDE; w++) {
                Tile weights;
                get(weights, w, m);
                add_eights<2, COUNT>(found, w, Split(weights), b);
            }
        }
    }

    // so many columns by eight
    template <int CONTRACTED, int COUNT>
    static __device__ __forceinline__ void add_eights(Fields &sum, int w, const Split &a, const Split (&b)[HELD]) {
#pragma unroll
        for (int i = 0; 2 * i < COUNT; i++)
            if (2 * i + 1 < COUNT)
                add_product<CONTRACTED, 2>(sum[i][w], a, b[i]);
            else
                add_product<CONTRACTED, 1>(sum[i][w], a, b[i]);
    }

    // sum over neurons of products of fields in shared memory, of the samples of two bands
    __device__ __forceinline__ void square(Tile &sum, const float *of, int row, int column) const {
#pragma unroll 4
        for (int m = 0; m < TILES; m++) {
            Tile x;
            lies.get(x, of, row, m);
            const Split a(x);
            if (BANDS > 1) lies.get(x, of, column, m);
            add_product<2, EIGHTS == 1 ? 1 : 2>(sum, a, Split(x));
        }
    }
};
