/*
maxpool.cu: two-dimensional max pooling, forward and backward.

Math      y[n,p,q,c]      = max over (r,s) of x[n,h,w,c],
                            h = p*stride_h - pad_h + r*dil_h, w = q*stride_w - pad_w + s*dil_w
          argmax[n,p,q,c] = r*S + s of the first maximum in (r,s) order, or of the last NaN if there
                            is one; -1 (255 in a byte), with y = -infinity, where no tap is inside
                            the image
          dx[n,h,w,c]     = sum of dy[n,p,q,c] over the windows whose maximum is at (h,w)
Source    ONNX MaxPool; torch.nn.functional.max_pool2d, including ceil_mode
Layout    x, y, dx, dy: float32 NHWC, C divisible by VEC (VEC = 1 serves any C); argmax: TAP, same
          shape as y
Geometry  A block of 256 threads is 256/lanes pixels by `lanes` threads along the channels; both
          loop with a stride, so any grid covers all. A thread owns VEC neighbouring channels of one
          output pixel (forward) or input pixel (backward). With VEC = 4 every access to floats is
          16 bytes
Traffic   Forward: x once (overlapping taps hit the cache), y and argmax once. Backward: dy and
          argmax once, dx once
Floor     bytes / DRAM bandwidth
Order     One owner per output, no atomics: the backward gathers from the windows that cover a
          pixel, by ascending (p,q), so results are bit-identical from run to run
Limits    R*S <= 255 where TAP is a byte; N*P*Q and N*H*W below 2^31 (checked on the host); offsets
          are 64-bit
Not here  A convolution's bias and ReLU in the same pass: bias_relu_pool.cu
Macros    VEC (4 or 1), TAP (argmax's type: unsigned char, or int)
*/
#include "pool.cuh"

constexpr TAP NONE = (TAP)-1;  // no tap of this window has been inside the image yet

extern "C" __global__ void __launch_bounds__(256, 4)
    max_pool2d_forward(float* __restrict__ y, TAP* __restrict__ argmax,
        const float* __restrict__ x, int pixels, int lanes, int H, int W, int C, int P, int Q,
        int R, int S, int stride_h, int stride_w, int pad_h, int pad_w, int dil_h, int dil_w)
{
    for (PixelLoop at(lanes); at.pixel < pixels; at.next()) {
        const unsigned pixel = at.pixel, q = pixel % Q, line = pixel / Q, p = line % P,
                       n = line / P;
        for (int c = at.lane * VEC; c < C; c += lanes * VEC) {
            Floats<VEC> best;
            Argmax<VEC> best_tap;
            for (int k = 0; k < VEC; ++k) {
                best.v[k] = -1.0f / 0.0f;  // NVRTC has no INFINITY
                best_tap.v[k] = NONE;      // not best == -infinity: an image may hold that value
            }
            for (int r = 0; r < R; ++r) {
                const int h = (int)p * stride_h - pad_h + r * dil_h;
                if (h < 0 || h >= H) continue;
                for (int s = 0; s < S; ++s) {
                    const int w = (int)q * stride_w - pad_w + s * dil_w;
                    if (w < 0 || w >= W) continue;
                    const Floats<VEC> in = load<VEC>(x + (((long long)n * H + h) * W + w) * C + c);
                    for (int k = 0; k < VEC; ++k)
                        if (best_tap.v[k] == NONE || in.v[k] > best.v[k] || in.v[k] != in.v[k]) {
                            best.v[k] = in.v[k];
                            best_tap.v[k] = r * S + s;
                        }
                }
            }
            const long long to = at.pixel * C + c;
            store_global<VEC>(y + to, best);
            *(Argmax<VEC>*)(argmax + to) = best_tap;
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 4)
    max_pool2d_backward(float* __restrict__ dx, const float* __restrict__ dy,
        const TAP* __restrict__ argmax, int pixels, int lanes, int H, int W, int C, int P,
        int Q, int R, int S, int stride_h, int stride_w, int pad_h, int pad_w, int dil_h, int dil_w)
{
    for (PixelLoop at(lanes); at.pixel < pixels; at.next()) {
        const unsigned pixel = at.pixel, w = pixel % W, line = pixel / W, h = line % H,
                       n = line / H;
        const CoveringWindows rows(h + pad_h, stride_h, dil_h, R, P),
            columns(w + pad_w, stride_w, dil_w, S, Q);
        for (int c = at.lane * VEC; c < C; c += lanes * VEC)
            store_global<VEC>(dx + at.pixel * C + c,
                sum_of_maxima<VEC>(dy, argmax, rows, columns, n, c, C, P, Q, S));
    }
}
