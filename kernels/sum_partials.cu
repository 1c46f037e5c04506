/*
sum_partials.cu: the second half of every split-K sum, which adds the partial sums.

Math      out[i] = partials[0][i] + partials[1][i] + ... + partials[splits-1][i]
Source    The two-phase reduction (split-K in CUTLASS); here it takes the place of atomic
          additions, whose order nobody fixes
Layout    out: count floats; partials: splits rows of count floats
Geometry  256 threads: `parts` of them share an element, each with `length` neighbouring splits, and
          a block has 256 / parts neighbouring elements, so a row is read in whole 32-byte sectors.
          Grid-stride loop over such blocks of elements
Traffic   The partial sums once, out once
Floor     4*count*(splits + 1) bytes / DRAM bandwidth; few elements: length / 8 trips to memory
Order     One owner per output; a part's splits ascending, then the parts ascending
Limits    splits >= 1; parts: a power of two up to 32; parts * length >= splits; offsets are 64-bit
Not here  Sums by the last of the blocks that wrote the partial ones (last_block.cuh)
*/
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256, 4) sum_partials(float* __restrict__ out,
    const float* __restrict__ partials, long long count, int splits, int parts, int length)
{
    __shared__ float sums[256];
    const int elements = 256 / parts, part = threadIdx.x / elements;
    const int begin = min(part * length, splits), end = min(begin + length, splits);
    const long long step = (long long)gridDim.x * elements;
    for (long long first = (long long)blockIdx.x * elements; first < count; first += step) {
        const long long i = first + threadIdx.x % elements;
        float sum = 0.0f;
        if (i < count && begin < end) {
            sum = partials[begin * count + i];
#pragma unroll 8
            for (int s = begin + 1; s < end; ++s) sum += partials[s * count + i];
        }
        if (parts > 1) {
            __syncthreads();  // all have read the last elements' sums
            sums[threadIdx.x] = sum;
            __syncthreads();
        }
        if (part > 0 || i >= count) continue;
        for (int other = 1; other < parts; ++other) sum += sums[other * elements + threadIdx.x];
        out[i] = sum;
    }
}
