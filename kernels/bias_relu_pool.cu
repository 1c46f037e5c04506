/*
bias_relu_pool.cu: what follows a convolution in a ConvNet's block, bias, ReLU and 2x2 max pooling,
in one pass each way.

Math      v[n,h,w,c]      = relu(x[n,h,w,c] + b[c])
          y[n,p,q,c]      = max of v[n, 2p + r, 2q + s, c] over r, s in {0, 1} inside the image
          argmax[n,p,q,c] = 2r + s of the first maximum, or of the last NaN if there is one
          dx[n,h,w,c]     = dy[n, h/2, w/2, c] where that window's maximum is at (h,w) and its y is
                            above 0 or NaN, else 0; also 0 in an odd row or column left over
Source    The article's convolution, ReLU and pooling steps; torch.nn.functional.max_pool2d
Layout    x, y, dx, dy: float32 NHWC, C divisible by VEC (VEC = 1 serves any C); b: float32 (C,);
          argmax: uint8, same shape as y. x is the convolution's sum, before its bias
Geometry  As maxpool.cu, but a thread owns a cell of 2x2 pixels both ways: no pixel is in two
          windows, so nothing is gathered. Its four loads are on their way before it waits
Traffic   Forward: x once, y and argmax once. Backward: dy, y and argmax once, dx once
Floor     bytes / DRAM bandwidth
Order     One owner per output, no atomics. Bits are those of conv_simt.cu's epilogue with
          maxpool.cu forward, and of relu.cu with maxpool.cu backward
Limits    N*H*W below 2^31 (checked on the host); offsets are 64-bit. Stride 2, no padding, no
          dilation; P = (H + 1) / 2 (ceil_mode) or H / 2, and Q alike
Not here  Pooling in the convolution's epilogue, which need not write x at all
Macros    VEC (4 or 1). The scalar use_bias says whether b is read
*/
#include "pool.cuh"

// The 2x2 pixels of one cell, by tap 2r + s, and which of them are inside the image.
struct Cell {
    int n, p, q, W;
    long long first;  // the pixel at tap 0, counted from the batch's first
    bool below, right;

    __device__ __forceinline__ Cell(int cell, int H, int W, int rows, int columns,
        unsigned rows_mul, int rows_shift, unsigned columns_mul, int columns_shift)
        : W(W)
    {
        const int line = divide(cell, columns_mul, columns_shift);
        q = cell - line * columns;
        n = divide(line, rows_mul, rows_shift);
        p = line - n * rows;
        first = ((long long)n * H + 2 * p) * W + 2 * q;
        below = 2 * p + 1 < H;
        right = 2 * q + 1 < W;
    }
    __device__ __forceinline__ bool has(int tap) const
    {
        return (tap < 2 || below) && (tap % 2 == 0 || right);
    }
    __device__ __forceinline__ long long pixel(int tap) const
    {
        return first + (tap < 2 ? 0 : W) + tap % 2;
    }
};

extern "C" __global__ void __launch_bounds__(256, 4) bias_relu_max_pool2d_forward(
    float* __restrict__ y, unsigned char* __restrict__ argmax, const float* __restrict__ x,
    const float* __restrict__ b, int pixels, int lanes, int H, int W, int C, int P, int Q,
    unsigned p_mul, int p_shift, unsigned q_mul, int q_shift, int use_bias)
{
    for (PixelLoop at(lanes); at.pixel < pixels; at.next()) {
        const Cell cell(at.pixel, H, W, P, Q, p_mul, p_shift, q_mul, q_shift);
        for (int c = at.lane * VEC; c < C; c += lanes * VEC) {
            Floats<VEC> in[4], bias = {}, best;
            for (int tap = 0; tap < 4; ++tap)
                if (cell.has(tap)) in[tap] = load<VEC>(x + cell.pixel(tap) * C + c);
            if (use_bias) bias = load<VEC>(b + c);
            Argmax<VEC> best_tap;
            for (int tap = 0; tap < 4; ++tap) {
                if (!cell.has(tap)) continue;
                for (int k = 0; k < VEC; ++k) {
                    const float v = relu(in[tap].v[k] + bias.v[k]);
                    if (tap == 0 || v > best.v[k] || v != v) {
                        best.v[k] = v;
                        best_tap.v[k] = tap;
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
    bias_relu_max_pool2d_backward(float* __restrict__ dx, const float* __restrict__ dy,
        const float* __restrict__ y, const unsigned char* __restrict__ argmax, int cells, int lanes,
        int H, int W, int C, int P, int Q, int rows, int columns, unsigned rows_mul, int rows_shift,
        unsigned columns_mul, int columns_shift)
{
    for (PixelLoop at(lanes); at.pixel < cells; at.next()) {
        const Cell cell(
            at.pixel, H, W, rows, columns, rows_mul, rows_shift, columns_mul, columns_shift);
        const bool pooled = cell.p < P && cell.q < Q;
        const long long window = ((long long)cell.n * P + cell.p) * Q + cell.q;
        for (int c = at.lane * VEC; c < C; c += lanes * VEC) {
            Floats<VEC> passed = {};
            Argmax<VEC> best_tap = {};
            if (pooled) {
                const long long from = window * C + c;
                const Floats<VEC> d = load<VEC>(dy + from), sign = load<VEC>(y + from);
                best_tap = *(const Argmax<VEC>*)(argmax + from);
                // 0 is added as in the sum over windows: of -0 it makes +0
                for (int k = 0; k < VEC; ++k) passed.v[k] = 0.0f + relu_mask(d.v[k], sign.v[k]);
            }
            for (int tap = 0; tap < 4; ++tap) {
                if (!cell.has(tap)) continue;
                Floats<VEC> out;
                for (int k = 0; k < VEC; ++k) out.v[k] = best_tap.v[k] == tap ? passed.v[k] : 0.0f;
                store_global<VEC>(dx + cell.pixel(tap) * C + c, out);
            }
        }
    }
}
