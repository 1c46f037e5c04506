/*
avgpool.cu: two-dimensional average and sum pooling, forward and backward.

Math      y[n,p,q,c]  = sum of x[n,h,w,c] / taps(p,q) over the (r,s) that are inside the image,
                        h = p*stride_h - pad_h + r*dil_h, w = q*stride_w - pad_w + s*dil_w
          dx[n,h,w,c] = sum of dy[n,p,q,c] / taps(p,q) over the windows that cover (h,w)
          taps(p,q)   = the window's rows in [low_h, high_h) times its columns in [low_w, high_w),
                        at least 1. These limits are the image's and its padding's, without
                        count_include_pad the image's alone. Without AVERAGE, taps(p,q) is 1
Source    ONNX AveragePool; torch.nn.functional.avg_pool2d; the article's "pooling step" for the sum
Layout    x, y, dx, dy: STORE NHWC, C divisible by VEC
Geometry  As maxpool.cu
Traffic   Forward: x once (overlapping taps hit the cache), y once. Backward: dy once, dx once
Floor     bytes / DRAM bandwidth
Order     One owner per output. Forward: ascending (r,s), then one division. Backward: each share is
          divided, then added by ascending (p,q)
Limits    N*P*Q and N*H*W below 2^31 (checked on the host); offsets are 64-bit
Not here  Global pooling with several threads an output
Macros    STORE (of arrays: float, half16 or brain16), VEC (4 or 1), AVERAGE (1, or 0 for the sum)
*/
#include "pool.cuh"

// How many taps of output o's window lie in [low, high), the window starting at o*stride - pad.
__device__ __forceinline__ int taps_counted(
    int o, int stride, int pad, int dil, int taps, int low, int high)
{
    const int start = o * stride - pad;
    const int before = start >= low ? 0 : min((low - start + dil - 1) / dil, taps);
    const int end = high <= start ? 0 : min((high - start + dil - 1) / dil, taps);
    return max(end - before, 0);
}

extern "C" __global__ void __launch_bounds__(256, 4)
    avg_pool2d_forward(STORE* __restrict__ y, const STORE* __restrict__ x, int pixels, int lanes,
        int H, int W, int C, int P, int Q, int R, int S, int stride_h, int stride_w, int pad_h,
        int pad_w, int dil_h, int dil_w, int low_h, int high_h, int low_w, int high_w)
{
    for (PixelLoop at(lanes); at.pixel < pixels; at.next()) {
        const unsigned pixel = at.pixel, q = pixel % Q, line = pixel / Q, p = line % P,
                       n = line / P;
        const int taps = AVERAGE ? taps_counted(p, stride_h, pad_h, dil_h, R, low_h, high_h)
                                       * taps_counted(q, stride_w, pad_w, dil_w, S, low_w, high_w)
                                 : 1;
        for (int c = at.lane * VEC; c < C; c += lanes * VEC) {
            Floats<VEC> sum = {};
            for (int r = 0; r < R; ++r) {
                const int h = (int)p * stride_h - pad_h + r * dil_h;
                if (h < 0 || h >= H) continue;
                for (int s = 0; s < S; ++s) {
                    const int w = (int)q * stride_w - pad_w + s * dil_w;
                    if (w < 0 || w >= W) continue;
                    const Floats<VEC> in = load<VEC>(x + (((long long)n * H + h) * W + w) * C + c);
                    for (int k = 0; k < VEC; ++k) sum.v[k] += in.v[k];
                }
            }
            if (AVERAGE)
                for (int k = 0; k < VEC; ++k) sum.v[k] /= (float)max(taps, 1);
            store_global<VEC>(y + at.pixel * C + c, sum);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 4)
    avg_pool2d_backward(STORE* __restrict__ dx, const STORE* __restrict__ dy, int pixels, int lanes,
        int H, int W, int C, int P, int Q, int R, int S, int stride_h, int stride_w, int pad_h,
        int pad_w, int dil_h, int dil_w, int low_h, int high_h, int low_w, int high_w)
{
    for (PixelLoop at(lanes); at.pixel < pixels; at.next()) {
        const unsigned pixel = at.pixel, w = pixel % W, line = pixel / W, h = line % H,
                       n = line / H;
        const CoveringWindows rows(h + pad_h, stride_h, dil_h, R, P),
            columns(w + pad_w, stride_w, dil_w, S, Q);
        for (int c = at.lane * VEC; c < C; c += lanes * VEC) {
            Floats<VEC> sum = {};
            for (int p = rows.first; p <= rows.last; ++p) {
                if (rows.tap(p) < 0) continue;
                const int down =
                    AVERAGE ? taps_counted(p, stride_h, pad_h, dil_h, R, low_h, high_h) : 1;
                for (int q = columns.first; q <= columns.last; ++q) {
                    if (columns.tap(q) < 0) continue;
                    const int across =
                        AVERAGE ? taps_counted(q, stride_w, pad_w, dil_w, S, low_w, high_w) : 1;
                    const Floats<VEC> d = load<VEC>(dy + (((long long)n * P + p) * Q + q) * C + c);
                    for (int k = 0; k < VEC; ++k)
                        sum.v[k] += AVERAGE ? d.v[k] / (float)max(down * across, 1) : d.v[k];
                }
            }
            store_global<VEC>(dx + at.pixel * C + c, sum);
        }
    }
}
