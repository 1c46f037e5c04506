// conv_mma_weight.cuh: the operands of conv_mma_weight.cu: stages of pixels whose filters and
// columns lie one after another in memory and in shared memory.
#pragma once
// TF32 reorders what it loads, a number an instruction: a warp of 64x32 has more mma for each.
#define WARP_M (TILE == 64 && FORMAT != TF32 ? 32 : 64)
#define DEEP (TILE_N == 64)
#define BLOCKS (TILE == 64 ? 4 : TILE_N == 128 ? 1 : FORMAT == TF32 ? 2 : 3)
#include "conv_mma.cuh"

constexpr int DEPTH = ROW_BYTES / sizeof(ELEMENT);  // pixels of a stage
constexpr int PIXEL_A = TILE * sizeof(ELEMENT), PIXEL_B = TILE_N * sizeof(ELEMENT);  // bytes

// Addresses that a thread reads from: one for each ldmatrix of a part, as the turned places of the
// vectors are no fixed distance apart.
constexpr int READS_A = FORMAT == TF32 ? 1 : ROWS_M, READS_B = FORMAT == TF32 ? 1 : ROWS_N / 2;

// By what the places of a pixel's vectors are turned. 16 bits: ldmatrix reads a vector of each of
// eight pixels. TF32: the lanes of a load read two neighbouring vectors of each of four pixels. The
// pixel's bits are in reverse, so that the copies of eight lanes, which are neighbouring vectors of
// one, two or four pixels, write all banks too.
__device__ __forceinline__ constexpr int turn(int pixel)
{
    return pixel % 2 * 4 + pixel / 2 % 2 * 2 + (FORMAT == TF32 ? 0 : pixel / 4 % 2);
}

__device__ __forceinline__ constexpr int vector_place(int pixel, int vector, int pixel_bytes)
{
    return pixel * pixel_bytes + (vector ^ turn(pixel)) * 16;
}

// Which row and column of the tile value v of sums[quad / ROWS_N][quad % ROWS_N] is. TF32 has no
// transposing loads: a lane loads four neighbours at once, which go to four mma.
__device__ __forceinline__ int held_row(int quad, int v)
{
    const int i = quad / ROWS_N, group = threadIdx.x % 32 / 4, half = v / 2;
    if (FORMAT != TF32) return warp_row() + 16 * i + 8 * half + group;
    return warp_row() + 4 * group + (WARP_M == 64 ? 32 * half + i : 2 * i + half);
}

__device__ __forceinline__ int held_column(int quad, int v)
{
    const int j = quad % ROWS_N, column = threadIdx.x % 4 * 2 + v % 2;
    if (FORMAT != TF32) return warp_column() + 8 * j + column;
    return warp_column() + j / 4 * 32 + 4 * column + j % 4;
}

// TF32 is cut by the multiplication, which leaves out half a unit of the last bit on average: a
// third of a unit of 1, which is a third to two thirds of a unit of the number, is added before. A
// conversion that rounds takes four instructions, and adding to the bits makes -0 of a NaN.
__device__ __forceinline__ unsigned rounded(float value)
{
    return __float_as_uint(value * (1.0f + 1.0f / 3072));
}

// What stands for x in the columns of db: 1 in the first of them.
__device__ const Vector ONE[TILE_N / WIDTH] = {{{FORMAT == TF32 ? (ELEMENT)1.0f
    : FORMAT == BF16 ? (ELEMENT)0x3f80 : (ELEMENT)0x3c00}}};

// As copy_async, and only where `wanted`, by predicates: of conditions the compiler would make
// branches, and of a size that several conditions choose a chain of selections.
__device__ __forceinline__ void copy_async_if(
    bool inside, unsigned to, const void* from, bool wanted = true)
{
    asm volatile("{ .reg .pred outside, wanted;"
                 " setp.eq.u32 outside, %2, 0; setp.ne.u32 wanted, %3, 0;"
                 " @wanted cp.async.cg.shared.global [%0], [%1], 16, outside; }" ::"r"(to),
        "l"(__cvta_generic_to_global(from)), "r"((unsigned)inside), "r"((unsigned)wanted)
        : "memory");
}

constexpr int NOWHERE = -(1 << 30);  // no row of an image, and far from any

struct WeightLoader {
    static constexpr int LANES = THREADS / DEPTH;  // threads of a pixel
    static constexpr int A = TILE / WIDTH / LANES, B = TILE_N / WIDTH / LANES;
    const char *dy, *x;  // at this thread's first vector: of the next step's pixel; of an image
    int x_pixel;         // bytes
    long long dy_step;
    int pixel, end;  // this thread's of the next step; the part's end
    int H, W;
    int first_h, first_w;         // where the tile's tap (UNIFORM = 0: tap (0,0)) of pixel 0 is
    unsigned stride_h, stride_w;  // from a line or a pixel to the next
    unsigned image_h, line_w;     // and, negative, over an image or a line
    unsigned p_mul, q_mul;
    int p_shift, q_shift;
    int vectors;                  // WHOLE = 0: of dy, from this thread's first
    int h[B], w[B], distance[B];  // UNIFORM = 0: each column's tap and vectors from (0,0)
    int one;                      // and which of them is db's
    unsigned to_a, to_b;          // addresses in stage 0: of this thread's copies
    unsigned from_a[READS_A], from_b[READS_B];  // and of its reads

