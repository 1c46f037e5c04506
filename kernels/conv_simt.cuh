// conv_simt.cuh: the block of conv_simt.cu and conv_simt_weight.cu: a TILE x TILE_N product of two
// streams of panels.
//
// A block of 256 threads (128 x 64: 128) multiplies panels a (TILE_K x TILE, each column a row of
// the result) and b (TILE_K x TILE_N). Their loaders bring them through registers into two
// alternating buffers of shared memory. A warp owns 32*QUADS rows by 16*QUADS columns. A thread
// owns QUADS x QUADS squares of 4x4, 32 rows and 16 columns apart, so each fragment is a 16-byte
// read and 8 lanes of it share one address.
// Macros: TILE (64 or 128); TILE_N (as TILE, or 64 with a TILE of 128); VEC_A, VEC_B (4 where the
// operand's contiguous axis is a multiple of 4, else 1).
#pragma once
#include "common.cuh"

#ifndef TILE_N
#define TILE_N TILE
#endif

constexpr int QUADS = TILE / 64;
constexpr int EDGE = 4 * QUADS;  // a thread's rows and columns
constexpr int THREADS = TILE * TILE_N / (EDGE * EDGE);
constexpr int TILE_K = 1024 / TILE;  // of a panel
constexpr int LD = TILE + 4, LD_N = TILE_N + 4;  // of a row: transposing meets no bank conflict
// Blocks a multiprocessor must hold, which leaves 128 registers a thread. Some of them are spilled
// for sm_100 in the large tiles, for sm_120 in that of 128 x 64, and before CUDA 13.5 in that of
// 128 x 128 too; there less is asked for.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr bool EARLY = __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ < 1305;
constexpr int BLOCKS = TILE == 64 ? 2 : TILE_N == 64 ? 3 : __CUDA_ARCH__ < 1200 || EARLY ? 1 : 2;
#else
constexpr int BLOCKS = TILE == TILE_N ? 2 : 4;
#endif
static_assert(TILE == 64 || TILE == 128, "TILE is 64 or 128");
static_assert(TILE_N == TILE || TILE_N == 64, "TILE_N is TILE or 64");

// A block's tile: its first row and column, and its group. Computed at each call from registers
// that the card holds anyway, so that none of the three occupies one through the loop.
struct TileOrigin {
    int row, column, group;
};

__device__ __forceinline__ TileOrigin tile_origin(int tiles_across)
{
    unsigned x, y;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(x));
    asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(y));
    const unsigned down = x / tiles_across;
    return {(int)down * TILE, (int)(x - down * tiles_across) * TILE_N, (int)y};
}

struct alignas(16) Panels {
    float a[2][TILE_K][LD], b[2][TILE_K][LD_N];
};
using Sums = float[EDGE][EDGE];

// The first element of quad q that this thread owns in its block's tile, down and across.
__device__ __forceinline__ int quad_row(int q)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    return warp % 2 * 32 * QUADS + q * 32 + lane / 4 * 4;
}

__device__ __forceinline__ int quad_column(int q)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    return warp / 2 * 16 * QUADS + q * 16 + lane % 4 * 4;
}

// Where a thread's elements of a panel of SIDE rows lie, for two shapes of panel: VECTORS times
// four.
template <int SIDE> constexpr int VECTORS = SIDE * TILE_K / (4 * THREADS);

// Along: memory is contiguous along the reduction. WIDTH 4: four steps of a row, for each vector.
// WIDTH 1: one step of four rows.
template <int WIDTH, int SIDE> struct Along {
    static constexpr int COUNT = 4 * VECTORS<SIDE>, ROWS = COUNT / WIDTH;
    __device__ static int row(int i)
    {
        return WIDTH == 4 ? threadIdx.x / 2 % SIDE + THREADS / 2 * i
                          : threadIdx.x / 8 % (SIDE / 4) + SIDE / 4 * i;
    }
    __device__ static int step()
    {
        return WIDTH == 4 ? 4 * (threadIdx.x % 2 + threadIdx.x / (2 * SIDE) * 2)
                          : threadIdx.x % 8 + threadIdx.x / (2 * SIDE) * 8;
    }
    template <int PITCH> __device__ static void put(float (*panel)[PITCH], const float (&v)[COUNT])
    {
        for (int i = 0; i < COUNT; ++i)
            panel[step() + (WIDTH == 4 ? i % 4 : 0)][row(WIDTH == 4 ? i / 4 : i)] = v[i];
    }
};

