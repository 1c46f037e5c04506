// common.cuh: what every kernel file shares. Included as text: no include path is needed where it
// is compiled.
#pragma once

// WIDTH neighbouring floats, moved by one load or store of 4*WIDTH bytes; their address must be a
// multiple of that.
template <int WIDTH> struct alignas(4 * WIDTH) Floats {
    float v[WIDTH];
};

template <int WIDTH> __device__ __forceinline__ Floats<WIDTH> load(const float* from)
{
    return *(const Floats<WIDTH>*)from;
}

template <int WIDTH> __device__ __forceinline__ void store(float* to, const Floats<WIDTH>& value)
{
    *(Floats<WIDTH>*)to = value;
}

// As `store`, to device memory and surely by one instruction: NVRTC 13 takes a vector apart into
// single stores where its elements were computed one by one.
template <int WIDTH>
__device__ __forceinline__ void store_global(float* to, const Floats<WIDTH>& value)
{
    if constexpr (WIDTH == 4)
        asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
            "f"(value.v[0]), "f"(value.v[1]), "f"(value.v[2]), "f"(value.v[3])
            : "memory");
    else
        store<WIDTH>(to, value);
}

// Numbers of 16 bits in memory: IEEE's half precision, and bfloat16, the upper half of a float.
// Kernels compute in float. A kernel whose arrays are of STORE reads and writes float, half16 or
// brain16.
struct half16 {
    unsigned short bits;
};
struct brain16 {
    unsigned short bits;
};
#ifndef STORE
#define STORE float
#endif

__device__ __forceinline__ float widened(half16 x)
{
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
__device__ __forceinline__ float widened(brain16 x)
{
    return __uint_as_float((unsigned)x.bits << 16);
}

// To the nearest, of two the even one; what is too large becomes infinite.
template <class T> __device__ __forceinline__ T narrowed(float x);
template <> __device__ __forceinline__ half16 narrowed<half16>(float x)
{
    half16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
// By integers: cvt.rn.bf16.f32 needs compute capability 8.0.
template <> __device__ __forceinline__ brain16 narrowed<brain16>(float x)
{
    const unsigned bits = __float_as_uint(x), odd = bits >> 16 & 1;
    const unsigned rounded = (bits + 0x7fffu + odd) >> 16;
    return {(unsigned short)(x != x ? 0x7fffu : rounded)};
}

template <int WIDTH, class T> struct alignas(2 * WIDTH) Stored {
    T v[WIDTH];
};

template <int WIDTH, class T> __device__ __forceinline__ Floats<WIDTH> load(const T* from)
{
    const Stored<WIDTH, T> in = *(const Stored<WIDTH, T>*)from;
    Floats<WIDTH> out;
    for (int k = 0; k < WIDTH; ++k) out.v[k] = widened(in.v[k]);
    return out;
}

template <int WIDTH, class T>
__device__ __forceinline__ void store(T* to, const Floats<WIDTH>& value)
{
    Stored<WIDTH, T> out;
    for (int k = 0; k < WIDTH; ++k) out.v[k] = narrowed<T>(value.v[k]);
    *(Stored<WIDTH, T>*)to = out;
}

template <int WIDTH, class T>
__device__ __forceinline__ void store_global(T* to, const Floats<WIDTH>& value)
{
    if constexpr (WIDTH == 4) {
        Stored<WIDTH, T> out;
        for (int k = 0; k < WIDTH; ++k) out.v[k] = narrowed<T>(value.v[k]);
        asm volatile("st.global.v4.b16 [%0], {%1, %2, %3, %4};" ::"l"(
                         __cvta_generic_to_global(to)),
            "h"(out.v[0].bits), "h"(out.v[1].bits), "h"(out.v[2].bits), "h"(out.v[3].bits)
            : "memory");
    } else
        store<WIDTH>(to, value);
}

// n / d for 0 <= n < 2^31 by a multiplication and a shift. The host computes, for 1 <= d < 2^31,
//     shift = 31 + ceil(log2(d)),  mul = ceil(2^shift / d), which fits 32 bits.
// Exact: mul*d = 2^shift + e with 0 <= e < d, so n*mul / 2^shift exceeds n/d by n*e / (d * 2^shift)
// < 1/d. Source: Granlund and Montgomery 1994, "Division by invariant integers using
// multiplication".
__device__ __forceinline__ int divide(int n, unsigned mul, int shift)
{
    return (int)(((unsigned long long)(unsigned)n * mul) >> shift);
}

// max(x, 0); a NaN stays NaN.
__device__ __forceinline__ float relu(float x) { return x <= 0.0f ? 0.0f : x; }

// The gradient through a ReLU whose output (or input: the signs agree) was y: 0 where y <= 0, else
// dy, also for NaN.
__device__ __forceinline__ float relu_mask(float dy, float y) { return y <= 0.0f ? 0.0f : dy; }

// The range of a grid-stride loop over vectors or rows: any grid covers all of them.
__device__ __forceinline__ long long first_index()
{
    return blockIdx.x * (long long)blockDim.x + threadIdx.x;
}
__device__ __forceinline__ long long index_step() { return gridDim.x * (long long)blockDim.x; }

// Sum or maximum over a warp, every lane gets it. The order is fixed: a butterfly.
__device__ __forceinline__ float warp_sum(float value)
{
    for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
    return value;
}

__device__ __forceinline__ float warp_max(float value)
{
    for (int lane = 16; lane > 0; lane /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, lane));
    return value;
}
