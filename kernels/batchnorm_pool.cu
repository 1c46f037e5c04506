/*
batchnorm_pool.cu: batch normalisation, ReLU and max-pool in one pass, forward and backward.

Math      z[i,c] = (x[i,c] - mean[c]) * scale + b[c], scale = w[c] / sqrt(var[c] + eps), as in
          batchnorm.cu; y[o,c] = max over the taps of window o of ReLU(z), argmax the tap, as in
          maxpool.cu
          d[i,c] = sum of dy[o,c] over the windows o whose maximum is at i, 0 where z <= 0; from it
          db, dw and dx as in batchnorm.cu
Source    Ioffe and Szegedy 2015; the stem of He et al. 2015. Nothing between is stored
Layout    x: float32 (N*H*W, C), a pixel x_stride elements after the one before; y, dy: (N, P, Q,
          C); argmax: TAP, the same; dx: (N, H, W, C); partials and tickets as in batchnorm.cu; all
          others: (C)
Geometry  Blocks of 256 threads, 256/lanes pixels (of y forward, of x backward) by `lanes` threads
          of VEC channels; grid.x = block of channels, grid.y = part of the pixels (sums) or a
          stride over them
Traffic   Forward: x once (overlapping taps hit the cache), y and argmax once. Backward: sums: x,
          dy and argmax once; dx: these and dx once
Floor     bytes / DRAM bandwidth
Order     That of the three operations by themselves, and so their bits
Limits    Those of batchnorm.cu and maxpool.cu
Not here  Windows kept in shared memory
Macros    VEC (4 or 1), TAP (argmax's type: unsigned char, or int)
*/
#include "batchnorm.cuh"
#include "pool.cuh"

constexpr TAP NONE = (TAP)-1;  // no tap of this window has been inside the image yet

// dy before the pool: what the windows over a pixel pass to it.
struct Pooled {
    const float* dy;
    const TAP* argmax;
    int H, W, C, P, Q, R, S, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w;

    __device__ __forceinline__ Floats<VEC> operator()(long long pixel, int c) const
    {
        const unsigned i = pixel, w = i % W, line = i / W, h = line % H, n = line / H;
        const CoveringWindows rows(h + pad_h, stride_h, dil_h, R, P),
            columns(w + pad_w, stride_w, dil_w, S, Q);
        return sum_of_maxima<VEC>(dy, argmax, rows, columns, n, c, C, P, Q, S);
    }
};

extern "C" __global__ void __launch_bounds__(256, 4) batch_norm2d_relu_max_pool2d_forward(
    float* __restrict__ y, TAP* __restrict__ argmax, const float* __restrict__ x,
    const float* __restrict__ w, const float* __restrict__ b, const float* __restrict__ mean,
    const float* __restrict__ var, int pixels, int x_stride, int lanes, int H, int W, int C, int P,
    int Q, int R, int S, int stride_h, int stride_w, int pad_h, int pad_w, int dil_h, int dil_w,
    float eps, int use_weight, int use_bias)
{
    const Tile tile(lanes);
    if (tile.c >= C) return;
    const Normal of(w, b, mean, var, tile.c, eps, use_weight, use_bias);
    for (long long at = (long long)blockIdx.y * tile.rows + tile.row; at < pixels;
         at += (long long)gridDim.y * tile.rows) {
        const unsigned i = at, q = i % Q, line = i / Q, p = line % P, n = line / P;
        Floats<VEC> best;
        Argmax<VEC> best_tap;
        for (int k = 0; k < VEC; ++k) {
            best.v[k] = -1.0f / 0.0f;
            best_tap.v[k] = NONE;
        }
        for (int r = 0; r < R; ++r) {
            const int h = (int)p * stride_h - pad_h + r * dil_h;
            if (h < 0 || h >= H) continue;
            for (int s = 0; s < S; ++s) {
                const int column = (int)q * stride_w - pad_w + s * dil_w;
                if (column < 0 || column >= W) continue;
                const long long from = ((long long)n * H + h) * W + column;
                const Floats<VEC> in = load<VEC>(x + from * x_stride + tile.c);
                for (int k = 0; k < VEC; ++k) {
                    const float z = relu(of.y(in.v[k], k));
                    if (best_tap.v[k] == NONE || z > best.v[k] || z != z) {
                        best.v[k] = z;
                        best_tap.v[k] = r * S + s;
                    }
                }
            }
        }
        store_global<VEC>(y + at * C + tile.c, best);
        *(Argmax<VEC>*)(argmax + at * C + tile.c) = best_tap;
    }
}

extern "C" __global__ void __launch_bounds__(256, 3) batch_norm2d_relu_max_pool2d_backward_sums(
    float* __restrict__ dw, float* __restrict__ db, float* __restrict__ partials,
    unsigned* __restrict__ tickets, const float* __restrict__ dy, const TAP* __restrict__ argmax,
    const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ b,
    const float* __restrict__ mean, const float* __restrict__ var, int pixels, int x_stride,
    int lanes, int split_length, int H, int W, int C, int P, int Q, int R, int S, int stride_h,
    int stride_w, int pad_h, int pad_w, int dil_h, int dil_w, float eps, int use_weight,
    int use_bias)
{
    const Tile tile(lanes);
    Floats<2 * VEC> sums = {};
    if (tile.c < C) {
        const Normal of(w, b, mean, var, tile.c, eps, use_weight, use_bias);
        const Pooled gradient = {dy, argmax, H, W, C, P, Q, R, S, stride_h, stride_w, pad_h, pad_w,
            dil_h, dil_w};
        sums = sum_gradients(tile, of, x, x_stride, pixels, split_length, 1,
            [&](long long i) { return gradient(i, tile.c); });
    }
    finish_sums(dw, db, partials, tickets, sums, tile, var, C, eps);
}

extern "C" __global__ void __launch_bounds__(256, 3) batch_norm2d_relu_max_pool2d_backward(
    float* __restrict__ dx, const float* __restrict__ dy, const TAP* __restrict__ argmax,
    const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ b,
    const float* __restrict__ mean, const float* __restrict__ var, const float* __restrict__ dw,
    const float* __restrict__ db, int pixels, int x_stride, int lanes, int H, int W, int C, int P,
    int Q, int R, int S, int stride_h, int stride_w, int pad_h, int pad_w, int dil_h, int dil_w,
    float eps, int of_batch, int use_weight, int use_bias)
{
    const Tile tile(lanes);
    if (tile.c >= C) return;
    const Slope of(w, b, mean, var, dw, db, tile.c, pixels, eps, of_batch, use_weight, use_bias);
    const Pooled gradient = {dy, argmax, H, W, C, P, Q, R, S, stride_h, stride_w, pad_h, pad_w,
        dil_h, dil_w};
    for (long long i = (long long)blockIdx.y * tile.rows + tile.row; i < pixels;
         i += (long long)gridDim.y * tile.rows) {
        const Floats<VEC> in = load<VEC>(x + i * x_stride + tile.c);
        store_global<VEC>(dx + i * C + tile.c, of.dx(gradient(i, tile.c), in, 1));
    }
}
