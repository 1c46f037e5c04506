/*
linear_small.cu: fully connected layers of few rows: several in a row forward, and all gradients of
one in one launch.

Math      linear_chain_forward:  y[l][n,o] = act(b[l][o] + sum over i of w[l][o,i] * y[l-1][n,i]), l
                                 ascending, y[-1] = x; act is nothing or ReLU
          linear_small_backward: g[n,o] = dy where y > 0 or NaN (use_mask), else dy;
                                 dx[n,i] = sum over o of g[n,o] * w[o,i],
                                 dw[o,i] = sum over n of g[n,o] * x[n,i], db[o] = sum over n of g
Source    The article's fully connected layer; the matrix products: CUTLASS, "sliced K"
Layout    Row-major float32: x, y, dx, dy (rows, features), w, dw (out, in); b, db (out)
Geometry  Forward: a block has IMAGES rows and all layers, whose inputs lie in shared memory; a warp
          has OUTPUTS outputs at a time, its lanes strided along the reduction. Backward: a block
          per MxN tile of dx (the first data_blocks) or dw, fastest along the features in, of which
          both have one row each; a thread has 4x4 sums, and the 8 warps share the reduction, 8
          terms of each panel of 64
Traffic   Forward: all weights for each block, from the L2. Backward: g, y and w or x once for each
          row or column of tiles
Floor     2*rows*in*out flops a product / FP32 peak
Order     Forward: a lane's terms ascending, then the lanes by a butterfly, then the bias. Backward:
          a warp's terms ascending, then the warps; db: 16 parts of the rows. One owner an output;
          a term meets at most as many roundings as there are terms
Limits    Up to 4 layers of at most 2^18 weights together, rows * features below 2^30: offsets are
          32-bit. Checked by gpuconv/ops/linear_launch.py
Not here  Many rows or weights, which fill the tiles of conv_simt.cu
Macros    IMAGES (rows of a block forward: 1, 2 or 4); VEC (backward: 4 where the features in are a
          multiple of 4, else 1)
*/
#include "common.cuh"

constexpr int OUTPUTS = 4;            // of a warp at a time
constexpr int M = 16, N = 32;         // rows and columns of a tile
constexpr int K = 64;                 // terms of a panel
constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int LD_A = M + 4, LD_B = N + 4;

extern __shared__ __align__(16) float shared[];

// One layer of a block's rows: out[i][o] in shared memory and y from in[i].
template <int WIDTH>
__device__ __forceinline__ void layer(float* out, int out_pitch, float* y, const float* in,
    int in_pitch, const float* w, const float* b, int features, int outputs, int rows,
    bool use_bias, bool rectify)
{
    const int lane = threadIdx.x % 32, step = blockDim.x / 32 * OUTPUTS;
    for (int first = threadIdx.x / 32 * OUTPUTS; first < outputs; first += step) {
        float sums[OUTPUTS][IMAGES] = {};
#pragma unroll 4  // loads in flight
        for (int k = lane * WIDTH; k < features; k += 32 * WIDTH) {
            Floats<WIDTH> f[OUTPUTS];
            for (int j = 0; j < OUTPUTS; ++j)
                f[j] = load<WIDTH>(w + (min(first + j, outputs - 1) * features + k));
            for (int i = 0; i < IMAGES; ++i) {
                const Floats<WIDTH> value = load<WIDTH>(in + i * in_pitch + k);
                for (int j = 0; j < OUTPUTS; ++j)
                    for (int v = 0; v < WIDTH; ++v)
                        sums[j][i] = fmaf(f[j].v[v], value.v[v], sums[j][i]);
            }
        }
        float sum = 0.0f;  // lane j * IMAGES + i: of output j and row i
#pragma unroll
        for (int j = 0; j < OUTPUTS; ++j)
#pragma unroll
            for (int i = 0; i < IMAGES; ++i) {
                const float all = warp_sum(sums[j][i]);
                if (lane == j * IMAGES + i) sum = all;
            }
        const int o = first + lane / IMAGES, i = lane % IMAGES;
        if (lane >= OUTPUTS * IMAGES || o >= outputs) continue;
        if (use_bias) sum += b[o];
        if (rectify) sum = relu(sum);
        out[i * out_pitch + o] = sum;
        if (i < rows) y[(long long)i * outputs + o] = sum;
    }
}

__device__ __forceinline__ int pitch_of(int features) { return (features + 3) / 4 * 4; }

extern "C" __global__ void __launch_bounds__(512, 1) linear_chain_forward(float* __restrict__ y0,
    float* __restrict__ y1, float* __restrict__ y2, float* __restrict__ y3,
    const float* __restrict__ x, const float* __restrict__ w0, const float* __restrict__ w1,
    const float* __restrict__ w2, const float* __restrict__ w3, const float* __restrict__ b0,
    const float* __restrict__ b1, const float* __restrict__ b2, const float* __restrict__ b3,
    int rows, int layers, int f0, int f1, int f2, int f3, int f4, int widest, int biases,
    int rectified)
{
    const long long first = (long long)blockIdx.x * IMAGES;
    const int mine = (int)min((long long)IMAGES, rows - first);
    float *in = shared, *out = shared + IMAGES * widest;
    for (int i = threadIdx.x; i < IMAGES * f0; i += blockDim.x) {
        const int n = i / f0, k = i - n * f0;
        in[n * pitch_of(f0) + k] = n < mine ? x[(first + n) * f0 + k] : 0.0f;
    }
#pragma unroll 1
    for (int l = 0; l < layers; ++l) {
        // one of the parameters each: an array of them would lie in local memory
        const int from = l == 0 ? f0 : l == 1 ? f1 : l == 2 ? f2 : f3;
        const int to = l == 0 ? f1 : l == 1 ? f2 : l == 2 ? f3 : f4;
        float* const y = (l == 0 ? y0 : l == 1 ? y1 : l == 2 ? y2 : y3) + first * to;
        const float* const w = l == 0 ? w0 : l == 1 ? w1 : l == 2 ? w2 : w3;
        const float* const b = l == 0 ? b0 : l == 1 ? b1 : l == 2 ? b2 : b3;
        const bool use_bias = biases >> l & 1, rectify = rectified >> l & 1;
        __syncthreads();
        if (from % 4 == 0)
            layer<4>(out, pitch_of(to), y, in, pitch_of(from), w, b, from, to, mine, use_bias,
                rectify);
        else
            layer<1>(out, pitch_of(to), y, in, pitch_of(from), w, b, from, to, mine, use_bias,
                rectify);
        float* const before = in;
        in = out, out = before;
    }
}

