// conv_mma.cuh: a block's product on tensor cores, in the shape that conv_mma.cu and
// conv_mma_weight.cu share: warps, sums, stages of copies.
//
// Macros: TILE x TILE_N, the block's tile of the result: 128x256, 128x128, 128x64 or 64x64; those
// of mma.cuh.
#pragma once
#include "mma.cuh"

// A warp owns 64x64 of the tile: 4 shared-memory loads of each operand for 32 mma. Where the tile
// is 64 wide, 64x32 or 32x32, so that four warps share it.
constexpr int WARP_M = TILE == 64 ? 32 : 64, WARP_N = TILE_N == 64 ? 32 : 64;
constexpr int ROWS_M = WARP_M / 16, ROWS_N = WARP_N / 8;  // mma down and across a warp
constexpr int WARPS_M = TILE / WARP_M, WARPS_N = TILE_N / WARP_N;
constexpr int THREADS = 32 * WARPS_M * WARPS_N;
// Blocks a multiprocessor must hold. Asked for nothing, the compiler takes 96 registers in the tile
// of 64 x 64, and spills.
constexpr int BLOCKS = TILE == 64 ? 4 : 1;
constexpr int STAGES = 3;                   // of copies: one is multiplied, two are on their way
constexpr int ROW_BYTES = 64, CHUNKS = 4;   // of a row of operands in a stage: two mma deep
constexpr int STAGE_BYTES = (TILE + TILE_N) * ROW_BYTES;
static_assert(TILE == 128 || (TILE == 64 && TILE_N == 64), "no such tile");

using Sums = float[ROWS_M][ROWS_N][4];

// The first row and column of this thread's warp in the tile.
__device__ __forceinline__ int warp_row() { return threadIdx.x / 32 % WARPS_M * WARP_M; }
__device__ __forceinline__ int warp_column() { return threadIdx.x / 32 / WARPS_M * WARP_N; }

// A stage that is filled and one that is read, as offsets in bytes.
__device__ __forceinline__ int next_stage(int stage)
{
    return stage == (STAGES - 1) * STAGE_BYTES ? 0 : stage + STAGE_BYTES;
}

// What one half of a stage's depth needs of both operands.
struct Fragments {
    unsigned a[ROWS_M][4], b[ROWS_N][2];
};

// sums += a b, in an order that changes one operand at a time.
__device__ __forceinline__ void multiply(Sums& sums, const Fragments& f)
{
#pragma unroll
    for (int i = 0; i < ROWS_M; ++i)
#pragma unroll
        for (int k = 0; k < ROWS_N; ++k) {
            const int j = i % 2 ? ROWS_N - 1 - k : k;
            multiply(sums[i][j], f.a[i], f.b[j][0], f.b[j][1]);
        }
}

// sums += a b over `steps` stages. loader.fetch(stage) begins the copies of the next step into a
// stage (past the last they copy zeros), loader.read(fragments, stage, half) loads one half of a
// stage. The loads of a half are in flight during the products of the one before.
template <class Loader>
__device__ __forceinline__ void accumulate(Sums& sums, Loader& loader, int steps)
{
    for (int stage = 0; stage < (STAGES - 1) * STAGE_BYTES; stage += STAGE_BYTES) {
        loader.fetch(stage);
        commit_copies();
    }
    int filled = (STAGES - 1) * STAGE_BYTES, read = 0;
    wait_for_copies<STAGES - 2>();
    __syncthreads();
    Fragments f[2];
    loader.read(f[0], read, 0);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        loader.read(f[1], read, 1);
        loader.fetch(filled);
        commit_copies();
        filled = next_stage(filled);
        read = next_stage(read);
        multiply(sums, f[0]);
        wait_for_copies<STAGES - 2>();
        __syncthreads();
        loader.read(f[0], read, 0);
        multiply(sums, f[1]);
    }
    wait_for_copies<0>();
    __syncthreads();
}
