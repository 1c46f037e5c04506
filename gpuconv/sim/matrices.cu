/*
matrices.cu: the matrix instructions of a warp, all of whose lanes wait. A lane's `value` is the
address of its array of words (isa_mma.py): a, b and c of mma, or its registers and the address of
its row in shared memory. Fragment layouts: PTX ISA, "Warp-level matrix instructions". The text of
this file precedes that of runtime.cu.

Products of 16-bit and TF32 numbers are exact in double. Their sum and c are added in double and
rounded once: a GPU rounds otherwise, so results of mma do not have its bits.
*/

constexpr u32 A_WORDS = 0, B_WORDS = 4, C_WORDS = 6, ADDRESS_WORDS = 10;

static __device__ __forceinline__ u32* words_of(Thread* warp, u32 lane) {
    return (u32*)warp[lane].value;
}

static __device__ __forceinline__ unsigned short* row_of_matrix(Thread* warp, u32 row) {
    return *(unsigned short**)(words_of(warp, row) + ADDRESS_WORDS);
}

// count matrices of 8x8 16-bit elements; lane 8m+r has the address of row r of matrix m. Lane l
// holds elements 2*(l%4) and 2*(l%4)+1 of row l/4, or of column l/4 where they are transposed.
template <bool STORE, bool TRANS>
static __device__ void move_matrices(Thread* warp, u32 count) {
    for (u32 m = 0; m < count; ++m) {
#pragma unroll 1
        for (u32 lane = 0; lane < 32; ++lane) {
            unsigned short* mine = (unsigned short*)(words_of(warp, lane) + m);
            for (u32 k = 0; k < 2; ++k) {
                const u32 along = 2 * (lane % 4) + k, across = lane / 4;
                const u32 row = TRANS ? along : across, column = TRANS ? across : along;
                unsigned short* element = row_of_matrix(warp, 8 * m + row) + column;
                if (STORE) *element = mine[k]; else mine[k] = *element;
            }
        }
    }
}

// Conversions that keep subnormal numbers, as the compiler's own would not.
static __device__ __forceinline__ double exactly(float value) {
    double wide;
    asm("cvt.f64.f32 %0, %1;" : "=d"(wide) : "f"(value));
    return wide;
}

static __device__ __forceinline__ float nearest(double value) {
    float narrow;
    asm("cvt.rn.f32.f64 %0, %1;" : "=f"(narrow) : "d"(value));
    return narrow;
}

enum Format { TF32, F16, BF16 };

// Element `half` of a register: of TF32 there is one, of which the low 13 bits are not used.
template <Format FORMAT> static __device__ __forceinline__ double element(u32 word, u32 half) {
    float value;
    if (FORMAT == TF32) value = __int_as_float(word & 0xffffe000);
    if (FORMAT == BF16) value = __int_as_float(half ? word & 0xffff0000 : word << 16);
    if (FORMAT == F16) {
        const unsigned short bits = half ? word >> 16 : word & 0xffff;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    }
    return exactly(value);
}

// d = a b + c of 16x8xDEPTH, DEPTH = 8 or 16 columns of a. `registers`: of b.
template <Format FORMAT> static __device__ void multiply(Thread* warp, u32 registers) {
    constexpr u32 PACKED = FORMAT == TF32 ? 1 : 2;    // elements of a register
    const u32 depth = registers * 4 * PACKED;
    double a[16][16], b[16][8];
#pragma unroll 1
    for (u32 lane = 0; lane < 32; ++lane) {
        const u32* words = words_of(warp, lane);
        const u32 group = lane / 4, member = lane % 4 * PACKED;
#pragma unroll 1
        for (u32 r = 0; r < registers; ++r)
            for (u32 k = 0; k < PACKED; ++k) {
                const u32 column = r * 4 * PACKED + member + k;
                a[group][column] = element<FORMAT>(words[A_WORDS + 2 * r], k);
                a[group + 8][column] = element<FORMAT>(words[A_WORDS + 2 * r + 1], k);
                b[column][group] = element<FORMAT>(words[B_WORDS + r], k);
            }
    }
#pragma unroll 1
    for (u32 row = 0; row < 16; ++row) {
        double sum[8] = {};
#pragma unroll 1
        for (u32 k = 0; k < depth; ++k)
            for (u32 n = 0; n < 8; ++n) sum[n] += a[row][k] * b[k][n];
        for (u32 n = 0; n < 8; ++n) {
            float* c = (float*)words_of(warp, row % 8 * 4 + n / 2) + C_WORDS + row / 8 * 2 + n % 2;
            *c = nearest(sum[n] + exactly(*c));
        }
    }
}

static __device__ void exchange_matrices(Thread* warp) {
    // a GPU's matrix instructions keep subnormal numbers
    u32 before = 0, mode = MODE_PLAIN;
    sim_get_mode((u64)&before);
    sim_set_mode((u64)&mode);
    const u32 kind = warp->a, count = warp->b;
    if (kind == M_LOAD) move_matrices<false, false>(warp, count);
    if (kind == M_LOAD_TRANS) move_matrices<false, true>(warp, count);
    if (kind == M_STORE) move_matrices<true, false>(warp, count);
    if (kind == M_STORE_TRANS) move_matrices<true, true>(warp, count);
    if (kind == M_MMA_TF32) multiply<TF32>(warp, count);
    if (kind == M_MMA_F16) multiply<F16>(warp, count);
    if (kind == M_MMA_BF16) multiply<BF16>(warp, count);
    sim_set_mode((u64)&before);
}
