// Rung 2: a block copies a panel of 32 terms of its rows of A and its columns of B to shared
// memory, and its threads multiply from there.
constexpr int TILE = 32;

extern "C" __global__ void __launch_bounds__(1024) product_tiled(
    float* c, const float* __restrict__ a, const float* __restrict__ b, int N, int K)
{
    // Rows of 33 words: the lanes of a warp read down a column of `right`, and 33 spreads that
    // over all 32 banks.
    __shared__ float left[TILE][TILE + 1], right[TILE][TILE + 1];
    const int x = threadIdx.x, y = threadIdx.y;
    const int first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;
    float sum = 0.0f;
    for (int k = 0; k < K; k += TILE) {
        left[y][x] = a[(first_row + y) * K + k + x];
        right[y][x] = b[(first_column + y) * K + k + x];
        __syncthreads();  // the panel is whole
        for (int i = 0; i < TILE; ++i) sum = fmaf(left[y][i], right[x][i], sum);
        __syncthreads();  // nobody reads it any more
    }
    c[(first_row + y) * N + first_column + x] = sum;
}
