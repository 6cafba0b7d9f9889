// Products of vectors with the first rows of an array A (ROOM, SIZE), in float64 by tensor units: a warp multiplies 16 of
// the long side of A by 8 of the vectors, of which a block has TILES times 8.  Vectors beyond COUNT are not written.
//
//   mixed      out (vector, component) = x A [+ y B] [+ onto]      x (vector, row), of the first *filled rows
//   across     v A^T, of pieces of the components; `gathered` adds them up
//
// Chunks of K numbers of a sum come to shared memory by copies that run ahead, in turn to STAGES places.  Pairs of
// neighbours lie so that those which a quarter of a warp reads at once are in banks of their own.
#define NT ((TILES + WN - 1) / WN)
#define VECTORS (8 * TILES)
#define PITCH (WIDE + 2)
#define STAGE (VECTORS * K + K * PITCH)

static_assert(THREADS == 32 * WM * WN && WIDE == 16 * WM * MT, "as their warps have them");

struct alignas(16) Pair {
    double x, y;
};

struct Sums {
    double of[MT][NT][4] = {};
};

// Of a lane: its place in fragments; of its warp: among those of the block.
struct Place {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, m = threadIdx.x / 32 % WM * MT, n = threadIdx.x / 32 / WM * NT;
};

#ifndef EMULATED
extern __shared__ __align__(16) double shared[];

// c (16, 8) += a (16, 8) b (8, 8)
__device__ __forceinline__ void multiply(double (&c)[4], const double (&a)[4], Pair b) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+d"(c[0]), "+d"(c[1]), "+d"(c[2]), "+d"(c[3])
        : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b.x), "d"(b.y));
}

// A pair to shared memory; zeros if it is not `there`
__device__ __forceinline__ void copy(double *to, const double *from, bool there) {
    unsigned place = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(place), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_one(double *to, const double *from) {
    unsigned place = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(place), "l"(from) : "memory");
}
__device__ __forceinline__ void copied() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int UNDER_WAY> __device__ __forceinline__ void wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(UNDER_WAY) : "memory");
}
// From shared memory, in the order of products: the compiler has no registers for what it would read ahead
__device__ __forceinline__ Pair read(const double *from) {
    unsigned place = (unsigned)__cvta_generic_to_shared(from);
    Pair found;
    asm volatile("ld.shared.v2.f64 {%0, %1}, [%2];" : "=d"(found.x), "=d"(found.y) : "r"(place));
    return found;
}
__device__ __forceinline__ int least(int a, int b) { return a < b ? a : b; }
#endif

// Pair c of row r, of rows of K numbers.
__device__ __forceinline__ int place(int r, int c) { return r * K + 2 * (c ^ (r & 1) << 2); }

// So many rows of K numbers, as far as there are `rows` of `numbers`.
template <int ROWS>
__device__ __forceinline__ void copy_rows(double *to, const double *from, long pitch, int rows, int numbers) {
    constexpr int EACH = THREADS / 8;
    const int r = threadIdx.x / 8, c = threadIdx.x % 8;
    to += place(r, c);
    from += r * pitch + 2 * c;
#pragma unroll
    for (int i = 0; i < ROWS; i += EACH)
        if (i + r < ROWS && i + r < rows) copy(to + i * K, from + i * pitch, 2 * c < numbers);
}

// The sums over chunks, of which `load` (to, chunk) begins to copy one: first K numbers of each vector, then K rows of the
// long side.  Of neighbours there a lane has a pair, for rows g and g + 8 of its fragment, and two numbers of K in turn.
template <class Load>
__device__ __forceinline__ void summed(Sums &sums, int chunks, Load load) {
    const Place at;
#pragma unroll
    for (int i = 0; i < STAGES - 1; ++i) {
        if (i < chunks) load(shared + i * STAGE, i);
        copied();
    }
    for (int chunk = 0; chunk < chunks; ++chunk) {
        wait<STAGES - 2>();
        __syncthreads();
        const int ahead = chunk + STAGES - 1;
        if (ahead < chunks) load(shared + ahead % STAGES * STAGE, ahead);
        copied();
        const double *from = shared + chunk % STAGES * STAGE;
#pragma unroll
        for (int k = 0; k < K / 2; k += 4) {
            double a[MT][4];
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                const double *p = from + VECTORS * K + 2 * (k + at.t) * PITCH + 16 * (at.m + m) + 2 * at.g;
                const Pair u = read(p), v = read(p + PITCH);
                a[m][0] = u.x, a[m][1] = u.y, a[m][2] = v.x, a[m][3] = v.y;
            }
            const double *vectors = from + place(8 * at.n + at.g, k + at.t);
            Pair b = read(vectors);
#pragma unroll
            for (int n = 0; n < NT; ++n) {
                const Pair now = b;
                if (n + 1 < NT) b = read(vectors + (n + 1) * 8 * K);
                if ((WN - 1) * NT + n < TILES || at.n + n < TILES)
#pragma unroll
                    for (int m = 0; m < MT; ++m) multiply(sums.of[m][n], a[m], now);
            }
        }
    }
}

