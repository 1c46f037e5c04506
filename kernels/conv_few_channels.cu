/*
conv_few_channels.cu: convolution of images of few channels, forward and backward weight, in IEEE
float32.

Math      y[n,p,q,k]  = act(b[k] + sum over r,s,c of w[k,r,s,c] * x[n,h,w,c])
          dw[k,r,s,c] = sum over n,p,q of dy[n,p,q,k] * x[n,h,w,c]
          both where h = p*stride_h - pad_h + r*dil_h and w = q*stride_w - pad_w + s*dil_w; act is
          nothing or ReLU. C, R and S are compiled in, so a tap costs no address arithmetic; the
          (tap, channel) pairs of conv_simt.cu would waste it on 3 channels
Source    Direct convolution with register tiles: Georganas et al. 2018, "Anatomy of
          high-performance deep learning convolutions"; in shared memory: Krizhevsky's
          cuda-convnet
Layout    x, y, dy: float32 NHWC; w, dw: float32 KRSC; b: K; the workspace: partial sums of dw;
          partials of the forward pass: for each tile the moments of y's channels (moments.cuh)
Geometry  256 threads, LANES of them across 8*LANES filters, 8 filters each. Forward: a block per
          image, tile of 32/LANES rows and 32 columns of y, and block of filters (fastest in grid.x,
          so that neighbours share x in the L2); a thread has 4 rows of one column, so 32 sums. The
          block loads all rows of x that it reads, and its filters, into shared memory; or, where
          these have no room (WHOLE 0), row by row of the filters, with the rows of x that this one
          reads. Backward weight: grid.x = block of filters, grid.z = split of the segments, which
          are up to 32 columns of one row of y. A thread has 8 filters by COLUMNS (r,s,c);
          256 / LANES threads are GROUPS of these by PARTS, and part i takes columns i, i + PARTS,
          ... of a segment
Traffic   Forward: y once, x from the L2 for each block of filters: once and the rows that tiles
          share, or R/stride_h times where WHOLE is 0. Backward weight: dy once, R rows of x a
          segment for each block of filters; splits * K*R*S*C floats written and read where
          splits > 1
Floor     2*N*P*Q*K*R*S*C flops / FP32 peak
Order     Forward: ascending (r,s,c), then the bias: |error| <= gamma_(RSC+1) of the sum of absolute
          products. Backward weight: a part's pixels, then parts, then splits, each ascending
          (sum_partials.cu): a product meets at most as many roundings as there are pixels, so
          gamma_(NPQ+1). Where the segments are split follows from the shape alone
Limits    C <= 4, groups = 1; N*P*Q and an image's elements below 2^31, offsets are 64-bit but for
          those within an image; a block's shared memory within 48 KB; R*S*C <= GROUPS*COLUMNS.
          Where one is exceeded, gpuconv/ops/conv2d_launch.py takes conv_simt.cu instead
Not here  Backward data (an image needs none; conv_simt.cu has it); asynchronous copies: the other
          blocks of the multiprocessor compute while one loads
Macros    C, R, S; LANES (1, 2 or 4); COLUMNS, GROUPS, PARTS; VEC (4 where K is a multiple of 4,
          else 1); MOMENTS (1: the forward pass writes `partials`); WHOLE (1: the forward pass
          loads the whole window at once)
*/
#include "moments.cuh"

constexpr int THREADS = 256;
constexpr int FILTERS = 8;                     // of a thread
constexpr int BLOCK = FILTERS * LANES;         // filters of a block
constexpr int FILTER_STRIDE = BLOCK + 4;       // between taps: transposing stores meet fewer banks
constexpr int TILE_COLUMNS = 32;               // of a tile or segment
constexpr int TAPS = (WHOLE ? R : 1) * S * C;  // of a filter, in shared memory at once
constexpr int ROWS = 4;                        // of a thread
constexpr int ROW_STEP = 8 / LANES;            // rows between a thread's rows
constexpr int TILE_ROWS = ROWS * ROW_STEP;     // rows of a tile
constexpr int UNROLLED = S * C <= 24 ? S : 1;  // taps of a row: the code fits the instruction cache
// Forward blocks a multiprocessor must hold, which leaves 80 registers a thread; for Blackwell,
// ptxas spills some of them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int BLOCKS = 2;
#else
constexpr int BLOCKS = 3;
#endif
static_assert(LANES == 1 || LANES == 2 || LANES == 4, "LANES is 1, 2 or 4");
static_assert(GROUPS * PARTS * LANES <= THREADS, "more work than threads");
static_assert(GROUPS * COLUMNS >= R * S * C, "columns without a thread");

extern __shared__ __align__(16) float shared[];

// to[i][0..line) = `count` rows of an image, from row h and `step` apart, each from column `left`;
// zeros outside the image.
__device__ __forceinline__ void load_rows(float* to, const float* image, int count, int line, int h,
    int step, int left, int H, int W, unsigned line_mul, int line_shift)
{
#pragma unroll 2  // loads in flight, yet few registers: the sums are alive
    for (int i = threadIdx.x; i < count * line; i += THREADS) {
        const int row = divide(i, line_mul, line_shift), j = i - row * line;
        const int from = h + row * step, column = left + j / C;
        const bool inside = (unsigned)from < (unsigned)H && (unsigned)column < (unsigned)W;
        to[i] = inside ? image[(from * W + left) * C + j] : 0.0f;
    }
}

