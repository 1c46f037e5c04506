// channels.cuh: blocks over channels-last memory whose pixels may lie further apart than they have
// channels, as the first channels of a wider image do.
#pragma once
#include "common.cuh"

constexpr int FLIGHT = 4;     // pixels that a thread loads before it uses the first
constexpr int THREADS = 256;  // of a block, whatever is launched with it

// A block is 256/lanes pixels by `lanes` threads along the channels, lanes a power of two up to 32;
// blockIdx.x counts the blocks of channels. Threads past the last channel have c >= C.
struct Tile {
    int lanes, rows, row, c;

    __device__ __forceinline__ explicit Tile(int lanes)
        : lanes(lanes),
          rows(THREADS / lanes),
          row(threadIdx.x / lanes),
          c((blockIdx.x * lanes + threadIdx.x % lanes) * VEC)
    {
    }
};

// f(pixel) for this thread's pixels among all: any gridDim.y covers them. The loads of FLIGHT
// pixels, by g(pixel, j), come before the first use.
template <class G, class F>
__device__ __forceinline__ void each_pixel(const Tile& tile, int pixels, G g, F f)
{
    const long long step = (long long)gridDim.y * tile.rows;
    long long at = (long long)blockIdx.y * tile.rows + tile.row;
    for (; at < pixels; at += FLIGHT * step) {
#pragma unroll
        for (int j = 0; j < FLIGHT; ++j)
            if (at + j * step < pixels) g(at + j * step, j);
#pragma unroll
        for (int j = 0; j < FLIGHT; ++j)
            if (at + j * step < pixels) f(at + j * step, j);
    }
}

// Merges `mine` of a block's rows into row 0, by merge(into, other): a tree whose order is fixed by
// the launch alone.
template <class T, class F>
__device__ __forceinline__ void merge_rows(T& mine, int row, int rows, int lanes, F merge)
{
    __shared__ T all[THREADS];
    all[threadIdx.x] = mine;
    for (int half = rows / 2; half > 0; half /= 2) {
        __syncthreads();
        if (row < half) {
            merge(mine, all[threadIdx.x + half * lanes]);
            all[threadIdx.x] = mine;
        }
    }
}

template <int COUNT>
__device__ __forceinline__ void sum_rows(Floats<COUNT>& mine, int row, int rows, int lanes)
{
    merge_rows(mine, row, rows, lanes, [](Floats<COUNT>& into, const Floats<COUNT>& other) {
        for (int k = 0; k < COUNT; ++k) into.v[k] += other.v[k];
    });
}
