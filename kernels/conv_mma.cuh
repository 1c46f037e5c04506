// conv_mma.cuh: a block's product on tensor cores, in the shape that conv_mma.cu and
// conv_mma_weight.cu share: warps, sums, stages of copies.
//
// Macros: TILE x TILE_N, the block's tile of the result: 128x256, 128x128, 128x64 or 64x64; those
// of mma.cuh. The file that includes this defines WARP_M and WARP_N; DEEP (1: a stage has 128 bytes
// of each row, not 64); and BLOCKS, which a multiprocessor must hold: asked for nothing, the
// compiler takes more registers than they have, or 96 in the tile of 64 x 64, and spills.
#pragma once
#include "mma.cuh"

// A warp owns WARP_M x WARP_N of the tile. 64x64: 4 shared-memory loads of each operand for 32 mma.
// 64x32 or 32x32 where the tile is 64 wide, so that more warps share it.
constexpr int ROWS_M = WARP_M / 16, ROWS_N = WARP_N / 8;  // mma down and across a warp
constexpr int WARPS_M = TILE / WARP_M, WARPS_N = TILE_N / WARP_N;
constexpr int THREADS = 32 * WARPS_M * WARPS_N;
// Bytes of a row of operands in a stage, and stages of copies: one is multiplied, the others are on
// their way. With few mma a part, a deep stage halves the barriers and the arithmetic of addresses;
// two of them keep as much under way as three of the others.
constexpr int ROW_BYTES = DEEP ? 128 : 64, STAGES = DEEP ? 2 : 3;
constexpr int CHUNKS = ROW_BYTES / 16, PARTS = ROW_BYTES / 32;  // a part is one mma deep
constexpr int STAGE_BYTES = (TILE + TILE_N) * ROW_BYTES;
static_assert(TILE == 128 || (TILE == 64 && TILE_N == 64), "no such tile");

using Sums = float[ROWS_M][ROWS_N][4];

// The first row and column of this thread's warp in the tile.
__device__ __forceinline__ int warp_row() { return threadIdx.x / 32 % WARPS_M * WARP_M; }
__device__ __forceinline__ int warp_column() { return threadIdx.x / 32 / WARPS_M * WARP_N; }

// Stages are offsets in bytes.
__device__ __forceinline__ int next_stage(int stage)
{
    if (STAGES == 2) return stage ^ STAGE_BYTES;
    return stage == (STAGES - 1) * STAGE_BYTES ? 0 : stage + STAGE_BYTES;
}

// What one part of a stage needs of both operands.
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
// stage (past the last they copy zeros), loader.read(fragments, stage, part) loads one part of a
// stage; between them loader.complete(stage) may add what is no copy, in places that its own thread
// copied to. The loads of a part are in flight during the products of the one before.
template <class Loader>
__device__ __forceinline__ void accumulate(Sums& sums, Loader& loader, int steps)
{
    for (int stage = 0; stage < (STAGES - 1) * STAGE_BYTES; stage += STAGE_BYTES) {
        loader.fetch(stage);
        commit_copies();
    }
    int filled = (STAGES - 1) * STAGE_BYTES, read = 0;
    wait_for_copies<STAGES - 2>();
    loader.complete(read);
    __syncthreads();
    Fragments f[2];
    loader.read(f[0], read, 0);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
#pragma unroll
        for (int part = 0; part < PARTS - 1; ++part) {
            if (part == 0) {
                loader.fetch(STAGES == 2 ? next_stage(read) : filled);
                commit_copies();
            }
            loader.read(f[(part + 1) % 2], read, part + 1);
            multiply(sums, f[part % 2]);
        }
        filled = read;
        read = next_stage(read);
        wait_for_copies<STAGES - 2>();
        loader.complete(read);
        __syncthreads();
        loader.read(f[0], read, 0);
        multiply(sums, f[(PARTS - 1) % 2]);
    }
    wait_for_copies<0>();
    __syncthreads();
}
