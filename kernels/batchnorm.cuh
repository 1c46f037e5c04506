// batchnorm.cuh: what batchnorm.cu and batchnorm_pool.cu do with a channel's numbers.
#pragma once
#include "channels.cuh"
#include "last_block.cuh"

// What a thread needs of its channels. Forward and backward compute the same y from it, bit for
// bit, so that both find the same pixels cut by the ReLU.
struct Normal {
    Floats<VEC> mean, deviation, scale, shift;

    __device__ __forceinline__ Normal(const float* w, const float* b, const float* mean_of,
        const float* var, int c, float eps, int use_weight, int use_bias)
        : mean(load<VEC>(mean_of + c)), deviation(load<VEC>(var + c)), scale(), shift()
    {
        if (use_weight) scale = load<VEC>(w + c);
        if (use_bias) shift = load<VEC>(b + c);
        for (int k = 0; k < VEC; ++k) {
            deviation.v[k] = sqrtf(deviation.v[k] + eps);
            scale.v[k] = (use_weight ? scale.v[k] : 1.0f) / deviation.v[k];
        }
    }
    __device__ __forceinline__ float y(float x, int k) const
    {
        return fmaf(x - mean.v[k], scale.v[k], shift.v[k]);
    }
    // dy as it was before the ReLU.
    __device__ __forceinline__ float d(float dy, float x, int k, int rectify) const
    {
        return rectify ? relu_mask(dy, y(x, k)) : dy;
    }
};

// What backward needs besides: dx = scale * (d - base - (x - mean) * slope).
struct Slope : Normal {
    Floats<VEC> base, slope;
    int of_batch;

    __device__ __forceinline__ Slope(const float* w, const float* b, const float* mean_of,
        const float* var, const float* dw, const float* db, int c, int pixels, float eps,
        int of_batch, int use_weight, int use_bias)
        : Normal(w, b, mean_of, var, c, eps, use_weight, use_bias),
          base(),
          slope(),
          of_batch(of_batch)
    {
        if (!of_batch) return;
        base = load<VEC>(db + c);
        slope = load<VEC>(dw + c);
        for (int k = 0; k < VEC; ++k) {
            base.v[k] /= (float)pixels;
            slope.v[k] = slope.v[k] / (float)pixels / deviation.v[k];
        }
    }
    __device__ __forceinline__ Floats<VEC> dx(
        const Floats<VEC>& dy, const Floats<VEC>& x, int rectify) const
    {
        Floats<VEC> result;
        for (int k = 0; k < VEC; ++k) {
            const float d = this->d(dy.v[k], x.v[k], k, rectify);
            const float rest = fmaf(x.v[k] - mean.v[k], slope.v[k], base.v[k]);
            result.v[k] = scale.v[k] * (of_batch ? d - rest : d);
        }
        return result;
    }
};

// The sums of d and of d * (x - mean) over a thread's pixels of a block's part; gradient(i) is dy.
template <class Gradient>
__device__ __forceinline__ Floats<2 * VEC> sum_gradients(const Tile& tile, const Normal& of,
    const STORE* x, int x_stride, int pixels, int split_length, int rectify, Gradient gradient)
{
    const long long first = (long long)blockIdx.y * split_length,
                    end = first + split_length < pixels ? first + split_length : pixels;
    Floats<2 * VEC> sums = {};
#pragma unroll 2
    for (long long i = first + tile.row; i < end; i += tile.rows) {
        const Floats<VEC> in = load<VEC>(x + i * x_stride + tile.c), dy = gradient(i);
        for (int k = 0; k < VEC; ++k) {
            const float d = of.d(dy.v[k], in.v[k], k, rectify);
            sums.v[k] += d;
            sums.v[VEC + k] = fmaf(d, in.v[k] - of.mean.v[k], sums.v[VEC + k]);
        }
    }
    return sums;
}

// dw and db from all blocks' sums: each leaves its own, and the last to come adds them, in an order
// that does not depend on which it is.
__device__ __forceinline__ void finish_sums(float* dw, float* db, float* partials,
    unsigned* tickets, Floats<2 * VEC>& sums, const Tile& tile, const float* var, int C, float eps)
{
    sum_rows(sums, tile.row, tile.rows, tile.lanes);
    if (gridDim.y > 1) {
        if (tile.row == 0 && tile.c < C) {
            float* to = partials + (long long)blockIdx.y * 2 * C + tile.c;
            for (int k = 0; k < VEC; ++k) {
                to[k] = sums.v[k];
                to[C + k] = sums.v[VEC + k];
            }
        }
        if (!last_to_arrive(tickets + blockIdx.x, gridDim.y)) return;
        sums = {};
        for (int s = tile.row; s < gridDim.y && tile.c < C; s += tile.rows) {
            const float* from = partials + (long long)s * 2 * C + tile.c;
            for (int k = 0; k < VEC; ++k) {
                sums.v[k] += from[k];
                sums.v[VEC + k] += from[C + k];
            }
        }
        sum_rows(sums, tile.row, tile.rows, tile.lanes);
    }
    if (tile.row > 0 || tile.c >= C) return;
    for (int k = 0; k < VEC; ++k) {
        db[tile.c + k] = sums.v[k];
        dw[tile.c + k] = sums.v[VEC + k] / sqrtf(var[tile.c + k] + eps);
    }
}