// `put` (vector, the first of 16 of the long side, sums, parity of the vector) for all that a lane has.
template <class Put>
__device__ __forceinline__ void written(const Sums &sums, Put put) {
    const Place at;
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
            const int vector = blockIdx.y * VECTORS + 8 * (at.n + n) + 2 * at.t + odd;
            if (at.n + n < TILES && vector < COUNT)
#pragma unroll
                for (int m = 0; m < MT; ++m) put(vector, 16 * (at.m + m), sums.of[m][n], odd);
        }
}

#ifdef MIXED
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
mixed(const double *x, const double *A, const int *filled,
#if SECOND
      const double *y, const double *B, const int *also_filled,
#endif
#if ONTO
      const double *onto,
#endif
      double *out) {
    const int first = blockIdx.y * VECTORS, rows = least(*filled, ROOM), chunks = (rows + K - 1) / K;
#if SECOND
    const int others = least(*also_filled, ROOM), all = chunks + (others + K - 1) / K;
#else
    const int all = chunks;
#endif
    const long begin = (long)blockIdx.x * WIDE;
    const Place at;
    Sums sums;
    auto load = [&](double *to, int chunk) {
        const double *given = x, *array = A;
        int there = rows;
#if SECOND
        if (chunk >= chunks) given = y, array = B, there = others, chunk -= chunks;
#endif
        copy_rows<VECTORS>(to, given + (long)first * ROOM + chunk * K, ROOM, COUNT - first, ROOM - chunk * K);
#pragma unroll
        for (int i = threadIdx.x; i < K * WIDE / 2; i += THREADS) {
            const int k = i / (WIDE / 2), c = 2 * (i % (WIDE / 2)), row = chunk * K + k;
            copy(to + VECTORS * K + k * PITCH + c, array + (long)least(row, ROOM - 1) * SIZE + begin + c, row < there);
        }
    };
    summed(sums, all, load);
    written(sums, [&](int vector, int m, const double(&c)[4], int odd) {
        const long place = (long)vector * SIZE + begin + m + 2 * at.g;
        Pair made{c[odd], c[2 + odd]};
#if ONTO
        const Pair before = *(const Pair *)(onto + place);
        made.x += before.x, made.y += before.y;
#endif
        *(Pair *)(out + place) = made;
    });
}
#endif

// Into how many pieces the components are divided, so that there are about as many blocks as the device takes at once.
__device__ __forceinline__ int pieces_of(int rows) {
    const int tiles = (rows + WIDE - 1) / WIDE;
    return tiles == 0 ? 0 : tiles < SLOTS ? SLOTS / tiles : 1;
}

#ifdef ACROSS
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
across(const double *v, const double *A, const int *filled, double *parts) {
    const int rows = least(*filled, ROOM), tiles = (rows + WIDE - 1) / WIDE, pieces = pieces_of(rows);
    if (blockIdx.x >= tiles * pieces) return;
    const int tile = blockIdx.x % tiles, piece = blockIdx.x / tiles, first = blockIdx.y * VECTORS;
    const long all = SIZE / K, begin = all * piece / pieces, end = all * (piece + 1) / pieces;
    const Place at;
    Sums sums;
    auto load = [&](double *to, int chunk) {
        copy_rows<VECTORS>(to, v + (long)first * SIZE + (begin + chunk) * K, SIZE, COUNT - first, K);
        const double *from = A + (long)tile * WIDE * SIZE + (begin + chunk) * K;
#pragma unroll
        for (int i = threadIdx.x; i < K * WIDE; i += THREADS)
            if (tile * WIDE + i / K < ROOM)
                copy_one(to + VECTORS * K + i % K * PITCH + i / K, from + (long)(i / K) * SIZE + i % K);
    };
    summed(sums, end - begin, load);
    parts += ((long)tile * pieces + piece) * COUNT * WIDE;
    written(sums, [&](int vector, int m, const double(&c)[4], int odd) {
        *(Pair *)(parts + (long)vector * WIDE + m + 2 * at.g) = {c[odd], c[2 + odd]};
    });
}
#endif

#ifdef GATHERED
// out (vector, row): sums over pieces; zero beyond *filled.
extern "C" __global__ void gathered(const double *parts, const int *filled, double *out) {
    const int rows = least(*filled, ROOM), pieces = pieces_of(rows);
    const int row = blockIdx.x * WIDE + threadIdx.x % WIDE, vector = blockIdx.y * (THREADS / WIDE) + threadIdx.x / WIDE;
    if (row >= ROOM || vector >= COUNT) return;
    double sum = 0;
    const double *from = parts + ((long)(row / WIDE) * pieces * COUNT + vector) * WIDE + row % WIDE;
    if (row < rows)
        for (int i = 0; i < pieces; ++i) sum += from[(long)i * COUNT * WIDE];
    out[(long)vector * ROOM + row] = sum;
}
#endif

#ifdef PLACED
// The array, in its place, with the first *count of these rows from row *start on.
extern "C" __global__ void placed(const double *, const double *rows, const int *start, const int *count, double *array) {
    const int pair = blockIdx.x * THREADS + threadIdx.x;
    if (pair >= SIZE / 2) return;
    const int rows_there = least(*count, ROOM - *start);
    for (int row = blockIdx.y; row < rows_there; row += BLOCKS)
        ((Pair *)array)[(long)(*start + row) * (SIZE / 2) + pair] = ((const Pair *)rows)[(long)row * (SIZE / 2) + pair];
}
#endif
