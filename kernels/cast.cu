/*
cast.cu: floats to numbers of 16 bits, and back.

Math      narrow: y[i] = x[i], rounded to the nearest, of two to the even one; too large a number
                  becomes infinite;  narrow_scaled: y[i] = x[i] * factor[0], alike
          widen: y[i] = x[i], exactly
Source    IEEE 754; Kalamkar et al. 2019, "A study of BFLOAT16 for deep learning training"
Layout    narrow: x: float32, y: STORE; widen: the other way round; `count` elements in any order,
          the same for both; factor: one number on the device, so that it may change from step to
          step (scaler.cu)
Geometry  As relu.cu
Traffic   x and y once
Floor     6*count bytes / DRAM bandwidth
Order     Element by element
Limits    Offsets are 64-bit; a product that is subnormal in float32 becomes 0
Not here  Filters, which are rounded as they are laid out for tensor cores
Macros    STORE (float, half16 or brain16), VEC (4, or 1 where an array is not 16-byte aligned)
*/
#include "elementwise.cuh"

extern "C" __global__ void __launch_bounds__(256, 3)
    narrow(STORE* y, const float* x, long long count)
{
    each1(y, x, count, [](float x) { return x; });
}

extern "C" __global__ void __launch_bounds__(256, 3)
    narrow_scaled(STORE* y, const float* x, const float* factor, long long count)
{
    const float by = factor[0];
    each1(y, x, count, [=](float x) { return x * by; });
}

extern "C" __global__ void __launch_bounds__(256, 3)
    widen(float* y, const STORE* x, long long count)
{
    each1(y, x, count, [](float x) { return x; });
}
