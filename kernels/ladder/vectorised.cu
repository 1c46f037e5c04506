// Rung 3: four terms at a time. Every access is of 16 bytes, one instruction for a float4.
constexpr int TILE = 32, CHUNKS = 16;  // a row of a panel has 16 chunks of 4 terms

extern "C" __global__ void __launch_bounds__(1024) product_vectorised(
    float* c, const float* __restrict__ a, const float* __restrict__ b, int N, int K)
{
    // Rows of A, then columns of B. Accesses of 16 bytes serve 8 lanes at a time; one chunk more
    // than a row has puts the 8 rows that they read in different banks.
    __shared__ float4 panel[2 * TILE][CHUNKS + 1];
    const int x = threadIdx.x, y = threadIdx.y;
    const int first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;

    // Each thread copies a chunk: 64 rows of 16 chunks.
    const int row = (y * TILE + x) / CHUNKS, chunk = x % CHUNKS;
    const float* from =
        row < TILE ? a + (first_row + row) * K : b + (first_column + row - TILE) * K;
    float sum = 0.0f;
    for (int k = 0; k < K; k += 4 * CHUNKS) {
        panel[row][chunk] = *(const float4*)(from + k + 4 * chunk);
        __syncthreads();
        for (int i = 0; i < CHUNKS; ++i) {
            const float4 left = panel[y][i], right = panel[TILE + x][i];
            sum = fmaf(left.x, right.x, sum);
            sum = fmaf(left.y, right.y, sum);
            sum = fmaf(left.z, right.z, sum);
            sum = fmaf(left.w, right.w, sum);
        }
        __syncthreads();
    }
    c[(first_row + y) * N + first_column + x] = sum;
}
