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
Limits    Up to 4 layers, checked by gpuconv/ops/linear_launch.py; rows * features below 2^31
Not here  Many rows or weights, which fill the tiles of conv_simt.cu
Macros    IMAGES (rows of a block forward: 1, 2 or 4)
*/
#include "common.cuh"

constexpr int LAYERS = 4;
constexpr int OUTPUTS = 4;            // of a warp at a time
constexpr int M = 16, N = 32;         // rows and columns of a tile
constexpr int K = 64;                 // terms of a panel
constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int LD_A = M + 4, LD_B = N + 4;

extern __shared__ __align__(16) float shared[];

// One layer of a block's rows: out[i][o] in shared memory and y from in[i].
template <int VEC>
__device__ __forceinline__ void layer(float* out, int out_pitch, float* y, const float* in,
    int in_pitch, const float* w, const float* b, int features, int outputs, int rows, bool use_bias,
    bool rectify)
{
    const int lane = threadIdx.x % 32, step = blockDim.x / 32 * OUTPUTS;
    for (int first = threadIdx.x / 32 * OUTPUTS; first < outputs; first += step) {
        float sums[OUTPUTS][IMAGES] = {};
#pragma unroll 4  // loads in flight
        for (int k = lane * VEC; k < features; k += 32 * VEC) {
            Floats<VEC> f[OUTPUTS];
            for (int j = 0; j < OUTPUTS; ++j)
                f[j] = load<VEC>(w + (long long)min(first + j, outputs - 1) * features + k);
            for (int i = 0; i < IMAGES; ++i) {
                const Floats<VEC> value = load<VEC>(in + i * in_pitch + k);
                for (int j = 0; j < OUTPUTS; ++j)
                    for (int v = 0; v < VEC; ++v)
                        sums[j][i] = fmaf(f[j].v[v], value.v[v], sums[j][i]);
            }
        }
#pragma unroll
        for (int j = 0; j < OUTPUTS; ++j)
#pragma unroll
            for (int i = 0; i < IMAGES; ++i) {
                const int o = first + j;
                float sum = warp_sum(sums[j][i]);
                if (lane != j * IMAGES + i || o >= outputs) continue;
                if (use_bias) sum += b[o];
                if (rectify) sum = relu(sum);
                out[i * out_pitch + o] = sum;
                if (i < rows) y[(long long)i * outputs + o] = sum;
            }
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
    float* const y[LAYERS] = {y0, y1, y2, y3};
    const float* const w[LAYERS] = {w0, w1, w2, w3};
    const float* const b[LAYERS] = {b0, b1, b2, b3};
    const int f[LAYERS + 1] = {f0, f1, f2, f3, f4};
#pragma unroll
    for (int l = 0; l < LAYERS; ++l) {
        if (l >= layers) break;
        __syncthreads();
        float* const to = y[l] + first * f[l + 1];
        const bool use_bias = biases >> l & 1, rectify = rectified >> l & 1;
        if (f[l] % 4 == 0)
            layer<4>(out, pitch_of(f[l + 1]), to, in, pitch_of(f[l]), w[l], b[l], f[l], f[l + 1],
                mine, use_bias, rectify);
        else
            layer<1>(out, pitch_of(f[l + 1]), to, in, pitch_of(f[l]), w[l], b[l], f[l], f[l + 1],
                mine, use_bias, rectify);
        float* const before = in;
        in = out, out = before;
    }
}

extern "C" __global__ void __launch_bounds__(256, 4)
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
    const int m = data ? threadIdx.x / K : threadIdx.x % M;
    const int k = data ? threadIdx.x % K : threadIdx.x / M;
    const int m_step = data ? THREADS / K : 0, k_step = data ? 0 : THREADS / M;
    const int column = threadIdx.x % N, row = threadIdx.x / N;
    float left_values[M * K / THREADS], right_values[N * K / THREADS];
    const auto fetch = [&](int panel) {
#pragma unroll
        for (int i = 0; i < M * K / THREADS; ++i) {
            const int at_m = m0 + m + i * m_step, at_k = panel + k + i * k_step;
            left_values[i] = 0.0f;
            if (at_m >= height || at_k >= terms) continue;
            const long long at = data ? (long long)at_m * out + at_k : (long long)at_k * out + at_m;
            left_values[i] = use_mask ? relu_mask(dy[at], y[at]) : dy[at];
        }
#pragma unroll
        for (int i = 0; i < N * K / THREADS; ++i) {
            const int at_k = panel + row + i * (THREADS / N);
            right_values[i] =
                at_k < terms && n0 + column < in ? right[(long long)at_k * in + n0 + column] : 0.0f;
        }
    };

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int down4 = lane / 8 * 4, across4 = lane % 8 * 4;
    float sums[4][4] = {}, bias = 0.0f;
    fetch(0);
#pragma unroll 1
    for (int panel = 0; panel < terms; panel += K) {
        __syncthreads();  // all have multiplied the panel before
#pragma unroll
        for (int i = 0; i < M * K / THREADS; ++i)
            a[k + i * k_step][m + i * m_step] = left_values[i];
#pragma unroll
        for (int i = 0; i < N * K / THREADS; ++i)
            b[row + i * (THREADS / N)][column] = right_values[i];
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
