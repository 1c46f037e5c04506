// last_block.cuh: the second half of a split-K sum by whichever block arrives last, in place of a
// launch of its own.
//
// Each block writes its partial results, then draws a ticket. The block that draws the last one
// adds all partial results in ascending order, so the bits do not depend on which block that is.
// The host gives tickets that are 0; whoever draws the last sets it back to 0.
// Source: the threadFenceReduction sample of the CUDA toolkit; split-K in CUTLASS
#pragma once
#include "common.cuh"

// Whether this block is the last of `count` to draw this ticket; what the others wrote to device
// memory before is then visible to load_written_by_others. All threads of the block must call it.
__device__ __forceinline__ bool last_to_arrive(unsigned* ticket, int count)
{
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicInc(ticket, count - 1) == count - 1;
    __syncthreads();
    __threadfence();
    return last;
}

// Four floats that other blocks of this launch wrote: from the L2, where they are.
__device__ __forceinline__ Floats<4> load_written_by_others(const float* from)
{
    const float4 four = __ldcg((const float4*)from);
    return {{four.x, four.y, four.z, four.w}};
}

// Four floats of each of `count` rows, `step` floats apart, added in ascending order.
__device__ __forceinline__ Floats<4> sum_rows(const float* from, int count, long long step)
{
    Floats<4> sum = load_written_by_others(from);
#pragma unroll 8
    for (int i = 1; i < count; ++i) {
        const Floats<4> next = load_written_by_others(from + i * step);
        for (int v = 0; v < 4; ++v) sum.v[v] += next.v[v];
    }
    return sum;
}

// result(i, sum of element i..i+3 over all `rows` partial results), each of `size` floats, a
// multiple of 4, by the last of the `rows` blocks that wrote them, of which this is number `row`.
// In two steps, so that the last block does not read them all: rows are summed in groups of `group`
// to the first row of each, then those. tickets: one for each group, then one.
template <class Result>
__device__ __forceinline__ void sum_by_last_block(
    float* partials, unsigned* tickets, int row, int rows, int group, int size, Result result)
{
    const int groups = (rows + group - 1) / group, mine = row / group;
    const int members = min(group, rows - mine * group);
    float* const first = partials + (long long)mine * group * size;
    if (!last_to_arrive(tickets + mine, members)) return;
    for (int i = 4 * threadIdx.x; i < size; i += 4 * blockDim.x)
        store_global<4>(first + i, sum_rows(first + i, members, size));
    if (!last_to_arrive(tickets + groups, groups)) return;
    for (int i = 4 * threadIdx.x; i < size; i += 4 * blockDim.x)
        result(i, sum_rows(partials + i, groups, (long long)group * size));
}
