// Rung 4: cp.async copies the next panel to shared memory while this one is multiplied.
#include "../copies.cuh"

constexpr int TILE = 32, CHUNKS = 16;

extern "C" __global__ void __launch_bounds__(1024) product_cp_async(
    float* c, const float* __restrict__ a, const float* __restrict__ b, int N, int K)
{
    __shared__ float4 panels[2][2 * TILE][CHUNKS + 1];
    const int x = threadIdx.x, y = threadIdx.y;
    const int first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;
    const int row = (y * TILE + x) / CHUNKS, chunk = x % CHUNKS;
    const float* from =
        row < TILE ? a + (first_row + row) * K : b + (first_column + row - TILE) * K;
    const auto fetch = [&](int panel, int k) {
        if (k < K)
            copy_async(shared_address(&panels[panel][row][chunk]), from + k + 4 * chunk, true);
        commit_copies();
    };

    fetch(0, 0);
    float sum = 0.0f;
    for (int k = 0, now = 0; k < K; k += 4 * CHUNKS, now ^= 1) {
        fetch(now ^ 1, k + 4 * CHUNKS);
        wait_for_copies<1>();  // this panel is here, the next on its way
        __syncthreads();
        for (int i = 0; i < CHUNKS; ++i) {
            const float4 left = panels[now][y][i], right = panels[now][TILE + x][i];
            sum = fmaf(left.x, right.x, sum);
            sum = fmaf(left.y, right.y, sum);
            sum = fmaf(left.z, right.z, sum);
            sum = fmaf(left.w, right.w, sum);
        }
        __syncthreads();
    }
    c[(first_row + y) * N + first_column + x] = sum;
}
