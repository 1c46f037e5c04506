// Rung 5: a thread computes 8 x 8 elements, and uses what it reads of a panel 8 times.
#include "../copies.cuh"

constexpr int TILE = 128, THREADS = 256, CHUNKS = 4;
constexpr int SIDE = 8, APART = TILE / SIDE;  // a thread has 8 rows, 16 apart; columns alike

extern "C" __global__ void __launch_bounds__(THREADS, 2) product_register_blocked(
    float* c, const float* __restrict__ a, const float* __restrict__ b, int N, int K)
{
    __shared__ float4 panels[2][2 * TILE][CHUNKS + 1];
    const int x = threadIdx.x, y = threadIdx.y;
    const int first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;

    // A thread copies four chunks of a panel, 64 rows apart: two of A, two of B.
    const int row = (y * APART + x) / CHUNKS, chunk = x % CHUNKS;
    const float* left_from = a + (first_row + row) * K + 4 * chunk;
    const float* right_from = b + (first_column + row) * K + 4 * chunk;
    const auto fetch = [&](int panel, int k) {
        for (int i = 0; i < TILE && k < K; i += THREADS / CHUNKS) {
            float4* left = &panels[panel][row + i][chunk];
            float4* right = &panels[panel][TILE + row + i][chunk];
            copy_async(shared_address(left), left_from + i * K + k, true);
            copy_async(shared_address(right), right_from + i * K + k, true);
        }
        commit_copies();
    };

    fetch(0, 0);
    float sums[SIDE][SIDE] = {};
    for (int k = 0, now = 0; k < K; k += 4 * CHUNKS, now ^= 1) {
        fetch(now ^ 1, k + 4 * CHUNKS);
        wait_for_copies<1>();
        __syncthreads();
#pragma unroll 1
        for (int i = 0; i < CHUNKS; ++i) {
            float4 left[SIDE];
            for (int r = 0; r < SIDE; ++r) left[r] = panels[now][y + r * APART][i];
            for (int s = 0; s < SIDE; ++s) {
                const float4 right = panels[now][TILE + x + s * APART][i];
                for (int r = 0; r < SIDE; ++r) {
                    sums[r][s] = fmaf(left[r].x, right.x, sums[r][s]);
                    sums[r][s] = fmaf(left[r].y, right.y, sums[r][s]);
                    sums[r][s] = fmaf(left[r].z, right.z, sums[r][s]);
                    sums[r][s] = fmaf(left[r].w, right.w, sums[r][s]);
                }
            }
        }
        __syncthreads();
    }
    for (int r = 0; r < SIDE; ++r)
        for (int s = 0; s < SIDE; ++s)
            c[(first_row + y + r * APART) * N + first_column + x + s * APART] = sums[r][s];
}
