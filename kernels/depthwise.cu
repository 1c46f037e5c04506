/*
depthwise.cu: convolution whose groups have one channel each, which would waste a GEMM's tiles.

Math      y[n,p,q,k]  = act(b[k] + sum over r,s of w[k,r,s] * x[n,h,w,c])
          dx[n,h,w,c] = mask * (onto[n,h,w,c] + sum over the filters k of channel c and r,s of
          w[k,r,s] * dy[n,p,q,k])
          dw[k,r,s]   = sum over n,p,q of dy[n,p,q,k] * x[n,h,w,c]
          where c = k / multiplier, multiplier = K/C, h = p*stride_h - pad_h + r*dil_h and
          w = q*stride_w - pad_w + s*dil_w; act is nothing or ReLU, mask nothing or (x > 0),
          onto nothing or the rest of x's gradient
Source    Sifre 2014; Chollet 2017; torch.nn.functional.conv2d with groups = C
Layout    x, dx, onto, y, dy: float32 NHWC; w: float32 (K, R, S); dw: partial sums of (K, R, S)
Geometry  Blocks of 256 threads: `lanes` threads of VEC channels each by 256/lanes pixels. grid.y =
          block of channels, its filters held in shared memory as [tap][filter]; grid.x strides over
          pixels. Backward weight: grid.x = block of filters * tap, grid.y = part of the pixels
Traffic   Forward: x once (overlapping taps hit the cache), y once. Backward data: dy once, dx once.
          Backward weight: dy and x once per tap; the taps' blocks run side by side, so the L2
          serves most
Floor     Bytes / DRAM bandwidth
Order     One owner per output; forward ascending (r,s), backward data ascending (p,q) for each
          filter in turn; backward weight: a thread every 256/lanes-th pixel, then threads, then
          partial sums (sum_partials.cu), all ascending
Limits    N*P*Q, N*H*W, K*R*S below 2^31 (checked on the host); offsets are 64-bit. VEC = 4 needs
          multiplier 1
Not here  Rows of x kept in registers from one output to the next
Macros    VEC (4 or 1). The scalars use_bias, rectify, use_mask and use_onto choose what follows the
          sums
*/
#include "pool.cuh"

extern __shared__ __align__(16) float filters[];  // [tap][filter of this block]

