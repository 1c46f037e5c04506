/*
conv_small.cu: convolution of small images with few filters, forward, with what follows it in a
block of a ConvNet: bias, ReLU and 2x2 max pooling.

Math      v[n,p,q,k] = act(b[k] + sum over c,r,s of w[k,r,s,c] * x[n,h,w,c]), h = p - pad_h + r,
                       w = q - pad_w + s; act is nothing or ReLU
          y = v; or with pooling y[n,i,j,k] = max of v[n, 2i + a, 2j + b, k] over a, b in {0, 1}
          inside v, and argmax = 2a + b of the first maximum, or of the last NaN if there is one
Source    Direct convolution with register tiles: Georganas et al. 2018, "Anatomy of
          high-performance deep learning convolutions"; the article's convolution, ReLU and pooling
Layout    x: float32, NHWC or NCHW; y, argmax: either, alike; w: float32 KRSC; b: K
Geometry  A block: `images` images by a band of `rows` rows of v by `filters` filters; grid.x =
          filters (fastest: they share x in the L2), bands, images. Its input with all channels and
          its filters lie in shared memory. A thread has 2x2 pixels by FILTERS filters: for each
          filter row it reads one new row of the input and each filter once, for 4 * FILTERS
          multiply-adds a tap; threads of a warp have different pixels and the same filters
Traffic   x once for each block of filters, with the rows where bands overlap; y and argmax once
Floor     2*N*P*Q*K*R*S*C flops / FP32 peak
Order     Ascending (c,r,s), then the bias: |error| <= gamma_(RSC+1) of the sum of absolute products
Limits    Stride 1, no dilation, groups = 1, R, S <= 5; a block's shared memory within 48 KB. The
          configuration (gpuconv/ops/conv2d_launch_small.py) takes it where it wastes little
Not here  The backward passes (conv_small_backward.cu)
Macros    R, S; FILTERS (of a thread, 1 to 8)
*/
#include "conv_small.cuh"

extern __shared__ __align__(16) float shared[];

extern "C" __global__ void __launch_bounds__(256, 2) conv2d_forward_small(float* __restrict__ y,
    unsigned char* __restrict__ argmax, const float* __restrict__ x, const float* __restrict__ w,
    const float* __restrict__ b, int N, int C, int H, int W, int K, int P, int Q, int PP, int PQ,
    int pad_h, int pad_w, int images, int rows, int bands, int splits, int filters, int columns,
    int pitch, int in_rows, unsigned pitch_mul, int pitch_shift, unsigned in_rows_mul,
    int in_rows_shift, unsigned C_mul, int C_shift, unsigned terms_mul, int terms_shift,
    int x_channel, int x_pixel, int y_channel, int y_pixel, int pool, int use_bias, int rectify)
{
    const int down = blockIdx.x / splits, first = (blockIdx.x - down * splits) * filters;
    const int group = down / bands, p0 = (down - group * bands) * rows, n0 = group * images;
    const int groups = filters / FILTERS, tap = groups * padded(FILTERS);
    float* const weights = shared;
    float* const in = shared + C * R * S * tap;

    clear_padding<FILTERS>(weights, C * R * S * groups);
#pragma unroll 4
    for (int i = threadIdx.x; i < filters * R * S * C; i += blockDim.x) {
        const int k = divide(i, terms_mul, terms_shift), term = i - k * (R * S * C);
        const int place = divide(term, C_mul, C_shift), c = term - place * C;
        weights[(c * R * S + place) * tap + k / FILTERS * padded(FILTERS) + k % FILTERS] =
            first + k < K ? w[(long long)first * R * S * C + i] : 0.0f;
    }
    const Image image = {H, W, x_channel, x_pixel};
    const Region region = {images, in_rows, pitch, pitch_mul, in_rows_mul, C_mul, pitch_shift,
        in_rows_shift, C_shift};
    stage(in, region, n0, N, C, p0 - pad_h, -pad_w, image,
        [&](int n, int c, int h, int w) { return x[image.at(n, C, c, h, w)]; });
    __syncthreads();

    const int items = images * (rows / 2) * columns * groups;
#pragma unroll 1
    for (int item = threadIdx.x; item < items; item += blockDim.x) {
        const Patch patch(item, columns, rows / 2, images);
        float sums[2][2][FILTERS] = {};
        accumulate<FILTERS>(sums,
            in + (patch.image * C * in_rows + 2 * patch.row) * pitch + 2 * patch.column,
            weights + patch.group * padded(FILTERS), C, in_rows * pitch, pitch, tap);

        const int n = n0 + patch.image, p = p0 + 2 * patch.row, q = 2 * patch.column;
        const Image out = {pool ? PP : P, pool ? PQ : Q, y_channel, y_pixel};
        if (n >= N) continue;
#pragma unroll
        for (int j = 0; j < FILTERS; ++j) {
            const int k = first + patch.group * FILTERS + j;
            if (k >= K) continue;
            float best = 0.0f;
            int best_tap = 0;
#pragma unroll
            for (int t = 0; t < 4; ++t) {
                if (p + t / 2 >= P || q + t % 2 >= Q) continue;
                float v = sums[t / 2][t % 2][j];
                if (use_bias) v += b[k];
                if (rectify) v = relu(v);
                if (!pool) y[out.at(n, K, k, p + t / 2, q + t % 2)] = v;
                if (t == 0 || v > best || v != v) best = v, best_tap = t;
            }
            if (!pool || !out.has(p / 2, q / 2)) continue;
            const long long to = out.at(n, K, k, p / 2, q / 2);
            y[to] = best;
            argmax[to] = best_tap;
        }
    }
}
