/*
weight_transform.cu: the filters of a convolution as conv_mma.cu multiplies them: rounded, in rows
of terms.

Math      forward: filters[g,k,(r,s),c] = w[g,k,r,s,c]; backward data: filters[g,c,t,k] =
          w[g,k,r,s,c], t being the place of tap (r,s) among those ordered by stride phase
          (conv_phase.cuh). TF32 is rounded to nearest, ties away from zero, 16 bits to even
Source    CUTLASS, implicit GEMM for backward data; the phases: conv_simt.cu
Layout    w: float32 KRSC with C = channels of one group; filters: ELEMENT, rows of `padded`
          channels (backward data: filters) for each tap, zeros where w has none
Geometry  filters_forward: grid-stride, a thread an element. filters_backward: one block of 256 per
          32 channels x 32 filters (grid.x, the filters fastest) of a tap (grid.y) of a group
          (grid.z), turned in shared memory
Traffic   w once, filters once
Floor     (4 + sizeof(ELEMENT))*K*R*S*C/groups bytes / DRAM bandwidth
Order     Each element has one owner
Limits    Elements of a group's filters below 2^31; R*S, groups <= 65535
Not here  The copy of other layouts to KRSC (layout.cu)
Macros    FORMAT, ELEMENT (mma.cuh)
*/
#include "mma.cuh"

extern "C" __global__ void __launch_bounds__(256) filters_forward(ELEMENT* __restrict__ filters,
    const float* __restrict__ w, int taps, int channels, int padded)
{
    const long long count = (long long)taps * padded;
    for (long long i = first_index(); i < count; i += index_step()) {
        const long long tap = i / padded;
        const int c = (int)(i - tap * padded);
        filters[i] = to_operand(c < channels ? w[tap * channels + c] : 0.0f);
    }
}

// The place of a tap along one axis: how many taps are in the phases before its own (before), in
// its own (taps), and before it in its own (index).
struct PhasePlace {
    int before, taps, index;

    __device__ __forceinline__ PhasePlace(int tap, int pad, int stride, int dil, int all)
        : before(0), taps(0), index(0)
    {
        const int mine = ((tap * dil - pad) % stride + stride) % stride;
        for (int t = 0; t < all; ++t) {
            const int phase = ((t * dil - pad) % stride + stride) % stride;
            before += phase < mine;
            taps += phase == mine;
            index += phase == mine && t < tap;
        }
    }
};

extern "C" __global__ void __launch_bounds__(256) filters_backward(ELEMENT* __restrict__ filters,
    const float* __restrict__ w, int channels, int filters_here, int padded, int R, int S,
    int pad_h, int pad_w, int stride_h, int stride_w, int dil_h, int dil_w)
{
    __shared__ float turned[32][33];
    const int across = (padded + 31) / 32, tile = blockIdx.x / across;
    const int k0 = (blockIdx.x - tile * across) * 32, c0 = tile * 32;
    const int tap = blockIdx.y, r = tap / S, s = tap - r * S, lane = threadIdx.x % 32;
    const PhasePlace vertical(r, pad_h, stride_h, dil_h, R);
    const PhasePlace horizontal(s, pad_w, stride_w, dil_w, S);
    const int pitch = R * S * padded;
    const int place = vertical.before * S + horizontal.before * vertical.taps
                      + vertical.index * horizontal.taps + horizontal.index;
    w += (long long)blockIdx.z * filters_here * R * S * channels;
    filters += (long long)blockIdx.z * channels * pitch;
    for (int k = threadIdx.x / 32; k < 32; k += 8) {
        const bool there = k0 + k < filters_here && c0 + lane < channels;
        turned[k][lane] =
            there ? w[((long long)(k0 + k) * R * S + tap) * channels + c0 + lane] : 0.0f;
    }
    __syncthreads();
    for (int c = threadIdx.x / 32; c < 32; c += 8)
        if (c0 + c < channels && k0 + lane < padded)
            filters[(long long)(c0 + c) * pitch + place * padded + k0 + lane] =
                to_operand(turned[lane][c]);
}
