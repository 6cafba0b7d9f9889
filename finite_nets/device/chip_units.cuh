// A network on chip whose products are those of tensor units, in three products of TF32.
//
// Compiled with EIGHTS of samples and PARTS of neurons: a warp has the fields of two eights, a band, and of one part in
// registers.  Matrices, and fields whose neurons or samples are summed over, lie in shared memory.  A band has its first
// eight samples in even places: the others are left out where there are none.
#pragma once

#define BANDS ((EIGHTS + 1) / 2)
#define WARPS (BANDS * PARTS)
#define ROWS (16 * BANDS)
#define TILES (NN / 16)
#define WIDE (TILES / PARTS)  // tiles of a warp
#define STRIDE ((NN + 31) / 32 * 32)

#include "chip_formulas.cuh"
#include "chip_tiles.cuh"

typedef Tile Fields[WIDE];  // (neuron, sample)

struct Network {
    const Args &p;
    const int thread, lane, band, part;
    const bool whole;  // whether both eights of the band have samples
    const Layout lies;
    const float inverse;
    // shared: (layer, row, column), with the scale of a layer; (layer, sample, neuron); (sample, neuron)
    float *matrices, *phi, *g;
    float *readout, *pulls, *values;  // (neuron,), (band, neuron), (part, sample)
    Fields h, slope[MATRICES], last;   // h^1, phi' of all layers but the last, phi of that

    __device__ __forceinline__ Network(float *shared, const Args &p)
        : p(p), thread(threadIdx.x), lane(thread % 32), band(thread / 32 / PARTS), part(thread / 32 % PARTS),
          whole(EIGHTS % 2 == 0 || band < BANDS - 1), lies(lane), inverse(1.0f / p.gain) {
        matrices = shared;
        phi = matrices + MATRICES * NN * STRIDE;
        g = phi + MATRICES * ROWS * STRIDE;
        readout = g + ROWS * STRIDE;
        pulls = readout + NN;
        values = pulls;  // which come when those are met
    }

