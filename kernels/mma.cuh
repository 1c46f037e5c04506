// mma.cuh: the instructions of tensor cores and their numbers; copies.cuh has the copies that feed
// them.
//
// Macros: FORMAT (TF32, BF16 or FP16) and ELEMENT, the type that an array of such numbers has:
// float, or unsigned short for the bits of 16.
#pragma once
#include "common.cuh"
#include "copies.cuh"

#define TF32 0
#define BF16 1
#define FP16 2

constexpr int WIDTH = 16 / sizeof(ELEMENT);  // elements of a 16-byte vector
constexpr int STEP = 2 * WIDTH;              // terms of one mma: 32 bytes of a row

// Eight numbers of 16 bits, or four of 32.
struct alignas(16) Vector {
    ELEMENT v[WIDTH];
};

// base + n * bytes, as one number: the compiler would carry the parts of base into each address
// that follows from it.
__device__ __forceinline__ const char* offset(const void* base, int n, int bytes)
{
    const char* sum;
    asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(sum) : "r"(n), "r"(bytes), "l"(base));
    return sum;
}

// Four matrices of 8 rows of 16 bytes; lane 8m+r gives the address of row r of matrix m.
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], unsigned from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

__device__ __forceinline__ Floats<4> load_shared(unsigned from)
{
    Floats<4> four;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(four.v[0]), "=f"(four.v[1]), "=f"(four.v[2]), "=f"(four.v[3])
                 : "r"(from)
                 : "memory");
    return four;
}

// Surely by one instruction, as store_global.
__device__ __forceinline__ void store_shared(unsigned to, float first, float second)
{
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(first), "f"(second) : "memory");
}

// As load_matrices, each matrix transposed, of 16-bit elements.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&r)[4], unsigned from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

// sum += a b: 16 x STEP by STEP x 8 elements. Of TF32 the last 13 bits are ignored.
__device__ __forceinline__ void multiply(
    float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
#if FORMAT == TF32
#define MMA "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
#elif FORMAT == BF16
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#endif
    asm volatile(MMA " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#undef MMA
}

// The float that an element stands for; and back: rounded to nearest, 16-bit numbers to even. A
// TF32 number is stored as a float that is not rounded.
__device__ __forceinline__ float to_float(ELEMENT element)
{
#if FORMAT == TF32
    return element;
#elif FORMAT == BF16
    return __uint_as_float((unsigned)element << 16);
#else
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(element));
    return value;
#endif
}

__device__ __forceinline__ ELEMENT to_element(float value)
{
#if FORMAT == TF32
    return value;
#else
    ELEMENT element;
#if FORMAT == BF16
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(element) : "f"(value));
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(element) : "f"(value));
#endif
    return element;
#endif
}

// The element that a multiplication takes for a float: TF32 is rounded here, ties away from zero.
__device__ __forceinline__ ELEMENT to_operand(float value)
{
#if FORMAT == TF32
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
    return __uint_as_float(bits);
#else
    return to_element(value);
#endif
}
