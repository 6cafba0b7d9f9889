// What is known of each row of a tile of fields, in shared memory.
#pragma once

#include "halves.cuh"

struct Rows {
    static const int NUMBERS = 3 * ROWS;  // of all
    float *units, *factors;
    unsigned *found;  // the largest number of what is written, by its bits

    __device__ __forceinline__ explicit Rows(float *room)
        : units(room), factors(room + ROWS), found((unsigned *)room + 2 * ROWS) {}

    // units of fields of these sizes, for the sums over their numbers; nothing found yet
    __device__ __forceinline__ void begin(const unsigned *sizes, int rows) const {
#pragma unroll
        for (int i = 0; i < (ROWS + THREADS - 1) / THREADS; i++) {
            int row = threadIdx.x + i * THREADS;
            if (row < ROWS) units[row] = Unit(row < rows ? sizes[row] : 0).unit, found[row] = 0;
        }
    }

    // Factors that leave all products of a row with the other's row in one unit, which it returns: of sums over rows units
    // do not come out.  So a row whose products are 2^k smaller than the largest is off by 2^(k-38) of its own largest.
    // Threads meet before they read the factors.
    __device__ __forceinline__ float in_common(const unsigned *sizes, const unsigned *others, int rows) const {
        int most = 0;
#pragma unroll
        for (int i = 0; i < (ROWS + 31) / 32; i++) {
            int row = threadIdx.x % 32 + 32 * i;
            if (row < rows) most = max(most, Unit(sizes[row]).exponent() + Unit(others[row]).exponent());
        }
        most = largest((unsigned)most);
#pragma unroll
        for (int i = 0; i < (ROWS + THREADS - 1) / THREADS; i++) {
            int row = threadIdx.x + i * THREADS;
            Unit own(row < rows ? sizes[row] : 0), other(row < rows ? others[row] : 0);
            if (row < ROWS) factors[row] = own.inverse * power(127 + own.exponent() + other.exponent() - most);
        }
        return power(most - 127);
    }

    __device__ __forceinline__ void note(int row, float4 v) const { atomicMax(found + row, __float_as_uint(size_of(v))); }

    // what was noted, when all threads are done, beside other blocks
    __device__ __forceinline__ void give(unsigned *sizes, int rows) const {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < (ROWS + THREADS - 1) / THREADS; i++) {
            int row = threadIdx.x + i * THREADS;
            if (row < rows) atomicMax(sizes + row, found[row]);
        }
    }
};
