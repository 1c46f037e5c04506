/*
cast.cu: floats to numbers of 16 bits, and back.

Math      narrow: y[i] = x[i] * factor, rounded to the nearest, of two to the even one; too large a
                  number becomes infinite;  widen: y[i] = x[i], exactly
Source    IEEE 754; Kalamkar et al. 2019, "A study of BFLOAT16 for deep learning training"
Layout    narrow: x: float32, y: STORE; widen: the other way round; `count` elements in any order,
          the same for both; factor: one number on the device, so that it may change from step to
          step (scaler.cu), read where `scaled`, else 1
Geometry  As relu.cu
Traffic   x and y once
Floor     6*count bytes / DRAM bandwidth
Order     Element by element
Limits    Offsets are 64-bit; float32's subnormal numbers become 0
Not here  Filters, which are rounded as they are laid out for tensor cores
Macros    STORE (float, half16 or brain16), VEC (4, or 1 where an array is not 16-byte aligned)
*/
#include "elementwise.cuh"

extern "C" __global__ void __launch_bounds__(256, 3)
    narrow(STORE* y, const float* x, const float* factor, long long count, int scaled)
{
    const float by = scaled ? factor[0] : 1.0f;
    each1(y, x, count, [=](float x) { return x * by; });
}

extern "C" __global__ void __launch_bounds__(256, 3)
    widen(float* y, const STORE* x, long long count)
{
    each1(y, x, count, [](float x) { return x; });
}
