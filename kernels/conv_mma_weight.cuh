// conv_mma_weight.cuh: the operands of conv_mma_weight.cu: stages of pixels whose filters and
// columns lie one after another in memory and in shared memory.
#pragma once
// TF32 reorders what it loads, an instruction for a number: its warps have the most mma for each.
#define WARP_M (TILE == 64 && FORMAT != TF32 ? 32 : 64)
#define WARP_N (TILE_N == 64 && FORMAT != TF32 ? 32 : 64)
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
    return warp_row() + 4 * group + 32 * half + i;
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

// The first four bytes of a vector whose first element is 1.
constexpr unsigned ONE = FORMAT == TF32 ? 0x3f800000 : FORMAT == BF16 ? 0x3f80 : 0x3c00;

// As copy_async, by a predicate: of a size that several conditions choose the compiler makes a
// chain of selections.
__device__ __forceinline__ void copy_async_if(bool inside, unsigned to, const void* from)
{
    asm volatile("{ .reg .pred outside; setp.eq.u32 outside, %2, 0;"
                 " cp.async.cg.shared.global [%0], [%1], 16, outside; }" ::"r"(to),
        "l"(__cvta_generic_to_global(from)), "r"((unsigned)inside)
        : "memory");
}

// A store where `wanted` is not negative, by a predicate: of a condition the compiler would make a
// branch.
__device__ __forceinline__ void store_shared_if(int wanted, int to, const Floats<4>& four)
{
    asm volatile("{ .reg .pred wanted; setp.ge.s32 wanted, %1, 0;"
                 " @wanted st.shared.v4.f32 [%0], {%2, %3, %4, %5}; }" ::"r"(to),
        "r"(wanted), "f"(four.v[0]), "f"(four.v[1]), "f"(four.v[2]), "f"(four.v[3])
        : "memory");
}

// No row of an image and far from any; no taps, as bit 31 is none's.
constexpr int NOWHERE = -(1 << 30);
constexpr int NONE = (int)(1u << 31);  // no address: negative with a stage added too

// Where a warp owns all of a tile's columns, a thread copies for two pixels of a stage, HALF apart:
// it computes where one of them is and learns the other from its neighbour, and as there are many
// columns for each pixel, it tests them by bits.
constexpr bool PAIRED = FORMAT == TF32 && TILE_N == 64;
constexpr int PIXELS = PAIRED ? 2 : 1, HALF = DEPTH / PIXELS;

// bits << count, 0 from 32 on.
__device__ __forceinline__ unsigned shifted(unsigned bits, int count)
{
    asm("shl.b32 %0, %0, %1;" : "+r"(bits) : "r"(count));
    return bits;
}

// Bit r: whether first + r * step is one of 0 to size - 1.
__device__ __forceinline__ unsigned steps_inside(
    int first, int step, int size, unsigned mul, int shift)
{
    const int outside = divide(max(step - 1 - first, 0), mul, shift);
    const int all = divide(max(step - 1 - first + size, 0), mul, shift);
    return shifted(~0u, outside) & ~shifted(~0u, all);
}

struct WeightLoader {
    static constexpr int LANES = THREADS / HALF;  // threads of a pixel, or of two
    static constexpr int A = TILE / WIDTH / LANES, B = TILE_N / WIDTH / LANES;
    const char *dy, *x;  // at this thread's first vector: of the next step's pixel; of an image
    int x_pixel;         // bytes
    long long dy_step;
    int dy_half;     // bytes from a thread's pixel to its other one
    int pixel, end;  // this thread's of the next step; the part's end
    int H, W;
    int first_h, first_w;         // where the tile's tap (UNIFORM = 0: tap (0,0)) of pixel 0 is
    unsigned stride_h, stride_w;  // from a line or a pixel to the next
    unsigned image_h, line_w;     // and, negative, over an image or a line
    int dil_h, dil_w;
    unsigned p_mul, q_mul, dil_h_mul, dil_w_mul;
    int p_shift, q_shift, dil_h_shift, dil_w_shift;
    int vectors;  // WHOLE = 0: of dy, from this thread's first
    int h[B], w[B];  // UNIFORM = 0: where each column's tap is from (0,0); PAIRED: its bits in h
    unsigned distance[B];  // the same in bytes
    int one;               // where this thread copies db's column to in stage 0, or NONE
    unsigned to_a, to_b;   // addresses in stage 0: of this thread's copies
    unsigned from_a[READS_A], from_b[READS_B];  // and of its reads

