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
Source    Ioffe and Szegedy 2015; torch.nn.functional.batch_norm. Statistics: Chan, Golub and
          LeVeque 1983, "Algorithms for computing the sample variance"
Layout    x, dy: float32 (pixels, C), a pixel x_stride or dy_stride elements after the one before,
          so that x may be the first channels of a wider image; y, dx: (pixels, C); partials:
          (splits, 2, C), for the statistics a row (C) more; all others: (C)
Geometry  Blocks of 256 threads, 256/lanes pixels by `lanes` threads of VEC channels; grid.x = block
          of channels, grid.y = part of the pixels (sums) or a stride over them. Merging: 32 rows of
          partial results by 8 channels
Traffic   Training forward: x twice, y once; evaluation: x and y once. Backward: dy and x twice, dx
          once; without of_batch and weight, once each
Floor     Training 12 forward, 20 backward; evaluation 8, and 20 or 12 * pixels * C bytes / DRAM
          bandwidth
Order     No atomics. A thread takes its pixels by fours, ascending; then a tree over the rows of a
          block, every 32nd partial result ascending, and a tree again
Limits    pixels, C and the strides below 2^31; offsets are 64-bit. An infinity in a channel makes
          all of it NaN, as a NaN does; so does a difference from its first value past 1.8e19
Not here  Statistics from the epilogue of the convolution before, or of several cards; all in one
          launch for images so small that a block holds a channel
Macros    VEC (4 or 1). The scalars use_weight, use_bias, rectify and of_batch choose the parts
*/
#include "channels.cuh"

constexpr int LANES = 8, ROWS = THREADS / LANES;  // of the blocks that merge partial results

// n values less the channel's shift: their mean, and the sum of their squared distances from it.
template <int WIDTH> struct Moments {
    float n;
    Floats<WIDTH> mean, squares;
};

// Merges the moments of other values into a (Chan et al., formula 2.1).
template <int WIDTH>
__device__ __forceinline__ void merge(Moments<WIDTH>& a, const Moments<WIDTH>& b)
{
    if (b.n == 0.0f) return;
    const float total = a.n + b.n, share = b.n / total, weight = a.n * share;
    for (int k = 0; k < WIDTH; ++k) {
        const float d = b.mean.v[k] - a.mean.v[k];
        a.mean.v[k] = fmaf(d, share, a.mean.v[k]);
        a.squares.v[k] += fmaf(d * weight, d, b.squares.v[k]);
    }
    a.n = total;
}

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

