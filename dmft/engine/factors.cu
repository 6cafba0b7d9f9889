// Factors of the Gram matrix (N, N) of a block of vectors, by one block with a thread for each vector.

#ifndef EMULATED
#define INFINITE __longlong_as_double(0x7ff0000000000000ll)
extern __shared__ __align__(16) double shared[];

__device__ __forceinline__ double of_lane(double x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
__device__ __forceinline__ int of_lane(int x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
#endif

struct Best {
    double size;
    int place;
};

__device__ __forceinline__ Best better(Best a, Best b) {
    return b.size > a.size || (b.size == a.size && b.place < a.place) ? b : a;
}

#ifdef PIVOTED
// The order in which a pivoted Cholesky factor takes vectors, those that are dropped last, and how many it takes: as long
// as squares of what is left exceed their floor.  columns: room for the factor (pivot, vector).
extern "C" __global__ void __launch_bounds__(THREADS)
pivoted(const double *gram, const double *floor, double *columns, int *order, int *rank) {
    double *of_pivot = shared;
    Best *of_warps = (Best *)(shared + N);
    const int i = threadIdx.x;
    const bool there = i < N;
    double left = there ? gram[(long)i * N + i] : -INFINITE, least = there ? floor[i] : 0.0;
    int count = 0, mine = N;
    for (; count < N; ++count) {
        Best best{left > least ? left : -INFINITE, i};
        for (int mask = 16; mask; mask /= 2) best = better(best, {of_lane(best.size, mask), of_lane(best.place, mask)});
        __syncthreads();
        if (i % 32 == 0) of_warps[i / 32] = best;
        __syncthreads();
        for (int warp = 0; warp < THREADS / 32; ++warp) best = better(best, of_warps[warp]);
        if (best.size == -INFINITE) break;
        const double given = there ? gram[(long)best.place * N + i] : 0.0;
        if (i < count) of_pivot[i] = columns[(long)i * N + best.place];
        __syncthreads();
        if (there) {
            double sum = 0;
#pragma unroll 8
            for (int k = 0; k < count; ++k) sum += columns[(long)k * N + i] * of_pivot[k];
            const double fresh = left - left == 0 ? (given - sum) / sqrt(best.size) : 0.0;  // of those not taken
            columns[(long)count * N + i] = fresh;
            left -= fresh * fresh;
        }
        if (i == best.place) left = -INFINITE, mine = count;
    }
    __syncthreads();
    int *taken = (int *)shared;
    if (there) taken[i] = mine < N;
    __syncthreads();
    if (there) {
        int place = mine;
        if (mine == N) {
            place = count;
            for (int j = 0; j < i; ++j) place += !taken[j];
        }
        order[place] = i;
    }
    if (i == 0) *rank = count;
}
#endif

#ifdef NORMALISING
// The lower triangle that makes the first *rank vectors orthonormal, one after another: the inverse of their Cholesky
// factor, and zeros.
extern "C" __global__ void __launch_bounds__(THREADS)
normalising(const double *gram, const int *rank, double *out) {
    double *inverse = shared, *rows = shared + N;  // of the diagonal; the triangle, row by row
    const int i = threadIdx.x, r = *rank < N ? *rank : N;
    double *row = rows + i * (i + 1) / 2;
    for (int j = 0; j < r; ++j)
        if (i <= j) rows[j * (j + 1) / 2 + i] = gram[(long)j * N + i];
    for (int j = 0; j < r; ++j) {
        const double *of_pivot = rows + j * (j + 1) / 2;
        double sum = 0;
        __syncthreads();
        if (i >= j && i < r) {
            sum = row[j];
#pragma unroll 4
            for (int k = 0; k < j; ++k) sum -= row[k] * of_pivot[k];
            if (i == j) inverse[j] = 1.0 / sqrt(sum);
        }
        __syncthreads();
        if (i > j && i < r) row[j] = sum * inverse[j];
    }
    for (int j = 0; j < r; ++j) {  // row by row in its place: column i of it
        double *of_row = rows + j * (j + 1) / 2, sum = 0;
        __syncthreads();
        if (i < j)
#pragma unroll 4
            for (int k = i; k < j; ++k) sum -= of_row[k] * rows[k * (k + 1) / 2 + i];
        __syncthreads();
        if (i <= j) of_row[i] = i < j ? sum * inverse[j] : inverse[j];
    }
    __syncthreads();
    for (int j = 0; j < N; ++j)
        if (i < N) out[(long)j * N + i] = j < r && i <= j ? rows[j * (j + 1) / 2 + i] : 0.0;
}
#endif
