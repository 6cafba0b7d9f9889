// Backward through a layer of every member, and its update; and that of the layer below.
#pragma once

// Four numbers of a matrix after their update, of one of two columns of sums
__device__ __forceinline__ float4 moved(float4 v, float keep, float push, float a, float b, float c, float d) {
    return float4{keep * v.x + push * a, keep * v.y + push * b, keep * v.z + push * c, keep * v.w + push * d};
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) pass(const Args args) {
    int n_out = args.n_out, n_in = args.n_in;
    int ins = (n_in + NEURONS - 1) / NEURONS, tiles = (args.rows + ROWS - 1) / ROWS;
    long long member = blockIdx.x / (ins * tiles);
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int first = blockIdx.x % tiles * ROWS, rows = min(ROWS, args.rows - first);
    int in = blockIdx.x / tiles % ins * NEURONS + threadIdx.x / 32 * 32 + 4 * g;
    bool is_in = in < n_in;
    float *w = args.w + member * args.w_member + (is_in ? in : 0) + 4 * t * n_in;  // n_out is a multiple of 4
    float *own = shared + 4 * threadIdx.x;
    Fields fields(shared + STAGES * 16 * THREADS, args.g + member * args.g_member + (long long)first * n_out, n_out, rows);
    const unsigned *sizes = args.g_sizes + member * args.g_sizes_member + first;
    Rows of_rows(shared + STAGES * (16 * THREADS + TILE));
    const float *next = w;
    int slot = 0, slot_next = 0;

    auto fetch = [&] {  // zeros, beyond the last
#pragma unroll
        for (int r = 0; r < 4; r++)
            copy(own + (slot_next * 4 + r) * 4 * THREADS, next + r * n_in, is_in && 4 * t < fields.left);
        fields.copy_next(slot_next);
        next += DEEP * n_in;
        slot_next = after(slot_next);
        copied();
    };

    auto row_of = [&](int i) { return i / 4 * 16 + i / 2 % 2 * 8 + 2 * t + i % 2; };  // of the i-th of this thread

#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) fetch();
#if UPDATES
    float4 x[4 * GROUPS];
#pragma unroll
    for (int i = 0; i < 4 * GROUPS; i++) {
        const float *from = args.x + member * args.x_member + (long long)row_of(i) * n_in + in;
        x[i] = is_in && row_of(i) < rows ? four(from) : float4{};
    }
#endif
    fields.read_units(sizes);
    of_rows.begin(sizes, rows);
#if UPDATES
    float push = args.push * of_rows.in_common(args.x_sizes + member * args.x_sizes_member, sizes, rows);
    // x, split once for all, in the order in which this thread multiplies it
    float *split_x = shared + STAGES * (16 * THREADS + TILE) + Rows::NUMBERS + 4 * threadIdx.x;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4 * GROUPS; i++) x[i] = times(x[i], of_rows.factors[row_of(i)]);
#pragma unroll
    for (int j = 0; j < GROUPS; j++) {
        Split<4> a[2];
        split<true>(a, x + 4 * j);
#pragma unroll
        for (int u = 0; u < 2; u++) {
            put(split_x + (2 * j + u) * PARTS * 4 * THREADS, a[u].high);
            if (PARTS == 2) put(split_x + ((2 * j + u) * PARTS + 1) * 4 * THREADS, a[u].low);
        }
    }
#endif
#if PULLS
    float y[GROUPS][2][2][4] = {};
#endif
    wait<STAGES - 2>();
    fields.split(0);
#if PULLS
    Split<4> factors[2];
    float unit = weights<true>(factors, own, 0);
