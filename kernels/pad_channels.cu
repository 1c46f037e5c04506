/*
pad_channels.cu: pixels whose channels are whole 16-byte vectors, as tensor cores take them, from
images of any layout.

Math      to[n,h,w,c] = from[n,c,h,w] for c < C, else 0
Source    cuDNN's requirement of channels for tensor cores
Layout    to: ELEMENT (N,H,W,padded); from: SOURCE, float32 or ELEMENT, strides in elements; a
          group's channels are padded each
Geometry  Grid-stride, a thread for WIDTH elements of a pixel, pixels fastest, so that planes of few
          channels are read in whole sectors
Traffic   from once, to once
Floor     (sizeof(SOURCE)*C + sizeof(ELEMENT)*padded)*N*H*W bytes / DRAM bandwidth
Order     Each element has one owner
Limits    Vectors of `to` below 2^31
Not here  Casts of whole arrays (cast.cu)
Macros    FORMAT, ELEMENT (mma.cuh); SOURCE (float, or ELEMENT)
*/
#include "mma.cuh"

__device__ __forceinline__ ELEMENT element_of(float value) { return to_element(value); }
__device__ __forceinline__ ELEMENT element_of(unsigned short bits) { return (ELEMENT)bits; }

extern "C" __global__ void __launch_bounds__(256) pad_channels(ELEMENT* __restrict__ to,
    const SOURCE* __restrict__ from, int pixels, int area, int groups, int channels, int vectors,
    long long stride_n, long long stride_c, long long stride_h, long long stride_w, int width,
    unsigned area_mul, int area_shift, unsigned width_mul, int width_shift, unsigned pixels_mul,
    int pixels_shift)
{
    for (long long i = first_index(); i < (long long)pixels * vectors * groups; i += index_step()) {
        const int place = divide((int)i, pixels_mul, pixels_shift), pixel = (int)i - place * pixels;
        const int group = place / vectors, first = (place - group * vectors) * WIDTH;
        const int n = divide(pixel, area_mul, area_shift), within = pixel - n * area;
        const int h = divide(within, width_mul, width_shift), w = within - h * width;
        const SOURCE* source = from + n * stride_n + h * stride_h + w * stride_w
                               + (group * channels + first) * stride_c;
        Vector vector;
        for (int v = 0; v < WIDTH; ++v)
            vector.v[v] =
                first + v < channels ? element_of(source[v * stride_c]) : to_element(0.0f);
        *(Vector*)(to + ((long long)pixel * groups * vectors + place) * WIDTH) = vector;
    }
}
