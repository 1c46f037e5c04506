/*
conv_simt.cu: two-dimensional convolution, forward and backward data, in IEEE float32.

Math      y[n,p,q,k]  = act(b[k] + sum over r,s,c of w[k,r,s,c] * x[n,h,w,c])
          dx[n,h,w,c] = mask * (onto[n,h,w,c] + sum over r,s,k of w[k,r,s,c] * dy[n,p,q,k])
          both where h = p*stride_h - pad_h + r*dil_h and w = q*stride_w - pad_w + s*dil_w; act is
          nothing or ReLU, mask is nothing or (x[n,h,w,c] > 0), the gradient of a ReLU that made x;
          onto is nothing or the rest of x's gradient
          As one product per group: pixels x (R*S*channels) times (R*S*channels) x filters, whose
          operands are never stored ("implicit GEMM"). A linear layer is the case
          H = W = P = Q = R = S = 1 of all three passes.
          Backward data falls into stride_h x stride_w stride phases: pixels with equal h mod
          stride_h and w mod stride_w are reached by the same taps, r0, r0 + every_h, ... with
          every_h = stride_h / gcd(stride_h, dil_h), and tap i of these reads row
          start + pixel - i * dil_h / gcd of dy: a gather of stride 1 with a filter of its own. No
          multiplication is by a zero that a stride put there; a phase that no tap reaches is 0
Source    Chellapilla et al. 2006; cuDNN (Chetlur et al. 2014); CUTLASS, implicit GEMM; the phases:
          Dumoulin and Visin 2016, "A guide to convolution arithmetic", section 4.6
Layout    x, dx, onto, y, dy: float32 NHWC; w: float32 KRSC with C = channels of one group; b: K;
          partials: for each TILE pixels the moments of y's channels (moments.cuh)
Geometry  One block per TILE pixels x TILE_N filters (forward) or channels (backward data, of one
          phase) of a group: grid.x = tiles of pixels * phases * tiles across, across
          fastest so that neighbours share x in the L2, then the phases, which share dy; grid.y =
          group. 128x128 by 256 threads, 128x64 by 128: 8x8 sums a thread, panels of 8; 64x64 by
          256: 4x4, panels of 16. Two buffers in shared memory
Traffic   Per block: TILE or TILE_N*taps*channels of each operand, taps being R*S or the phase's,
          and its tile of the result once; partials, x or onto once where they are used
Floor     2*N*P*Q*K*R*S*C/groups flops / FP32 peak (backward data the same)
Order     One owner per output, the sum in ascending (r,s,channel), one rounding a term: |error| <=
          gamma_(RSC+1) of the sum of absolute products; then bias, or onto. Moments: a thread's
          rows, a tree over the lanes of a column, then its two warps. Bit-identical from run to run
Limits    N*P*Q, N*H*W, a group's filters, and x and dy in vectors of VEC_A floats below 2^31, with
          what a window reaches past the edge; checked by gpuconv/ops/conv2d_launch.py. WINDOW_BITS
          = 1 needs R <= 16 and S <= 15, in backward data of the largest phase
Not here  Depthwise filters (depthwise.cu); images of few channels (conv_few_channels.cu); split-K
          of the forward pass, which a linear layer of few rows would want
Macros    TILE, TILE_N; VEC_A, VEC_B, VEC_OUT (4 or 1: gathered operand, filter, result); UNIFORM;
          WINDOW_BITS (conv_gather.cuh); MOMENTS (1: the forward pass writes `partials`). The
          scalars use_bias, rectify, use_mask and use_onto choose the epilogue
*/
#include "conv_gather.cuh"
#include "conv_phase.cuh"
#include "moments.cuh"

// Panels of the filters for backward data: TILE_N channels by TILE_K (tap, filter) pairs,
// contiguous along the channels.
struct CrossFilterLoader {
    using Shape = Across<VEC_B, TILE_N>;
    const float* w;                           // of the group
    int first, channels, filters, reduction;  // the first channel here
    int stride;                               // floats of one filter
    unsigned filters_mul;
    int filters_shift;
    int S, tap_h, tap_w, every_h, every_w, taps_w;  // the whole filter's columns; the phase's taps
    int* taps;                                      // where each is in a filter; in shared memory
    float v[Shape::COUNT];

    __device__ __forceinline__ int tap_of(int tap) const
    {
        const int r = tap / taps_w, s = tap - r * taps_w;
        return ((tap_h + r * every_h) * S + tap_w + s * every_w) * channels;
    }

    // Fills the table of taps, by all threads; a barrier must follow.
    __device__ __forceinline__ void tabulate()
    {
        for (int tap = threadIdx.x; tap < TAPS; tap += THREADS) taps[tap] = tap_of(tap);
    }

