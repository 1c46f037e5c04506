// moments.cuh: a channel's mean and variance from those of parts of its values.
//
// Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance".
#pragma once
#include "common.cuh"

// n values less a shift near them: their mean, and the sum of their squared distances from it.
// Without the shift a channel far from zero would lose its digits.
template <int WIDTH> struct Moments {
    float n;
    Floats<WIDTH> mean, squares;
};

// Merges the moments of other values, less the same shift, into a (formula 2.1).
template <int WIDTH>
__device__ __forceinline__ void merge(Moments<WIDTH>& a, const Moments<WIDTH>& b)
{
    if (b.n == 0.0f) return;
    const float total = a.n + b.n, share = b.n / total, weight = a.n * share;
    for (int k = 0; k < WIDTH; ++k) {
        const float d = b.mean.v[k] - a.mean.v[k];
        a.mean.v[k] = fmaf(d, share, a.mean.v[k]);
        a.squares.v[k] += fmaf(d * weight, d, b.squares.v[k]);
    }
    a.n = total;
}

// Parts of the pixels lie one after another in memory as (parts, 4, C): each part's n, shift, mean
// and squares.
constexpr int MOMENT_ROWS = 4;

template <int WIDTH>
__device__ __forceinline__ void store_moments(
    float* to, int channels, const Floats<WIDTH>& shift, const Moments<WIDTH>& moments)
{
    Floats<WIDTH> n;
    for (int k = 0; k < WIDTH; ++k) n.v[k] = moments.n;
    store_global<WIDTH>(to, n);
    store_global<WIDTH>(to + channels, shift);
    store_global<WIDTH>(to + 2 * channels, moments.mean);
    store_global<WIDTH>(to + 3 * channels, moments.squares);
}

// The moments of a thread's values of one channel, of those for which inside(i), in two passes.
template <int COUNT, class Inside>
__device__ __forceinline__ Moments<1> moments_of(
    const float (&values)[COUNT], float shift, Inside inside)
{
    Moments<1> moments = {};
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        moments.n += inside(i) ? 1.0f : 0.0f;
        moments.mean.v[0] += inside(i) ? values[i] - shift : 0.0f;
    }
    moments.mean.v[0] /= fmaxf(moments.n, 1.0f);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        const float d = values[i] - shift - moments.mean.v[0];
        if (inside(i)) moments.squares.v[0] = fmaf(d, d, moments.squares.v[0]);
    }
    return moments;
}

// Merges those of the lanes that have the same channel: every `step`th of a warp's. The first
// `step` lanes have the result.
__device__ __forceinline__ void merge_lanes(Moments<1>& mine, int step)
{
    for (int across = step; across < 32; across *= 2) {
        const float n = __shfl_xor_sync(0xffffffffu, mine.n, across),
                    mean = __shfl_xor_sync(0xffffffffu, mine.mean.v[0], across),
                    squares = __shfl_xor_sync(0xffffffffu, mine.squares.v[0], across);
        merge(mine, {n, {mean}, {squares}});
    }
}
