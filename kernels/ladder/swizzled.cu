// Rung 6: no padding. Chunk i of row r lies at i ^ (r / 2 % 4), which puts 8 rows in different
// banks; what padding took makes room for a third panel, so that one barrier a panel is enough.
#include "../copies.cuh"

constexpr int TILE = 128, THREADS = 256, CHUNKS = 4, PANELS = 3;
constexpr int SIDE = 8, APART = TILE / SIDE;
#ifndef SWIZZLE
#define SWIZZLE 1
#endif

__device__ __forceinline__ int place(int row, int chunk)
{
    return SWIZZLE ? chunk ^ row / 2 % CHUNKS : chunk;
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) product_swizzled(
    float* c, const float* __restrict__ a, const float* __restrict__ b, int N, int K)
{
    __shared__ float4 panels[PANELS][2 * TILE][CHUNKS];
    const int x = threadIdx.x, y = threadIdx.y;
    const int first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;
    const int row = (y * APART + x) / CHUNKS, chunk = x % CHUNKS;
    const float* left_from = a + (first_row + row) * K + 4 * chunk;
    const float* right_from = b + (first_column + row) * K + 4 * chunk;
    const auto fetch = [&](int panel, int k) {
        for (int i = 0; i < TILE && k < K; i += THREADS / CHUNKS) {
            float4* left = &panels[panel][row + i][place(row, chunk)];
            float4* right = &panels[panel][TILE + row + i][place(row, chunk)];
            copy_async(shared_address(left), left_from + i * K + k, true);
            copy_async(shared_address(right), right_from + i * K + k, true);
        }
        commit_copies();
    };

    fetch(0, 0);
    fetch(1, 4 * CHUNKS);
    float sums[SIDE][SIDE] = {};
    int now = 0, free = 2;
    for (int k = 0; k < K; k += 4 * CHUNKS) {
        wait_for_copies<1>();
        __syncthreads();  // this panel is whole, and nobody reads the one before it any more
        fetch(free, k + 2 * 4 * CHUNKS);
#pragma unroll 1
        for (int i = 0; i < CHUNKS; ++i) {
            float4 left[SIDE];
            for (int r = 0; r < SIDE; ++r) left[r] = panels[now][y + r * APART][place(y, i)];
            for (int s = 0; s < SIDE; ++s) {
                const float4 right = panels[now][TILE + x + s * APART][place(x, i)];
                for (int r = 0; r < SIDE; ++r) {
                    sums[r][s] = fmaf(left[r].x, right.x, sums[r][s]);
                    sums[r][s] = fmaf(left[r].y, right.y, sums[r][s]);
                    sums[r][s] = fmaf(left[r].z, right.z, sums[r][s]);
                    sums[r][s] = fmaf(left[r].w, right.w, sums[r][s]);
                }
            }
        }
        free = now;
        now = now == PANELS - 1 ? 0 : now + 1;
    }
    for (int r = 0; r < SIDE; ++r)
        for (int s = 0; s < SIDE; ++s)
            c[(first_row + y + r * APART) * N + first_column + x + s * APART] = sums[r][s];
}