    // Vector i of this thread is i * LANES behind its first; its place is turned by the same.
    __device__ __forceinline__ static unsigned place_of(unsigned to, int i)
    {
        return (to ^ i * LANES % 8 * 16) + i * LANES / 8 * 128;
    }

    __device__ __forceinline__ void open(unsigned shared)
    {
        const int lane = threadIdx.x % 32, member = lane % 4, group = lane / 4, eighth = lane / 8;
        const int a = warp_row() / WIDTH, b = warp_column() / WIDTH;  // the warp's first vectors
        const unsigned shared_b = shared + DEPTH * PIXEL_A;
        to_a = shared + vector_place(threadIdx.x / LANES, threadIdx.x % LANES, PIXEL_A);
        to_b = shared_b + vector_place(threadIdx.x / LANES, threadIdx.x % LANES, PIXEL_B);
#pragma unroll
        for (int i = 0; i < READS_A; ++i)
            from_a[i] = shared + (FORMAT == TF32 ? vector_place(member, a + group, PIXEL_A)
                : vector_place(eighth / 2 * 8 + lane % 8, a + eighth % 2 + 2 * i, PIXEL_A));
#pragma unroll
        for (int j = 0; j < READS_B; ++j)
            from_b[j] = shared_b + (FORMAT == TF32 ? vector_place(member, b + group, PIXEL_B)
                : vector_place(eighth % 2 * 8 + lane % 8, b + eighth / 2 + 2 * j, PIXEL_B));
    }

    __device__ __forceinline__ void fetch(int stage)
    {
        const int line = divide(pixel, q_mul, q_shift), n = divide(line, p_mul, p_shift);
        const bool there = pixel < end;
        const int top = there ? line * stride_h + n * image_h + first_h : NOWHERE;
        const int left = pixel * stride_w + line * line_w + first_w;
        const char* pixels = offset(x, (n * H + top) * W + left, x_pixel);
        const int count = there ? vectors : 0;
#pragma unroll
        for (int i = 0; i < A; ++i)
            copy_async_if(
                WHOLE ? there : i * LANES < count, place_of(to_a, i) + stage, dy + i * LANES * 16);
        const auto inside = [&](int h, int w) {
            return (unsigned)(top + h) < (unsigned)H && (unsigned)(left + w) < (unsigned)W;
        };
#pragma unroll
        for (int i = 0; i < B; ++i)
            if (UNIFORM)
                copy_async_if(inside(0, 0), place_of(to_b, i) + stage, pixels + i * LANES * 16);
            else
                copy_async_if(inside(h[i], w[i]), place_of(to_b, i) + stage,
                    offset(pixels, distance[i], 16), !BIAS || i != one);
        pixel += DEPTH;
        dy += dy_step;
    }

    // A part of a stage is STEP pixels.
#if FORMAT == TF32
    __device__ __forceinline__ void read(Fragments& f, int stage, int part)
    {
        const unsigned a = from_a[0] + stage + part * STEP * PIXEL_A;
        const unsigned b = from_b[0] + stage + part * STEP * PIXEL_B;
#pragma unroll
        for (int k = 0; k < 2; ++k) {  // of the four pixels that a lane's registers are of
#pragma unroll
            for (int i = 0; i < WARP_M / 32; ++i) {
                const Floats<4> four = load_shared(a + k * 4 * PIXEL_A + i * 128);
#pragma unroll
                for (int v = 0; v < 4; ++v)
                    f.a[ROWS_M == 4 ? v : v / 2][2 * k + (ROWS_M == 4 ? i : v % 2)] =
                        rounded(four.v[v]);
            }
#pragma unroll
            for (int j = 0; j < WARP_N / 32; ++j) {
                const Floats<4> four = load_shared(b + k * 4 * PIXEL_B + j * 128);
#pragma unroll
                for (int v = 0; v < 4; ++v) f.b[4 * j + v][k] = rounded(four.v[v]);
            }
        }
    }
#else
    __device__ __forceinline__ void read(Fragments& f, int stage, int part)
    {
#pragma unroll
        for (int i = 0; i < ROWS_M; ++i)
            load_matrices_transposed(f.a[i], from_a[i] + stage + part * STEP * PIXEL_A);
#pragma unroll
        for (int j = 0; j < ROWS_N; j += 2) {
            unsigned both[4];
            load_matrices_transposed(both, from_b[j / 2] + stage + part * STEP * PIXEL_B);
            f.b[j][0] = both[0], f.b[j][1] = both[1];
            f.b[j + 1][0] = both[2], f.b[j + 1][1] = both[3];
        }
    }
#endif
};
