/*
sum_partials.cu: the second half of every split-K sum, which adds the partial sums.

Math      out[i] = partials[0][i] + partials[1][i] + ... + partials[splits-1][i]
Source    The two-phase reduction (split-K in CUTLASS); here it takes the place of atomic
          additions, whose order nobody fixes
Layout    out: count floats; partials: splits rows of count floats
Geometry  Grid-stride loop, one thread an element; a warp reads 128 contiguous bytes of each row
Traffic   The partial sums once, out once
Floor     4*count*(splits + 1) bytes / DRAM bandwidth
Order     One owner per output, partial sums in ascending order
Limits    splits >= 1; offsets are 64-bit
Not here  More than one thread an element, which few outputs of many partial sums would want
*/
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256, 4) sum_partials(
    float* __restrict__ out, const float* __restrict__ partials, long long count, int splits)
{
    for (long long i = first_index(); i < count; i += index_step()) {
        float sum = partials[i];
#pragma unroll 4
        for (int s = 1; s < splits; ++s) sum += partials[s * count + i];
        out[i] = sum;
    }
}
