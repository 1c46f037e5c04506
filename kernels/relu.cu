/*
relu.cu: the rectifier, forward and backward.

Math      y[i]  = x[i] where x[i] > 0 or x[i] is NaN, else 0
          dx[i] = 0 where y[i] <= 0, else dy[i]: the derivative at 0 is 0, and dy passes where y is
                  NaN
Source    Nair and Hinton 2010; torch.nn.functional.relu
Layout    x, y, dx, dy: STORE, `count` elements in any order, the same for all
Geometry  Grid-stride loop; a thread has FLIGHT loads of 16 bytes on their way before it waits. A
          warp touches 512 contiguous bytes with each
Traffic   Forward: x and y once. Backward: dy, y and dx once
Floor     Forward 8*count, backward 12*count bytes / DRAM bandwidth
Order     Element by element
Limits    Offsets are 64-bit; y may be x, dx may be dy
Not here  The ReLU of a convolution: its epilogue does it (conv_simt.cu)
Macros    STORE (of arrays: float, half16 or brain16), VEC (4, or 1 where an array is not 16-byte
          aligned)
*/
#include "elementwise.cuh"

extern "C" __global__ void __launch_bounds__(256, 3)
    relu_forward(STORE* y, const STORE* x, long long count)
{
    each1(y, x, count, [](float x) { return relu(x); });
}

extern "C" __global__ void __launch_bounds__(256, 3)
    relu_backward(STORE* dx, const STORE* dy, const STORE* y, long long count)
{
    each2(dx, dy, y, count, [](float dy, float y) { return relu_mask(dy, y); });
}
