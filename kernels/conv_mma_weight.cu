/*
conv_mma_weight.cu: convolution's backward weight and bias gradient, in one pass, on tensor cores:
TF32, bfloat16 and float16 with sums in float32.

Math      dw[k,r,s,c] = sum over n,p,q of dy[n,p,q,k] * x[n,h,w,c],
                        h = p*stride_h - pad_h + r*dil_h, w = q*stride_w - pad_w + s*dil_w
          db[k]       = sum over n,p,q of dy[n,p,q,k]
          As one product per group: filters x pixels times pixels x columns, a column being a (tap,
          channel) pair, the pixels split into parts (split-K). db is the column after the last: its
          operand is 1
Source    CUTLASS, implicit GEMM for the weight gradient, with split-K; PTX ISA, "Warp-level matrix
          instructions"
Layout    dy, x: ELEMENT NHWC; dw: float32 KRSC with C = `real` channels of one group; db: float32.
          The workspace: for each tile and part its sums as the threads hold them. tickets:
          last_block.cuh
Geometry  One block per TILE filters x TILE_N columns of a group and part of the pixels: grid.x =
          tiles down * tiles across, across fastest; grid.y = group; grid.z = part; of each tile's
          blocks the last to finish adds the parts' sums. Stages of DEPTH pixels in shared memory:
          three, or two where TILE_N is 64; a pixel's vectors v lie at v ^ turn(pixel)
          (conv_mma_weight.cuh), so that neither copies nor loads of operands meet a bank conflict
Traffic   Per block: TILE and TILE_N of each operand for each of its pixels; where splits > 1
          splits * dw floats, in whole tiles, written and read
Floor     2*N*P*Q*K*R*S*C/groups flops / tensor-core peak of FORMAT
Order     Ascending pixels in a part, by mma of STEP pixels, then groups of parts, then the groups
          ascending. Where the pixels are split follows from the shape alone: bit-identical from run
          to run, not from one architecture to another. TF32: both are rounded
Limits    As conv_simt_weight.cu; channels and filters of a group whole vectors of WIDTH elements:
          the host pads others; R <= 16 and S <= 15. Compute capability 8.0
Not here  Depthwise filters
Macros    TILE, TILE_N; FORMAT, ELEMENT (mma.cuh); BIAS (1: db); WHOLE (1: a group's filters are
          whole tiles); UNIFORM (1: so are its channels, so that a tile has one tap)
*/
#include "conv_mma_weight.cuh"
#include "last_block.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) conv2d_backward_weight_mma(
    float* __restrict__ dw, float* __restrict__ db, float* __restrict__ partials,
    unsigned* __restrict__ tickets, const ELEMENT* __restrict__ dy, const ELEMENT* __restrict__ x,
    int pixels, int split_length, int together, int H, int W, int P, int Q, int R, int S, int C,
    int K, int channels, int filters, int real_channels, int real_filters, int tiles_across,
    int stride_h, int stride_w, int pad_h, int pad_w, int dil_h, int dil_w, unsigned p_mul,
    int p_shift, unsigned q_mul, int q_shift, unsigned dil_h_mul, int dil_h_shift,
    unsigned dil_w_mul, int dil_w_shift)
{
    extern __shared__ __align__(128) unsigned char stages[];
    const int down = blockIdx.x / tiles_across, group = blockIdx.y;
    const int first_filter = down * TILE;
    const int first_column = (blockIdx.x - down * tiles_across) * TILE_N;
    const int columns = R * S * channels;
    if (first_filter >= filters || group * filters >= K) return;
    const int begin = (int)min((long long)blockIdx.z * split_length, (long long)pixels);
    const int end = (int)min((long long)begin + split_length, (long long)pixels);

    WeightLoader loader;
    const int first = threadIdx.x % WeightLoader::LANES;
    loader.pixel = begin + threadIdx.x / WeightLoader::LANES, loader.end = end;
    loader.dy = (const char*)(dy + (long long)loader.pixel * K + group * filters + first_filter
        + first * WIDTH);
    loader.dy_step = (long long)(DEPTH * sizeof(ELEMENT)) * K;
    loader.dy_half = HALF * (int)sizeof(ELEMENT) * K;
    loader.x = (const char*)(x + group * channels);
    loader.x_pixel = C * (int)sizeof(ELEMENT);
    loader.H = H, loader.W = W;
    loader.stride_h = stride_h, loader.image_h = -P * stride_h;
    loader.stride_w = stride_w, loader.line_w = -Q * stride_w;
    loader.first_h = -pad_h, loader.first_w = -pad_w;
    loader.dil_h = dil_h, loader.dil_h_mul = dil_h_mul, loader.dil_h_shift = dil_h_shift;
    loader.dil_w = dil_w, loader.dil_w_mul = dil_w_mul, loader.dil_w_shift = dil_w_shift;
    loader.p_mul = p_mul, loader.q_mul = q_mul, loader.p_shift = p_shift, loader.q_shift = q_shift;
    loader.vectors = (filters - first_filter) / WIDTH - first;
    loader.open(shared_address(stages));
    if (UNIFORM) {
        const int tap = first_column / channels, r = tap / S, s = tap - r * S;
        loader.first_h += r * dil_h, loader.first_w += s * dil_w;
        loader.x += (first_column - tap * channels + first * WIDTH) * (int)sizeof(ELEMENT);
        if (first_column >= columns) loader.H = 0;  // db: no pixel is there
    } else {
#pragma unroll
        for (int i = 0; i < WeightLoader::B; ++i) {
            const int column = first_column + (first + i * WeightLoader::LANES) * WIDTH;
            const int tap = column / channels, r = tap / S, s = tap - r * S;
            const int h = PAIRED ? WeightLoader::tap_bits(r, s) : r * dil_h;
            loader.h[i] = column < columns ? h : NOWHERE;
            loader.w[i] = s * dil_w;
            loader.distance[i] = ((r * dil_h * W + s * dil_w) * C + column - tap * channels)
                * (unsigned)sizeof(ELEMENT);
        }
    }
    const int ones = (columns - first_column) / WIDTH;  // the vector of db's column
    const bool copied = ones >= 0 && ones < TILE_N / WIDTH && ones % WeightLoader::LANES == first;
    loader.one = copied ? (int)loader.place_b(ones / WeightLoader::LANES) : NONE;

    Sums sums = {};
    accumulate(sums, loader, (end - begin + DEPTH - 1) / DEPTH);

    dw += (long long)group * real_filters * R * S * real_channels;
    db += group * real_filters;
    const auto put = [&](int quad, const Floats<4>& four) {
        for (int v = 0; v < 4; ++v) {
            const int filter = first_filter + held_row(quad, v);
            const int column = first_column + held_column(quad, v);
            const int tap = column / channels, c = column - tap * channels;
            if (filter >= real_filters) continue;
            if (BIAS && column == columns) db[filter] = four.v[v];
            if (column < columns && c < real_channels)
                dw[((long long)filter * R * S + tap) * real_channels + c] = four.v[v];
        }
    };
    const int splits = gridDim.z;
    const auto sums_of = [&](int quad) {
        const float(&four)[4] = sums[quad / ROWS_N][quad % ROWS_N];
        return Floats<4>{{four[0], four[1], four[2], four[3]}};
    };
    if (splits == 1) {
#pragma unroll
        for (int quad = 0; quad < ROWS_M * ROWS_N; ++quad) put(quad, sums_of(quad));
        return;
    }
    constexpr int SIZE = TILE * TILE_N;
    const int tile = blockIdx.y * gridDim.x + blockIdx.x;
    partials += (long long)tile * splits * SIZE;
    float* const mine = partials + (long long)blockIdx.z * SIZE + 4 * threadIdx.x;
#pragma unroll
    for (int quad = 0; quad < ROWS_M * ROWS_N; ++quad)
        store_global<4>(mine + quad * (4 * THREADS), sums_of(quad));
    const int groups = (splits + together - 1) / together;
    sum_by_last_block(partials, tickets + tile * (groups + 1), blockIdx.z, splits, together, SIZE,
        [&](int at, const Floats<4>& sum) { put(at / (4 * THREADS), sum); });
}