extern "C" __global__ void __launch_bounds__(256, 3)
    linear_small_backward(float* __restrict__ dx, float* __restrict__ dw, float* __restrict__ db,
        const float* __restrict__ dy, const float* __restrict__ y, const float* __restrict__ x,
        const float* __restrict__ w, int rows, int in, int out, int data_blocks, int tiles_across,
        int use_mask, int use_bias)
{
    __shared__ __align__(16) float a[K][LD_A], b[K][LD_B];
    __shared__ __align__(16) float partial[WARPS][M][N];
    const bool data = (int)blockIdx.x < data_blocks;
    const int tile = data ? blockIdx.x : blockIdx.x - data_blocks;
    const int down = tile / tiles_across, m0 = down * M, n0 = (tile - down * tiles_across) * N;
    const int terms = data ? out : rows, height = data ? rows : out;
    const float* const right = data ? w : x;

    // A thread's part of a panel: a[k][m] is contiguous in memory along k for dx, along m for dw.
    constexpr int LEFT = M * K / THREADS, RIGHT = N * K / THREADS / VEC;
    const int m = data ? threadIdx.x / K : threadIdx.x % M;
    const int k = data ? threadIdx.x % K : threadIdx.x / M;
    const int m_step = data ? THREADS / K : 0, k_step = data ? 0 : THREADS / M;
    const int left_step = data ? m_step * out : k_step * out;
    int left_at = data ? (m0 + m) * out + k : k * out + m0 + m;
    const int column = threadIdx.x % (N / VEC) * VEC, row = threadIdx.x / (N / VEC);
    constexpr int ROWS = THREADS * VEC / N;
    int right_at = row * in + n0 + column;
    float left_values[LEFT];
    Floats<VEC> right_values[RIGHT];
    const auto fetch = [&](int panel) {
#pragma unroll
        for (int i = 0; i < LEFT; ++i) {
            const int at = left_at + i * left_step;
            const bool inside = m0 + m + i * m_step < height && panel + k + i * k_step < terms;
            left_values[i] = 0.0f;
            if (inside) left_values[i] = dy[at];
            if (inside && use_mask) left_values[i] = relu_mask(left_values[i], y[at]);
        }
#pragma unroll
        for (int i = 0; i < RIGHT; ++i) {
            right_values[i] = {};
            if (panel + row + i * ROWS < terms && n0 + column < in)
                right_values[i] = load<VEC>(right + (right_at + i * ROWS * in));
        }
        left_at += data ? K : K * out;
        right_at += K * in;
    };

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int down4 = lane / 8 * 4, across4 = lane % 8 * 4;
    float sums[4][4] = {}, bias = 0.0f;
    fetch(0);
#pragma unroll 1
    for (int panel = 0; panel < terms; panel += K) {
        __syncthreads();  // all have multiplied the panel before
#pragma unroll
        for (int i = 0; i < LEFT; ++i) a[k + i * k_step][m + i * m_step] = left_values[i];
#pragma unroll
        for (int i = 0; i < RIGHT; ++i) store<VEC>(&b[row + i * ROWS][column], right_values[i]);
        __syncthreads();
        fetch(panel + K);
#pragma unroll
        for (int i = 0; i < K / WARPS; ++i) {
            const Floats<4> l = load<4>(&a[warp * (K / WARPS) + i][down4]);
            const Floats<4> r = load<4>(&b[warp * (K / WARPS) + i][across4]);
            for (int p = 0; p < 4; ++p)
                for (int q = 0; q < 4; ++q) sums[p][q] = fmaf(l.v[p], r.v[q], sums[p][q]);
        }
        if (!data && use_bias && n0 == 0)
            for (int i = threadIdx.x / M; i < K; i += THREADS / M) bias += a[i][threadIdx.x % M];
    }

    for (int p = 0; p < 4; ++p)
        store<4>(&partial[warp][down4 + p][across4],
            {{sums[p][0], sums[p][1], sums[p][2], sums[p][3]}});
    __syncthreads();
    float* const to = data ? dx : dw;
    for (int i = threadIdx.x; i < M * N; i += THREADS) {
        float sum = partial[0][i / N][i % N];
        for (int other = 1; other < WARPS; ++other) sum += partial[other][i / N][i % N];
        if (m0 + i / N < height && n0 + i % N < in)
            to[(long long)(m0 + i / N) * in + n0 + i % N] = sum;
    }
    if (data || !use_bias || n0 > 0) return;
    __syncthreads();
    partial[0][0][threadIdx.x] = bias;
    __syncthreads();
    if (threadIdx.x >= M || m0 + threadIdx.x >= out) return;
    for (int other = 1; other < THREADS / M; ++other)
        bias += partial[0][0][other * M + threadIdx.x];
    db[m0 + threadIdx.x] = bias;
}
