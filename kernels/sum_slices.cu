/*
sum_slices.cu: the second half of every sum that was cut into slices.

Math      out[i] = slices[0][i] + slices[1][i] + ... + slices[number-1][i]
Source    The two-phase reduction; here it takes the place of atomic additions, whose order nobody
          fixes
Layout    out: count floats; slices: number rows of count floats
Geometry  Grid-stride loop, one thread an element; a warp reads 128 contiguous bytes of each slice
Traffic   The slices once, out once
Floor     4*count*(number + 1) bytes / DRAM bandwidth
Order     One owner per output, slices in ascending order
Limits    number >= 1; offsets are 64-bit
Not here  More than one thread an element, which few outputs of many slices would want
*/
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256, 4) sum_slices(
    float* __restrict__ out, const float* __restrict__ slices, long long count, int number)
{
    for (long long i = first_index(); i < count; i += index_step()) {
        float sum = slices[i];
#pragma unroll 4
        for (int s = 1; s < number; ++s) sum += slices[s * count + i];
        out[i] = sum;
    }
}
