/*
partial.cu: the filters of a convolution that connects some pairs of channels only, and their
gradient.

Math      forward:  w[k,r,s,c] = links[t,r,s] with t = table[k,c], 0 where no link has that number
          backward: dlinks[t,r,s] = dw[k,r,s,c] with k*C + c = places[t], 0 where that is no pair
Source    LeCun et al. 1998, table I
Layout    w, dw: float32 (K, taps, C); links, dlinks: float32 (links, taps); table: int32 (K, C),
          the number of each pair's link or -1; places: int32 (links)
Geometry  Grid-stride loop, one thread an element: the filters of such layers are small
Traffic   Every array once
Floor     Bytes / DRAM bandwidth
Order     Nothing is added: each link is one pair's
Limits    K*taps*C below 2^31 (checked on the host)
Not here  Convolutions that skip what is not linked
*/
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256, 4)
    partial_filters_forward(float* __restrict__ w, const float* __restrict__ links,
        const int* __restrict__ table, int count, int taps, int C, int number)
{
    for (long long i = first_index(); i < count; i += index_step()) {
        const int line = (int)i / C, c = (int)i - line * C, k = line / taps, tap = line - k * taps;
        const int link = table[k * C + c];
        w[i] = link < 0 || link >= number ? 0.0f : links[(long long)link * taps + tap];
    }
}

extern "C" __global__ void __launch_bounds__(256, 4)
    partial_filters_backward(float* __restrict__ dlinks, const float* __restrict__ dw,
        const int* __restrict__ places, int count, int taps, int C, int pairs)
{
    for (long long i = first_index(); i < count; i += index_step()) {
        const int link = (int)i / taps, tap = (int)i - link * taps, pair = places[link],
                  k = pair / C, c = pair - k * C;
        const bool known = pair >= 0 && pair < pairs;
        dlinks[i] = known ? dw[((long long)k * taps + tap) * C + c] : 0.0f;
    }
}