#endif
    for (int out = 4 * t; out - 4 * t < n_out; out += DEEP) {
        wait<STAGES - 3>();
        __syncthreads();
        fetch();
#if PULLS
#pragma unroll
        for (int j = 0; j < GROUPS; j++) {
            if (j == GROUPS / 2) fields.split(after(slot));
            Split<2> b[2];
            float c[2][2][4] = {};
            fields.rows_of(b, slot, j);
            multiply(c, factors, b);
            add(y[j], unit, c);
        }
        unit = weights<true>(factors, own, after(slot));
#else
        fields.split(after(slot));
#endif
#if UPDATES
        float change[2][2][4] = {}, c[2][2][4] = {};
#pragma unroll
        for (int j = 0; j < GROUPS; j++) {
            Split<4> a[2];
            Split<2> b[2];
#pragma unroll
            for (int u = 0; u < 2; u++) {
                take(a[u].high, split_x + (2 * j + u) * PARTS * 4 * THREADS);
                if (PARTS == 2) take(a[u].low, split_x + ((2 * j + u) * PARTS + 1) * 4 * THREADS);
            }
            fields.columns_of(b, slot, j);
            multiply(c, a, b);
            if (j % 2 || j == GROUPS - 1) move(change, c);
        }
        float4 v[4];
        read(v, own, slot);
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const float(&c0)[4] = change[0][r / 2], (&c1)[4] = change[1][r / 2];
            int e = r % 2;
            float4 found = moved(v[r], args.keep, push, c0[e], c0[2 + e], c1[e], c1[2 + e]);
            if (is_in && out < n_out) *(float4 *)(w + r * n_in) = found;
        }
        w += DEEP * n_in;
#endif
        slot = after(slot);
    }
#if PULLS
    const float *slope = args.slope + member * args.slope_member + (long long)first * n_in + (is_in ? in : 0);
    float *to = args.y + (member * args.rows + first) * n_in + in;
#pragma unroll
    for (int i = 0; i < 4 * GROUPS; i++) {
        float(&y0)[4] = y[i / 4][0][i / 2 % 2], (&y1)[4] = y[i / 4][1][i / 2 % 2];
        float4 kept = four(slope + min(row_of(i), rows - 1) * n_in);
        float4 v = times(slope_of(kept, args.gain), args.scale * of_rows.units[row_of(i)]);
        float4 found{y0[i % 2] *= v.x, y0[2 + i % 2] *= v.y, y1[i % 2] *= v.z, y1[2 + i % 2] *= v.w};
        of_rows.note(row_of(i), found);  // zeros beyond the last
        if (PASS != 4 && is_in && row_of(i) < rows) *(float4 *)(to + row_of(i) * n_in) = found;
    }
    if (PASS != 4) of_rows.give(args.sizes + member * args.rows + first, rows);
#endif
#if PASS == 4
    // g', split as it lies: sums of one product are factors of the next
    int d = args.n_below;
    float *v = args.below + member * args.below_member + (long long)(is_in ? in : 0) * d + 4 * t;
    wait<0>();  // zeros, from beyond the last of g, to where the first of what comes next lies
    __syncthreads();
    const unsigned *of_z = args.z_sizes + member * args.z_sizes_member;
    Fields inputs(fields.tiles, args.z + member * args.z_member, d, rows);
    inputs.copy_next(slot = 0);
    copied();
    inputs.read_units(of_z);
    push = args.push_below * of_rows.in_common(of_rows.found, of_z, rows);
    __syncthreads();
    Split<4> split_y[GROUPS][2];
#pragma unroll
    for (int i = 0; i < 4 * GROUPS; i += 2) {
        float a = of_rows.factors[row_of(i)], b = of_rows.factors[row_of(i + 1)];
#pragma unroll
        for (int u = 0; u < 4; u++) {
            const float *both = y[i / 4][u / 2][i / 2 % 2] + u % 2 * 2;
            split_y[i / 4][u / 2].put(i % 4 + u % 2, both[0] * a, both[1] * b);
        }
    }
    for (int k = 0; k < d; k += DEEP, v += DEEP) {
        float change[2][2][4] = {}, c[2][2][4] = {};
        float4 before[4] = {};
        bool inside = is_in && k + 4 * t < d;
#pragma unroll
        for (int r = 0; r < 4; r++)
            if (inside) before[r] = four(v + r * d);
        wait<0>();
        inputs.split(slot);
        __syncthreads();
        inputs.copy_next(1 - slot);
        copied();
#pragma unroll
        for (int j = 0; j < GROUPS; j++) {
            Split<2> b[2];
            inputs.columns_of(b, slot, j);
            multiply(c, split_y[j], b);
            if (j % 2 || j == GROUPS - 1) move(change, c);
        }
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const float(&c0)[4] = change[r / 2][0], (&c1)[4] = change[r / 2][1];
            int h = r % 2 * 2;
            float4 found = moved(before[r], args.keep_below, push, c0[h], c0[h + 1], c1[h], c1[h + 1]);
            if (inside) *(float4 *)(v + r * d) = found;
        }
        slot = 1 - slot;
    }
#endif
}
