/*
batchnorm.cu: batch normalisation in training and evaluation, with its ReLU; forward and backward.

Math      y[i,c] = act((x[i,c] - mean[c]) * scale + b[c]), scale = w[c] / sqrt(var[c] + eps), for
          the pixels i of all images; in training mean and var are x's own, var being the mean of
          (x - mean)^2
          db = sum of d, dw = sum of d*z, z = (x - mean) / sqrt(var + eps), d = dy where y > 0 or
          there is no ReLU, else 0
          dx = scale * (d - (db + z*dw) / pixels), in evaluation scale * d
          running = (1 - momentum) * running + momentum * new, new = mean or var * n / (n - 1);
          step and stop are those of optim.cu
          In a residual block y = act(... + b[c] + other[i,c])
Source    Ioffe and Szegedy 2015; torch.nn.functional.batch_norm. Statistics: moments.cuh
Layout    x, dy, other: STORE (pixels, C), a pixel x_stride, dy_stride or other_stride elements
          after the one before, so that x may be the first channels of a wider image; y, dx:
          STORE (pixels, C); partials: (splits, 2, C), those of the statistics as in moments.cuh;
          tickets: one for each block of channels, 0 before and after; all others: (C)
Geometry  Blocks of 256 threads, 256/lanes pixels by `lanes` threads of VEC channels; grid.x = block
          of channels, grid.y = part of the pixels (sums) or a stride over them. The last block to
          finish its part of the gradients' sums adds them all. Merging of statistics: 128 rows of
          partial results by 2 channels
Traffic   Training forward: x twice, or once where a convolution made the statistics, y once;
          evaluation: x and y once; other once. Backward: dy and x twice, dx once; without of_batch
          and weight, once each
Floor     Training 12 forward, 20 backward; evaluation 8, and 20 or 12 * pixels * C bytes / DRAM
          bandwidth
Order     Atomics count finished blocks alone. A thread takes its pixels by fours, ascending; then a
          tree over the rows of a block, every 128th partial result ascending (of gradients every
          row-th), and a tree again
Limits    pixels, C and the strides below 2^31; offsets are 64-bit. An infinity in a channel makes
          all of it NaN, as a NaN does; so does a difference from its first value past 1.8e19
Not here  The statistics that a convolution makes in its epilogue (conv_simt.cu); those of several
          cards; all in one launch for images so small that a block holds a channel
Macros    STORE (of arrays: float, half16 or brain16), VEC (4 or 1). The scalars use_weight,
          use_bias, use_other, rectify, tracked and of_batch choose the parts
*/
#include "batchnorm.cuh"
#include "moments.cuh"

constexpr int LANES = 2, ROWS = THREADS / LANES;  // of the blocks that merge partial results

// Moments of up to FLIGHT pixels, in two passes over registers.
__device__ __forceinline__ Moments<VEC> moments_of(
    const Floats<VEC> (&in)[FLIGHT], int count, const Floats<VEC>& shift)
{
    Moments<VEC> moments = {(float)count, {}, {}};
    const float part = 1.0f / (float)count;
#pragma unroll
    for (int j = 0; j < FLIGHT; ++j)
        for (int k = 0; k < VEC; ++k)
            if (j < count) moments.mean.v[k] += in[j].v[k] - shift.v[k];
    for (int k = 0; k < VEC; ++k) moments.mean.v[k] *= part;
#pragma unroll
    for (int j = 0; j < FLIGHT; ++j)
        for (int k = 0; k < VEC; ++k) {
            const float d = in[j].v[k] - shift.v[k] - moments.mean.v[k];
            if (j < count) moments.squares.v[k] = fmaf(d, d, moments.squares.v[k]);
        }
    return moments;
}

// The moments of each part of split_length pixels, less its first pixel.
extern "C" __global__ void __launch_bounds__(256, 4)
    batch_norm2d_statistics(float* __restrict__ partials, const STORE* __restrict__ x, int pixels,
        int x_stride, int C, int lanes, int split_length)
{
    const Tile tile(lanes);
    const long long first = (long long)blockIdx.y * split_length,
                    end = first + split_length < pixels ? first + split_length : pixels;
    Moments<VEC> mine = {};
    Floats<VEC> shift = {};
    if (tile.c < C) {
        shift = load<VEC>(x + first * x_stride + tile.c);
        for (long long at = first + tile.row; at < end; at += FLIGHT * tile.rows) {
            Floats<VEC> in[FLIGHT] = {};
            int count = 0;
#pragma unroll
            for (int j = 0; j < FLIGHT; ++j)
                if (at + j * tile.rows < end) {
                    in[j] = load<VEC>(x + (at + j * tile.rows) * x_stride + tile.c);
                    ++count;
                }
            merge(mine, moments_of(in, count, shift));
        }
    }
    merge_rows(mine, tile.row, tile.rows, lanes, merge<VEC>);
    if (tile.row > 0 || tile.c >= C) return;
    float* to = partials + (long long)blockIdx.y * MOMENT_ROWS * C + tile.c;
    store_moments<VEC>(to, C, shift, mine);
}

__device__ __forceinline__ void track(float* running_mean, float* running_var, long long c,
    float mean, float var, float keep, float momentum, float unbiased)
{
    running_mean[c] = keep * running_mean[c] + momentum * mean;
    running_var[c] = keep * running_var[c] + momentum * (var * unbiased);
}

