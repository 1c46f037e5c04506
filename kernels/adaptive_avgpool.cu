/*
adaptive_avgpool.cu: average pooling to a given output size, global average pooling, backward.

Math      y[n,p,q,c]  = mean of x[n,h,w,c], h = floor(p*H/P) ... ceil((p+1)*H/P) - 1, w alike
          dx[n,h,w,c] = sum of dy[n,p,q,c] / pixels(p,q) over the outputs that (h,w) is part of:
                        p = floor(h*P/H) ... ceil((h+1)*P/H) - 1, q alike
Source    torch.nn.functional.adaptive_avg_pool2d; Lin et al. 2013 for P = Q = 1
Layout    x, y, dx, dy: STORE NHWC
Geometry  As maxpool.cu; global: a block of 256 threads an image (grid-stride along grid.y) and
          block of channels, 256/lanes pixels by `lanes` threads of VEC channels
Traffic   Forward: x once (parts that overlap hit the cache), y once. Backward: dy and dx once
Floor     4 * (N*H*W + N*P*Q) * C bytes / DRAM bandwidth
Order     One owner per output, no atomics. Forward: ascending (h,w), then one division; global: a
          thread its pixels ascending, then a tree over the rows. Backward: each share is divided,
          then added by ascending (p,q)
Limits    N*H*W, N*P*Q, (H+1)*(P+1), (W+1)*(Q+1) below 2^31 (checked on the host); offsets are
          64-bit
Not here  Several blocks an image, which few images of many pixels would want
Macros    STORE (of arrays: float, half16 or brain16), VEC (4 or 1)
*/
#include "channels.cuh"
#include "pool.cuh"

// Along an axis, output o is the mean of x's pixels [first_of(o), end_of(o)); with `from` and `to`
// exchanged, pixel o is part of the outputs [first_of(o), end_of(o)).
__device__ __forceinline__ int first_of(int o, int from, int to) { return o * from / to; }
__device__ __forceinline__ int end_of(int o, int from, int to)
{
    return ((o + 1) * from + to - 1) / to;
}

extern "C" __global__ void __launch_bounds__(256, 4)
    adaptive_avg_pool2d_forward(STORE* __restrict__ y, const STORE* __restrict__ x, int pixels,
        int lanes, int H, int W, int C, int P, int Q)
{
    for (PixelLoop at(lanes); at.pixel < pixels; at.next()) {
        const int pixel = (int)at.pixel, line = pixel / Q, q = pixel - line * Q, n = line / P,
                  p = line - n * P;
        const int top = first_of(p, H, P), bottom = end_of(p, H, P), left = first_of(q, W, Q),
                  right = end_of(q, W, Q);
        const float count = (float)((bottom - top) * (right - left));
        for (int c = at.lane * VEC; c < C; c += lanes * VEC) {
            Floats<VEC> sum = {};
            for (int h = top; h < bottom; ++h)
#pragma unroll 2
                for (int w = left; w < right; ++w) {
                    const Floats<VEC> in = load<VEC>(x + (((long long)n * H + h) * W + w) * C + c);
                    for (int k = 0; k < VEC; ++k) sum.v[k] += in.v[k];
                }
            for (int k = 0; k < VEC; ++k) sum.v[k] /= count;
            store_global<VEC>(y + at.pixel * C + c, sum);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) global_avg_pool2d_forward(
    STORE* __restrict__ y, const STORE* __restrict__ x, int images, int lanes, int size, int C)
{
    const Tile tile(lanes);
    for (int n = blockIdx.y; n < images; n += gridDim.y) {
        Floats<VEC> sum = {};
        if (tile.c < C) {
            const STORE* image = x + (long long)n * size * C + tile.c;
#pragma unroll 4
            for (int i = tile.row; i < size; i += tile.rows) {
                const Floats<VEC> in = load<VEC>(image + (long long)i * C);
                for (int k = 0; k < VEC; ++k) sum.v[k] += in.v[k];
            }
        }
        sum_rows(sum, tile.row, tile.rows, lanes);
        if (tile.row == 0 && tile.c < C) {
            for (int k = 0; k < VEC; ++k) sum.v[k] /= (float)size;
            store_global<VEC>(y + (long long)n * C + tile.c, sum);
        }
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(256, 4)
    adaptive_avg_pool2d_backward(STORE* __restrict__ dx, const STORE* __restrict__ dy, int pixels,
        int lanes, int H, int W, int C, int P, int Q)
{
    for (PixelLoop at(lanes); at.pixel < pixels; at.next()) {
        const int pixel = (int)at.pixel, line = pixel / W, w = pixel - line * W, n = line / H,
                  h = line - n * H;
        const int top = first_of(h, P, H), bottom = end_of(h, P, H), left = first_of(w, Q, W),
                  right = end_of(w, Q, W);
        for (int c = at.lane * VEC; c < C; c += lanes * VEC) {
            Floats<VEC> sum = {};
            for (int p = top; p < bottom; ++p) {
                const int down = end_of(p, H, P) - first_of(p, H, P);
                for (int q = left; q < right; ++q) {
                    const float count = (float)(down * (end_of(q, W, Q) - first_of(q, W, Q)));
                    const Floats<VEC> d = load<VEC>(dy + (((long long)n * P + p) * Q + q) * C + c);
                    for (int k = 0; k < VEC; ++k) sum.v[k] += d.v[k] / count;
                }
            }
            store_global<VEC>(dx + at.pixel * C + c, sum);
        }
    }
}
