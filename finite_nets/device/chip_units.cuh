// A network on chip whose products are those of tensor units, in three products of TF32: a warp holds fields of its samples
// and neurons in registers, matrices, and fields whose neurons or samples are summed over, lie in shared memory.
#pragma once
#include "chip_held.cuh"

#include "chip_formulas.cuh"

struct Network : Held {
    const Args &p;
    const float gain, inverse;
    // shared: (layer, row, column), with the scale of a layer; (layer, sample, neuron), the last for kernels; (sample, neuron)
    float *matrices, *phi, *g;
    float *readout, *pulls, *values;  // (neuron,), (group, neuron), (part, sample)
    Fields h, slope[MATRICES], last;   // h^1, phi' of all layers but the last, phi of that

    __device__ __forceinline__ Network(float *shared, const Args &p)
        : p(p), gain(SCALED ? p.gain : 1.0f), inverse(1.0f / gain) {
        matrices = shared;
        phi = matrices + MATRICES * NN * STRIDE;
        g = phi + (MATRICES + KERNELS) * ROWS * STRIDE;
        readout = g + ROWS * STRIDE;
        pulls = readout + NN;
        values = pulls;  // which come when those are met
    }

    // of a sample among rows, and which sample has a place in a band
    static __device__ __forceinline__ int place(int a) { return a & ~15 | (a & 7) << 1 | a >> 3 & 1; }
    static __device__ __forceinline__ int sample(int band, int place) { return 16 * band + place / 2 + place % 2 * 8; }

    __device__ __forceinline__ void draw(unsigned seed) {
        float *first = matrices;  // weights of the first layer, in the place of others
        const int depth = p.input_stride, stride = depth + 4;
        for (int i = thread; i < NN * stride; i += THREADS) first[i] = 0.0f;
        together();
        for (int quad = thread; quad < p.width * p.directions / 4; quad += THREADS) {
            const float4 z = drawn(quad, 0, seed, p);
            const float four[4] = {z.x, z.y, z.z, z.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int at = 4 * quad + i;
                first[at / p.directions * stride + at % p.directions] = four[i];
            }
        }
        together();
        clear(h);
        for (int d = 0; d < depth; d += 16) {
#pragma unroll
            for (int i = 0; i < HELD; i++) {
                if (!has(2 * i)) continue;
                Tile x, z;
                get_plain(x, p.inputs + 16 * band(i) * depth + d, depth, lane);
                const Split b(x);
#pragma unroll
                for (int w = 0; w < WIDE; w++) {
                    get_plain(z, first + 16 * tile(w) * stride + d, stride, lane);
                    add_product<2, 2>(h[i][w], Split(z), b);
                }
            }
        }
        each([&](int i, int w, int u, int r) { h[i][w][u][r] *= p.input_scale; });
        together();
#pragma unroll 1
        for (int quad = thread; quad < MATRICES * NN * NN / 4; quad += THREADS) {
            const int l = quad / (NN * NN / 4), i = quad / (NN / 4) % NN, j = quad % (NN / 4);
            float4 z = {0.0f, 0.0f, 0.0f, 0.0f};
            if (i < p.width && 4 * j < p.width) z = drawn((i * p.width + 4 * j) / 4, l + 1, seed, p);
            z.x *= p.hidden_scale, z.y *= p.hidden_scale, z.z *= p.hidden_scale, z.w *= p.hidden_scale;
            *(float4 *)(matrix(l) + Layout::at(i, j)) = z;
        }
        for (int quad = thread; quad < NN / 4; quad += THREADS) {
            float4 z = {0.0f, 0.0f, 0.0f, 0.0f};
            if (4 * quad < p.width) z = drawn(quad, LAYERS, seed, p);
            *(float4 *)(readout + 4 * quad) = z;
        }
        together();
    }

    // phi^L . readout of so many samples, at least, and g^L
    __device__ __forceinline__ void forward(int met) {
        const bool meets = 16 * HELD * group < met;
        Fields found;
        if (meets) {
            fire(h, found, slope[0]);
            store(fields(0), found);
        }
        together();
#pragma unroll
        for (int l = 0; l < MATRICES; l++) {
            if (meets) {
                pass(found, fields(l), [&](Tile &weights, int w, int m) { lies.get(weights, matrix(l), tile(w), m); });
                fire(found, last, l < MATRICES - 1 ? slope[l + 1] : found);
                if (l < MATRICES - 1 + KERNELS) store(fields(l + 1), last);
            }
            if (l < MATRICES - 1) together();
        }
        if (meets) {
            read_out(found);
            store(g, found);
        }
        together();
    }

    __device__ __forceinline__ float output(int a) const {
        float sum = values[place(a)];
#pragma unroll
        for (int i = 1; i < PARTS; i++) sum += values[i * ROWS + place(a)];
        return sum;
    }