// A thread's 8 filters of one tap or pixel in shared memory.
__device__ __forceinline__ void load_filters(float (&to)[FILTERS], const float* from)
{
    for (int half = 0; half < FILTERS; half += 4) {
        const Floats<4> four = load<4>(from + half);
        for (int v = 0; v < 4; ++v) to[half + v] = four.v[v];
    }
}

// What a block leaves of its tile for batch norm: the moments of each filter, less the first pixel.
// `inside(i)`: whether the thread's row i is in the image. The filters here are `count`.
template <class Inside>
__device__ __forceinline__ void tile_moments(float* partials, const float (&sums)[ROWS][FILTERS],
    const float* b, int count, int K, Inside inside)
{
    constexpr int WARPS = THREADS / 32;
    float* const shifts = shared;                                  // [BLOCK]
    auto* const all = (Moments<1>(*)[BLOCK])(shared + BLOCK);  // [WARPS][BLOCK]
    const int warp = threadIdx.x / 32, mine = threadIdx.x % LANES * FILTERS;
    if (threadIdx.x < LANES)
        for (int k = 0; k < FILTERS; ++k)
            shifts[mine + k] = sums[0][k] + (b && mine + k < count ? b[mine + k] : 0.0f);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < FILTERS; ++k) {
        const float bias = b && mine + k < count ? b[mine + k] : 0.0f;
        float values[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS; ++i) values[i] = sums[i][k] + bias;
        Moments<1> moments = moments_of(values, shifts[mine + k], inside);
        merge_lanes(moments, LANES);
        if (threadIdx.x % 32 < LANES) all[warp][mine + k] = moments;
    }
    __syncthreads();
    const int k = threadIdx.x;
    if (k >= BLOCK || k >= count) return;
    Moments<1> whole = all[0][k];
    for (int other = 1; other < WARPS; ++other) merge(whole, all[other][k]);
    store_moments<1>(partials + k, K, {shifts[k]}, whole);
}

// A forward block's tile: its first filter, image, row and column. Computed at each call from a
// register that the card holds anyway, so that none of them occupies one through the loop.
struct ForwardTile {
    int number, first, n, p0, q0;

    __device__ __forceinline__ ForwardTile(int blocks, int tiles_h, int tiles_w)
    {
        unsigned block;
        asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
        number = block / blocks, first = (block - number * blocks) * BLOCK;
        const int down = number / tiles_w;
        n = down / tiles_h, p0 = (down - n * tiles_h) * TILE_ROWS;
        q0 = (number - down * tiles_w) * TILE_COLUMNS;
    }
};

extern "C" __global__ void __launch_bounds__(256, BLOCKS) conv2d_forward_few_channels(
    float* __restrict__ y, float* __restrict__ partials, const float* __restrict__ x,
    const float* __restrict__ w, const float* __restrict__ b, int H, int W, int P, int Q, int K,
    int blocks, int tiles_h, int tiles_w, int line, int rows, int stride_h, int stride_w, int pad_h,
    int pad_w, int dil_h, int dil_w, unsigned line_mul, int line_shift, int use_bias, int rectify)
{
    float* const filters = shared;                    // [r][s][c][filter], r where WHOLE
    float* const in = shared + TAPS * FILTER_STRIDE;  // [row][column][c]
    const ForwardTile from_tile(blocks, tiles_h, tiles_w);
    const int first = from_tile.first, p0 = from_tile.p0, q0 = from_tile.q0;
    const float* const image = x + (long long)from_tile.n * H * W * C;

    const int lane = threadIdx.x % LANES, column = threadIdx.x / LANES % TILE_COLUMNS;
    const int top = threadIdx.x / (LANES * TILE_COLUMNS);
    // Loads TAPS of each filter from row r of the window on, and the rows of x that they read.
    const auto stage = [&](int r) {
#pragma unroll 1
        for (int i = threadIdx.x; i < BLOCK * TAPS; i += THREADS) {
            const int k = i / TAPS, tap = i - k * TAPS;
            filters[tap * FILTER_STRIDE + k] =
                first + k < K ? w[((long long)(first + k) * R + r) * (S * C) + tap] : 0.0f;
        }
        load_rows(in, image, rows, line, p0 * stride_h - pad_h + r * dil_h, WHOLE ? 1 : stride_h,
            q0 * stride_w - pad_w, H, W, line_mul, line_shift);
        __syncthreads();
    };
    const int below = line * (WHOLE ? stride_h : 1);  // from a row of y to the next, in `in`
    if (WHOLE) stage(0);
    float sums[ROWS][FILTERS] = {};
#pragma unroll 1
    for (int r = 0; r < R; ++r) {
        if (!WHOLE) stage(r);
        const float* from = in + top * below + column * stride_w * C;
        const float* taps = filters + lane * FILTERS;
        if (WHOLE) from += r * dil_h * line, taps += r * (S * C * FILTER_STRIDE);
#pragma unroll UNROLLED
        for (int s = 0; s < S; ++s, from += dil_w * C)
#pragma unroll
            for (int c = 0; c < C; ++c) {
                float f[FILTERS];
                load_filters(f, taps + (s * C + c) * FILTER_STRIDE);
                for (int i = 0; i < ROWS; ++i) {
                    const float value = from[i * ROW_STEP * below + c];
                    for (int k = 0; k < FILTERS; ++k) sums[i][k] = fmaf(value, f[k], sums[i][k]);
                }
            }
        if (!WHOLE) __syncthreads();
    }
    if (WHOLE && MOMENTS) __syncthreads();

    const ForwardTile to_tile(blocks, tiles_h, tiles_w);
    const int q = to_tile.q0 + column, mine = to_tile.first + lane * FILTERS;
    for (int i = 0; i < ROWS; ++i) {
        const int p = to_tile.p0 + top + i * ROW_STEP;
        if (p >= P || q >= Q) continue;
        float* const to = y + (((long long)to_tile.n * P + p) * Q + q) * K + mine;
        for (int k = 0; k < FILTERS; k += VEC) {
            if (mine + k >= K) break;
            Floats<VEC> value;
            for (int v = 0; v < VEC; ++v) {
                value.v[v] = sums[i][k + v];
                if (use_bias) value.v[v] += b[mine + k + v];
                if (rectify) value.v[v] = relu(value.v[v]);
            }
            store_global<VEC>(to + k, value);
        }
    }
    if (MOMENTS)
        tile_moments(partials + (long long)to_tile.number * MOMENT_ROWS * K + to_tile.first, sums,
            use_bias ? b + to_tile.first : nullptr, K - to_tile.first, K,
            [&](int i) { return to_tile.p0 + top + i * ROW_STEP < P && q < Q; });
}

