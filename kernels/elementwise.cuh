// elementwise.cuh: the loop of every element-by-element kernel.
#pragma once
#include "common.cuh"

constexpr int FLIGHT = 4;  // vectors that a thread loads before it uses the first

// to[i] = f(a[i], b[i], i), VEC elements at a time, the last count % VEC by themselves. All of a
// round's loads come before its stores, so `to` may be `a` or `b`, and no order between threads
// matters.
template <class To, class From, class F>
__device__ __forceinline__ void each_indexed(
    To* to, const From* a, const From* b, long long count, F f)
{
    const long long vectors = count / VEC, first = first_index(), step = index_step();
    for (long long i = first; i < vectors; i += FLIGHT * step) {
        Floats<VEC> left[FLIGHT], right[FLIGHT];
#pragma unroll
        for (int j = 0; j < FLIGHT; ++j)
            if (i + j * step < vectors) {
                left[j] = load<VEC>(a + (i + j * step) * VEC);
                if (b) right[j] = load<VEC>(b + (i + j * step) * VEC);
            }
#pragma unroll
        for (int j = 0; j < FLIGHT; ++j)
            if (i + j * step < vectors) {
                const long long at = (i + j * step) * VEC;
                for (int k = 0; k < VEC; ++k)
                    left[j].v[k] = f(left[j].v[k], b ? right[j].v[k] : 0.0f, at + k);
                store<VEC>(to + at, left[j]);
            }
    }
    for (long long i = vectors * VEC + first; i < count; i += step)
        store<1>(to + i, {f(load<1>(a + i).v[0], b ? load<1>(b + i).v[0] : 0.0f, i)});
}

template <class To, class From, class F>
__device__ __forceinline__ void each1(To* to, const From* a, long long count, F f)
{
    each_indexed(
        to, a, (const From*)nullptr, count, [=](float a, float, long long) { return f(a); });
}

template <class To, class From, class F>
__device__ __forceinline__ void each2(
    To* to, const From* a, const From* b, long long count, F f)
{
    each_indexed(to, a, b, count, [=](float a, float b, long long) { return f(a, b); });
}
