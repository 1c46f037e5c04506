// pool.cuh: the grid-stride loop over pixels of pooling and depthwise kernels, which windows cover
// a pixel, and what max-pool passes back to it.
#pragma once
#include "common.cuh"

// A thread's pixels, by a grid-stride loop: a block is blockDim.x / lanes pixels by `lanes` threads
// along the channels. Threads left over (256 is rarely a multiple of `lanes`) start past every
// pixel.
struct PixelLoop {
    int lane;
    long long pixel, step;

    __device__ __forceinline__ explicit PixelLoop(int lanes)
    {
        const int rows = blockDim.x / lanes, row = threadIdx.x / lanes;
        lane = threadIdx.x - row * lanes;
        step = (long long)gridDim.x * rows;
        pixel = row < rows ? (long long)blockIdx.x * rows + row : 1LL << 62;
    }
    __device__ __forceinline__ void next() { pixel += step; }
};

#ifndef TAP
#define TAP unsigned char
#endif

// argmax of WIDTH neighbouring channels: the tap of each window's maximum, moved by one load or
// store.
template <int WIDTH> struct alignas(WIDTH * sizeof(TAP)) Argmax {
    TAP v[WIDTH];
};

// The windows that cover one row (or column) of an image: outputs first..last, each by one tap or
// by none.
struct CoveringWindows {
    int at, stride, dil, first, last;

    // at: the row's distance from the first window's start; taps: of a window; outputs: how many
    // windows there are.
    __device__ __forceinline__ CoveringWindows(int at, int stride, int dil, int taps, int outputs)
        : at(at), stride(stride), dil(dil)
    {
        const int reach = (taps - 1) * dil;
        first = at > reach ? (at - reach + stride - 1) / stride : 0;
        last = min(at / stride, outputs - 1);
    }

    // The tap by which output o covers the row, or -1 where dilation skips it.
    __device__ __forceinline__ int tap(int o) const
    {
        const int distance = at - o * stride;
        if (dil == 1) return distance;
        return distance % dil ? -1 : distance / dil;
    }
};

// The gradient that a max-pool passes back to WIDTH channels, from c on, of a pixel of image n: the
// sum of dy, (N, P, Q, C), over the windows that cover it and have their maximum there, by
// ascending (p, q). S: columns of a window.
template <int WIDTH>
__device__ __forceinline__ Floats<WIDTH> sum_of_maxima(const float* dy, const TAP* argmax,
    const CoveringWindows& rows, const CoveringWindows& columns, int n, int c, int C, int P, int Q,
    int S)
{
    Floats<WIDTH> sum = {};
    for (int p = rows.first; p <= rows.last; ++p) {
        const int r = rows.tap(p);
        for (int q = columns.first; q <= columns.last && r >= 0; ++q) {
            const int s = columns.tap(q);
            if (s < 0) continue;
            const long long from = (((long long)n * P + p) * Q + q) * C + c;
            const Floats<WIDTH> d = load<WIDTH>(dy + from);
            const Argmax<WIDTH> best = *(const Argmax<WIDTH>*)(argmax + from);
            for (int k = 0; k < WIDTH; ++k)
                if (best.v[k] == r * S + s) sum.v[k] += d.v[k];
        }
    }
    return sum;
}
