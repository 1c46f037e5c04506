/*
channels.cu: copies or adds channels of one image into another: concatenation and its gradient.

Math      copy: to[i,c] = from[i,c];  add: to[i,c] = to[i,c] + from[i,c]
Source    The concatenation of Szegedy et al. 2014 and of Huang et al. 2017
Layout    to, from: STORE (pixels, C), a pixel to_stride or from_stride elements after the one
          before: each the channels from some place on of channels-last memory
Geometry  Blocks of 256 threads, 256/lanes pixels by `lanes` threads of VEC channels; grid.x = block
          of channels, grid.y strides over the pixels
Traffic   copy: from and to once; add: from once, to twice
Floor     copy 8, add 12 * pixels * C bytes / DRAM bandwidth
Order     Element by element
Limits    pixels, C and the strides below 2^31; offsets are 64-bit
Not here  Convolutions that write their channels into the wider image themselves
Macros    STORE (of arrays: float, half16 or brain16), VEC (4, or 1 where C, a stride or an address
          is not a multiple of 4 floats)
*/
#include "channels.cuh"

extern "C" __global__ void __launch_bounds__(256, 4) copy_channels(STORE* __restrict__ to,
    const STORE* __restrict__ from, int pixels, int C, int lanes, int to_stride, int from_stride)
{
    const Tile tile(lanes);
    if (tile.c >= C) return;
    Floats<VEC> in[FLIGHT];
    each_pixel(
        tile, pixels,
        [&](long long i, int j) { in[j] = load<VEC>(from + i * from_stride + tile.c); },
        [&](long long i, int j) { store_global<VEC>(to + i * to_stride + tile.c, in[j]); });
}

extern "C" __global__ void __launch_bounds__(256, 4) add_channels(STORE* __restrict__ to,
    const STORE* __restrict__ from, int pixels, int C, int lanes, int to_stride, int from_stride)
{
    const Tile tile(lanes);
    if (tile.c >= C) return;
    Floats<VEC> in[FLIGHT], sum[FLIGHT];
    each_pixel(
        tile, pixels,
        [&](long long i, int j) {
            in[j] = load<VEC>(from + i * from_stride + tile.c);
            sum[j] = load<VEC>(to + i * to_stride + tile.c);
        },
        [&](long long i, int j) {
            for (int k = 0; k < VEC; ++k) sum[j].v[k] += in[j].v[k];
            store_global<VEC>(to + i * to_stride + tile.c, sum[j]);
        });
}