    // A step of all weights, by `keep` and `push` (layer,), and of h^1, which moves with them by the samples' products; and
    // kernels (layer, sample, sample_2), if there is a place for them.
    __device__ __forceinline__ void backward(bool trains, const float *keep, const float *push, const float *delta,
                                             float *phi_kernels, float *g_kernels) {
        const bool meets = 16 * HELD * group < (g_kernels ? p.samples : p.trained);
        float pulled[2 * WIDE];
        if (trains) pull_readout(delta, pulled);
#pragma unroll
        for (int l = MATRICES - 1; l >= 0; l--) {
            record(l + 1, phi_kernels, g_kernels);
            Fields its;
            if (meets) {
                pass(its, g, [&](Tile &weights, int w, int m) { lies.get_down(weights, matrix(l), m, tile(w)); });
                each([&](int i, int w, int u, int r) { its[i][w][u][r] *= slope[l][i][w][u][r]; });
            }
            together();
            if (trains) {
                if (l == MATRICES - 1 && lane % 2 == 0)
#pragma unroll
                    for (int w = 0; w < WIDE; w++) pulls[group * NN + neuron(w) + lane / 2 % 2] = pulled[w];
                train(l, keep[l + 1], p.hidden_scale * push[l + 1], delta);
            }
            together();
            if (trains && l == MATRICES - 1) train_readout(keep[LAYERS], push[LAYERS]);
            if (meets) store(g, its);
            together();
        }
        record(0, phi_kernels, g_kernels);
        if (trains) move_first(keep[0], push[0], delta);
    }

  private:
    __device__ __forceinline__ float *matrix(int l) const { return matrices + l * NN * STRIDE; }
    __device__ __forceinline__ float *fields(int l) const { return phi + l * ROWS * STRIDE; }

    __device__ __forceinline__ void fire(const Fields &h, Fields &value, Fields &slope) const {
        each([&](int i, int w, int u, int r) {
            activated(h[i][w][u][r], gain, inverse, value[i][w][u][r], slope[i][w][u][r]);
            if (NN != p.width && neuron(w) + u >= p.width) value[i][w][u][r] = 0.0f;
        });
    }

    // found: phi'^L, which becomes g^L
    __device__ __forceinline__ void read_out(Fields &found) const {
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            if (!has(2 * i)) continue;
            float sum[4] = {};
#pragma unroll
            for (int w = 0; w < WIDE; w++) {
                const float2 v = *(const float2 *)(readout + neuron(w));
                Tile &its = found[i][w];
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    sum[r] += last[i][w][0][r] * v.x + last[i][w][1][r] * v.y;
                    its[0][r] *= v.x, its[1][r] *= v.y;
                }
            }
            Scattered<4, 4, 8>::sum(sum, lane);
            sum[0] += __shfl_xor_sync(0xffffffffu, sum[0], 4);
            if (lane / 4 % 2 == 0) values[part * ROWS + 16 * band(i) + 4 * (lane % 4) + lane / 8] = sum[0];
        }
    }

    // sum_a Delta_a phi^L_a of the samples of a group: even lanes have neurons neuron(w) + lane / 2 % 2
    __device__ __forceinline__ void pull_readout(const float *delta, float (&sum)[2 * WIDE]) const {
#pragma unroll
        for (int j = 0; j < 2 * WIDE; j++) sum[j] = 0.0f;
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            if (!has(2 * i) || 16 * band(i) >= p.trained) continue;
            const float4 d = *(const float4 *)(delta + 16 * band(i) + 4 * (lane % 4));
#pragma unroll
            for (int w = 0; w < WIDE; w++)
#pragma unroll
                for (int u = 0; u < 2; u++) {
                    const float *v = last[i][w][u];
                    sum[u * WIDE + w] += d.x * v[0] + d.z * v[2];
                    if (has(2 * i + 1)) sum[u * WIDE + w] += d.y * v[1] + d.w * v[3];
                }
        }
        Scattered<2 * WIDE, 2, 2>::sum(sum, lane);
