/*
leaky_relu.cu: the leaky rectifier, forward and backward.

Math      y[i]  = x[i] where x[i] >= 0 or x[i] is NaN, else negative_slope * x[i]
          dx[i] = dy[i] where x[i] > 0, else negative_slope * dy[i]
Source    Maas, Hannun and Ng 2013; torch.nn.functional.leaky_relu
Layout    x, y, dx, dy: STORE, `count` elements in any order, the same for all
Geometry  As relu.cu
Traffic   Forward: x and y once. Backward: dy, x and dx once
Floor     Forward 8*count, backward 12*count bytes / DRAM bandwidth
Order     Element by element
Limits    Offsets are 64-bit; y may be x, dx may be dy
Not here  A leaky ReLU in the epilogue of a convolution
Macros    STORE (of arrays: float, half16 or brain16), VEC (4, or 1 where an array is not 16-byte
          aligned)
*/
#include "elementwise.cuh"

extern "C" __global__ void __launch_bounds__(256, 3)
    leaky_relu_forward(STORE* y, const STORE* x, float negative_slope, long long count)
{
    each1(y, x, count, [=](float x) { return x < 0.0f ? negative_slope * x : x; });
}

extern "C" __global__ void __launch_bounds__(256, 3) leaky_relu_backward(
    STORE* dx, const STORE* dy, const STORE* x, float negative_slope, long long count)
{
    each2(dx, dy, x, count,
        [=](float dy, float x) { return x > 0.0f ? dy : negative_slope * dy; });
}