// This block's `count` filters, from `first`, into shared memory.
__device__ __forceinline__ void stage(const float* w, int first, int count, int K, int taps)
{
    for (int i = threadIdx.x; i < count * taps; i += blockDim.x) {
        const int k = i / taps, tap = i - k * taps;
        filters[tap * count + k] = first + k < K ? w[(long long)first * taps + i] : 0.0f;
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(256, 3) conv2d_forward_depthwise(float* __restrict__ y,
    const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ b,
    int pixels, int lanes, int H, int W, int C, int K, int P, int Q, int R, int S, int multiplier,
    int stride_h, int stride_w, int pad_h, int pad_w, int dil_h, int dil_w, unsigned p_mul,
    int p_shift, unsigned q_mul, int q_shift, int use_bias, int rectify)
{
    const int count = lanes * VEC, first = blockIdx.y * count;
    stage(w, first, count, K, R * S);
    PixelLoop at(lanes);
    const int k = first + at.lane * VEC, c = k / multiplier;
    if (k >= K) return;
    Floats<VEC> bias = {};
    if (use_bias) bias = load<VEC>(b + k);
    for (; at.pixel < pixels; at.next()) {
        const int line = divide((int)at.pixel, q_mul, q_shift), q = (int)at.pixel - line * Q;
        const int n = divide(line, p_mul, p_shift), p = line - n * P;
        Floats<VEC> sum = {};
        for (int r = 0; r < R; ++r) {
            const int h = p * stride_h - pad_h + r * dil_h;
            if (h < 0 || h >= H) continue;
            for (int s = 0; s < S; ++s) {
                const int column = q * stride_w - pad_w + s * dil_w;
                if (column < 0 || column >= W) continue;
                const Floats<VEC> in = load<VEC>(x + (((long long)n * H + h) * W + column) * C + c);
                const Floats<VEC> f = load<VEC>(&filters[(r * S + s) * count + at.lane * VEC]);
                for (int v = 0; v < VEC; ++v) sum.v[v] = fmaf(f.v[v], in.v[v], sum.v[v]);
            }
        }
        for (int v = 0; v < VEC; ++v) {
            sum.v[v] += bias.v[v];
            if (rectify) sum.v[v] = relu(sum.v[v]);
        }
        store_global<VEC>(y + at.pixel * K + k, sum);
    }
}

extern "C" __global__ void __launch_bounds__(256, 3) conv2d_backward_data_depthwise(float* dx,
    const float* __restrict__ dy, const float* __restrict__ w, const float* x, const float* onto,
    int pixels, int lanes, int H, int W, int C, int K, int P, int Q, int R, int S, int multiplier,
    int stride_h, int stride_w, int pad_h, int pad_w, int dil_h, int dil_w, unsigned h_mul,
    int h_shift, unsigned w_mul, int w_shift, int use_mask, int use_onto)
{
    const int count = lanes * VEC * multiplier, first = blockIdx.y * count;
    stage(w, first, count, K, R * S);
    PixelLoop at(lanes);
    const int c = blockIdx.y * lanes * VEC + at.lane * VEC;
    if (c >= C) return;
    for (; at.pixel < pixels; at.next()) {
        const int line = divide((int)at.pixel, w_mul, w_shift), column = (int)at.pixel - line * W;
        const int n = divide(line, h_mul, h_shift), h = line - n * H;
        const CoveringWindows rows(h + pad_h, stride_h, dil_h, R, P),
            columns(column + pad_w, stride_w, dil_w, S, Q);
        Floats<VEC> sum = {};
        for (int k = c * multiplier; k < (c + 1) * multiplier; ++k)
            for (int p = rows.first; p <= rows.last; ++p) {
                const int r = rows.tap(p);
                for (int q = columns.first; q <= columns.last && r >= 0; ++q) {
                    const int s = columns.tap(q);
                    if (s < 0) continue;
                    const Floats<VEC> d = load<VEC>(dy + (((long long)n * P + p) * Q + q) * K + k);
                    const Floats<VEC> f = load<VEC>(&filters[(r * S + s) * count + k - first]);
                    for (int v = 0; v < VEC; ++v) sum.v[v] = fmaf(f.v[v], d.v[v], sum.v[v]);
                }
            }
        const long long to = at.pixel * C + c;
        if (use_onto) {
            const Floats<VEC> rest = load<VEC>(onto + to);
            for (int v = 0; v < VEC; ++v) sum.v[v] += rest.v[v];
        }
        if (use_mask) {
            const Floats<VEC> sign = load<VEC>(x + to);
            for (int v = 0; v < VEC; ++v) sum.v[v] = relu_mask(sum.v[v], sign.v[v]);
        }
        store_global<VEC>(dx + to, sum);
    }
}

extern "C" __global__ void __launch_bounds__(256, 3)
    conv2d_backward_weight_depthwise(float* __restrict__ partials, const float* __restrict__ dy,
        const float* __restrict__ x, int pixels, int split_length, int lanes, int H, int W, int C,
        int K, int P, int Q, int R, int S, int multiplier, int stride_h, int stride_w, int pad_h,
        int pad_w, int dil_h, int dil_w, unsigned p_mul, int p_shift, unsigned q_mul, int q_shift)
{
    __shared__ Floats<VEC> partial[256];
    const int rows = 256 / lanes, row = threadIdx.x / lanes, lane = threadIdx.x - row * lanes;
    const int taps = R * S, tap = blockIdx.x % taps, r = tap / S, s = tap - r * S;
    const int k = (blockIdx.x / taps * lanes + lane) * VEC, c = k / multiplier;
    const long long begin = (long long)blockIdx.y * split_length,
                    end = min(begin + split_length, (long long)pixels);
    Floats<VEC> sum = {};
    for (long long pixel = begin + row; pixel < end && row < rows && k < K; pixel += rows) {
        const int line = divide((int)pixel, q_mul, q_shift), q = (int)pixel - line * Q;
        const int n = divide(line, p_mul, p_shift), p = line - n * P;
        const int h = p * stride_h - pad_h + r * dil_h, w = q * stride_w - pad_w + s * dil_w;
        if (h < 0 || h >= H || w < 0 || w >= W) continue;
        const Floats<VEC> d = load<VEC>(dy + pixel * K + k);
        const Floats<VEC> in = load<VEC>(x + (((long long)n * H + h) * W + w) * C + c);
        for (int v = 0; v < VEC; ++v) sum.v[v] = fmaf(d.v[v], in.v[v], sum.v[v]);
    }
    partial[threadIdx.x] = sum;
    __syncthreads();
    if (row > 0 || k >= K) return;
    for (int other = 1; other < rows; ++other)
        for (int v = 0; v < VEC; ++v) sum.v[v] += partial[other * lanes + lane].v[v];
    for (int v = 0; v < VEC; ++v)
        partials[((long long)blockIdx.y * K + k + v) * taps + tap] = sum.v[v];
}
