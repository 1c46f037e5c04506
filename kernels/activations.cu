/*
activations.cu: tanh, LeCun's scaled tanh and the logistic function, forward and backward.

Math      tanh:        y = tanh(x);               dx = dy * (1 - y*y)
          scaled tanh: y = 1.7159 * tanh(2x/3);   dx = dy * 2/3 * (1.7159 - y*y/1.7159)
          sigmoid:     y = 1 / (1 + exp(-x));     dx = dy * y * (1 - y)
Source    The article; LeCun et al. 1998, "Efficient BackProp"
Layout    x, y, dx, dy: STORE, `count` elements in any order, the same for all; backward reads the
          saved output
Geometry  As relu.cu
Traffic   Forward: x and y once. Backward: dy, y and dx once
Floor     Forward 8*count, backward 12*count bytes / DRAM bandwidth
Order     Element by element; tanhf and expf are CUDA's, within 2 units in the last place
Limits    Offsets are 64-bit; y may be x, dx may be dy
Not here  Activations in the epilogue of a convolution
Macros    STORE (of arrays: float, half16 or brain16), VEC (4, or 1 where an array is not 16-byte
          aligned)
*/
#include "elementwise.cuh"

constexpr float AMPLITUDE = 1.7159f, SLOPE = 2.0f / 3.0f;

// exp of a number that is never positive, so that nothing overflows; NaN stays NaN.
__device__ __forceinline__ float sigmoid(float x)
{
    const float small = expf(-fabsf(x));
    return (x >= 0.0f ? 1.0f : small) / (1.0f + small);
}

extern "C" __global__ void __launch_bounds__(256, 3)
    tanh_forward(STORE* y, const STORE* x, long long count)
{
    each1(y, x, count, [](float x) { return tanhf(x); });
}

extern "C" __global__ void __launch_bounds__(256, 3)
    tanh_backward(STORE* dx, const STORE* dy, const STORE* y, long long count)
{
    each2(dx, dy, y, count, [](float dy, float y) { return dy * fmaf(-y, y, 1.0f); });
}

extern "C" __global__ void __launch_bounds__(256, 3)
    scaled_tanh_forward(STORE* y, const STORE* x, long long count)
{
    each1(y, x, count, [](float x) { return AMPLITUDE * tanhf(SLOPE * x); });
}

extern "C" __global__ void __launch_bounds__(256, 3)
    scaled_tanh_backward(STORE* dx, const STORE* dy, const STORE* y, long long count)
{
    each2(dx, dy, y, count,
        [](float dy, float y) { return dy * SLOPE * (AMPLITUDE - y * y / AMPLITUDE); });
}

extern "C" __global__ void __launch_bounds__(256, 3)
    sigmoid_forward(STORE* y, const STORE* x, long long count)
{
    each1(y, x, count, [](float x) { return sigmoid(x); });
}

extern "C" __global__ void __launch_bounds__(256, 3)
    sigmoid_backward(STORE* dx, const STORE* dy, const STORE* y, long long count)
{
    each2(dx, dy, y, count, [](float dy, float y) { return dy * y * (1.0f - y); });
}
