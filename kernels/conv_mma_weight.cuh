// conv_mma_weight.cuh: the operands of conv_mma_weight.cu: stages of pixels whose filters and
// columns lie one after another in memory and in shared memory.
#pragma once
#include "conv_mma.cuh"

constexpr int DEPTH = ROW_BYTES / sizeof(ELEMENT);  // pixels of a stage: two mma
constexpr int PIXEL_A = TILE * sizeof(ELEMENT), PIXEL_B = TILE_N * sizeof(ELEMENT);  // bytes

// Addresses that a thread reads from: one for each ldmatrix of half a stage, as the turned places
// of the vectors are no fixed distance apart.
constexpr int READS_A = FORMAT == TF32 ? 1 : ROWS_M, READS_B = FORMAT == TF32 ? 1 : ROWS_N / 2;

// By what the places of a pixel's vectors are turned. 16 bits: ldmatrix reads a vector of each of
// eight pixels. TF32: the lanes of a load read two neighbouring vectors of each of four pixels.
__device__ __forceinline__ constexpr int turn(int pixel)
{
    return FORMAT == TF32 ? pixel % 4 * 2 : pixel % 8;
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

struct WeightLoader {
    static constexpr int LANES = THREADS / DEPTH;  // threads of a pixel
    static constexpr int A = TILE / WIDTH / LANES, B = TILE_N / WIDTH / LANES;
    static constexpr int COLUMNS = UNIFORM ? 1 : B;  // of which this thread knows the tap
    static constexpr bool SWAPPED = LANES == 4;
    const ELEMENT *dy, *x;  // at this thread's first vector of a pixel; x only if UNIFORM
    int pixel, end;         // this thread's of the next step; the part's end
    int K, C, H, W, P, Q, stride_h, stride_w, pad_h, pad_w;
    unsigned p_mul, q_mul;
    int p_shift, q_shift;
    int last;                         // WHOLE = 0: the last vector of dy, from this thread's first
    int h[COLUMNS], w[COLUMNS];       // of a column's tap
    int distance[COLUMNS];            // of a column from the pixel's tap (0,0), in vectors
    bool one[COLUMNS];                // whether it is db's
    unsigned to_a, to_b;              // addresses in stage 0: of this thread's copies
    unsigned from_a[READS_A], from_b[READS_B];  // and of its reads

    __device__ __forceinline__ static int pixel_of_thread() { return threadIdx.x / LANES; }

    // Odd pixels take each two vectors in turned order, so that eight lanes write all banks.
    __device__ __forceinline__ static int step()
    {
        return SWAPPED && pixel_of_thread() % 2 ? -LANES : LANES;
    }

    __device__ __forceinline__ static int first_vector()
    {
        return threadIdx.x % LANES + (step() < 0 ? LANES : 0);
    }

    // Vector i of this thread, from the first.
    __device__ __forceinline__ static int vector_of_thread(int i)
    {
        return SWAPPED ? i / 2 * 2 * LANES + i % 2 * step() : i * LANES;
    }

    // The place of vector i, of the first one's: those of a turned pair differ in one bit.
    __device__ __forceinline__ static unsigned place_of(unsigned to, int i)
    {
        return SWAPPED ? (to ^ i % 2 * 64) + i / 2 * 128 : to + i * LANES * 16;
    }

    __device__ __forceinline__ void open(unsigned shared)
    {
        const int lane = threadIdx.x % 32, member = lane % 4, group = lane / 4, eighth = lane / 8;
        const int a = warp_row() / WIDTH, b = warp_column() / WIDTH;  // the warp's first vectors
        const unsigned shared_b = shared + DEPTH * PIXEL_A;
        to_a = shared + vector_place(pixel_of_thread(), first_vector(), PIXEL_A);
        to_b = shared_b + vector_place(pixel_of_thread(), first_vector(), PIXEL_B);
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
        const int line = divide(pixel, q_mul, q_shift), q = pixel - line * Q;
        const int n = divide(line, p_mul, p_shift), p = line - n * P;
        const int top = p * stride_h - pad_h, left = q * stride_w - pad_w;
        const int base = ((n * H + top) * W + left) * (C / WIDTH);
        const bool there = pixel < end;
        const ELEMENT* gradients = dy + (long long)pixel * K;
#pragma unroll
        for (int i = 0; i < A; ++i) {
            const int vector = WHOLE ? vector_of_thread(i) : min(vector_of_thread(i), last);
            copy_async(place_of(to_a + stage, i), gradients + vector * WIDTH, there);
        }
        const ELEMENT* pixels = x + (long long)base * WIDTH;
        const bool inside = (unsigned)(top + h[0]) < (unsigned)H
                            && (unsigned)(left + w[0]) < (unsigned)W && there;
#pragma unroll
        for (int i = 0; i < B; ++i) {
            const ELEMENT* from = pixels + vector_of_thread(i) * WIDTH;
            bool here = inside;
            if (!UNIFORM) {
                from = x + (long long)(base + distance[i]) * WIDTH;
                here = (unsigned)(top + h[i]) < (unsigned)H
                       && (unsigned)(left + w[i]) < (unsigned)W && there;
                if (BIAS && one[i]) from = ONE[0].v;
                if (BIAS) here = here || (one[i] && there);
            }
            copy_async(place_of(to_b + stage, i), from, here);
        }
        pixel += DEPTH;
    }

    // Half a stage is STEP pixels.
#if FORMAT == TF32
    __device__ __forceinline__ void read(Fragments& f, int stage, int half)
    {
        const unsigned a = from_a[0] + stage + half * STEP * PIXEL_A;
        const unsigned b = from_b[0] + stage + half * STEP * PIXEL_B;
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
    __device__ __forceinline__ void read(Fragments& f, int stage, int half)
    {
#pragma unroll
        for (int i = 0; i < ROWS_M; ++i)
            load_matrices_transposed(f.a[i], from_a[i] + stage + half * STEP * PIXEL_A);
#pragma unroll
        for (int j = 0; j < ROWS_N; j += 2) {
            unsigned both[4];
            load_matrices_transposed(both, from_b[j / 2] + stage + half * STEP * PIXEL_B);
            f.b[j][0] = both[0], f.b[j][1] = both[1];
            f.b[j + 1][0] = both[2], f.b[j + 1][1] = both[3];
        }
    }
#endif
};
