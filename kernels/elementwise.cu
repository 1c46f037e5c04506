/*
elementwise.cu: sums of two arrays, also with a ReLU, products, scaling, dropout.

Math      add:     to[i] = a[i] + b[i];  add_relu: its ReLU, a NaN stays NaN
          multiply: to[i] = a[i] * b[i]
          scale:   to[i] = a[i] * factor
          dropout: y[i] = x[i] * factor where the upper 32 bits of SplitMix64's number i for the
                   seed are at least `threshold`, else 0; backward is the same kernel on dy. The
                   seed is what the launch gives plus step[0]; one of them is 0 (optim.cu)
Source    Srivastava et al. 2014 (dropout); Steele et al. 2014 (SplitMix64); gpuconv/ops/dropout.py
Layout    STORE, `count` elements; dropout's i counts in the user's C order: give it NCHW, not
          NHWC
Geometry  As relu.cu
Traffic   add, add_relu, multiply: a, b and to once; scale, dropout: their two arrays once
Floor     add, add_relu, multiply 12*count, scale and dropout 8*count bytes / DRAM bandwidth
Order     Element by element; the mask depends on seed and i alone
Limits    Offsets are 64-bit; `to` may be a or b, y may be x
Not here  Broadcasting
Macros    STORE (of arrays: float, half16 or brain16), VEC (4, or 1 where an array is not 16-byte
          aligned)
*/
#include "elementwise.cuh"

__device__ __forceinline__ bool keeps(
    unsigned long long seed, unsigned long long threshold, long long i)
{
    unsigned long long z = seed + (unsigned long long)(i + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    return z >> 32 >= threshold;
}

extern "C" __global__ void __launch_bounds__(256, 3)
    add(STORE* to, const STORE* a, const STORE* b, long long count)
{
    each2(to, a, b, count, [](float a, float b) { return a + b; });
}

extern "C" __global__ void __launch_bounds__(256, 3)
    add_relu(STORE* to, const STORE* a, const STORE* b, long long count)
{
    each2(to, a, b, count, [](float a, float b) { return relu(a + b); });
}

extern "C" __global__ void __launch_bounds__(256, 3)
    multiply(STORE* to, const STORE* a, const STORE* b, long long count)
{
    each2(to, a, b, count, [](float a, float b) { return a * b; });
}

extern "C" __global__ void __launch_bounds__(256, 3)
    scale(STORE* to, const STORE* a, long long count, float factor)
{
    each1(to, a, count, [=](float a) { return a * factor; });
}

extern "C" __global__ void __launch_bounds__(256, 3)
    dropout(STORE* y, const STORE* x, const unsigned long long* step, long long count,
        unsigned long long seed, unsigned long long threshold, float factor)
{
    seed += step[0];
    each_indexed(y, x, (const STORE*)nullptr, count,
        [=](float x, float, long long i) { return keeps(seed, threshold, i) ? x * factor : 0.0f; });
}