    // of a sample in its band
    static __device__ __forceinline__ int place(int a) { return a & ~15 | (a & 7) << 1 | a >> 3 & 1; }

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
            Tile x, z;
            get_plain(x, p.inputs + 16 * band * depth + d, depth, lane);
            const Split b(x);
#pragma unroll
            for (int w = 0; w < WIDE; w++) {
                get_plain(z, first + 16 * tile(w) * stride + d, stride, lane);
                add_product<2, 2>(h[w], Split(z), b);
            }
        }
        each([&](int w, int u, int r) { h[w][u][r] *= p.input_scale; });
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

    // phi^L . readout of so many samples, at least, and g^L; kernels (layer, sample, sample_2), if there is a place for them
    __device__ __forceinline__ void forward(int met, float *phi_kernels, float *g_kernels) {
        const bool meets = 16 * band < met;
        Fields found;
        if (meets) {
            fire(h, found, slope[0]);
            record(found, phi_kernels, 0);
            store(fields(0), found);
        }
        together();
#pragma unroll
        for (int l = 0; l < MATRICES; l++) {
            if (meets) {
                pass(found, fields(l), [&](Tile &weights, int w, int m) { lies.get(weights, matrix(l), tile(w), m); });
                fire(found, last, l < MATRICES - 1 ? slope[l + 1] : found);
                record(last, phi_kernels, l + 1);
                if (l < MATRICES - 1) store(fields(l + 1), last);
            }
            if (l < MATRICES - 1) together();
        }
        if (meets) {
            float sum[4] = {};
#pragma unroll
            for (int w = 0; w < WIDE; w++) {
                const float2 v = *(const float2 *)(readout + neuron(w));
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    sum[r] += last[w][0][r] * v.x + last[w][1][r] * v.y;
                    found[w][0][r] *= v.x, found[w][1][r] *= v.y;
                }
            }
            Scattered<4, 4, 8>::sum(sum, lane);
            sum[0] += __shfl_xor_sync(0xffffffffu, sum[0], 4);
            if (lane / 4 % 2 == 0) values[part * ROWS + 16 * band + 4 * (lane % 4) + lane / 8] = sum[0];
            record(found, g_kernels, MATRICES);
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
    // kernels of g below the last layer, if there is a place for them.
    __device__ __forceinline__ void backward(bool trains, const float *keep, const float *push, const float *delta,
                                             float *, float *g_kernels) {
        const bool meets = 16 * band < (g_kernels ? p.samples : p.trained);
        float pulled[2 * WIDE];
        if (trains) pull_readout(delta, pulled);
#pragma unroll
        for (int l = MATRICES - 1; l >= 0; l--) {
            Fields its;
            if (meets) {
                pass(its, g, [&](Tile &weights, int w, int m) { lies.get_down(weights, matrix(l), m, tile(w)); });
                each([&](int w, int u, int r) { its[w][u][r] *= slope[l][w][u][r]; });
            }
            together();
            if (trains) {
                if (l == MATRICES - 1 && lane % 2 == 0)
#pragma unroll
                    for (int w = 0; w < WIDE; w++) pulls[band * NN + neuron(w) + lane / 2 % 2] = pulled[w];
                train(l, keep[l + 1], p.hidden_scale * push[l + 1], delta);
            }
            together();
            if (trains && l == MATRICES - 1) train_readout(keep[LAYERS], push[LAYERS]);
            if (meets) {
                record(its, g_kernels, l);
                store(g, its);
            }
            together();
        }
        if (trains) move_first(keep[0], push[0], delta);
    }

  private:
    __device__ __forceinline__ float *matrix(int l) const { return matrices + l * NN * STRIDE; }
    __device__ __forceinline__ float *fields(int l) const { return phi + l * ROWS * STRIDE; }
    __device__ __forceinline__ int tile(int w) const { return part * WIDE + w; }
    __device__ __forceinline__ int neuron(int w) const { return 16 * tile(w) + 2 * (lane / 4); }

    // Of the samples that there are; what others hold is used nowhere.
    template <class Done>
    __device__ __forceinline__ void each(Done done) const {
#pragma unroll
        for (int odd = 0; odd < 2; odd++)
            if (!odd || whole)
#pragma unroll
                for (int w = 0; w < WIDE; w++)
#pragma unroll
                    for (int u = 0; u < 2; u++)
#pragma unroll
                        for (int r = odd; r < 4; r += 2) done(w, u, r);
    }

    // -0 + x is x: the first that is added replaces it
    static __device__ __forceinline__ void clear(Fields &fields) {
#pragma unroll
        for (int w = 0; w < WIDE; w++)
#pragma unroll
            for (int u = 0; u < 2; u++)
#pragma unroll
                for (int r = 0; r < 4; r++) fields[w][u][r] = -0.0f;
    }

    __device__ __forceinline__ void fire(const Fields &h, Fields &value, Fields &slope) const {
        each([&](int w, int u, int r) {
            activated(h[w][u][r], p.gain, inverse, value[w][u][r], slope[w][u][r]);
            if (NN != p.width && neuron(w) + u >= p.width) value[w][u][r] = 0.0f;
        });
    }

    __device__ __forceinline__ void store(float *to, const Fields &fields) const {
#pragma unroll
        for (int w = 0; w < WIDE; w++) lies.put_down(to, band, tile(w), fields[w]);
    }

    // Products of weights (own neuron, neuron of what is passed on) with fields (sample, neuron)
    template <class Weights>
    __device__ __forceinline__ void pass(Fields &found, const float *from, Weights get) const {
        clear(found);
        if (whole)
            pass_of<2>(found, from, get);
        else
            pass_of<1>(found, from, get);
    }

    template <int COLUMNS, class Weights>
    __device__ __forceinline__ void pass_of(Fields &found, const float *from, Weights get) const {
#pragma unroll 1
        for (int m = 0; m < TILES; m++) {
            Tile x, weights;
            lies.get(x, from, band, m);
            const Split b(x);
#pragma unroll
            for (int w = 0; w < WIDE; w++) {
                get(weights, w, m);
                add_product<2, COLUMNS>(found[w], Split(weights), b);
            }
        }
    }

    // sum_a Delta_a phi^L_a of the samples of a band: even lanes have neurons neuron(w) + lane / 2 % 2
    __device__ __forceinline__ void pull_readout(const float *delta, float (&sum)[2 * WIDE]) const {
        const float4 d = *(const float4 *)(delta + 16 * band + 4 * (lane % 4));
#pragma unroll
        for (int w = 0; w < WIDE; w++)
#pragma unroll
            for (int u = 0; u < 2; u++) {
                const float *v = last[w][u];
                sum[u * WIDE + w] = 16 * band < p.trained ? d.x * v[0] + d.z * v[2] : 0.0f;
                if (whole && 16 * band < p.trained) sum[u * WIDE + w] += d.y * v[1] + d.w * v[3];
            }
        Scattered<2 * WIDE, 2, 2>::sum(sum, lane);
#pragma unroll
        for (int w = 0; w < WIDE; w++) sum[w] += __shfl_xor_sync(0xffffffffu, sum[w], 1);
    }

    __device__ __forceinline__ void train_readout(float keep, float push) const {
        for (int j = thread; j < NN; j += THREADS) {
            float sum = pulls[j];
#pragma unroll
            for (int i = 1; i < BANDS; i++) sum += pulls[i * NN + j];
            readout[j] = keep * readout[j] + push * sum;
        }
    }

    // contracted with samples
    static __device__ __forceinline__ void weigh(Tile &tile, const float *delta, int lane) {
        const float4 d = *(const float4 *)(delta + 4 * (lane % 4));
#pragma unroll
        for (int u = 0; u < 2; u++) tile[u][0] *= d.x, tile[u][1] *= d.y, tile[u][2] *= d.z, tile[u][3] *= d.w;
    }

    // sums over a band of samples, of which the last may be half
    static __device__ __forceinline__ void add_samples(int c, Tile &sum, const Split &a, const Split &b) {
        if (2 * c + 1 < EIGHTS)
            add_product<2, 2>(sum, a, b);
        else
            add_product<1, 2>(sum, a, b);
    }

    // W = keep W + push sum_a Delta_a g_a phi_a^T
    __device__ __forceinline__ void train(int l, float keep, float push, const float *delta) const {
        float *to = matrix(l);
        Split b[WIDE];
        auto meet = [&](int c) {
#pragma unroll
            for (int w = 0; w < WIDE; w++) {
                Tile y;
                lies.get_down(y, fields(l), c, tile(w));
                b[w] = Split(y);
            }
        };
        if (BANDS == 1) meet(0);
#pragma unroll 1
        for (int row = band; row < TILES; row += BANDS) {
            Fields moved;
            clear(moved);
#pragma unroll
            for (int c = 0; c < BANDS; c++) {
                if (BANDS > 1 && 16 * c >= p.trained) break;
                Tile x;
                lies.get_down(x, g, c, row);
                weigh(x, delta + 16 * c, lane);
                const Split a(x);
                if (BANDS > 1) meet(c);
#pragma unroll
                for (int w = 0; w < WIDE; w++) add_samples(c, moved[w], a, b[w]);
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
#pragma unroll
        for (int c = 0; c < BANDS; c++) {
            if (BANDS > 1 && 16 * c >= p.trained) break;
            Tile x, y;
            get_plain(x, p.overlaps + 16 * (band * ROWS + c), ROWS, lane);
            weigh(x, delta + 16 * c, lane);
            const Split b(x);
#pragma unroll
            for (int w = 0; w < WIDE; w++) {
                lies.get_down(y, g, c, tile(w));
                add_samples(c, moved[w], Split(y), b);
            }
        }
        each([&](int w, int u, int r) { h[w][u][r] = keep * h[w][u][r] + push * moved[w][u][r]; });
    }

    // u u^T / N of a field u (neuron, sample) of a layer
    __device__ __forceinline__ void record(const Fields &of, float *kernels, int l) const {
        static_assert(BANDS == 1 || !KERNELS, "kernels of samples of several bands");
        if (!KERNELS || !kernels) return;
        together();
        store(g, of);  // which nobody reads meanwhile
        __syncwarp();
        Tile sum = {};
#pragma unroll
        for (int w = 0; w < WIDE; w++) {
            Tile x;
            lies.get(x, g, 0, tile(w));
            const Split a(x);
            add_product<2, 2>(sum, a, a);
        }
        __syncwarp();
        lies.put(g, 0, tile(0), sum);
        together();
        float *to = kernels + l * p.samples * p.samples;
        const float mean = 1.0f / p.width;
        for (int i = thread; i < 256; i += THREADS) {
            const int a = i / 16, b = i % 16, row = place(max(a, b)), column = place(min(a, b));
            if (a >= p.samples || b >= p.samples) continue;
            float total = 0.0f;
#pragma unroll
            for (int k = 0; k < PARTS; k++) total += g[Layout::at(row, 4 * WIDE * k + column / 4) + column % 4];
            to[a * p.samples + b] = mean * total;
        }
        together();
    }
};