extern "C" __global__ void __launch_bounds__(256, 2)
    conv2d_backward_weight_few_channels(float* __restrict__ partials, const float* __restrict__ dy,
        const float* __restrict__ x, int segments, int split_length, int H, int W, int P, int Q,
        int K, int tiles_w, int line, int stride_h, int stride_w, int pad_h, int pad_w, int dil_h,
        int dil_w, unsigned line_mul, int line_shift)
{
    float* const gradients = shared;                  // [column][filter], then the parts' sums
    float* const in = shared + TILE_COLUMNS * BLOCK;  // [r][column][c]
    const int first = blockIdx.x * BLOCK;
    const int begin = (int)min((long long)blockIdx.z * split_length, (long long)segments);
    const int end = (int)min((long long)begin + split_length, (long long)segments);

    const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES % GROUPS;
    const int part = threadIdx.x / (LANES * GROUPS);
    int at[COLUMNS];  // where the thread's (r,s,c) lie in `in` for the segment's first pixel
    for (int j = 0; j < COLUMNS; ++j) {
        const int term = min(group + j * GROUPS, R * S * C - 1);
        const int r = term / (S * C), s = term / C % S;
        at[j] = r * line + s * dil_w * C + term % C;
    }
    float sums[COLUMNS][FILTERS] = {};
#pragma unroll 1
    for (int segment = begin; segment < end; ++segment) {
        const int down = segment / tiles_w, q0 = (segment - down * tiles_w) * TILE_COLUMNS;
        const int n = down / P, p = down - n * P, count = min(TILE_COLUMNS, Q - q0);
#pragma unroll 2
        for (int i = threadIdx.x; i < count * BLOCK; i += THREADS) {
            const int k = first + i % BLOCK;
            gradients[i] = k < K ? dy[((long long)down * Q + q0 + i / BLOCK) * K + k] : 0.0f;
        }
        load_rows(in, x + (long long)n * H * W * C, R, line, p * stride_h - pad_h, dil_h,
            q0 * stride_w - pad_w, H, W, line_mul, line_shift);
        __syncthreads();
        if (part < PARTS)
            for (int q = part; q < count; q += PARTS) {
                float d[FILTERS];
                load_filters(d, gradients + q * BLOCK + lane * FILTERS);
                for (int j = 0; j < COLUMNS; ++j) {
                    const float value = in[at[j] + q * stride_w * C];
                    for (int k = 0; k < FILTERS; ++k) sums[j][k] = fmaf(d[k], value, sums[j][k]);
                }
            }
        __syncthreads();
    }

    const int mine = first + lane * FILTERS;
    partials += (long long)blockIdx.z * K * (R * S * C);
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
        for (int k = 0; k < FILTERS; ++k) shared[k * THREADS + threadIdx.x] = sums[j][k];
        __syncthreads();
        const int term = group + j * GROUPS;
        if (part == 0 && term < R * S * C)
            for (int k = 0; k < FILTERS && mine + k < K; ++k) {
                float sum = sums[j][k];
#pragma unroll 1
                for (int other = 1; other < PARTS; ++other)
                    sum += shared[k * THREADS + threadIdx.x + other * LANES * GROUPS];
                partials[(long long)(mine + k) * (R * S * C) + term] = sum;
            }
        __syncthreads();
    }
}