    // Vector i of this thread is i * LANES behind its first; its place is turned by the same.
    __device__ __forceinline__ static unsigned place_of(unsigned to, int i)
    {
        return (to ^ i * LANES % 8 * 16) + i * LANES / 8 * 128;
    }

    __device__ __forceinline__ unsigned place_a(int i) const { return place_of(to_a, i); }

    // Without additions of its own where both operands' pixels are of a size.
    __device__ __forceinline__ unsigned place_b(int i) const
    {
        return TILE == TILE_N ? place_a(i) + DEPTH * PIXEL_A : place_of(to_b, i);
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

    // The bits of tap (r,s) in h.
    __device__ __forceinline__ static int tap_bits(int r, int s) { return 1 << r | 0x10000 << s; }

    // The bits of all taps that find a pixel, tap (0,0) being at (top,left).
    __device__ __forceinline__ unsigned taps_inside(int top, int left) const
    {
        const unsigned rows = steps_inside(top, dil_h, H, dil_h_mul, dil_h_shift),
                       columns = steps_inside(left, dil_w, W, dil_w_mul, dil_w_shift);
        return (rows & 0xffff) | (columns << 16 & ~(1u << 31));
    }

    __device__ __forceinline__ void fetch(int stage)
    {
        int mine = PAIRED ? pixel + threadIdx.x % 2 * HALF : pixel;
        asm("" : "+r"(mine));  // one number: the compiler would carry its products in the loop
        const int line = divide(mine, q_mul, q_shift), n = divide(line, p_mul, p_shift);
        const int top = mine < end ? line * stride_h + n * image_h + first_h : NOWHERE;
        int left = mine * stride_w + line * line_w + first_w;
        asm("" : "+r"(left));  // one number: the compiler would add its parts to each column's
        const auto inside = [&](int h, int w) {
            return (unsigned)(top + h) < (unsigned)H && (unsigned)(left + w) < (unsigned)W;
        };
        int at = (n * H + top) * W + left, taps = 0;
        if (PAIRED) taps = UNIFORM ? inside(0, 0) : taps_inside(top, left);
#pragma unroll
        for (int t = 0; t < PIXELS; ++t) {
            const bool there = pixel + t * HALF < end;
            int count = there || !PAIRED ? vectors : 0;
            if (PAIRED) asm("" : "+r"(count));  // or more answers would be kept than fit predicates
            const char* const from = t ? offset(dy, dy_half, 1) : dy;
#pragma unroll
            for (int i = 0; i < A; ++i)
                copy_async_if(WHOLE ? there : i * LANES < count && (PAIRED || there),
                    place_a(i) + stage + t * HALF * PIXEL_A, from + i * LANES * 16);
            const int seen = PAIRED ? __shfl_sync(~0u, taps, t, 2) : 0;
            const char* const pixels =
                offset(x, PAIRED ? __shfl_sync(~0u, at, t, 2) : at, x_pixel);
#pragma unroll
            for (int i = 0; i < B; ++i) {
                const unsigned to = place_b(i) + stage + t * HALF * PIXEL_B;
                if (UNIFORM)
                    copy_async_if(PAIRED ? seen : inside(0, 0), to, pixels + i * LANES * 16);
                else
                    copy_async_if(PAIRED ? (h[i] & ~seen) == 0 : inside(h[i], w[i]), to,
                        pixels + distance[i]);
            }
        }
        pixel += DEPTH;
        dy += dy_step;
    }

    // db's column, to which zeros were copied, gets its ones.
    __device__ __forceinline__ void complete(int stage) const
    {
        const Floats<4> bits = {__uint_as_float(ONE)};
        if (BIAS) store_shared_if(one, one + stage, bits);
        // by a predicate of its own: of two stores by one the compiler makes a branch
        if (BIAS && PAIRED) store_shared_if(one + stage, one + stage + HALF * PIXEL_B, bits);
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
                for (int v = 0; v < 4; ++v) f.a[v][2 * k + i] = rounded(four.v[v]);
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
