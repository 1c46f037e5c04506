/*
conv_simt_weight.cu: convolution's backward weight and bias gradient, in IEEE float32.

Math      dw[k,r,s,c] = sum over n,p,q of dy[n,p,q,k] * x[n,h,w,c],
                        h = p*stride_h - pad_h + r*dil_h, w = q*stride_w - pad_w + s*dil_w
          db[k]       = sum over n,p,q of dy[n,p,q,k]
          As one product per group: filters x pixels times pixels x (R*S*channels), the pixels
          split into parts (split-K)
Source    Chellapilla et al. 2006; CUTLASS, implicit GEMM with split-K
Layout    x, dy: float32 NHWC; dw: float32 KRSC with C = channels of one group; db: K. The
          workspace: of dw for each tile and part its sums as the threads hold them; of db the
          parts' sums. tickets: last_block.cuh
Geometry  conv2d_backward_weight_simt: one block per TILE filters x TILE (tap, channel) pairs of a
          group and part of the pixels, or TILE pairs x TILE_N filters; grid.x = tiles down * tiles
          across, across fastest; grid.y = group; grid.z = part; of each tile's blocks the last to
          finish adds the parts' sums. conv2d_backward_bias_partials: a block per `columns` filters
          (x) and part (y), 256/columns pixels side by side
Traffic   Per block: TILE or TILE_N * split_length of each operand; where splits > 1 splits *
          K*R*S*C/groups floats, in whole tiles, written and read
Floor     2*N*P*Q*K*R*S*C/groups flops / FP32 peak
Order     Ascending pixels in a part, then groups of parts, then the groups ascending: |error| <=
          gamma_(split_length + splits) of the sum of absolute products. Where the pixels are split
          follows from the shape alone, so results are bit-identical on every card
Limits    N*P*Q, R*S*C, and x and dy in vectors of VEC floats below 2^31; splits, groups <= 65535;
          checked by gpuconv/ops/conv2d_launch.py
Not here  The sum of db's parts (sum_partials.cu); images of few channels
          (conv_few_channels.cu); the bias gradient in the same pass
Macros    TILE, TILE_N; VEC_A, VEC_B, VEC_OUT (4 or 1: dy, x, the result)
*/
#include "conv_simt.cuh"
#include "last_block.cuh"

// As BLOCKS, but here all compilers spill for sm_120.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int WEIGHT_BLOCKS = TILE == 64 ? 2 : TILE_N == 64 ? 3 : 1;
#else
constexpr int WEIGHT_BLOCKS = BLOCKS;
#endif

// A block's tile has the filters down and the (tap, channel) pairs, the columns of dw, across; that
// of 128 x 64 the other way round, for 64 filters.
constexpr bool TURNED = TILE != TILE_N;
constexpr int FILTERS = TURNED ? TILE_N : TILE, COLUMNS = TURNED ? TILE : TILE_N;  // of a tile
constexpr int QUADS_HELD = EDGE * EDGE / 4;  // by a thread, each of four neighbouring columns of dw

// Quad i that a thread holds: its filter and first column in the tile, and its sums.
__device__ __forceinline__ int held_filter(int i)
{
    return TURNED ? quad_column(i % EDGE / 4) + i % 4 : quad_row(i / QUADS / 4) + i / QUADS % 4;
}

__device__ __forceinline__ int held_column(int i)
{
    return TURNED ? quad_row(i / EDGE) : quad_column(i % QUADS);
}

__device__ __forceinline__ Floats<4> held_sums(const Sums& sums, int i)
{
    Floats<4> quad;
    for (int v = 0; v < 4; ++v)
        quad.v[v] = TURNED ? sums[i / EDGE * 4 + v][i % EDGE] : sums[i / QUADS][i % QUADS * 4 + v];
    return quad;
}

// Panels of dy: FILTERS filters by TILE_K pixels, contiguous along the filters.
struct GradientLoader {
    using Shape = Across<VEC_A, FILTERS>;
    const float* dy;
    int K, column, begin;  // column: the first filter here, in vectors of dy
    int end[Shape::ROWS];  // the part is [begin, end), empty for a filter past the last
    float v[Shape::COUNT];

    __device__ __forceinline__ void fetch_panel(int panel)
    {
        for (int u = 0; u < Shape::STEPS; ++u) {
            const int pixel = begin + panel * TILE_K + Shape::step(u);
            const float* from = dy + (long long)(pixel * (K / VEC_A) + column) * VEC_A;
            for (int i = 0; i < Shape::ROWS; ++i)
                fetch<VEC_A>(v, u * Shape::ROWS + i, from + FILTERS / 4 * i, pixel < end[i]);
        }
    }

    template <int PITCH> __device__ __forceinline__ void put(float (*panel)[PITCH])
    {
        Shape::put(panel, v);
    }
};

// Panels of x: COLUMNS (tap, channel) pairs by TILE_K pixels of the result, contiguous along the
// channels.
struct WindowLoader {
    using Shape = Across<VEC_B, COLUMNS>;
    const float* x;
    int H, W, C, P, Q, stride_h, stride_w, pad_h, pad_w;
    int begin, end;  // the part: result pixels [begin, end)
    unsigned p_mul, q_mul;
    int p_shift, q_shift;
    int h[Shape::ROWS], w[Shape::ROWS];  // each column's tap
    int distance[Shape::ROWS];           // and its offset from tap 0, channel 0, in vectors
    float v[Shape::COUNT];