    __device__ __forceinline__ void fetch_panel(int panel)
    {
        const int k = panel * TILE_K + (UNIFORM ? 0 : Shape::step());
        const int tap = divide(k, filters_mul, filters_shift);
        const int filter = k - tap * filters + (UNIFORM ? Shape::step() : 0);
        const int from = first + filter * stride + (WINDOW_BITS ? taps[tap] : tap_of(tap));
        for (int i = 0; i < Shape::ROWS; ++i)
            fetch<VEC_B>(v, i, w + (from + TILE_N / 4 * i),
                first + TILE_N / 4 * i < channels && k < reduction);
    }

    __device__ __forceinline__ void put(float (*panel)[LD_N]) { Shape::put(panel, v); }
};

// What a block's tile of y leaves of its values for batch norm: the moments of each column (a
// filter) over its rows, less the first row. `panels` lends its memory.
__device__ __forceinline__ void tile_moments(float* partials, Panels& panels, const Sums& sums,
    const float* b, int rows, int columns, int K)
{
    float* const shifts = panels.a[0][0];                        // [TILE_N]
    auto* const halves = (Moments<1>(*)[TILE_N])panels.a[1][0];  // [2][TILE_N], the tile's halves
    const int lane = threadIdx.x % 32, half = threadIdx.x / 32 % 2;
#pragma unroll
    for (int j = 0; j < EDGE; ++j) {
        const int column = quad_column(j / 4) + j % 4;
        const float bias = b && column < columns ? b[column] : 0.0f;
        if (quad_row(0) == 0) shifts[column] = sums[0][j] + bias;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < EDGE; ++j) {
        const int column = quad_column(j / 4) + j % 4;
        const float bias = b && column < columns ? b[column] : 0.0f, shift = shifts[column];
        float values[EDGE];
#pragma unroll
        for (int i = 0; i < EDGE; ++i) values[i] = sums[i][j] + bias;
        Moments<1> mine = moments_of(
            values, shift, [&](int i) { return quad_row(i / 4) + i % 4 < rows; });
        merge_lanes(mine, 4);
        if (lane < 4) halves[half][column] = mine;
    }
    __syncthreads();
    const int column = threadIdx.x;
    if (column >= TILE_N || column >= columns) return;
    Moments<1> all = halves[0][column];
    merge(all, halves[1][column]);
    store_moments<1>(partials + column, K, {shifts[column]}, all);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) conv2d_forward_simt(
    float* __restrict__ y, float* __restrict__ partials, const float* __restrict__ x,
    const float* __restrict__ w, const float* __restrict__ b, int pixels, int H, int W, int P,
    int Q, int R, int S, int C, int K, int channels, int filters, int reduction, int tiles_across,
    int stride_h, int stride_w, int pad_h, int pad_w, int dil_h, int dil_w, unsigned p_mul,
    int p_shift, unsigned q_mul, int q_shift, unsigned channels_mul, int channels_shift,
    int use_bias, int rectify)
{
    __shared__ Panels panels;
    __shared__ Tap taps[TAPS];
    const TileOrigin from = tile_origin(tiles_across);
    if (from.row >= pixels || from.group * channels >= C) return;

    GatherLoader a = {x + from.group * channels, {H, dil_h}, {W, dil_w}, R, S, channels, C,
        channels_mul, channels_shift, taps};
    a.tabulate();
    for (int i = 0; i < Along<VEC_A, TILE>::ROWS; ++i) {
        const int pixel = from.row + Along<VEC_A, TILE>::row(i);
        const int line = divide(pixel, q_mul, q_shift), q = pixel - line * Q;
        const int n = divide(line, p_mul, p_shift), p = line - n * P;
        a.open(i, n, p * stride_h - pad_h, q * stride_w - pad_w, pixel < pixels);
    }
    const int filter = from.column + Along<VEC_B, TILE_N>::row(0);
    FilterLoader f = {w + (long long)from.group * filters * reduction, filter, filters, reduction};

    __syncthreads();  // the table of taps is whole
    Sums sums = {};
    accumulate(sums, panels, a, f, (reduction + TILE_K - 1) / TILE_K);

    const TileOrigin to = tile_origin(tiles_across);
    y += (long long)to.row * K + to.group * filters + to.column;
    b += to.group * filters + to.column;
    each_vector<VEC_OUT>(
        sums, pixels - to.row, filters - to.column, [&](int row, int k, Floats<VEC_OUT> value) {
            for (int v = 0; v < VEC_OUT; ++v) {
                if (use_bias) value.v[v] += b[k + v];
                if (rectify) value.v[v] = relu(value.v[v]);
            }
            store<VEC_OUT>(y + (long long)row * K + k, value);
        });
    if (MOMENTS) {
        partials += (long long)(to.row / TILE) * MOMENT_ROWS * K + to.group * filters + to.column;
        tile_moments(partials, panels, sums, use_bias ? b : nullptr, pixels - to.row,
            filters - to.column, K);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, TILE == 64 ? 3 : BLOCKS)
    conv2d_backward_data_simt(float* dx, const float* __restrict__ dy, const float* __restrict__ w,
        const float* x, const float* onto, int pixels, int N, int H, int W, int P, int Q, int R,
        int S, int C, int K,
        int channels, int filters, int tiles_across, int phases, int phases_w, int stride_h,
        int stride_w, int pad_h, int pad_w, int dil_h, int dil_w, int every_h, int every_w,
        int step_h, int step_w, unsigned rows_mul, int rows_shift, unsigned short_rows_mul,
        int short_rows_shift, unsigned columns_mul, int columns_shift, unsigned short_columns_mul,
        int short_columns_shift, unsigned filters_mul, int filters_shift, int use_mask,
        int use_onto)
{
    __shared__ Panels panels;
    __shared__ Tap taps[TAPS];
    __shared__ int filter_taps[TAPS];
    __shared__ int place[TILE];  // of the tile's rows: their pixels of dx, -1 past the last
    const TileOrigin from = tile_origin(tiles_across);
    const int down = from.row / TILE / phases, phase = from.row / TILE - down * phases;
    const int phase_h = phase / phases_w;
    const PhaseAxis rows(phase_h, H, pad_h, stride_h, dil_h, R, every_h);
    const PhaseAxis columns(phase - phase_h * phases_w, W, pad_w, stride_w, dil_w, S, every_w);
    const int phase_pixels = N * rows.count * columns.count;
    if (down * TILE >= phase_pixels || from.group * channels >= C) return;

    // The first H mod stride_h phases have a row more than the others, likewise columns.
    const bool tall = rows.count * stride_h >= H, wide = columns.count * stride_w >= W;
    const unsigned line_mul = wide ? columns_mul : short_columns_mul;
    const int line_shift = wide ? columns_shift : short_columns_shift;
    const unsigned image_mul = tall ? rows_mul : short_rows_mul;
    const int image_shift = tall ? rows_shift : short_rows_shift;

    const int taps_of_phase = rows.taps * columns.taps, reduction = taps_of_phase * filters;
    GatherLoader a = {dy + from.group * filters, {P, -step_h}, {Q, -step_w},
        taps_of_phase ? rows.taps : 0, max(columns.taps, 1), filters, K, filters_mul, filters_shift,
        taps};
    a.tabulate();
    for (int i = 0; i < Along<VEC_A, TILE>::ROWS; ++i) {
        const int pixel = down * TILE + Along<VEC_A, TILE>::row(i);
        const int line = divide(pixel, line_mul, line_shift), column = pixel - line * columns.count;
        const int n = divide(line, image_mul, image_shift), row = line - n * rows.count;
        a.open(i, n, rows.start + row, columns.start + column, pixel < phase_pixels);
    }
    if (threadIdx.x < TILE) {
        const int pixel = down * TILE + threadIdx.x;
        const int line = divide(pixel, line_mul, line_shift), column = pixel - line * columns.count;
        const int n = divide(line, image_mul, image_shift), row = line - n * rows.count;
        const int at = (n * H + rows.first + row * stride_h) * W;
        place[threadIdx.x] = pixel < phase_pixels ? at + columns.first + column * stride_w : -1;
    }
    const int channel = from.column + Across<VEC_B, TILE_N>::row(0), stride = R * S * channels;
    CrossFilterLoader f = {w + (long long)from.group * filters * stride, channel, channels, filters,
        reduction, stride, filters_mul, filters_shift, S, rows.tap, columns.tap, every_h, every_w,
        max(columns.taps, 1), filter_taps};
    f.tabulate();

    __syncthreads();  // the tables are whole
    Sums sums = {};
    accumulate(sums, panels, a, f, (reduction + TILE_K - 1) / TILE_K);

    const TileOrigin to = tile_origin(tiles_across);
    const int first = to.group * channels + to.column;
    each_vector<VEC_OUT>(
        sums, TILE, channels - to.column, [&](int row, int c, Floats<VEC_OUT> value) {
            const int pixel = place[row];
            if (pixel < 0) return;
            const long long at = (long long)pixel * C + first + c;
            if (use_onto) {
                const Floats<VEC_OUT> rest = load<VEC_OUT>(onto + at);
                for (int v = 0; v < VEC_OUT; ++v) value.v[v] += rest.v[v];
            }
            if (use_mask) {
                const Floats<VEC_OUT> sign = load<VEC_OUT>(x + at);
                for (int v = 0; v < VEC_OUT; ++v) value.v[v] = relu_mask(value.v[v], sign.v[v]);
            }
            store<VEC_OUT>(dx + at, value);
        });
}
