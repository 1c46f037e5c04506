/*
relu.cu: the rectifier, forward and backward.

Math      y[i]  = x[i] where x[i] > 0 or x[i] is NaN, else 0
          dx[i] = 0 where y[i] <= 0, else dy[i]: the derivative at 0 is 0, and dy passes where y is
                  NaN
Source    Nair and Hinton 2010; torch.nn.functional.relu
Layout    x, y, dx, dy: float32, `count` elements in any order, the same for all
Geometry  Grid-stride loop; a thread has FLIGHT loads of 16 bytes on their way before it waits. A
          warp touches 512 contiguous bytes with each
Traffic   Forward: x and y once. Backward: dy, y and dx once
Floor     Forward 8*count, backward 12*count bytes / DRAM bandwidth
Order     Element by element
Limits    Offsets are 64-bit; y may be x, dx may be dy
Not here  The ReLU of a convolution: its epilogue does it (conv_simt.cu)
Macros    VEC (4, or 1 where an array is not 16-byte aligned)
*/
#include "elementwise.cuh"

extern "C" __global__ void __launch_bounds__(256, 3)
    relu_forward(float* y, const float* x, long long count)
{
    each1(y, x, count, [](float x) { return relu(x); });
}

extern "C" __global__ void __launch_bounds__(256, 3)
    relu_backward(float* dx, const float* dy, const float* y, long long count)
{
    each2(dx, dy, y, count, [](float dy, float y) { return relu_mask(dy, y); });
}