// mean and var from the moments of `splits` parts of the pixels; with `tracked` the running
// ones move towards them.
extern "C" __global__ void __launch_bounds__(256, 4)
    batch_norm2d_merge(float* mean, float* var, float* running_mean, float* running_var,
        const float* __restrict__ partials, const float* __restrict__ step,
        const unsigned* __restrict__ stop, int pixels, int C, int splits, float keep,
        float momentum, float unbiased, int tracked)
{
    const int row = threadIdx.x / LANES, c = blockIdx.x * LANES + threadIdx.x % LANES;
    const float shift = c < C ? partials[C + c] : 0.0f;
    Moments<1> mine = {};
#pragma unroll 4
    for (int s = row; s < splits && c < C; s += ROWS) {
        const float* from = partials + (long long)s * MOMENT_ROWS * C + c;
        merge(mine, {from[0], {from[C] - shift + from[2 * C]}, {from[3 * C]}});
    }
    merge_rows(mine, row, ROWS, LANES, merge<1>);
    if (row > 0 || c >= C) return;
    const float mean_c = shift + mine.mean.v[0], var_c = mine.squares.v[0] / (float)pixels;
    mean[c] = mean_c;
    var[c] = var_c;
    if (!tracked || stop[0]) return;
    keep += step[0], momentum += step[1];
    track(running_mean, running_var, c, mean_c, var_c, keep, momentum, unbiased);
}

extern "C" __global__ void __launch_bounds__(256, 3) batch_norm2d_forward(STORE* __restrict__ y,
    const STORE* __restrict__ x, const float* __restrict__ w, const float* __restrict__ b,
    const float* __restrict__ mean, const float* __restrict__ var, const STORE* __restrict__ other,
    int pixels, int x_stride, int other_stride, int C, int lanes, float eps, int use_weight,
    int use_bias, int use_other, int rectify)
{
    const Tile tile(lanes);
    if (tile.c >= C) return;
    const Normal of(w, b, mean, var, tile.c, eps, use_weight, use_bias);
    Floats<VEC> in[FLIGHT], more[FLIGHT];
    each_pixel(
        tile, pixels,
        [&](long long i, int j) {
            in[j] = load<VEC>(x + i * x_stride + tile.c);
            if (use_other) more[j] = load<VEC>(other + i * other_stride + tile.c);
        },
        [&](long long i, int j) {
            for (int k = 0; k < VEC; ++k) {
                float value = of.y(in[j].v[k], k);
                if (use_other) value += more[j].v[k];
                in[j].v[k] = rectify ? relu(value) : value;
            }
            store_global<VEC>(y + i * C + tile.c, in[j]);
        });
}

// The sums of d and of d * (x - mean) over each part of split_length pixels, then dw and db.
extern "C" __global__ void __launch_bounds__(256, 4) batch_norm2d_backward_sums(
    float* __restrict__ dw, float* __restrict__ db, float* __restrict__ partials,
    unsigned* __restrict__ tickets, const STORE* __restrict__ dy, const STORE* __restrict__ x,
    const float* __restrict__ w, const float* __restrict__ b, const float* __restrict__ mean,
    const float* __restrict__ var, int pixels, int dy_stride, int x_stride, int C, int lanes,
    int split_length, float eps, int use_weight, int use_bias, int rectify)
{
    const Tile tile(lanes);
    Floats<2 * VEC> sums = {};
    if (tile.c < C) {
        const Normal of(w, b, mean, var, tile.c, eps, use_weight, use_bias);
        sums = sum_gradients(tile, of, x, x_stride, pixels, split_length, rectify,
            [&](long long i) { return load<VEC>(dy + i * dy_stride + tile.c); });
    }
    finish_sums(dw, db, partials, tickets, sums, tile, var, C, eps);
}

extern "C" __global__ void __launch_bounds__(256, 3)
    batch_norm2d_backward(STORE* __restrict__ dx, const STORE* __restrict__ dy,
        const STORE* __restrict__ x, const float* __restrict__ w, const float* __restrict__ b,
        const float* __restrict__ mean, const float* __restrict__ var, const float* __restrict__ dw,
        const float* __restrict__ db, int pixels, int dy_stride, int x_stride, int C, int lanes,
        float eps, int of_batch, int use_weight, int use_bias, int rectify)
{
    const Tile tile(lanes);
    if (tile.c >= C) return;
    const Slope of(w, b, mean, var, dw, db, tile.c, pixels, eps, of_batch, use_weight, use_bias);
    Floats<VEC> in[FLIGHT], gradient[FLIGHT];
    each_pixel(
        tile, pixels,
        [&](long long i, int j) {
            in[j] = load<VEC>(x + i * x_stride + tile.c);
            gradient[j] = load<VEC>(dy + i * dy_stride + tile.c);
        },
        [&](long long i, int j) {
            store_global<VEC>(dx + i * C + tile.c, of.dx(gradient[j], in[j], rectify));
        });
}

extern "C" __global__ void __launch_bounds__(256, 4)
    batch_norm2d_track(float* __restrict__ running_mean, float* __restrict__ running_var,
        const float* __restrict__ mean, const float* __restrict__ var,
        const float* __restrict__ step, const unsigned* __restrict__ stop, int C, float keep,
        float momentum, float unbiased)
{
    if (stop[0]) return;
    keep += step[0], momentum += step[1];
    for (long long c = first_index(); c < C; c += index_step())
        track(running_mean, running_var, c, mean[c], var[c], keep, momentum, unbiased);
}