    __device__ __forceinline__ void fetch_panel(int panel)
    {
        for (int u = 0; u < Shape::STEPS; ++u) {
            const int pixel = begin + panel * TILE_K + Shape::step(u);
            const int line = divide(pixel, q_mul, q_shift), q = pixel - line * Q;
            const int n = divide(line, p_mul, p_shift), p = line - n * P;
            const int top = p * stride_h - pad_h, left = q * stride_w - pad_w;
            const int from = ((n * H + top) * W + left) * (C / VEC_B);
            for (int i = 0; i < Shape::ROWS; ++i)
                fetch<VEC_B>(v, u * Shape::ROWS + i, x + (long long)(from + distance[i]) * VEC_B,
                    (unsigned)(top + h[i]) < (unsigned)H && (unsigned)(left + w[i]) < (unsigned)W
                        && pixel < end);
        }
    }

    template <int PITCH> __device__ __forceinline__ void put(float (*panel)[PITCH])
    {
        Shape::put(panel, v);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, WEIGHT_BLOCKS) conv2d_backward_weight_simt(
    float* __restrict__ dw, float* __restrict__ partials, unsigned* __restrict__ tickets,
    const float* __restrict__ dy, const float* __restrict__ x, int pixels, int split_length,
    int together, int H, int W, int P, int Q, int S, int C, int K, int channels, int filters,
    int columns, int tiles_across, int stride_h, int stride_w, int pad_h, int pad_w, int dil_h,
    int dil_w, unsigned p_mul, int p_shift, unsigned q_mul, int q_shift)
{
    __shared__ Panels panels;
    const TileOrigin from = tile_origin(tiles_across);
    const int first_filter = TURNED ? from.column : from.row;
    const int first_column = TURNED ? from.row : from.column;
    if (first_filter >= filters || from.group * filters >= K) return;
    const int begin = (int)min((long long)blockIdx.z * split_length, (long long)pixels);
    const int end = (int)min((long long)begin + split_length, (long long)pixels);

    const int filter = first_filter + GradientLoader::Shape::row(0);
    GradientLoader gradients = {dy, K, (from.group * filters + filter) / VEC_A, begin};
    for (int i = 0; i < GradientLoader::Shape::ROWS; ++i)
        gradients.end[i] = first_filter + GradientLoader::Shape::row(i) < filters ? end : 0;
    WindowLoader windows = {x, H, W, C, P, Q, stride_h, stride_w, pad_h, pad_w, begin, end, p_mul,
        q_mul, p_shift, q_shift};
    for (int i = 0; i < WindowLoader::Shape::ROWS; ++i) {
        const int column = first_column + WindowLoader::Shape::row(i), tap = column / channels;
        const int r = tap / S, c = from.group * channels + column - tap * channels;
        windows.w[i] = (tap - r * S) * dil_w;
        windows.h[i] = column < columns ? r * dil_h : -(1 << 30);  // no row of the image
        windows.distance[i] = (r * dil_h * W + windows.w[i]) * (C / VEC_B) + c / VEC_B;
    }

    Sums sums = {};
    const int steps = (end - begin + TILE_K - 1) / TILE_K;
    if constexpr (TURNED)
        accumulate(sums, panels, windows, gradients, steps);
    else
        accumulate(sums, panels, gradients, windows, steps);

    const TileOrigin to = tile_origin(tiles_across);
    const int filters_left = filters - (TURNED ? to.column : to.row);
    const int columns_left = columns - (TURNED ? to.row : to.column);
    dw += ((long long)to.group * filters + filters - filters_left) * columns;
    dw += columns - columns_left;
    const auto put = [&](int i, const Floats<4>& quad) {
        const int filter = held_filter(i), column = held_column(i);
        for (int v = 0; v < 4; v += VEC_OUT) {
            if (filter >= filters_left || column + v >= columns_left) return;
            Floats<VEC_OUT> part;
            for (int k = 0; k < VEC_OUT; ++k) part.v[k] = quad.v[v + k];
            store<VEC_OUT>(dw + (long long)filter * columns + column + v, part);
        }
    };
    const int splits = gridDim.z;
    if (splits == 1) {
#pragma unroll
        for (int i = 0; i < QUADS_HELD; ++i) put(i, held_sums(sums, i));
        return;
    }
    constexpr int SIZE = TILE * TILE_N;
    const int tile = blockIdx.y * gridDim.x + blockIdx.x;
    partials += (long long)tile * splits * SIZE;
    float* const mine = partials + (long long)blockIdx.z * SIZE + 4 * threadIdx.x;
#pragma unroll
    for (int i = 0; i < QUADS_HELD; ++i)
        store_global<4>(mine + i * (4 * THREADS), held_sums(sums, i));
    const int groups = (splits + together - 1) / together;
    sum_by_last_block(partials, tickets + tile * (groups + 1), blockIdx.z, splits, together, SIZE,
        [&](int at, const Floats<4>& sum) { put(at / (4 * THREADS), sum); });
}

// partials[s][k] = the sum of dy over part s of the pixels; a thread takes every rows-th pixel of
// one filter.
extern "C" __global__ void __launch_bounds__(256, 4)
    conv2d_backward_bias_partials(float* __restrict__ partials, const float* __restrict__ dy,
        int pixels, int split_length, int K, int columns)
{
    __shared__ float partial[256];
    const int rows = 256 / columns, lane = threadIdx.x % columns, row = threadIdx.x / columns;
    const int k = blockIdx.x * columns + lane;
    const long long begin = (long long)blockIdx.y * split_length,
                    end = min(begin + split_length, (long long)pixels);
    float sum = 0.0f;
    if (k < K && row < rows)
        for (long long pixel = begin + row; pixel < end; pixel += rows) sum += dy[pixel * K + k];
    partial[threadIdx.x] = sum;
    __syncthreads();
    if (row > 0 || k >= K) return;
    for (int other = 1; other < rows; ++other) sum += partial[other * columns + lane];
    partials[(long long)blockIdx.y * K + k] = sum;
}