// The moments of each part of split_length pixels. The first pixel is subtracted from every other
// first, so that a channel far from zero keeps its digits; it is the last row of partials.
extern "C" __global__ void __launch_bounds__(256, 4)
    batch_norm2d_statistics(float* __restrict__ partials, const float* __restrict__ x, int pixels,
        int x_stride, int C, int lanes, int split_length)
{
    const Tile tile(lanes);
    const long long first = (long long)blockIdx.y * split_length,
                    end = first + split_length < pixels ? first + split_length : pixels;
    Moments<VEC> mine = {};
    Floats<VEC> shift = {};
    if (tile.c < C) {
        shift = load<VEC>(x + tile.c);
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
    float* to = partials + (long long)blockIdx.y * 2 * C + tile.c;
    store_global<VEC>(to, mine.mean);
    store_global<VEC>(to + C, mine.squares);
    if (blockIdx.y == 0) store_global<VEC>(partials + (long long)gridDim.y * 2 * C + tile.c, shift);
}

extern "C" __global__ void __launch_bounds__(256, 4)
    batch_norm2d_merge(float* __restrict__ mean, float* __restrict__ var,
        const float* __restrict__ partials, int pixels, int C, int split_length, int splits)
{
    const int row = threadIdx.x / LANES, c = blockIdx.x * LANES + threadIdx.x % LANES;
    Moments<1> mine = {};
    for (int s = row; s < splits && c < C; s += ROWS) {
        const float* from = partials + (long long)s * 2 * C + c;
        const int left = pixels - s * split_length;
        merge(mine, {(float)(left < split_length ? left : split_length), {from[0]}, {from[C]}});
    }
    merge_rows(mine, row, ROWS, LANES, merge<1>);
    if (row > 0 || c >= C) return;
    mean[c] = partials[(long long)splits * 2 * C + c] + mine.mean.v[0];
    var[c] = mine.squares.v[0] / (float)pixels;
}

// What a thread needs of its channels. Forward and backward compute the same y from it, bit for
// bit, so that both find the same pixels cut by the ReLU.
struct Normal {
    Floats<VEC> mean, deviation, scale, shift;

    __device__ __forceinline__ Normal(const float* w, const float* b, const float* mean_of,
        const float* var, int c, float eps, int use_weight, int use_bias)
        : mean(load<VEC>(mean_of + c)), deviation(load<VEC>(var + c)), scale(), shift()
    {
        if (use_weight) scale = load<VEC>(w + c);
        if (use_bias) shift = load<VEC>(b + c);
        for (int k = 0; k < VEC; ++k) {
            deviation.v[k] = sqrtf(deviation.v[k] + eps);
            scale.v[k] = (use_weight ? scale.v[k] : 1.0f) / deviation.v[k];
        }
    }
    __device__ __forceinline__ float y(float x, int k) const
    {
        return fmaf(x - mean.v[k], scale.v[k], shift.v[k]);
    }
    // dy as it was before the ReLU.
    __device__ __forceinline__ float d(float dy, float x, int k, int rectify) const
    {
        return rectify ? relu_mask(dy, y(x, k)) : dy;
    }
};

extern "C" __global__ void __launch_bounds__(256, 4) batch_norm2d_forward(float* __restrict__ y,
    const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ b,
    const float* __restrict__ mean, const float* __restrict__ var, int pixels, int x_stride, int C,
    int lanes, float eps, int use_weight, int use_bias, int rectify)
{
    const Tile tile(lanes);
    if (tile.c >= C) return;
    const Normal of(w, b, mean, var, tile.c, eps, use_weight, use_bias);
    Floats<VEC> in[FLIGHT];
    each_pixel(
        tile, pixels, [&](long long i, int j) { in[j] = load<VEC>(x + i * x_stride + tile.c); },
        [&](long long i, int j) {
            for (int k = 0; k < VEC; ++k) {
                const float value = of.y(in[j].v[k], k);
                in[j].v[k] = rectify ? relu(value) : value;
            }
            store_global<VEC>(y + i * C + tile.c, in[j]);
        });
}

// The sums of d and of d * (x - mean) over each part of split_length pixels.
extern "C" __global__ void __launch_bounds__(256, 4) batch_norm2d_backward_sums(
    float* __restrict__ partials, const float* __restrict__ dy, const float* __restrict__ x,
    const float* __restrict__ w, const float* __restrict__ b, const float* __restrict__ mean,
    const float* __restrict__ var, int pixels, int dy_stride, int x_stride, int C, int lanes,
    int split_length, float eps, int use_weight, int use_bias, int rectify)
{
    const Tile tile(lanes);
    const long long first = (long long)blockIdx.y * split_length,
                    end = first + split_length < pixels ? first + split_length : pixels;
    Floats<2 * VEC> sums = {};
    if (tile.c < C) {
        const Normal of(w, b, mean, var, tile.c, eps, use_weight, use_bias);
#pragma unroll 2
        for (long long i = first + tile.row; i < end; i += tile.rows) {
            const Floats<VEC> in = load<VEC>(x + i * x_stride + tile.c),
                              gradient = load<VEC>(dy + i * dy_stride + tile.c);
            for (int k = 0; k < VEC; ++k) {
                const float d = of.d(gradient.v[k], in.v[k], k, rectify);
                sums.v[k] += d;
                sums.v[VEC + k] = fmaf(d, in.v[k] - of.mean.v[k], sums.v[VEC + k]);
            }
        }
    }
    sum_rows(sums, tile.row, tile.rows, lanes);
    if (tile.row > 0 || tile.c >= C) return;
    float* to = partials + (long long)blockIdx.y * 2 * C + tile.c;
    for (int k = 0; k < VEC; ++k) {
        to[k] = sums.v[k];
        to[C + k] = sums.v[VEC + k];
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) batch_norm2d_backward_merge(
    float* __restrict__ dw, float* __restrict__ db, const float* __restrict__ partials,
    const float* __restrict__ var, int C, int splits, float eps)
{
    const int row = threadIdx.x / LANES, c = blockIdx.x * LANES + threadIdx.x % LANES;
    Floats<2> sums = {};
    for (int s = row; s < splits && c < C; s += ROWS) {
        const float* from = partials + (long long)s * 2 * C + c;
        sums.v[0] += from[0];
        sums.v[1] += from[C];
    }
    sum_rows(sums, row, ROWS, LANES);
    if (row > 0 || c >= C) return;
    db[c] = sums.v[0];
    dw[c] = sums.v[1] / sqrtf(var[c] + eps);
}

extern "C" __global__ void __launch_bounds__(256, 3)
    batch_norm2d_backward(float* __restrict__ dx, const float* __restrict__ dy,
        const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ b,
        const float* __restrict__ mean, const float* __restrict__ var, const float* __restrict__ dw,
        const float* __restrict__ db, int pixels, int dy_stride, int x_stride, int C, int lanes,
        float eps, int of_batch, int use_weight, int use_bias, int rectify)
{
    const Tile tile(lanes);
    if (tile.c >= C) return;
    const Normal of(w, b, mean, var, tile.c, eps, use_weight, use_bias);
    Floats<VEC> base = {}, slope = {};  // dx = scale * (d - base - (x - mean) * slope)
    if (of_batch) {
        base = load<VEC>(db + tile.c);
        slope = load<VEC>(dw + tile.c);
        for (int k = 0; k < VEC; ++k) {
            base.v[k] /= (float)pixels;
            slope.v[k] = slope.v[k] / (float)pixels / of.deviation.v[k];
        }
    }
    Floats<VEC> in[FLIGHT], gradient[FLIGHT];
    each_pixel(
        tile, pixels,
        [&](long long i, int j) {
            in[j] = load<VEC>(x + i * x_stride + tile.c);
            gradient[j] = load<VEC>(dy + i * dy_stride + tile.c);
        },
        [&](long long i, int j) {
            for (int k = 0; k < VEC; ++k) {
                const float d = of.d(gradient[j].v[k], in[j].v[k], k, rectify);
                const float rest = fmaf(in[j].v[k] - of.mean.v[k], slope.v[k], base.v[k]);
                in[j].v[k] = of.scale.v[k] * (of_batch ? d - rest : d);
            }
            store_global<VEC>(dx + i * C + tile.c, in[j]);
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
    for (long long c = first_index(); c < C; c += index_step()) {
        running_mean[c] = keep * running_mean[c] + momentum * mean[c];
        running_var[c] = keep * running_var[c] + momentum * (var[c] * unbiased);
    }
}
