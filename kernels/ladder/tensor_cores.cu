// Rung 7: a warp multiplies on tensor cores, 16 x 8 elements by 8 terms with one instruction. The
// operands are float32, of which TF32 leaves 10 bits of the fraction; the sums stay float32.
#define ELEMENT float
#define FORMAT TF32
#include "../mma.cuh"

constexpr int TILE = 128, THREADS = 128, CHUNKS = 4, PANELS = 3;
constexpr int WARP = 64;  // rows and columns of a warp

__device__ __forceinline__ int place(int row, int chunk) { return chunk ^ row / 2 % CHUNKS; }

extern "C" __global__ void __launch_bounds__(THREADS) product_tensor_cores(
    float* c, const float* __restrict__ a, const float* __restrict__ b, int N, int K)
{
    __shared__ float4 panels[PANELS][2 * TILE][CHUNKS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_row = warp % 2 * WARP, warp_column = warp / 2 * WARP;
    const int first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;
    const int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
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

    // ldmatrix takes from each lane the address of a row of 16 bytes, and gives each lane the
    // elements that mma wants of it: of A 16 rows by 8 terms, of B twice 8 columns by 8 terms.
    const int left_row = warp_row + lane % 16, left_chunk = lane / 16;
    const int right_row = TILE + warp_column + lane / 16 * 8 + lane % 8, right_chunk = lane / 8 % 2;

    fetch(0, 0);
    fetch(1, 4 * CHUNKS);
    float sums[WARP / 16][WARP / 8][4] = {};
    int now = 0, free = 2;
    for (int k = 0; k < K; k += 4 * CHUNKS) {
        wait_for_copies<1>();
        __syncthreads();
        fetch(free, k + 2 * 4 * CHUNKS);
#pragma unroll
        for (int i = 0; i < CHUNKS; i += 2) {
            const int left_place = place(left_row, left_chunk + i);
            const int right_place = place(right_row, right_chunk + i);
            unsigned left[WARP / 16][4], right[WARP / 16][4];
            for (int r = 0; r < WARP / 16; ++r) {
                load_matrices(left[r], shared_address(&panels[now][left_row + 16 * r][left_place]));
                load_matrices(
                    right[r], shared_address(&panels[now][right_row + 16 * r][right_place]));
            }
            for (int r = 0; r < WARP / 16; ++r)
                for (int s = 0; s < WARP / 8; ++s) {
                    const unsigned* of_b = &right[s / 2][s % 2 * 2];
                    multiply(sums[r][s], left[r], of_b[0], of_b[1]);
                }
        }
        free = now;
        now = now == PANELS - 1 ? 0 : now + 1;
    }

    // A lane has two neighbouring elements of two rows of each 16 x 8.
    c += (first_row + warp_row + lane / 4) * N + first_column + warp_column + lane % 4 * 2;
    for (int r = 0; r < WARP / 16; ++r)
        for (int s = 0; s < WARP / 8; ++s)
            for (int half = 0; half < 2; ++half)
                store<2>(c + (16 * r + 8 * half) * N + 8 * s,
                    {sums[r][s][2 * half], sums[r][s][2 * half + 1]});
}