// Across: memory is contiguous along the panel's rows. For each vector one step of four rows: WIDTH
// 4: neighbours; WIDTH 1: SIDE/4 apart.
template <int WIDTH, int SIDE> struct Across {
    static constexpr int STEPS = VECTORS<SIDE>, COUNT = 4 * STEPS, ROWS = 4 / WIDTH;
    __device__ static int row(int i)
    {
        return WIDTH == 4 ? threadIdx.x % (SIDE / 4) * 4 : threadIdx.x % (SIDE / 4) + SIDE / 4 * i;
    }
    __device__ static int step(int u = 0)
    {
        return threadIdx.x / (SIDE / 4) + u * (4 * THREADS / SIDE);
    }
    template <int PITCH> __device__ static void put(float (*panel)[PITCH], const float (&v)[COUNT])
    {
        for (int u = 0; u < STEPS; ++u)
            if (WIDTH == 4)
                store<4>(&panel[step(u)][row(0)],
                    {v[4 * u], v[4 * u + 1], v[4 * u + 2], v[4 * u + 3]});
            else
                for (int i = 0; i < 4; ++i) panel[step(u)][row(i)] = v[4 * u + i];
    }
};

// Row i of v, or zeros: the load does not happen where `inside` is false.
template <int WIDTH, int COUNT>
__device__ __forceinline__ void fetch(float (&v)[COUNT], int i, const float* from, bool inside)
{
    Floats<WIDTH> value = {};
    if (inside) value = load<WIDTH>(from);
    for (int j = 0; j < WIDTH; ++j) v[WIDTH * i + j] = value.v[j];
}

// sums += a^T b over half of a panel's steps.
__device__ __forceinline__ void multiply_half(
    Sums& sums, const float (*a)[LD], const float (*b)[LD_N])
{
#pragma unroll
    for (int k = 0; k < TILE_K / 2; ++k) {
        Floats<4> left[QUADS], right[QUADS];
        for (int q = 0; q < QUADS; ++q) left[q] = load<4>(&a[k][quad_row(q)]);
        for (int q = 0; q < QUADS; ++q) right[q] = load<4>(&b[k][quad_column(q)]);
        for (int i = 0; i < EDGE; ++i)
            for (int j = 0; j < EDGE; ++j)
                sums[i][j] = fmaf(left[i / 4].v[i % 4], right[j / 4].v[j % 4], sums[i][j]);
    }
}

// sums += a^T b over `steps` panels. Each sum grows in ascending order of the reduction: the order
// is part of the result. A loader's fetch_panel(step) loads into its registers, put(panel) writes
// them to shared memory; the loads are in flight during half of the products of the panel before.
// Past the end loaders give zeros, so the loop has no branch.
template <class A, class B>
__device__ __forceinline__ void accumulate(Sums& sums, Panels& panels, A& a, B& b, int steps)
{
    a.fetch_panel(0);
    b.fetch_panel(0);
    a.put(panels.a[0]);
    b.put(panels.b[0]);
    __syncthreads();
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        const float (*left)[LD] = panels.a[step & 1], (*right)[LD_N] = panels.b[step & 1];
        a.fetch_panel(step + 1);
        multiply_half(sums, left, right);
        a.put(panels.a[~step & 1]);
        b.fetch_panel(step + 1);
        multiply_half(sums, left + TILE_K / 2, right + TILE_K / 2);
        b.put(panels.b[~step & 1]);
        __syncthreads();
    }
}

// Calls result(row, column, vector of sums) for each part of a thread's squares that lies inside
// rows x columns.
template <int WIDTH, class Result>
__device__ __forceinline__ void each_vector(const Sums& sums, int rows, int columns, Result result)
{
    for (int i = 0; i < EDGE; ++i)
        for (int j = 0; j < EDGE; j += WIDTH) {
            const int row = quad_row(i / 4) + i % 4, column = quad_column(j / 4) + j % 4;
            Floats<WIDTH> value;
            for (int v = 0; v < WIDTH; ++v) value.v[v] = sums[i][j + v];
            if (row < rows && column < columns) result(row, column, value);
        }
}