#pragma unroll
        for (int w = 0; w < WIDE; w++) sum[w] += __shfl_xor_sync(0xffffffffu, sum[w], 1);
    }

    __device__ __forceinline__ void train_readout(float keep, float push) const {
#pragma unroll 1
        for (int j = thread; j < NN; j += THREADS) {
            float sum = pulls[j];
#pragma unroll
            for (int i = 1; i < GROUPS; i++) sum += pulls[i * NN + j];
            readout[j] = keep * readout[j] + push * sum;
        }
    }

    // contracted with samples
    static __device__ __forceinline__ void weigh(Tile &tile, const float *delta, int lane) {
        const float4 d = *(const float4 *)(delta + 4 * (lane % 4));
#pragma unroll
        for (int u = 0; u < 2; u++) tile[u][0] *= d.x, tile[u][1] *= d.y, tile[u][2] *= d.z, tile[u][3] *= d.w;
    }

    // W = keep W + push sum_a Delta_a g_a phi_a^T, of which Delta_a phi_a is split once for all rows if it is of one group
    __device__ __forceinline__ void train(int l, float keep, float push, const float *delta) const {
        constexpr bool once = GROUPS == 1;
        float *to = matrix(l);
        Split b[once ? BANDS : 1][WIDE];
        auto meet = [&](Split (&its)[WIDE], int c) {
#pragma unroll
            for (int w = 0; w < WIDE; w++) {
                Tile y;
                lies.get_down(y, fields(l), c, tile(w));
                if (once) weigh(y, delta + 16 * c, lane);
                its[w] = Split(y);
            }
        };
        if (once)
#pragma unroll
            for (int c = 0; c < BANDS; c++) meet(b[c], c);
#pragma unroll 1
        for (int row = group; row < TILES; row += GROUPS) {
            Tile moved[WIDE];
            clear(moved);
#pragma unroll
            for (int c = 0; c < BANDS; c++) {
                if (BANDS > 1 && 16 * c >= p.trained) break;
                Tile x;
                lies.get_down(x, g, c, row);
                if (!once) weigh(x, delta + 16 * c, lane);
                const Split a(x);
                if (!once) meet(b[0], c);
#pragma unroll
                for (int w = 0; w < WIDE; w++) {
                    if (2 * c + 1 < EIGHTS)
                        add_product<2, 2>(moved[w], a, b[once ? c : 0][w]);
                    else
                        add_product<1, 2>(moved[w], a, b[once ? c : 0][w]);
                }
            }
#pragma unroll
            for (int w = 0; w < WIDE; w++) {
                Tile weights;
                lies.get(weights, to, row, tile(w));
                if (keep != 1.0f)
#pragma unroll
                    for (int i = 0; i < 8; i++) weights[i / 4][i % 4] *= keep;
#pragma unroll
                for (int i = 0; i < 8; i++) weights[i / 4][i % 4] += push * moved[w][i / 4][i % 4];
                lies.put(to, row, tile(w), weights);
            }
        }
    }

    __device__ __forceinline__ void move_first(float keep, float push, const float *delta) {
        Fields moved;
        clear(moved);
        if (whole)
            add_moves<2 * HELD>(moved, delta);
        else
            add_moves<LAST>(moved, delta);
        each([&](int i, int w, int u, int r) { h[i][w][u][r] = keep * h[i][w][u][r] + push * moved[i][w][u][r]; });
    }

    template <int COUNT>
    __device__ __forceinline__ void add_moves(Fields &moved, const float *delta) const {
#pragma unroll
        for (int c = 0; c < BANDS; c++) {
            if (BANDS > 1 && 16 * c >= p.trained) break;
            Split b[HELD];
#pragma unroll
            for (int i = 0; 2 * i < COUNT; i++) {
                Tile x;
                get_plain(x, p.overlaps + 16 * (band(i) * ROWS + c), ROWS, lane);
                weigh(x, delta + 16 * c, lane);
                b[i] = Split(x);
            }
#pragma unroll
            for (int w = 0; w < WIDE; w++) {
                Tile y;
                lies.get_down(y, g, c, tile(w));
                if (2 * c + 1 < EIGHTS)
                    add_eights<2, COUNT>(moved, w, Split(y), b);
                else
                    add_eights<1, COUNT>(moved, w, Split(y), b);
            }
        }
    }

    // u u^T / N of fields u, g^l and phi of the l-th layer from the top, which is written last, a pair of bands a warp
    __device__ __forceinline__ void record(int l, float *phi_kernels, float *g_kernels) const {
        if (!KERNELS || !phi_kernels) return;
        const int samples = p.samples;
        const float mean = 1.0f / p.width;
#pragma unroll 1
        for (int turn = thread / 32; turn < BANDS * (BANDS + 1); turn += WARPS) {
            const float *of = turn % 2 ? g : fields(MATRICES - l);
            float *to = (turn % 2 ? g_kernels + l * samples * samples : phi_kernels + (MATRICES - l) * samples * samples);
            int row = 0, column = turn / 2;  // bands
            while (column > row) column -= ++row;
            Tile sum = {};
            square(sum, of, row, column);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int a = sample(row, 2 * (lane / 4) + i / 4), b = sample(column, 4 * (lane % 4) + i % 4);
                if (a < b || a >= samples) continue;
                to[a * samples + b] = to[b * samples + a] = mean * sum[i / 4][i % 4];
            }
        }
    }
};
